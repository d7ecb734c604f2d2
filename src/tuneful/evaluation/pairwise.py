"""Three or more models on the same items: every pair compared, corrected for the number of pairs, and who can be told apart.

    AnsweredSet of each side -> items that all of them answer -> Comparison a pair -> PairwiseComparison

Stands over `compare.py`, which compares each pair as it would alone, but with intervals at 1 - (1 - confidence) / pairs
(Bonferroni), so that all of them hold together; p-values are corrected by Holm's procedure (1979). A verdict needs both, so among
equal models there is any false one with a probability of at most 1 - confidence, whatever their number. The correction is for
pairs; metrics are not corrected for one another, as in a comparison of two. The trade: with many sides much stays "cannot tell".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

from tuneful.errors import DataError
from tuneful.evaluation.answered import Answered, AnsweredSet, items_of_all
from tuneful.evaluation.metric_comparison import metric_verdict
from tuneful.evaluation.metric_specs import label_in_sentence
from tuneful.evaluation.statistics import holm
from tuneful.numbers import plural
from tuneful.runs.schema import (
    AnswerScores,
    Comparison,
    MetricComparison,
    MetricVerdict,
    PairOfSides,
    PairwiseComparison,
    PairwiseMetric,
    Side,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MIN_BEYOND = 10  # resamples beyond each end of an interval
_NUMBERS = ("", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

Pair = tuple[int, int]
"""Two sides by their places, the first lower."""


def pairs_of(num_sides: int) -> list[Pair]:
    """Every pair of sides, in order."""
    return list(combinations(range(num_sides), 2))


def pair_confidence(confidence: float, num_pairs: int) -> float:
    """The confidence of each of `num_pairs` intervals that hold together at `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / num_pairs


def enough_resamples(num_resamples: int, confidence: float) -> int:
    """`num_resamples`, or as many more as put ten of them beyond each end of an interval at `confidence`."""
    return max(num_resamples, math.ceil(2 * _MIN_BEYOND / (1 - confidence)))


def shared_items(sides: Sequence[AnsweredSet]) -> list[tuple[Answered, ...]]:
    """The items that every side answers, side by side; what one side has not measured of an item counts for none of them.

    DataError where sides that answer have no item in common.
    """
    shared = items_of_all([side.items for side in sides])
    if not shared[0] and any(side.items for side in sides):
        counts = ", ".join(f"{side.name} ({len(side.items):,})" for side in sides)
        raise DataError(
            f"no item that all sides answer, of {counts}: the same instruction, input and reference must stand in each"
        )
    columns = [_measured_by_all(row) for row in zip(*shared, strict=True)]
    return [tuple(column[place] for column in columns) for place in range(len(sides))]


def compare_pairwise(
    sides: Sequence[Side], found: Mapping[Pair, Comparison], *, confidence: float
) -> PairwiseComparison:
    """Put the comparisons of all pairs together, each made at `pair_confidence`, and correct them for their number."""
    assert list(found) == pairs_of(len(sides)), list(found)
    letters = [side.letter for side in sides]
    first = next(iter(found.values()))
    names = [one.name for one in (*first.metrics, *first.forgetting)]
    measured = [name for name in names if all(one.measured(name) is not None for one in found.values())]
    if not measured:
        raise DataError("no metric was measured for all sides: compare them two by two")
    metrics = tuple(
        _metric({pair: _named(one, name) for pair, one in found.items()}, letters, confidence) for name in measured
    )
    headline = first.headline if first.headline in measured else measured[0]
    compared = PairwiseComparison(
        sides=tuple(sides),
        confidence=confidence,
        pair_confidence=first.confidence,
        num_resamples=first.num_resamples,
        seed=first.seed,
        headline=headline,
        metrics=metrics,
        caution=_caution(found, letters),
    )
    return replace(compared, sentence=_sentence(compared))


def _measured_by_all(row: tuple[Answered, ...]) -> tuple[Answered, ...]:
    """One item as every side answers it: of its scores, those that all of them have."""
    scores = [one.scores for one in row]
    missing: dict[str, Any] = {
        field.name: None for field in fields(AnswerScores) if any(getattr(one, field.name) is None for one in scores)
    }
    return tuple(replace(one, kind=None, scores=replace(one.scores, **missing)) for one in row)


def _named(comparison: Comparison, name: str) -> MetricComparison:
    metric = comparison.measured(name)
    assert metric is not None, name
    return metric


def _metric(found: Mapping[Pair, MetricComparison], letters: Sequence[str], confidence: float) -> PairwiseMetric:
    one = next(iter(found.values()))
    corrected = corrected_p_values([metric.p_value for metric in found.values()])
    pairs = tuple(
        _pair(metric, letters[base], letters[tuned], p_value, confidence)
        for ((base, tuned), metric), p_value in zip(found.items(), corrected, strict=True)
    )
    last = len(letters) - 1
    values = [found[place, last].base for place in range(last)] + [found[0, last].tuned]
    metric = PairwiseMetric(
        one.name, one.label, one.unit, one.higher_is_better, tuple(values), pairs, groups(letters, pairs), ""
    )
    return replace(metric, sentence=in_words(metric, letters))


def corrected_p_values(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values corrected for their number (Holm); a pair without a test counts as one, and has none."""
    corrected = holm([1.0 if one is None else one for one in p_values])
    return [None if given is None else one for given, one in zip(p_values, corrected, strict=True)]


def _pair(metric: MetricComparison, base: str, tuned: str, p_corrected: float | None, confidence: float) -> PairOfSides:
    verdict: MetricVerdict = "cannot tell"
    if p_corrected is not None:
        verdict = metric_verdict(metric.low, metric.high, p_corrected, metric.higher_is_better, confidence)
    return PairOfSides(
        base=base,
        tuned=tuned,
        num_items=metric.num_items,
        difference=metric.difference,
        low=metric.low,
        high=metric.high,
        wins=metric.wins,
        losses=metric.losses,
        ties=metric.ties,
        p_value=metric.p_value,
        p_corrected=p_corrected,
        detectable=metric.detectable,
        verdict=verdict,
    )


def groups(letters: Sequence[str], pairs: Sequence[PairOfSides]) -> tuple[tuple[str, ...], ...]:
    """The largest sets of two sides or more of which no two can be told apart (Bron & Kerbosch 1973), in order."""
    alike: dict[str, set[str]] = {letter: set() for letter in letters}
    for pair in pairs:
        if pair.verdict == "cannot tell":
            alike[pair.base].add(pair.tuned)
            alike[pair.tuned].add(pair.base)

    def grown(group: frozenset[str], left: set[str], done: set[str]) -> list[frozenset[str]]:
        if not left and not done:
            return [group]
        pivot = max(left | done, key=lambda letter: len(alike[letter] & left))  # whose neighbours come with it
        found: list[frozenset[str]] = []
        for letter in sorted(left - alike[pivot]):
            found += grown(group | {letter}, left & alike[letter], done & alike[letter])
            left, done = left - {letter}, done | {letter}
        return found

    largest = [tuple(sorted(group, key=letters.index)) for group in grown(frozenset(), set(letters), set())]
    return tuple(
        sorted((group for group in largest if len(group) > 1), key=lambda group: list(map(letters.index, group)))
    )


# Words


def in_words(metric: PairwiseMetric, letters: Sequence[str]) -> str:
    """`C is better than A and B; A and B cannot be told apart`: who is told from whom, the best first."""
    higher = metric.higher_is_better is not False
    order = [
        letter for _, letter in sorted(zip(metric.values, letters, strict=True), key=lambda one: one[0], reverse=higher)
    ]
    beaten: dict[str, list[str]] = {letter: [] for letter in order}
    for pair in metric.pairs:
        if pair.verdict != "cannot tell":
            is_first = (pair.difference > 0) == higher
            beaten[pair.tuned if is_first else pair.base].append(pair.base if is_first else pair.tuned)
    word = "higher than" if metric.higher_is_better is None else "better than"
    said = []
    for letter, losers in beaten.items():
        if losers:
            named = "all others" if len(losers) == len(letters) - 1 > 1 else listed(sorted(losers, key=letters.index))
            said.append(f"{letter} is {word} {named}")
    for group in metric.groups:
        if len(group) == len(letters):
            return f"these {_number(len(group))} cannot be told apart: {listed(group)}"
        said.append(f"{listed(group)} cannot be told apart")
    return "; ".join(said)


def _sentence(compared: PairwiseComparison) -> str:
    main = compared.main
    items = plural(max(pair.num_items for pair in main.pairs), "test item")
    text = f"By {label_in_sentence(main)} on {items}, {main.sentence}."
    detectable = [pair.detectable for pair in main.pairs if pair.detectable is not None]
    if detectable and all(pair.verdict == "cannot tell" for pair in main.pairs):
        text += f" A true difference of {max(detectable):.3g} between two would show in 4 of 5 such tests."
    text += f" This allows for there being {len(main.pairs)} pairs."
    return text + (f" Caution: {compared.caution}." if compared.caution else "")


def _caution(found: Mapping[Pair, Comparison], letters: Sequence[str]) -> str | None:
    """What weakens the intervals: of all pairs, or of those that are named."""
    said: dict[str, list[str]] = {}
    for (base, tuned), comparison in found.items():
        if comparison.caution:
            said.setdefault(comparison.caution, []).append(f"{letters[tuned]} against {letters[base]}")
    parts = [text if len(pairs) == len(found) else f"{listed(pairs)}: {text}" for text, pairs in said.items()]
    return "; ".join(parts) or None


def listed(parts: Sequence[str]) -> str:
    """`A, B and C`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f" and {parts[-1]}"


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)
