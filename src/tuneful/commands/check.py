"""`tuneful check DATA`: what would be trained, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tuneful.commands.arguments import ConfigFile, Json, Model, Quiet, configuration, data_and_settings


def check(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA... KEY=VALUE...",
            help="files of records, patterns, a Hub id, or `starter`; then settings, such as data.max_length=2048",
        ),
    ] = None,
    model: Model = None,
    config: ConfigFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="end with 3 where anything was found")] = False,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT.jsonl", help="write a new file with the safe mends applied")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="records that should not be among DATA, such as a benchmark (repeatable)"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What would be trained, and what is wrong with it, before a step is taken."""
    from tuneful import checking
    from tuneful.console import Terminal, to_stdout

    data, overrides = data_and_settings(arguments)
    data = data or ["starter"]
    settings = configuration(config, overrides, {"model.name_or_path": model})
    result = checking.check(data, settings, against or [], fix, Terminal(quiet=quiet or as_json))
    if as_json:
        to_stdout(json.dumps(result.as_dict(), ensure_ascii=False, indent=1))
    elif not quiet:
        checking.show(result, Terminal(stderr=False))
    if strict and result.audit.num_findings:
        raise typer.Exit(3)
