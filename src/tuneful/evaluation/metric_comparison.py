"""One metric of two models on the same items: both values, the difference with its interval and test, and a verdict.

Stands under `compare.py` and `forgetting.py`, over `statistics.py`. Pairing takes the difficulty of the items out of the
comparison. The trade: a verdict needs both the interval and the test, so it errs towards "cannot tell" (false ones: at most
1 - confidence, measured by `benchmarks/coverage.py`), and each metric has its own interval, without a correction for their
number.

Legend of shapes: B resamples, I items.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuneful.evaluation.metric_specs import MetricSpec
from tuneful.evaluation.statistics import (
    Array,
    PermutationTest,
    Ratio,
    detectable_difference,
    influences,
    interval,
    permutation_tests,
    resampled_differences,
    with_pseudo_counts,
)
from tuneful.runs.schema import MetricComparison, MetricVerdict

RatioPair = tuple[Ratio, Ratio]
"""A metric of the base model and of the tuned one, over the same items."""


def compare_ratios(
    measured: Sequence[tuple[MetricSpec, RatioPair]], *, confidence: float, num_resamples: int, seed: int
) -> list[MetricComparison]:
    """Interval, test and verdict for each pair of measures; all pairs are over the same items, in the same order."""
    differences = _resampled(measured, num_resamples, seed)
    # Swapping an item's two answers changes the sign of its change; the denominators are the same for both models.
    tests = permutation_tests(
        [tuned.numerators - base.numerators for _, (base, tuned) in measured], num_resamples, seed
    )
    return [
        _compared(spec, pair, differences_B, test, confidence)
        for (spec, pair), differences_B, test in zip(measured, differences, tests, strict=True)
    ]


def metric_verdict(
    low: float, high: float, p_value: float, higher_is_better: bool | None, confidence: float
) -> MetricVerdict:
    """What an interval and a test say together: anything but "cannot tell" needs both."""
    if low <= 0 <= high or p_value > 1 - confidence + 1e-12:
        return "cannot tell"
    if higher_is_better is None:
        return "changed"
    return "better" if (low > 0) == higher_is_better else "worse"


def _resampled(measured: Sequence[tuple[MetricSpec, RatioPair]], num_resamples: int, seed: int) -> list[Array]:
    """Tuned - base on every resample, an array [B] a pair; shares are drawn with their pseudo-counts."""
    differences: dict[int, Array] = {}
    for is_share in (False, True):
        chosen = [index for index, (spec, _) in enumerate(measured) if (spec.formula == "share") is is_share]
        pairs = [with_pseudo_counts(*measured[index][1]) if is_share else measured[index][1] for index in chosen]
        if pairs:
            differences.update(zip(chosen, resampled_differences(pairs, num_resamples, seed), strict=True))
    return [differences[index] for index in range(len(measured))]


def _compared(
    spec: MetricSpec, pair: RatioPair, differences_B: Array, test: PermutationTest, confidence: float
) -> MetricComparison:
    base, tuned = pair
    there_I = (base.denominators > 0) & (tuned.denominators > 0)
    change_I = tuned.numerators[there_I] / tuned.denominators[there_I]
    change_I = change_I - base.numerators[there_I] / base.denominators[there_I]
    # Shares have their pseudo-counts, which say more about what was not seen than the shape of what was.
    shape_I = None if spec.formula == "share" else influences(base, tuned)
    return concluded(spec, (base.value(), tuned.value()), change_I, differences_B, test, confidence, shape_I)


def concluded(
    spec: MetricSpec,
    values: tuple[float, float],
    change_I: Array,
    differences_B: Array,
    test: PermutationTest,
    confidence: float,
    influences_I: Array | None = None,
) -> MetricComparison:
    """What is told of a metric whose `values` are base's and tuned's: `change_I` of each measured item, `differences_B` of each
    resample, `influences_I` as for `interval`."""
    num_items, difference = len(change_I), values[1] - values[0]
    low, high = interval(differences_B, num_items, confidence, influences_I)
    low, high = min(low, difference), max(high, difference)
    num_up, num_down = int((change_I > 0).sum()), int((change_I < 0).sum())
    wins, losses = (num_down, num_up) if spec.higher_is_better is False else (num_up, num_down)
    return MetricComparison(
        name=spec.name,
        label=spec.label,
        unit=spec.unit,
        higher_is_better=spec.higher_is_better,
        num_items=num_items,
        base=values[0],
        tuned=values[1],
        difference=difference,
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        ties=num_items - wins - losses,
        p_value=test.p_value,
        p_is_exact=test.is_exact,
        detectable=detectable_difference(differences_B, num_items, confidence),
        verdict=metric_verdict(low, high, test.p_value, spec.higher_is_better, confidence),
    )
