"""`tuneful explain RUN`: which training records pushed the model towards its answers, and away from them.

RUN/explain.json   RUN/explain/ (features of the training records, for the next question)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tuneful.commands.options import Json, Quiet

if TYPE_CHECKING:
    from tuneful.console import Terminal
    from tuneful.runs.schema import ExplainedItem, Explanation, InfluentialRecord


@dataclass(frozen=True, slots=True)
class ExplainResult:
    """What was found for the items that were asked about; `path` is explain.json, which may hold more items."""

    path: Path
    explanation: Explanation

    def __repr__(self) -> str:
        return f"ExplainResult({str(self.path)!r}, {len(self.items)} items)"

    @property
    def items(self) -> tuple[ExplainedItem, ...]:
        """The items, in the order of the test set."""
        return self.explanation.items

    def as_dict(self) -> dict[str, Any]:
        """The document of `--json`."""
        from tuneful.runs.schema import as_row

        return as_row(self.explanation)


def explain(
    run: str | Path,
    *,
    item: int | str | Sequence[int | str] = (),
    num: int = 10,
    of: Literal["answer", "reference"] = "answer",
    rank_by: Literal["score", "cosine"] = "cosine",
    projection_dim: int = 4096,
    terminal: Terminal | None = None,
) -> ExplainResult:
    """The training records that pushed the model of the folder `run` towards its answer to a test `item` (a number from 1, or a
    source), and away from it; without an item, of the twenty worst answers.

    `num` records are named on each side, by their `cosine` or their `score`. Each token of an answer counts by how much training
    raised it. Writes explain.json. Raises InputError where the folder has not what it takes, ModelError where an adapter's base
    is gone.
    """
    from tuneful.console import Terminal
    from tuneful.runs.explain import DOCUMENT, explain_run
    from tuneful.runs.explained_items import Request

    terminal = terminal or Terminal(quiet=True)
    names = (item,) if isinstance(item, (int, str)) else item
    request = Request(tuple(map(str, names)), num, of, rank_by, projection_dim)
    found = explain_run(Path(run), request, terminal)
    _show(found, terminal)
    return ExplainResult(Path(run) / DOCUMENT, found)


def explain_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    item: Annotated[
        list[str] | None,
        typer.Option(
            help="a test item, by its number from 1 or its source; repeated for several (default: the twenty worst)"
        ),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="records that are named on each side")] = 10,
    of: Annotated[str, typer.Option(help="what is explained: the tuned model's answer, or the reference")] = "answer",
    rank_by: Annotated[
        str, typer.Option(help="cosine (how alike the gradients are) or score (what training on a record did)")
    ] = "cosine",
    projection_dim: Annotated[int, typer.Option(min=1, help="numbers that a gradient is projected to")] = 4096,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which training records pushed the model towards its answers, and away from them?"""
    from tuneful.console import Terminal, to_stdout
    from tuneful.errors import InputError

    for option, value, known in (("--of", of, ("answer", "reference")), ("--rank-by", rank_by, ("score", "cosine"))):
        if value not in known:
            raise InputError(f"{option}: {value!r}, expected {' or '.join(known)}")
    result = explain(
        run_dir,
        item=item or (),
        num=num,
        of=of,  # type: ignore[arg-type]
        rank_by=rank_by,  # type: ignore[arg-type]
        projection_dim=projection_dim,
        terminal=Terminal(quiet=quiet),
    )
    if as_json:
        to_stdout(json.dumps(result.as_dict(), indent=1))


_SOURCE_WIDTH = 20


def _show(found: Explanation, terminal: Terminal) -> None:
    """Print each item with the records that stand out for it, a line each."""
    for one in found.items:
        terminal.heading(f"Item {one.number}, {one.source}")
        for name, text in (("asked", one.asked), (found.of, one.text)):
            terminal.say(f"  {name:>9}  {_line(text, terminal, 13)}")
        if one.raised:
            tokens = ", ".join(f"{token.text!r} {token.nats:+.1f}" for token in one.raised)
            terminal.say(f"  {'raised':>9}  {_line(f'{tokens} nats', terminal, 13)}")
        for name, records in (("towards", one.towards), ("away", one.away)):
            terminal.say(f"{name:>9}    cosine  {'record':<{_SOURCE_WIDTH}}", style="dim")
            for record in records:
                terminal.say(_record(record, terminal), wrap=False)
            if not records:
                terminal.say("           none")
    terminal.say()
    terminal.say(
        f"scores have no unit, compare them within an item; of {found.num_records:,} records, {found.num_trained:,} trained on",
        style="dim",
    )
    for note in found.notes:
        terminal.say(f"  {note}", style="dim")


def _record(record: InfluentialRecord, terminal: Terminal) -> str:
    source = record.source if len(record.source) <= _SOURCE_WIDTH else f"...{record.source[3 - _SOURCE_WIDTH :]}"
    begin = f"{record.score:>+9.2g}    {record.cosine:>+6.2f}  {source:<{_SOURCE_WIDTH}}  "
    return begin + _line(f"{record.text} > {record.response}", terminal, len(begin))


def _line(text: str, terminal: Terminal, taken: int) -> str:
    """`text` on one line of the terminal, of which `taken` columns are taken."""
    room = max(20, min(terminal.console.width, 120) - taken)
    line = " ".join(text.split()) or "(empty)"
    return line if len(line) <= room else line[: room - 4] + " ..."
