"""One set of answers in numbers, for the gate of `tuneful evaluate`: its checks, its judge's scores, its nearness to references.

Stands over `checks.py`. Where two sets are compared `compare.py` gives differences; here there is a value and its interval:
Wilson's of shares, the bootstrap's of means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tuneful.evaluation.checks import score_interval
from tuneful.evaluation.gate import Condition, Figure
from tuneful.evaluation.metric_specs import METRICS, MetricSpec, item_value
from tuneful.runs.schema import AnswerScores, CheckResult, ScoreSummary

TEXT_METRICS = tuple(spec for spec in METRICS if spec.name in ("exact_match", "token_f1", "rouge_l", "chrf", "length"))
"""What is measured of any answer that has a reference."""


def need_texts(conditions: Sequence[Condition]) -> bool:
    """Whether any condition speaks of answers beside their references."""
    return any(condition.name == spec.name for condition in conditions for spec in TEXT_METRICS)


def text_figures(
    scores: Sequence[AnswerScores], *, confidence: float, num_resamples: int, seed: int
) -> dict[str, Figure]:
    """Each of `TEXT_METRICS` over answers; none of none."""
    if not scores:
        return {}
    return {spec.name: _figure(spec, scores, confidence, num_resamples, seed) for spec in TEXT_METRICS}


def _figure(
    spec: MetricSpec, scores: Sequence[AnswerScores], confidence: float, num_resamples: int, seed: int
) -> Figure:
    values = np.array([float(item_value(spec.name, one) or 0) for one in scores])
    low, high = score_interval(values, confidence, num_resamples=num_resamples, seed=seed)
    if low is None or high is None or spec.span == math.inf:
        return Figure(float(values.mean()), low, high)
    return Figure(float(values.mean()), max(0.0, low), min(spec.span, high))


def check_figures(results: Sequence[CheckResult]) -> dict[str, Figure]:
    """Each check, and of labels macro F1."""
    found = {one.name: Figure(one.value, one.low, one.high) for one in results}
    labels = [one for one in results if one.macro_f1 is not None]
    return found | {f"{one.name}_macro_f1": Figure(one.macro_f1, one.macro_f1_low, one.macro_f1_high) for one in labels}


def judge_figure(summary: ScoreSummary) -> Figure:
    """The judge's mean score."""
    return Figure(summary.mean, summary.low, summary.high)
