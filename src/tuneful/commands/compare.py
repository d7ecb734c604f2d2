"""`tuneful compare A B`: two sets of answers over the same items, and whether the second is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tuneful.commands.arguments import AnswerKey, ConfigFile, Gate, Json, Quiet, configuration


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="what to compare with: a run folder, or a file of answers")],
    b: Annotated[str, typer.Argument(metavar="B", help="what is compared: a run folder, or a file of answers")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as report.confidence=0.9")
    ] = None,
    answer_key: AnswerKey = None,
    gate: Gate = None,
    output: Annotated[Path | None, typer.Option(help="a new folder for comparison.json and report.html")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is B better than A? Two run folders or files of answers over the same test items."""
    from tuneful.comparing import compare_answers
    from tuneful.console import Terminal, to_stdout
    from tuneful.judge.gate import parse_gate, refuse_unmet

    settings = configuration(config, overrides, {"report.gate": gate})
    conditions = parse_gate(settings.report.gate)
    document, outcomes = compare_answers(a, b, settings, output, Terminal(quiet=quiet), conditions, answer_key)
    if as_json:
        to_stdout(json.dumps(document, indent=1))
    refuse_unmet(outcomes)
