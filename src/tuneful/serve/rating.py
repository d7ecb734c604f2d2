"""Blind rating: which item a rater sees next, and what becomes of a choice.

    RatingDesk.view      the next item of a rater, with how far they are        RatingDesk.rate   a choice becomes a row
    RatingDesk.undo      the last choice taken back                             RatingDesk.results   all ratings in numbers

Stands under `pages.py`, over `items.py` and `ratings.py`. What the browser is told of an item never says whose answer is whose;
the choice comes back as a place, first or second, and becomes a name here.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from tuneful.errors import DataError
from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import metric_spec
from tuneful.evaluation.ratings import (
    RatedPair,
    judge_gain,
    match_ratings,
    preference_ratios,
    summarise_ratings,
    text_sha256,
)
from tuneful.runs.schema import JudgeScore, MetricComparison, PeopleSummary, RatingRow, load_rows
from tuneful.serve.items import BlindItem, TestItem, answer_names, items_for, load_answers, num_equal
from tuneful.serve.ratings import RatingStore

Choice = Literal["first", "second", "tie", "both_bad"]

MAX_RATER, MAX_REMARK = 60, 2_000
"""Characters."""
_CONFIDENCE, _NUM_RESAMPLES = 0.95, 10_000


class StaleItemError(DataError):
    """The answers have changed since the item was shown."""


@dataclass(frozen=True, slots=True)
class RatingView:
    """Where a rater is: `item` is the next one, None where all are rated; `num_equal` items have nothing to rate.

    `remark` is that of a rating that was just taken back.
    """

    item: BlindItem | None
    num_rated: int
    num_items: int
    num_equal: int
    remark: str = ""


class RatingDesk:
    """Ratings of the runs of one server; `seed` decides the orders."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._stores: dict[Path, RatingStore] = {}
        self._items: dict[tuple[Path, tuple[str, ...]], tuple[object, list[TestItem]]] = {}
        self._lock = threading.Lock()

    def store(self, run: Path) -> RatingStore:
        """The ratings of the run folder `run`; what a killed server kept and did not export is exported."""
        with self._lock:
            store = self._stores.setdefault(run, RatingStore(run))
        store.export()
        return store

    def export(self, run: Path) -> None:
        """Make ratings.jsonl of `run` anew where a rating has come since."""
        self.store(run)

    @staticmethod
    def names(run: Path) -> list[str]:
        """The sets of answers of `run`."""
        return answer_names(run)

    def items(self, run: Path, names: tuple[str, ...]) -> list[TestItem]:
        """The test items with the answers called `names`; read again where a file has changed."""
        stamp = _stamp(run)
        with self._lock:
            known = self._items.get((run, names))
        if known is None or known[0] != stamp:
            known = (stamp, load_answers(run, names))
            with self._lock:
                self._items[run, names] = known
        return known[1]

    def view(self, run: Path, rater: str, a: str, b: str) -> RatingView:
        """The next item of `rater`. DataError where the answers cannot be read, or are called otherwise."""
        a, b = sorted((a, b))
        rater = clean_rater(rater)
        items = self.items(run, (a, b))
        blind = items_for(items, rater, a, b, self._seed)
        rated = {row.source: row for row in self.store(run).rows(rater) if (row.a, row.b) == (a, b)}
        left = [one for one in blind if not _is_of(rated.get(one.item.source), one)]
        return RatingView(left[0] if left else None, len(blind) - len(left), len(blind), num_equal(items, a, b))

    def rate(self, run: Path, rater: str, a: str, b: str, digest: str, choice: Choice, remark: str) -> None:
        """Keep the choice of `rater` about the item that was shown with `digest`.

        StaleItemError where nothing is shown so any more. On disk when this returns.
        """
        a, b = sorted((a, b))
        rater = clean_rater(rater)
        blind = items_for(self.items(run, (a, b)), rater, a, b, self._seed)
        shown = next((one for one in blind if one.digest == digest), None)
        if shown is None:
            raise StaleItemError("the answers have changed since this item was shown; it was not rated")
        if len(remark) > MAX_REMARK:
            raise DataError(f"a remark has at most {MAX_REMARK:,} characters, this one has {len(remark):,}")
        self.store(run).add(_row(shown, rater, choice, remark.strip()))

    def undo(self, run: Path, rater: str, a: str, b: str) -> RatingView:
        """Take back the rater's last choice between these answers; the item it was about is the one that comes."""
        a, b = sorted((a, b))
        taken = self.store(run).undo(clean_rater(rater), a, b)
        view = self.view(run, rater, a, b)
        if taken is None:
            return view
        blind = items_for(self.items(run, (a, b)), clean_rater(rater), a, b, self._seed)
        again = next((one for one in blind if one.item.source == taken.source), view.item)
        return replace(view, item=again, remark=taken.remark)

    def results(
        self, run: Path, a: str, b: str
    ) -> tuple[PeopleSummary | None, MetricComparison | None, dict[str, int]]:
        """All ratings of the answers `a` (as base) and `b` (as tuned): the counts, the comparison, and who rated how many."""
        items = self.items(run, (a, b))
        both = [item for item in items if {a, b} <= item.answers.keys()]
        pairs = [RatedPair((item.source,), item.answers[a], item.answers[b]) for item in both]
        rows = [row for row in self.store(run).rows() if {row.a, row.b} == {a, b}]
        matched = match_ratings(rows, pairs)
        gains = _gains(run, both, a, b)
        summary = summarise_ratings(matched, gains, _CONFIDENCE, _NUM_RESAMPLES, self._seed)
        measured = preference_ratios(matched)
        raters: dict[str, int] = {}
        for rated in matched.by_item:
            for rater in rated:
                raters[rater] = raters.get(rater, 0) + 1
        if summary is None or not measured[0].denominators.any():
            return summary, None, raters
        (compared,) = compare_ratios(
            [(metric_spec("people_preference"), measured)],
            confidence=_CONFIDENCE,
            num_resamples=_NUM_RESAMPLES,
            seed=self._seed,
        )
        return summary, compared, dict(sorted(raters.items()))


def _gains(run: Path, items: Sequence[TestItem], a: str, b: str) -> list[float | None]:
    """How much higher a judge scored the answer `b` of each item than `a`; None where it scored none or one."""
    files = (run / "scores" / f"{name}.jsonl" for name in (a, b))
    before, after = ({row.source: row.score for row in load_rows(JudgeScore, file) or ()} for file in files)
    return [judge_gain(before.get(item.source), after.get(item.source)) for item in items]


def clean_rater(name: str) -> str:
    """A rater's name as it is kept: composed, without needless spaces; DataError where it is empty, long or unprintable."""
    found = " ".join(unicodedata.normalize("NFC", name).split())
    if not 0 < len(found) <= MAX_RATER or not found.isprintable():
        raise DataError(f"a rater's name has 1 to {MAX_RATER} printable characters")
    return found


def _is_of(row: RatingRow | None, blind: BlindItem) -> bool:
    """Whether a rating is of the texts that the item holds now."""
    texts = (blind.item.answers[blind.a], blind.item.answers[blind.b])
    return row is not None and (row.a_sha256, row.b_sha256) == tuple(map(text_sha256, texts))


def _row(shown: BlindItem, rater: str, choice: Choice, remark: str) -> RatingRow:
    other: Mapping[str, Literal["a", "b"]] = {"a": "b", "b": "a"}
    preference = shown.first if choice == "first" else other[shown.first] if choice == "second" else choice
    return RatingRow(
        source=shown.item.source,
        rater=rater,
        a=shown.a,
        b=shown.b,
        preference=preference,
        shown_first=shown.first,
        remark=remark,
        rated=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        a_sha256=text_sha256(shown.item.answers[shown.a]),
        b_sha256=text_sha256(shown.item.answers[shown.b]),
    )


def _stamp(run: Path) -> Any:
    """What changes when the answers do."""
    files = (run / "run.json", run / "data" / "test.jsonl", *sorted((run / "answers").glob("*.jsonl")))
    return tuple((file.name, stat.st_mtime_ns, stat.st_size) for file in files if (stat := _stat(file)) is not None)


def _stat(file: Path) -> Any:
    try:
        return file.stat()
    except OSError:
        return None
