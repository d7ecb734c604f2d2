"""`tuneful chat`: a conversation with a model."""

from __future__ import annotations

from typing import Annotated

import typer

from tuneful.commands.arguments import ConfigFile, Model, configuration


def chat(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as generate.temperature=0.7")
    ] = None,
    model: Model = None,
    system: Annotated[str, typer.Option(help="a system text to begin with")] = "",
    config: ConfigFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print answers and errors only")] = False,
) -> None:
    """Talk with a model: a line is a message; /help lists what else there is."""
    from tuneful import answers, chatting
    from tuneful.console import Terminal

    settings = answers.with_own_template(configuration(config, overrides, {"model.name_or_path": model}))
    terminal = Terminal(quiet=quiet)
    chatting.converse(answers.Speaker.load(settings, terminal), terminal, system=system)
