"""`tuneful evaluate`: a judge grades answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tuneful.commands.arguments import AnswerKey, ConfigFile, Json, Quiet, configuration


def evaluate(
    answers: Annotated[
        Path, typer.Argument(metavar="ANSWERS", help="a run folder, an answers file, or any JSON or JSONL with answers")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as judge.concurrency=8")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="ollama/NAME, openai/MODEL, gguf:FILE or model:FOLDER (judge.model)")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="the folder for scores and replies (default: the run that the answers belong to)"),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="score, rubric or pairwise (judge.protocol)")] = None,
    answer_key: AnswerKey = None,
    against: Annotated[Path | None, typer.Option(help="the other answers of a pairwise comparison")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="first find out whether this judge can judge")] = False,
    ratings: Annotated[
        Path | None, typer.Option(help="JSONL of `source` and `rating` by people, to hold the judge against")
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a judge grade answers, every item scored or counted as unscored."""
    from tuneful import evaluating
    from tuneful.console import Terminal, to_stdout

    settings = configuration(config, overrides, {"judge.model": judge, "judge.protocol": protocol})
    document = evaluating.evaluate(
        answers,
        settings,
        output,
        Terminal(quiet=quiet),
        answer_key=answer_key,
        against=against,
        ratings=ratings,
        calibrate=calibrate,
    )
    if as_json:
        to_stdout(json.dumps(document, indent=1))
