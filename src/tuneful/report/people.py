"""The people section: what those who rated both answers blind preferred, how far they agree, and what they remarked.

Feeds `sections.py`. Of a run it counts the rows of ratings.jsonl anew, as people rate after the run is finished; of a folder that
`tuneful compare` wrote it shows what comparison.json says.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import metric_spec
from tuneful.evaluation.ratings import (
    MatchedRatings,
    RatedPair,
    in_words,
    judge_gain,
    match_ratings,
    preference_ratios,
    summarise_ratings,
)
from tuneful.numbers import known
from tuneful.report.folder import Run
from tuneful.report.scores import ScoreRow, rows_of
from tuneful.runs.schema import Comparison, MetricComparison, PeopleSummary, RatingRow

_NUM_RESAMPLES = 10_000
_NO_COMPARISON = Comparison(0, 0.95, _NUM_RESAMPLES, 0, "", 0.0, None, ())
_MAX_REMARKS = 50
_SAID = {"tie": "as good", "both_bad": "both bad"}


@dataclass(frozen=True, slots=True)
class People:
    """The ratings in sentences, the preference as a line of scores, and remarks as (source, who preferred what, remark)."""

    sentence: str
    first: str
    rows: tuple[ScoreRow, ...]
    remarks: tuple[tuple[str, str, str], ...]


def view_people(run: Run, sides: tuple[str, str]) -> People | None:
    """Lay out what people rated; None where nobody did."""
    comparison = run.comparison or _NO_COMPARISON
    summary, metric = comparison.people, comparison.measured("people_preference")
    if summary is None:
        summary, metric = _counted(run, comparison)
    if summary is None:
        return None
    first = summary.first_preferred
    return People(
        sentence=in_words(summary, _confidence(comparison), sides),
        first=""
        if first is None
        else f"What stood first was preferred in {first:.0%} of the ratings with a preference.",
        rows=rows_of((metric,), comparison, "people") if metric else (),
        remarks=tuple(_remark(row) for row in run.ratings if row.remark)[:_MAX_REMARKS],
    )


def _counted(run: Run, comparison: Comparison) -> tuple[PeopleSummary | None, MetricComparison | None]:
    """The ratings of the run's own answers, in numbers."""
    base = {row.source: row.text for row in run.base}
    pairs = [RatedPair((row.source,), base[row.source], row.text) for row in run.tuned if row.source in base]
    matched = match_ratings(run.ratings, pairs)
    judged = [{row.source: row.score for row in run.scores.get(name, ())} for name in ("base", "tuned")]
    gains = [judge_gain(*(scores.get(pair.sources[0]) for scores in judged)) for pair in pairs]
    drawn = (_confidence(comparison), comparison.num_resamples or _NUM_RESAMPLES, comparison.seed)
    return summarise_ratings(matched, gains, *drawn), _preference(matched, *drawn)


def _confidence(comparison: Comparison) -> float:
    """Of the intervals; the usual one where the file does not say."""
    return comparison.confidence if known(comparison.confidence) else _NO_COMPARISON.confidence


def _preference(matched: MatchedRatings, confidence: float, num_resamples: int, seed: int) -> MetricComparison | None:
    if not any(matched.by_item):
        return None
    measured = [(metric_spec("people_preference"), preference_ratios(matched))]
    (found,) = compare_ratios(measured, confidence=confidence, num_resamples=num_resamples, seed=seed)
    return found


def _remark(row: RatingRow) -> tuple[str, str, str]:
    preferred = {"a": row.a, "b": row.b}.get(row.preference) or _SAID.get(row.preference, row.preference)
    return row.source, f"{row.rater}: {preferred}", row.remark
