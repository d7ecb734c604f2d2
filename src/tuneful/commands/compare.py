"""`tuneful compare A B`: two sets of answers over the same items, and whether the second is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="what to compare with: a run folder, or a file of answers")],
    b: Annotated[str, typer.Argument(metavar="B", help="what is compared: a run folder, or a file of answers")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as report.confidence=0.9")
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help='exit with 3 unless these hold, such as "rouge_l>=0, forgetting<=0.05"')
    ] = None,
    output: Annotated[Path | None, typer.Option(help="a new folder for comparison.json and report.html")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="a YAML file of settings")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print errors only")] = False,
) -> None:
    """Is B better than A? Two run folders or files of answers over the same test items."""
    from tuneful.comparing import compare_answers
    from tuneful.config import load_config
    from tuneful.console import Terminal, to_stdout
    from tuneful.judge.gate import parse_gate, refuse_unmet

    named = [f"report.gate={json.dumps(gate)}"] if gate is not None else []
    settings = load_config(config, [*(overrides or []), *named])
    conditions = parse_gate(settings.report.gate)
    document, outcomes = compare_answers(a, b, settings, output, Terminal(quiet=quiet), conditions)
    if as_json:
        to_stdout(json.dumps(document, indent=1))
    refuse_unmet(outcomes)
