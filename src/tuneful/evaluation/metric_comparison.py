"""One metric of two models on the same items: both values, the difference with its interval and test, and a verdict.

Stands under `compare.py` and `forgetting.py`, over `statistics.py`. Pairing takes the difficulty of the items out of the
comparison. The trade: a verdict needs both the interval and the test, so it errs towards "cannot tell" (false ones: at most
1 - confidence, measured by `benchmarks/coverage.py`), and each metric has its own interval, without a correction for their
number.

Legend of shapes: B resamples, I items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tuneful.evaluation.metric_specs import MetricSpec
from tuneful.evaluation.statistics import (
    Array,
    PermutationTest,
    Ratio,
    detectable_difference,
    fewest_items,
    influences,
    interval,
    largest_unseen_share,
    permutation_tests,
    resampled_differences,
    with_average_items,
    with_pseudo_counts,
)
from tuneful.runs.schema import MetricComparison, MetricVerdict

RatioPair = tuple[Ratio, Ratio]
"""A metric of the base model and of the tuned one, over the same items."""
Bounds = tuple[float, float] | tuple[None, None]
"""The ends of an interval; (None, None) where it is not known."""


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
        _compared(spec, pair, differences_B, test, confidence, seed)
        for (spec, pair), differences_B, test in zip(measured, differences, tests, strict=True)
    ]


def metric_verdict(
    low: float | None, high: float | None, p_value: float, higher_is_better: bool | None, confidence: float
) -> MetricVerdict:
    """What an interval and a test say together: anything but "cannot tell" needs both."""
    if low is None or high is None or low <= 0 <= high or p_value > 1 - confidence + 1e-12:
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
    spec: MetricSpec, pair: RatioPair, differences_B: Array, test: PermutationTest, confidence: float, seed: int
) -> MetricComparison:
    base, tuned = pair
    there_I = (base.denominators > 0) & (tuned.denominators > 0)
    bounds = _interval(spec, pair, differences_B, int(there_I.sum()), confidence, seed)
    change_I = tuned.numerators[there_I] / tuned.denominators[there_I]
    change_I = change_I - base.numerators[there_I] / base.denominators[there_I]
    return concluded(spec, (base.value(), tuned.value()), change_I, differences_B, test, confidence, bounds)


def concluded(
    spec: MetricSpec,
    values: tuple[float, float],
    change_I: Array,
    differences_B: Array,
    test: PermutationTest,
    confidence: float,
    bounds: Bounds,
) -> MetricComparison:
    """What is told of a metric whose `values` are base's and tuned's: `change_I` of each measured item, `differences_B` of each
    resample, `bounds` of the difference."""
    num_items, difference = len(change_I), values[1] - values[0]
    low, high = bounds
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
        detectable=None if low is None else detectable_difference(differences_B, num_items, confidence),
        verdict=metric_verdict(low, high, test.p_value, spec.higher_is_better, confidence),
    )


def _interval(
    spec: MetricSpec, pair: RatioPair, differences_B: Array, num_items: int, confidence: float, seed: int
) -> Bounds:
    """The interval of the difference, within what the metric can be; (None, None) where it is not known.

    It is not known on fewer than `fewest_items`, nor where no item changed and the metric has no range. Where no item of a
    metric with a range changed, up to `largest_unseen_share` of all items may, by anything.
    """
    base, tuned = pair
    difference = tuned.value() - base.value()
    if num_items < fewest_items(confidence):
        return None, None
    if spec.formula == "share":
        # Their pseudo-counts say more about what was not seen than the shape of what was.
        low, high = interval(differences_B, num_items, confidence)
    else:
        shape_I = influences(base, tuned)
        if np.ptp(shape_I) > 1e-12 * max(1.0, float(np.abs(shape_I).max())):
            low, high = interval(differences_B, num_items, confidence, shape_I)
        elif abs(difference) > 1e-12:
            (differences_B,) = resampled_differences([with_average_items(base, tuned)], len(differences_B), seed)
            low, high = interval(differences_B, num_items, confidence)
        elif math.isfinite(spec.span):
            reach = spec.span * largest_unseen_share(num_items, confidence)
            low, high = -reach, reach
        else:
            return None, None
    return max(-spec.span, min(low, difference)), min(spec.span, max(high, difference))
