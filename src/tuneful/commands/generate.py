"""`tuneful generate`: a model answers one prompt, or every record of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import END_OF_INPUT, ConfigFile, Json, Model, Quiet, configuration, with_model
from tuneful.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.data.in_memory import Data
    from tuneful.runs.schema import AnswerRow
    from tuneful.types import Answer, Conversation


def generate(
    prompts: str | Conversation | Sequence[str | Conversation],
    *,
    model: Any = None,
    config: Config | None = None,
    terminal: Terminal | None = None,
) -> list[Answer]:
    """The answers of the model of `config` to `prompts`: instructions, or conversations whose last response is wanted.

    One answer a prompt, in order. `model` is a name, a folder or a run, or (model, tokenizer) of transformers, in place of
    `config`'s. Raises InputError where the model cannot be loaded or a prompt does not fit its context.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.infer.session import LoadedModel, question
    from tuneful.types import Conversation

    asked = [prompts] if isinstance(prompts, (str, Conversation)) else list(prompts)
    loaded = LoadedModel.load(with_model(config, model) or Config(), (terminal or Terminal(quiet=True)).say)
    return loaded.answer([question("", (), one) if isinstance(one, str) else one for one in asked])


def generate_file(
    data: Data, output: Path, *, config: Config | None = None, terminal: Terminal | None = None
) -> list[AnswerRow]:
    """The model's answers to every record of `data`, written to `output` as JSONL; its rows.

    What an earlier process has answered of the same request is taken as it is. Raises ConfigError where `output` is there.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.data.in_memory import as_names
    from tuneful.data.notes import refused_in_words
    from tuneful.data.read import read_data
    from tuneful.infer.file import answer_all
    from tuneful.infer.session import LoadedModel

    config, terminal = config or Config(), terminal or Terminal(quiet=True)
    file = read_data(as_names(data), config.data, objective=config.train.objective, asks=True)
    if output.exists():
        raise ConfigError(f"{output}: already exists; give another --output, or remove it")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: its folder does not exist")
    for note in file.notes:
        terminal.say(note.text, style="dim")
    loaded = LoadedModel.load(config, terminal.say)
    conversations = [record.conversation for record in file.records]
    with terminal.progress("answers", len(conversations), "answers") as advance:
        rows = answer_all(
            loaded.model,
            loaded.encoder,
            conversations,
            config.generate,
            output,
            seed=config.train.seed,
            advance=advance,
        )
    for line in refused_in_words([(one.source, one.reason) for one in file.refused], len(file.refused)):
        terminal.say(line, style="yellow")
    terminal.say(f"{len(rows) + len(file.refused)} rows = {len(rows)} answered + {len(file.refused)} refused: {output}")
    return rows


def generate_command(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as generate.temperature=0.7")
    ] = None,
    model: Model = None,
    data: Annotated[str | None, typer.Option(help="a file of records to answer, or `starter`")] = None,
    prompt: Annotated[str | None, typer.Option(help="one instruction to answer (default: standard input)")] = None,
    input_text: Annotated[str, typer.Option("--input", help="the input that goes with --prompt")] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="where the answers of --data go, one JSON row each; a killed one goes on"),
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer one prompt, or every record of a file."""
    from tuneful.console import Terminal, json_to_stdout, pieces_to_stdout
    from tuneful.infer.file import answer_row
    from tuneful.infer.session import LoadedModel, question
    from tuneful.runs.schema import as_row

    settings = configuration(config, overrides, {"model.name_or_path": model})
    terminal = Terminal(quiet=quiet)
    if data is not None:
        if prompt is not None:
            raise ConfigError("--data and --prompt are two ways of asking; give one of them")
        if output is None:
            raise ConfigError("--data needs --output FILE.jsonl for its answers")
        if input_text:
            raise ConfigError("--input goes with --prompt; the records of --data bring their own")
        rows = generate_file(data, output, config=settings, terminal=terminal)
        if as_json:
            json_to_stdout({"answers": str(output), "num_answers": len(rows)})
        return
    if output is not None:
        raise ConfigError("--output is for the answers of --data; the answer to a prompt goes to standard output")
    asked = question("", (), prompt if prompt is not None else _standard_input(), input_text)
    loaded = LoadedModel.load(settings, terminal.say)
    if as_json:
        json_to_stdout(as_row(answer_row(loaded.answer([asked])[0])))
    else:
        pieces_to_stdout(loaded.stream(asked))


def _standard_input() -> str:
    if sys.stdin.isatty():
        print(f"Instruction, then {END_OF_INPUT}:", file=sys.stderr)
    text = sys.stdin.read().strip()
    if not text:
        raise InputError("nothing was asked: give --prompt TEXT, --data FILE, or an instruction on standard input")
    return text
