"""Macro F1 of two models' labels on the same items: both values, the difference with its interval and test, and a verdict.

Beside `metric_comparison.py`, whose verdicts these are: macro F1 is no sum over items, so it is computed anew on every
resample and under every swap (`labels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuneful.evaluation.labels import labelled, labels_of, macro_f1, macro_f1_differences, macro_f1_test
from tuneful.evaluation.metric_comparison import concluded
from tuneful.evaluation.metric_specs import MetricSpec
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
    return concluded(
        spec,
        (macro_f1(before), macro_f1(after)),
        change_I,
        macro_f1_differences(before, after, num_resamples, seed),
        macro_f1_test(before, after, num_resamples, seed),
        confidence,
    )
