"""Macro F1 of two models' labels on the same items: both values, the difference with its interval and test, and a verdict.

Beside `metric_comparison.py`, whose verdicts these are: macro F1 is no sum over items, so it is computed anew on every
resample and under every swap (`labels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuneful.evaluation.labels import labelled, labels_of, macro_f1, macro_f1_differences, macro_f1_test
from tuneful.evaluation.metric_comparison import Bounds, concluded
from tuneful.evaluation.metric_specs import MetricSpec
from tuneful.evaluation.statistics import Array, fewest_items, interval, largest_unseen_share
from tuneful.runs.schema import CheckOutcome, MetricComparison


def compare_labels(
    spec: MetricSpec,
    base: Sequence[CheckOutcome],
    tuned: Sequence[CheckOutcome],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> MetricComparison:
    """Macro F1 over the same scored items of both models; an item is won where only the tuned answer names the right label."""
    labels = labels_of(base)
    assert labels == labels_of(tuned), "other references"
    before, after = labelled(base, labels), labelled(tuned, labels)
    change_I = (after.found == after.wanted).astype(np.float64) - (before.found == before.wanted)
    values = macro_f1(before), macro_f1(after)
    differences_B = macro_f1_differences(before, after, num_resamples, seed)
    bounds = _bounds(values[1] - values[0], differences_B, len(change_I), confidence)
    return concluded(
        spec,
        values,
        change_I,
        differences_B,
        macro_f1_test(before, after, num_resamples, seed),
        confidence,
        bounds,
    )


def _bounds(difference: float, differences_B: Array, num_items: int, confidence: float) -> Bounds:
    """The interval of the difference, within -1 to 1; not known on fewer than `fewest_items`.

    Where every resample says the same, up to `largest_unseen_share` of the items of each label may be otherwise.
    """
    if num_items < fewest_items(confidence):
        return None, None
    if np.ptp(differences_B) > 1e-12:
        low, high = interval(differences_B, num_items, confidence)
    else:
        reach = largest_unseen_share(num_items, confidence)
        low, high = difference - reach, difference + reach
    return max(-1.0, min(low, difference)), min(1.0, max(high, difference))
