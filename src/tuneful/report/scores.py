"""Lays out the comparison as a table: both means, their difference, its interval in figures and as a drawing.

Feeds `sections.py`. Drawings are turned so that better is always to the right, whichever way a measure counts; figures
never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tuneful.report import charts
from tuneful.report.folder import Comparison, Metric
from tuneful.report.numbers import THIN, UNKNOWN, count, decimals_for, fixed, plain, plural, signed


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A line of the table of metrics; `tone` is `better`, `worse`, `changed` or `unclear`."""

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
    tone: str
    plot: Markup


@dataclass(frozen=True, slots=True)
class Scores:
    """The table of metrics and the sentence on how it was computed."""

    rows: tuple[ScoreRow, ...]
    method: str
    has_aimless: bool


def view_scores(comparison: Comparison) -> Scores:
    """Lay out the comparison as a table."""
    limits = _limits(comparison.metrics)
    return Scores(
        rows=tuple(_score_row(index, metric, limits, comparison) for index, metric in enumerate(comparison.metrics)),
        method=_method(comparison),
        has_aimless=any(metric.higher_is_better is None for metric in comparison.metrics),
    )


def _limits(metrics: Sequence[Metric]) -> dict[str, float]:
    """Half the width of the interval plots, by unit: rows with one unit share one scale."""
    limits: dict[str, float] = {}
    for metric in metrics:
        reach = max(abs(value or 0.0) for value in (metric.difference, metric.low, metric.high))
        limits[metric.unit] = max(limits.get(metric.unit, 0.0), reach * 1.08)
    return limits


def _score_row(index: int, metric: Metric, limits: dict[str, float], comparison: Comparison) -> ScoreRow:
    decimals = decimals_for(metric.base, metric.tuned, metric.difference)
    verdict = metric.verdict.replace("_", " ") or "not judged"
    has_aim = metric.higher_is_better is not None
    tone = verdict if verdict in ("better", "worse", "changed") else "unclear"
    return ScoreRow(
        label=metric.label,
        aim=_aim(metric),
        base=fixed(metric.base, decimals),
        tuned=fixed(metric.tuned, decimals),
        difference=signed(metric.difference, decimals),
        interval=interval(metric, decimals),
        wins=count(metric.wins) if has_aim else UNKNOWN,
        losses=count(metric.losses) if has_aim else UNKNOWN,
        ties=count(metric.ties),
        verdict=verdict,
        tone=tone,
        plot=_interval_plot(index, metric, limits[metric.unit], tone, decimals, comparison),
    )


def _aim(metric: Metric) -> str:
    direction = {True: "higher is better", False: "lower is better", None: "neither is better"}[metric.higher_is_better]
    return f"{metric.unit}, {direction}" if metric.unit else direction


def interval(metric: Metric, decimals: int) -> str:
    """The interval of the difference, `+0.220 to +0.320`; empty where there is none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{signed(metric.low, decimals)} to {signed(metric.high, decimals)}"


def _interval_plot(
    index: int, metric: Metric, limit: float, tone: str, decimals: int, comparison: Comparison
) -> Markup:
    if metric.difference is None or metric.low is None or metric.high is None:
        return Markup("")
    turn = -1.0 if metric.higher_is_better is False else 1.0
    return charts.interval_plot(
        metric.difference * turn,
        metric.low * turn,
        metric.high * turn,
        limit,
        key=f"interval-{index}",
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
        "both models answered the same items. Where an interval reaches across zero, the data cannot tell."
    ).strip()
