"""The section about training records: which of them pushed the model towards its answers, and away from them.

Feeds `sections.py` from explain.json, where `tuneful explain` has written one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneful.numbers import known, plural
from tuneful.report.paths import without_folders
from tuneful.runs.schema import ExplainedItem, Explanation, InfluentialRecord

MAX_ITEMS, MAX_RECORDS = 20, 5


@dataclass(frozen=True, slots=True)
class RecordLine:
    """A training record: its score and cosine, where it was read, what was asked and what it answers."""

    score: str
    cosine: str
    source: str
    asked: str
    response: str


@dataclass(frozen=True, slots=True)
class ItemView:
    """A test item with what is explained of it, which of its tokens count the most, and its records on either side."""

    name: str
    asked: str
    text: str
    raised: str
    towards: tuple[RecordLine, ...]
    away: tuple[RecordLine, ...]


@dataclass(frozen=True, slots=True)
class Explained:
    """The items in sentences and lines; `notes` say what is approximated."""

    sentence: str
    what: str
    items: tuple[ItemView, ...]
    notes: tuple[str, ...]


def view_explained(found: Explanation | None) -> Explained | None:
    """Lay out what was explained; None where nothing was."""
    if found is None or not found.items:
        return None
    what = "reference" if found.of == "reference" else "answer"
    return Explained(
        sentence=f"Of {plural(found.num_records, 'training record')} compared, those whose gradients point the way of the "
        f"{what}, or against it, for {plural(len(found.items), 'test item')}. Scores have no unit: compare those of one "
        "item.",
        what=what,
        items=tuple(map(_item, found.items[:MAX_ITEMS])),
        notes=tuple(f"{note[:1].upper()}{note[1:]}." for note in found.notes),
    )


def _item(item: ExplainedItem) -> ItemView:
    towards, away = (tuple(map(_line, records[:MAX_RECORDS])) for records in (item.towards, item.away))
    raised = ", ".join(f"{token.text!r} {token.nats:+.1f}" for token in item.raised)
    return ItemView(f"{item.number}. {without_folders(item.source)}", item.asked, item.text, raised, towards, away)


def _line(record: InfluentialRecord) -> RecordLine:
    score, cosine = (
        f"{value:+.{digits}}" if known(value) else "?"
        for value, digits in ((record.score, "2g"), (record.cosine, "2f"))
    )
    return RecordLine(score, cosine, without_folders(record.source), record.text, record.response)
