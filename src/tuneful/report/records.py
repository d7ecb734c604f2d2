"""Lists the training records that a person should look at: those most likely mislabelled, and those that are memorised.

Feeds `sections.py` from records.jsonl, where training wrote what each record cost (`train/progress.py` says how the
outlier_score is made). Both lists are short: all of it is in the file, a million records or not.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from tuneful.report.answers import question, reference
from tuneful.report.folder import Json, Run, text
from tuneful.report.numbers import count, fixed, plural, significant
from tuneful.runs.schema import RecordLoss

MAX_LISTED = 20
LEAST_SUSPICION = 3.0
"""Spreads above its peers from which a record is worth a person's time."""


@dataclass(frozen=True, slots=True)
class RecordView:
    """One record of a list, its figures in words."""

    source: str
    figures: str
    instruction: str
    input: str
    answer: str


@dataclass(frozen=True, slots=True)
class RecordsView:
    """Both lists; `sentence` says how many there are of either."""

    sentence: str
    suspects: tuple[RecordView, ...]
    memorised: tuple[RecordView, ...]


def view_records(run: Run) -> RecordsView:
    """Pick the records to list, and put their texts beside their figures."""
    doubtful = [row for row in run.records if row.outlier_score is not None and row.outlier_score >= LEAST_SUSPICION]
    learned = [row for row in run.records if row.memorised and row.loss_first is not None]
    suspects = heapq.nlargest(MAX_LISTED, doubtful, key=lambda row: row.outlier_score or 0.0)
    memorised = heapq.nlargest(MAX_LISTED, learned, key=lambda row: (row.loss_first or 0.0) * row.num_targets)
    texts = _texts(run.trained(), [row.source for row in (*suspects, *memorised)])
    return RecordsView(
        sentence=f"Of {plural(len(run.records), 'training record')}, {count(len(doubtful))} stayed far harder than the records "
        f"that begin like them, and {count(len(learned))} are memorised.",
        suspects=tuple(_view(row, texts, f"{fixed(row.outlier_score, 1)} spreads above its peers") for row in suspects),
        memorised=tuple(_view(row, texts, "") for row in memorised),
    )


def _texts(trained: Iterable[Json], wanted: list[str]) -> dict[str, Json]:
    missing = set(wanted)
    found = {}
    for row in trained:
        if (source := text(row, "source")) in missing:
            found[source] = row
            missing.remove(source)
    return found


def _view(row: RecordLoss, texts: dict[str, Json], said: str) -> RecordView:
    record = texts.get(row.source, {})
    instruction, given = question(record)
    losses = (
        ("before", row.loss_before),
        ("first sight", row.loss_first),
        ("last sight", row.loss_last),
        ("after", row.loss_after),
    )
    way = " → ".join(f"{name} {significant(loss)}" for name, loss in losses if loss is not None)
    return RecordView(row.source, " · ".join(filter(None, (said, way))), instruction, given, reference(record))
