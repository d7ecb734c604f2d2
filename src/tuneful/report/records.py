"""The records section: the training records that a person should read, possible label errors and memorised ones.

Feeds `sections.py` from records.jsonl, where training wrote the losses of each record (`train/progress.py` says how the
outlier score is made). The trade: both lists are short; every record is in the file.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from tuneful.encoding.documents import CHUNK_MARK
from tuneful.numbers import count, fixed, plural, significant
from tuneful.report.answers import question, reference
from tuneful.report.folder import Json, Run, text
from tuneful.runs.schema import RecordLoss

MAX_LISTED = 20
MIN_OUTLIER_SCORE = 3.0
"""The outlier score from which a record is listed."""


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
    outliers: tuple[RecordView, ...]
    memorised: tuple[RecordView, ...]


def view_records(run: Run) -> RecordsView:
    """Pick the records to list, and put their texts beside their figures."""
    known = [row for row in run.records if row.outlier_score is not None and _was_seen_again(row)]
    outliers = [row for row in known if (row.outlier_score or 0.0) >= MIN_OUTLIER_SCORE]
    memorised = [row for row in run.records if row.memorised and row.loss_first is not None]
    sentence = f"{_outliers_in_words(run, known, len(outliers))} {count(len(memorised))} are memorised."
    outliers = heapq.nlargest(MAX_LISTED, outliers, key=lambda row: row.outlier_score or 0.0)
    memorised = heapq.nlargest(MAX_LISTED, memorised, key=lambda row: (row.loss_first or 0.0) * row.num_targets)
    texts = _texts(run.trained(), [row.source for row in (*outliers, *memorised)])
    return RecordsView(
        sentence=sentence,
        outliers=tuple(_view(row, texts, f"outlier score {fixed(row.outlier_score, 1)}") for row in outliers),
        memorised=tuple(_view(row, texts, "") for row in memorised),
    )


def _was_seen_again(row: RecordLoss) -> bool:
    """Whether training was over the record before its loss was last computed; earlier versions scored others, too."""
    return row.loss_after is not None or row.last_step > row.first_step


def _outliers_in_words(run: Run, known: list[RecordLoss], num_outliers: int) -> str:
    records = plural(len(run.records), "training record")
    if not known:
        return (
            f"Which of {records} stayed harder than the records that begin like them cannot be told: none was seen twice. A "
            "second pass (train.num_train_epochs=2) or report.record_losses=all tells it."
        )
    num_seen = sum(map(_was_seen_again, run.records))
    some = f"Of {records}" if num_seen == len(run.records) else f"Of {count(num_seen)} of {records}, those seen twice"
    return f"{some}, {count(num_outliers)} stayed far harder than the records that begin like them."


def _texts(trained: Iterable[Json], wanted: list[str]) -> dict[str, Json]:
    missing = {source.partition(CHUNK_MARK)[0] for source in wanted}
    found = {}
    for row in trained:
        if (source := text(row, "source")) in missing:
            found[source] = row
            missing.remove(source)
    return found


def _view(row: RecordLoss, texts: dict[str, Json], score: str) -> RecordView:
    record = texts.get(row.source.partition(CHUNK_MARK)[0], {})
    instruction, given = question(record)
    losses = (
        ("before", row.loss_before),
        ("first visit", row.loss_first),
        ("last visit", row.loss_last),
        ("after", row.loss_after),
    )
    path = " → ".join(f"{name} {significant(loss)}" for name, loss in losses if loss is not None)
    return RecordView(row.source, " · ".join(filter(None, (score, path))), instruction, given, reference(record))
