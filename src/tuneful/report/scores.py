"""The scores section: the comparison as a table of both means, their difference, and its interval in figures and as a drawing.

Feeds `sections.py`. Drawings are turned so that better is always to the right, in either good direction of a measure; figures
never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tuneful.numbers import THIN, UNKNOWN, count, decimals_for, fixed, plain, plural, signed
from tuneful.report import charts
from tuneful.report.folder import Comparison, Metric


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A line of a table of measures; `tone` is `better`, `worse`, `changed` or `unclear`."""

    label: str
    aim: str
    base: str
    tuned: str
    difference: str
    interval: str
    wins: str
    losses: str
    ties: str
    verdict: str
    chance: str
    tone: str
    plot: Markup


@dataclass(frozen=True, slots=True)
class Scores:
    """The table of metrics and the sentences on how it was computed."""

    rows: tuple[ScoreRow, ...]
    method: str
    power: str
    has_aimless: bool


@dataclass(frozen=True, slots=True)
class Kinds:
    """The table of kinds of task, by one measure."""

    rows: tuple[ScoreRow, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The table of the loss on general text, and the sentence above it."""

    rows: tuple[ScoreRow, ...]
    sentence: str


def view_scores(comparison: Comparison) -> Scores:
    """Lay out the comparison as a table."""
    return Scores(
        rows=_rows(comparison.metrics, comparison, "interval"),
        method=_method(comparison),
        power=_power(comparison),
        has_aimless=any(metric.higher_is_better is None for metric in comparison.metrics),
    )


def view_kinds(comparison: Comparison) -> Kinds:
    """Lay out the kinds of task as a table, those that lost most last."""
    measure = main_metric(comparison)
    label = measure.label if measure else "the main measure"
    kinds = sorted(comparison.kinds, key=lambda kind: -(kind.difference or 0.0))
    return Kinds(
        rows=_rows(kinds, comparison, "kind", lambda kind: plural(kind.num_items or 0, "test item")),
        sentence=f"{label} for each kind of task that the records name. Verdicts allow for there being "
        f"{count(len(kinds))} of them: looked at one by one, one kind in twenty would seem changed by chance.",
    )


def view_forgetting(comparison: Comparison) -> Forgetting:
    """Lay out the loss on general text before and after."""
    found = comparison.forgetting
    what = {
        "forgetting": f"{plural(found[0].num_items or 0, 'passage')} of text that the training never showed"
        if found
        else "",
        "kl_to_base": "samples that the base model itself wrote",
    }
    shown = " and ".join(what[metric.name] for metric in found if metric.name in what)
    return Forgetting(
        rows=_rows(found, comparison, "general", _what_it_is),
        sentence=f"The same {shown}, read by the model before and after. Fewer bits mean that it expects the text better; "
        "what it needs more than before, it has forgotten.",
    )


def main_metric(comparison: Comparison) -> Metric | None:
    """The measure that stands for the others on the page: the comparison's own headline, else the first."""
    metrics = comparison.metrics
    return next((metric for metric in metrics if metric.name == comparison.headline), metrics[0] if metrics else None)


def chance(metric: Metric) -> str:
    """The p-value as a person reads it, `p < 0.001`; empty where there is none."""
    if metric.p_value is None:
        return ""
    return "p < 0.001" if metric.p_value < 0.001 else f"p = {metric.p_value:.3f}"


def _of_how_many(metric: Metric, comparison: Comparison) -> str:
    """`; 123 of 131 items`, where a measure of the test set does not cover all of it."""
    is_partial = metric in comparison.metrics and metric.num_items not in (None, comparison.num_items)
    return f"; {count(metric.num_items)} of {plural(comparison.num_items or 0, 'item')}" if is_partial else ""


def _what_it_is(metric: Metric) -> str:
    if metric.name == "kl_to_base":
        return (
            "bits per token of the base model’s own writing; how far the model has moved, which is no fault in itself"
        )
    return f"{metric.unit}, lower is better"


def _power(comparison: Comparison) -> str:
    """What a test set of this size could show, by the main measure."""
    measure = main_metric(comparison)
    if measure is None or measure.detectable is None:
        return ""
    decimals = _decimals(measure)
    return (
        f"With these items a true difference of {fixed(measure.detectable, decimals)} in {measure.label} shows in four of "
        "five cases; smaller ones mostly stay unseen."
    )


def _rows(
    metrics: Sequence[Metric], comparison: Comparison, key: str, aim: Callable[[Metric], str] | None = None
) -> tuple[ScoreRow, ...]:
    limits = _limits(metrics)
    return tuple(
        _score_row(
            f"{key}-{index}", metric, limits, comparison, (aim or _aim)(metric) + _of_how_many(metric, comparison)
        )
        for index, metric in enumerate(metrics)
    )


def _limits(metrics: Sequence[Metric]) -> dict[str, float]:
    """Half the width of the interval plots, by unit: rows with one unit share one scale."""
    limits: dict[str, float] = {}
    for metric in metrics:
        reach = max(abs(value or 0.0) for value in (metric.difference, metric.low, metric.high))
        limits[metric.unit] = max(limits.get(metric.unit, 0.0), reach * 1.08)
    return limits


def _score_row(key: str, metric: Metric, limits: dict[str, float], comparison: Comparison, aim: str) -> ScoreRow:
    decimals = _decimals(metric)
    verdict = metric.verdict.replace("_", " ") or "not judged"
    has_aim = metric.higher_is_better is not None
    tone = verdict if verdict in ("better", "worse", "changed") else "unclear"
    return ScoreRow(
        label=metric.label,
        aim=aim,
        base=fixed(metric.base, decimals),
        tuned=fixed(metric.tuned, decimals),
        difference=signed(metric.difference, decimals),
        interval=interval(metric, decimals),
        wins=count(metric.wins) if has_aim else UNKNOWN,
        losses=count(metric.losses) if has_aim else UNKNOWN,
        ties=count(metric.ties),
        verdict=verdict,
        chance=chance(metric),
        tone=tone,
        plot=_interval_plot(key, metric, limits[metric.unit], tone, decimals, comparison),
    )


def _decimals(metric: Metric) -> int:
    """Enough for the largest figure of the row and for both ends of its interval to differ."""
    decimals = decimals_for(metric.base, metric.tuned, metric.difference)
    if metric.low is None or metric.high is None or metric.high <= metric.low:
        return decimals
    return max(decimals, min(4, 1 - math.floor(math.log10(metric.high - metric.low))))


def _aim(metric: Metric) -> str:
    direction = {True: "higher is better", False: "lower is better", None: "neither is better"}[metric.higher_is_better]
    return ", ".join(part for part in (metric.unit, direction) if part)


def interval(metric: Metric, decimals: int) -> str:
    """The interval of the difference, `+0.220 to +0.320`; empty where there is none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{signed(metric.low, decimals)} to {signed(metric.high, decimals)}"


def _interval_plot(key: str, metric: Metric, limit: float, tone: str, decimals: int, comparison: Comparison) -> Markup:
    if metric.difference is None or metric.low is None or metric.high is None:
        return Markup("")
    turn = -1.0 if metric.higher_is_better is False else 1.0
    return charts.interval_plot(
        metric.difference * turn,
        metric.low * turn,
        metric.high * turn,
        limit,
        key=key,
        title=f"{metric.label}: {metric.verdict or 'not judged'}",
        description=f"Difference {signed(metric.difference, decimals)}, {confidence(comparison)} interval "
        f"{interval(metric, decimals)}. Right of the line is better.",
        tone=tone,
    )


def confidence(comparison: Comparison) -> str:
    """The confidence level, `95 %`."""
    return UNKNOWN if comparison.confidence is None else f"{plain(comparison.confidence * 100)}{THIN}%"


def _method(comparison: Comparison) -> str:
    items = f"Means over {plural(comparison.num_items, 'test item')}." if comparison.num_items is not None else ""
    if comparison.confidence is None:
        return items
    draws = f", from {count(comparison.num_resamples)} resamples" if comparison.num_resamples else ""
    seed = f" (seed {comparison.seed})" if comparison.seed is not None else ""
    return (
        f"{items} Intervals are paired, at {confidence(comparison)}{draws}{seed}: "
        "both models answered the same items. A verdict needs an interval without zero and a permutation test that agrees."
    ).strip()
