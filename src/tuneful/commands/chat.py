"""`tuneful chat`: a conversation with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def chat(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as generate.temperature=0.7")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="a folder, a Hub id, a .gguf file, or the built-in smollm2-135m-instruct")
    ] = None,
    system: Annotated[str, typer.Option(help="a system text to begin with")] = "",
    config: Annotated[Path | None, typer.Option("--config", help="a YAML file of settings")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print answers and errors only")] = False,
) -> None:
    """Talk with a model: a line is a message; /help lists what else there is."""
    from tuneful import answers, chatting
    from tuneful.config import load_config
    from tuneful.console import Terminal

    named = [f"model.name_or_path={json.dumps(model)}"] if model is not None else []
    settings = answers.with_own_template(load_config(config, [*(overrides or []), *named]))
    terminal = Terminal(quiet=quiet)
    chatting.converse(answers.Speaker.load(settings, terminal), terminal, system=system)
