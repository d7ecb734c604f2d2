"""A model answers one prompt or a whole file, outside any run: what `tuneful generate` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.data.chat_template import OWN, load_template
from tuneful.data.encode import Encoder, TextEncoder
from tuneful.data.prepare import make_encoder
from tuneful.data.read import read_data
from tuneful.data.template import TEMPLATE_FILE, TEMPLATES
from tuneful.errors import ConfigError
from tuneful.infer.generate import answer
from tuneful.model.builtin import cache_root
from tuneful.model.load import load_model
from tuneful.model.precision import cast_parameters, choose_device, choose_dtype
from tuneful.rundir import answer_row, json_line, write_text
from tuneful.types import Answer, Conversation, Turn


def with_own_template(config: Config) -> Config:
    """`config`, with the template that its model was trained with where the model's folder names one.

    A template that was asked for by name stays; ConfigError where the folder's file is damaged.
    """
    file = Path(config.model.name_or_path) / TEMPLATE_FILE
    if not file.is_file() or config.template.model_fields_set & {"name", "file"}:
        return config
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["template"]
    except (ValueError, KeyError, TypeError):
        name = None
    if name not in (*TEMPLATES, OWN):
        raise ConfigError(f"{file}: names no known template; give template.name={'|'.join((*TEMPLATES, OWN))}")
    return config.model_copy(update={"template": config.template.model_copy(update={"name": name})})


def write_own_template(folder: Path, name: str) -> None:
    """Name in a model's folder the template that it was trained with."""
    write_text(folder / TEMPLATE_FILE, json.dumps({"template": name}) + "\n")


def answer_one(instruction: str, input_text: str, config: Config, terminal: Terminal) -> Answer:
    """The model's answer to one instruction."""
    # The response stands for the one that is asked for: a prompt is rendered without it.
    asked = Conversation("", (Turn(instruction, input_text, "?"),), "prompt")
    model, encoder = _load(config, terminal)
    return answer(model, encoder, [asked], config.generate, seed=config.train.seed)[0]


def answer_file(data: str, config: Config, output: Path, terminal: Terminal) -> list[dict[str, Any]]:
    """The model's answers to every record of `data`, written to `output` as JSONL; its rows."""
    file = read_data(data, config.data)
    records = file.records
    if output.exists():
        raise ConfigError(f"{output}: already exists; give another --output, or remove it")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: its folder does not exist")
    model, encoder = _load(config, terminal)
    with terminal.progress("answers", len(records), "answers") as advance:
        answers = answer(
            model,
            encoder,
            [record.conversation for record in records],
            config.generate,
            seed=config.train.seed,
            advance=advance,
        )
    rows = [answer_row(given) for given in answers]
    write_text(output, "".join(map(json_line, rows)))
    for refusal in file.refused[:3]:
        terminal.say(f"refused {refusal.source}: {refusal.reason}", style="yellow")
    terminal.say(f"{len(rows) + len(file.refused)} rows = {len(rows)} answered + {len(file.refused)} refused: {output}")
    return rows


def _load(config: Config, terminal: Terminal) -> tuple[Any, Encoder]:
    device = choose_device(config.model.device)
    pretrained = load_model(config.model.name_or_path, terminal.say)
    cast_parameters(pretrained.model, choose_dtype(config.model.dtype, device, cache_root()))
    text = TextEncoder(pretrained.tokenizer, load_template(config.template, pretrained.tokenizer))
    return pretrained.model.to(device), make_encoder(text, config.data)
