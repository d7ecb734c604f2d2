"""A judge against people: the pairs of answers that people rated blind, and how far a judge prefers the same ones.

Stands over `evaluation/ratings.py`, for `tuneful evaluate RUN`: `rated_items` are what calibration puts to the judge,
`judge_against_people` compares the scores that it gave anyway. Grades of single answers (`--ratings`) are in `agreement.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuneful.evaluation.ratings import MatchedRatings, RatedPair, judge_agreement, match_ratings
from tuneful.judge.items import AnswerSet
from tuneful.judge.protocols import Item, Preference
from tuneful.runs.schema import RaterAgreement, RatingRow
from tuneful.types import Verdict


@dataclass(frozen=True, slots=True)
class RatedItem:
    """Two answers to one task, the item's and its rival's, and which of them most people preferred."""

    item: Item
    preferred: Preference


def rated_items(sets: Sequence[AnswerSet], ratings: Sequence[RatingRow]) -> list[RatedItem]:
    """The items of a run whose two answers people have rated with a majority; `sets` are base and tuned, or their pairs."""
    items = pairs_of(sets)
    found = zip(items, _matched(items, ratings).majority(), strict=True)
    return [
        RatedItem(item, "won" if preferred == "tuned" else "lost")
        for item, preferred in found
        if preferred in ("base", "tuned")
    ]


def judge_against_people(
    sets: Sequence[AnswerSet],
    verdicts: Mapping[str, Sequence[Verdict]],
    ratings: Sequence[RatingRow],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> RaterAgreement | None:
    """How far the judge that gave `verdicts` on `sets` prefers what most people did; None where no item has both."""
    items = pairs_of(sets)
    scores = [{one.source: one.score for one in verdicts[each.name]} for each in sets]
    gains: list[float | None] = []
    for item in items:
        *before, after = (each.get(item.source) for each in scores)
        rival = before[0] if before else 50.0  # a pairwise score of 50 is a tie
        gains.append(None if after is None or rival is None else after - rival)
    return judge_agreement(
        _matched(items, ratings), gains, confidence=confidence, num_resamples=num_resamples, seed=seed
    )


def pairs_of(sets: Sequence[AnswerSet]) -> list[Item]:
    """The tuned answers of a run, each with the base model's as its rival; none where `sets` are no two answers to each task."""
    if len(sets) == 2:
        rivals = {item.source: item.answer for item in sets[0].items}
        return [replace(item, rival=rivals[item.source]) for item in sets[1].items if item.source in rivals]
    return [item for item in sets[0].items if item.rival is not None] if len(sets) == 1 else []


def _matched(items: Sequence[Item], ratings: Sequence[RatingRow]) -> MatchedRatings:
    return match_ratings(ratings, [RatedPair((item.source,), item.rival or "", item.answer) for item in items])
