"""What people rated: rows of ratings.jsonl become preferences for one of two answers, item by item.

    ratings.jsonl -> load_ratings -> match_ratings (which answer is base's, which tuned's) -> preferences, summarise_ratings

Stands over `rater_agreement.py`, for `tuneful compare`, the report, and `tuneful evaluate`. A rating is of two texts and knows
them by their hashes: whoever compares two sets of answers finds the ratings of exactly these, whatever the files are called,
and ratings of answers that have changed since are counted and left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from tuneful.evaluation.rater_agreement import rater_agreement
from tuneful.evaluation.statistics import Ratio
from tuneful.numbers import plural
from tuneful.runs.schema import AnswerScores, PeopleSummary, RaterAgreement, RatingRow, load_rows

RATINGS = "ratings.jsonl"

Preferred = Literal["base", "tuned", "tie", "both_bad"]

_SHARES: Mapping[Preferred, float] = {"base": 0.0, "tuned": 1.0, "tie": 0.5, "both_bad": 0.5}


@dataclass(frozen=True, slots=True)
class RatedPair:
    """Two answers to one item that are compared; `sources` are the names that its record has, one or more."""

    sources: tuple[str, ...]
    base: str
    tuned: str


@dataclass(frozen=True, slots=True)
class MatchedRatings:
    """For each pair what each rater preferred; `num_left_out` ratings are of other answers. `first_preferred` holds for each
    rating with a preference whether it was for what stood first."""

    by_item: tuple[Mapping[str, Preferred], ...]
    num_left_out: int = 0
    first_preferred: tuple[bool, ...] = field(default=())

    def shares(self) -> list[float | None]:
        """How far the tuned answer of each pair was preferred, 0 to 1, the mean over raters; None where nobody rated."""
        return [
            sum(_SHARES[preferred] for preferred in item.values()) / len(item) if item else None
            for item in self.by_item
        ]

    def majority(self) -> list[Preferred | None]:
        """What the raters of each pair preferred on the whole: `tie` where neither answer got more; None where nobody rated."""
        return [
            None if share is None else "tie" if share == 0.5 else "tuned" if share > 0.5 else "base"
            for share in self.shares()
        ]


def text_sha256(text: str) -> str:
    """The hash by which a rating knows a text: the first 16 digits of its sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def load_ratings(run: Path) -> list[RatingRow]:
    """The ratings of the run folder `run`; none where nobody rated. DataError where the file is damaged."""
    return load_rows(RatingRow, run / RATINGS) or []


def match_ratings(ratings: Iterable[RatingRow], pairs: Sequence[RatedPair]) -> MatchedRatings:
    """The ratings of `pairs`, each turned so that `base` and `tuned` are those of the pair.

    A rater's later rating of the same texts counts, should there be two.
    """
    place = {
        (source, *sorted((text_sha256(pair.base), text_sha256(pair.tuned)))): index
        for index, pair in enumerate(pairs)
        for source in pair.sources
    }
    found: list[dict[str, Preferred]] = [{} for _ in pairs]
    first: dict[tuple[int, str], bool] = {}
    num_left_out = 0
    for row in ratings:
        index = place.get((row.source, *sorted((row.a_sha256, row.b_sha256))))
        if index is None:
            num_left_out += 1
            continue
        found[index][row.rater] = _turned(row, a_is_base=row.a_sha256 == text_sha256(pairs[index].base))
        if row.preference in ("a", "b"):
            first[index, row.rater] = row.preference == row.shown_first
    return MatchedRatings(tuple(found), num_left_out, tuple(first.values()))


def _turned(row: RatingRow, *, a_is_base: bool) -> Preferred:
    if row.preference == "tie" or row.preference == "both_bad":
        return row.preference
    return "base" if (row.preference == "a") == a_is_base else "tuned"


def summarise_ratings(
    matched: MatchedRatings,
    judge_gains: Sequence[float | None],
    confidence: float,
    num_resamples: int,
    seed: int,
) -> PeopleSummary | None:
    """The ratings in numbers; None where there is none of these answers and none was left out.

    `judge_gains` are the judge's scores of the tuned answers less those of the base's, None where it gave none.
    """
    counts = Counter(preferred for item in matched.by_item for preferred in item.values())
    if not counts and not matched.num_left_out:
        return None
    first = matched.first_preferred
    return PeopleSummary(
        num_raters=len({rater for item in matched.by_item for rater in item}),
        num_ratings=counts.total(),
        num_items=sum(map(bool, matched.by_item)),
        num_left_out=matched.num_left_out,
        base_preferred=counts["base"],
        tuned_preferred=counts["tuned"],
        ties=counts["tie"],
        both_bad=counts["both_bad"],
        first_preferred=sum(first) / len(first) if first else None,
        agreement=rater_agreement(matched.by_item, confidence=confidence, num_resamples=num_resamples, seed=seed),
        judge=judge_agreement(matched, judge_gains, confidence=confidence, num_resamples=num_resamples, seed=seed),
    )


def judge_agreement(
    matched: MatchedRatings, gains: Sequence[float | None], *, confidence: float, num_resamples: int, seed: int
) -> RaterAgreement | None:
    """A judge, who prefers the answer with the higher score, against the majority of the people; None where no item has both."""
    items = [
        {"people": preferred, "judge": _by_gain(gain)}
        for preferred, gain in zip(matched.majority(), gains, strict=False)
        if preferred is not None and gain is not None
    ]
    return rater_agreement(items, confidence=confidence, num_resamples=num_resamples, seed=seed)


def judge_gain(base: float | None, tuned: float | None) -> float | None:
    """How much higher a judge scored the second answer; None where it scored none or one."""
    return None if base is None or tuned is None else tuned - base


def _by_gain(gain: float) -> Preferred:
    return "tie" if gain == 0 else "tuned" if gain > 0 else "base"


def preference_ratios(matched: MatchedRatings) -> tuple[Ratio, Ratio]:
    """How far base's and tuned's answers were preferred, as shares over the rated items: what `compare_ratios` takes."""
    shares = matched.shares()
    there = np.array([float(share is not None) for share in shares])
    tuned = np.array([share or 0.0 for share in shares])
    return Ratio(there - tuned, there), Ratio(tuned, there)


def with_preferences(
    base: Sequence[AnswerScores], tuned: Sequence[AnswerScores], matched: MatchedRatings
) -> tuple[list[AnswerScores], list[AnswerScores]]:
    """The scores of both models with what people preferred: the metric `people_preference`."""
    shares = matched.shares()
    return (
        [
            replace(one, people_preference=None if share is None else 1 - share)
            for one, share in zip(base, shares, strict=True)
        ],
        [replace(one, people_preference=share) for one, share in zip(tuned, shares, strict=True)],
    )


def in_words(people: PeopleSummary, confidence: float, sides: tuple[str, str]) -> str:
    """The ratings in sentences; `sides` are what the two answers are called."""
    said = (
        f"{plural(people.num_raters, 'person', 'people')} gave {plural(people.num_ratings, 'rating')} of "
        f"{plural(people.num_items, 'item')}: {people.base_preferred} for {sides[0]}, {people.tuned_preferred} for {sides[1]}, "
        f"{people.ties} as good, {people.both_bad} both bad."
    )
    if people.agreement is not None:
        said += f" The raters agree with {kappa_in_words(people.agreement, confidence)}."
    if people.judge is not None:
        said += f" The judge agrees with most of them with {kappa_in_words(people.judge, confidence)}."
    if people.num_left_out:
        said += f" Left out: {plural(people.num_left_out, 'rating')} of other answers than these."
    return said


def kappa_in_words(agreement: RaterAgreement, confidence: float) -> str:
    """An agreement inside a sentence: kappa with its interval, the share of equal ratings, and over how many items."""
    on_items = f"on {plural(agreement.num_items, 'item')}"
    if agreement.kappa is None:
        kappa = f"no {agreement.statistic}: too few items, or all rated alike"
    elif agreement.low is None or agreement.high is None:
        kappa = f"{agreement.statistic} {agreement.kappa:.2f} (interval not known)"
    else:
        interval = f"{100 * confidence:g} % interval {agreement.low:.2f} to {agreement.high:.2f}"
        kappa = f"{agreement.statistic} {agreement.kappa:.2f} ({interval})"
    share = "" if agreement.share is None else f", in {agreement.share:.0%} of the pairs of ratings"
    return f"{kappa}{share}, {on_items}"
