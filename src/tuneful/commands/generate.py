"""`tuneful generate`: a model answers one prompt, or every record of a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tuneful.commands.arguments import ConfigFile, Json, Model, Quiet, configuration
from tuneful.errors import ConfigError, InputError


def generate(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as generate.temperature=0.7")
    ] = None,
    model: Model = None,
    data: Annotated[str | None, typer.Option(help="a file of records to answer, or `starter`")] = None,
    prompt: Annotated[str | None, typer.Option(help="one instruction to answer (default: standard input)")] = None,
    input_text: Annotated[str, typer.Option("--input", help="the input that goes with --prompt")] = "",
    output: Annotated[
        Path | None, typer.Option(help="where the answers of --data go, one JSON row each; a killed one goes on")
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer one prompt, or every record of a file."""
    from tuneful import answers
    from tuneful.console import Terminal, pieces_to_stdout, to_stdout
    from tuneful.rundir import answer_row

    settings = answers.with_own_template(configuration(config, overrides, {"model.name_or_path": model}))
    terminal = Terminal(quiet=quiet)
    if data is not None:
        if prompt is not None:
            raise ConfigError("--data and --prompt are two ways of asking; give one of them")
        if output is None:
            raise ConfigError("--data needs --output FILE.jsonl for its answers")
        if input_text:
            raise ConfigError("--input goes with --prompt; the records of --data bring their own")
        rows = answers.answer_file(data, settings, output, terminal)
        if as_json:
            to_stdout(json.dumps({"answers": str(output), "num_answers": len(rows)}))
        return
    if output is not None:
        raise ConfigError("--output is for the answers of --data; the answer to a prompt goes to standard output")
    instruction = prompt if prompt is not None else _standard_input()
    speaker = answers.Speaker.load(settings, terminal)
    if as_json:
        to_stdout(json.dumps(answer_row(speaker.answer(instruction, input_text)), ensure_ascii=False))
    else:
        pieces_to_stdout(speaker.stream("", (), instruction, input_text))


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("Instruction, then Ctrl-D:", file=sys.stderr)
    text = sys.stdin.read().strip()
    if not text:
        raise InputError("nothing was asked: give --prompt TEXT, --data FILE, or an instruction on standard input")
    return text
