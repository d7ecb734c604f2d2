"""The scores section: the comparison as a table of both means, their difference, and its interval in figures and as a drawing.

Feeds `sections.py`. Drawings are turned so that better is always to the right, in either good direction of a measure; figures
never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tuneful.numbers import THIN, UNKNOWN, count, decimals_for, fixed, known, plain, plural, signed
from tuneful.report import charts
from tuneful.report.forgotten import forgetting_scale
from tuneful.runs.schema import Comparison, KindComparison, MetricComparison


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
    """The table of the loss on general text, the sentence above it, and the loss on a scale that says what is much."""

    rows: tuple[ScoreRow, ...]
    sentence: str
    scale: Markup
    scale_sentence: str


def view_scores(comparison: Comparison) -> Scores:
    """Lay out the comparison as a table; standard tests have one of their own."""
    metrics = [metric for metric in comparison.metrics if comparison.test_of(metric) is None]
    return Scores(
        rows=rows_of(metrics, comparison, "interval"),
        method=_method(comparison),
        power=_power(comparison),
        has_aimless=any(metric.higher_is_better is None for metric in metrics),
    )


def view_kinds(comparison: Comparison) -> Kinds:
    """Lay out the kinds of task as a table, those that lost most first."""
    measure = main_metric(comparison)
    label = measure.label if measure else "the main measure"
    sign = -1.0 if measure and measure.higher_is_better is False else 1.0
    kinds = sorted(
        (_as_metric(kind, measure) for kind in comparison.kinds),
        key=lambda kind: kind.difference * sign if known(kind.difference) else 0.0,
    )
    return Kinds(
        rows=rows_of(kinds, comparison, "kind", lambda kind: plural(kind.num_items, "test item")),
        sentence=f"{label} for each kind of task that the records name. Verdicts allow for there being "
        f"{count(len(kinds))} of them: looked at one by one, one kind in twenty would seem changed by chance.",
    )


def view_forgetting(comparison: Comparison) -> Forgetting:
    """Lay out the loss on general text before and after."""
    found = comparison.forgetting
    what = {
        "forgetting": f"{plural(found[0].num_items, 'passage')} of text that the training never showed"
        if found
        else "",
        "kl_to_base": "samples that the base model itself wrote",
    }
    shown = " and ".join(what[metric.name] for metric in found if metric.name in what)
    text = next((metric for metric in found if metric.name == "forgetting"), None)
    scale, scale_sentence = forgetting_scale(text) if text is not None else (Markup(""), "")
    return Forgetting(
        rows=rows_of(found, comparison, "general", _what_it_is),
        sentence=f"The same {shown}, read by the model before and after. Fewer bits mean that it expects the text better; "
        "what it needs more than before, it has forgotten.",
        scale=scale,
        scale_sentence=scale_sentence,
    )


def _as_metric(kind: KindComparison, measure: MetricComparison | None) -> MetricComparison:
    """A kind of task as a line of the table of metrics, in the good direction of the main `measure`."""
    return MetricComparison(
        name=kind.kind,
        label=kind.kind,
        unit="",
        higher_is_better=measure.higher_is_better if measure else True,
        num_items=kind.num_items,
        base=kind.base,
        tuned=kind.tuned,
        difference=kind.difference,
        low=kind.low,
        high=kind.high,
        wins=kind.wins,
        losses=kind.losses,
        ties=kind.ties,
        p_value=kind.p_value,
        p_is_exact=False,
        detectable=None,
        verdict=kind.verdict,
    )


def main_metric(comparison: Comparison) -> MetricComparison | None:
    """The measure that stands for the others on the page: the comparison's own headline, else the first."""
    metrics, headline = comparison.metrics, comparison.headline or "rouge_l"
    return next((metric for metric in metrics if metric.name == headline), metrics[0] if metrics else None)


def chance(metric: MetricComparison) -> str:
    """The p-value as a person reads it, `p < 0.001`; empty where there is none."""
    if not known(metric.p_value):
        return ""
    return "p < 0.001" if metric.p_value < 0.001 else f"p = {metric.p_value:.3f}"


def _of_how_many(metric: MetricComparison, comparison: Comparison) -> str:
    """`; 123 of 131 items`, where a measure of the test set does not cover all of it."""
    is_of_test_set = metric in comparison.metrics and comparison.test_of(metric) is None
    is_partial = is_of_test_set and metric.num_items not in (0, comparison.num_items)
    return f"; {count(metric.num_items)} of {plural(comparison.num_items, 'item')}" if is_partial else ""


def _what_it_is(metric: MetricComparison) -> str:
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
    decimals = measure_decimals(measure)
    return (
        f"With these items a true difference of {fixed(measure.detectable, decimals)} in {measure.label} shows in four of "
        "five cases; smaller ones mostly stay unseen."
    )


def rows_of(
    metrics: Sequence[MetricComparison],
    comparison: Comparison,
    key: str,
    aim: Callable[[MetricComparison], str] | None = None,
) -> tuple[ScoreRow, ...]:
    """`metrics` of `comparison` as lines of a table; `key` sets its drawings apart, `aim` says what a line is."""
    limits = _limits(metrics)
    return tuple(
        _score_row(
            f"{key}-{index}", metric, limits, comparison, (aim or _aim)(metric) + _of_how_many(metric, comparison)
        )
        for index, metric in enumerate(metrics)
    )


def _limits(metrics: Sequence[MetricComparison]) -> dict[str, float]:
    """Half the width of the interval plots, by unit: rows with one unit share one scale."""
    limits: dict[str, float] = {}
    for metric in metrics:
        reach = max((abs(value) for value in (metric.difference, metric.low, metric.high) if known(value)), default=0.0)
        limits[metric.unit] = max(limits.get(metric.unit, 0.0), reach * 1.08)
    return limits


def _score_row(
    key: str, metric: MetricComparison, limits: dict[str, float], comparison: Comparison, aim: str
) -> ScoreRow:
    decimals = measure_decimals(metric)
    verdict = _verdict(metric)
    has_items = metric.wins + metric.losses + metric.ties > 0
    has_aim = has_items and metric.higher_is_better is not None
    tone = verdict if verdict in ("better", "worse", "changed") else "unclear"
    return ScoreRow(
        label=metric.label,
        aim=aim,
        base=fixed(metric.base, decimals),
        tuned=fixed(metric.tuned, decimals),
        difference=signed(metric.difference, decimals),
        interval=interval(metric, decimals) or "interval not known",
        wins=count(metric.wins) if has_aim else UNKNOWN,
        losses=count(metric.losses) if has_aim else UNKNOWN,
        ties=count(metric.ties) if has_items else UNKNOWN,
        verdict=verdict,
        chance=chance(metric),
        tone=tone,
        plot=_interval_plot(key, metric, limits[metric.unit], tone, decimals, comparison),
    )


def _verdict(metric: MetricComparison) -> str:
    """The verdict, or that the file holds none."""
    verdict: str = metric.verdict
    return verdict or "not judged"


def measure_decimals(metric: MetricComparison | KindComparison) -> int:
    """Enough for the largest figure of the row and for both ends of its interval to differ."""
    decimals = decimals_for(metric.base, metric.tuned, metric.difference)
    if not (known(metric.low) and known(metric.high)) or metric.high <= metric.low:
        return decimals
    return max(decimals, min(4, 1 - math.floor(math.log10(metric.high - metric.low))))


def _aim(metric: MetricComparison) -> str:
    direction = {True: "higher is better", False: "lower is better", None: "neither is better"}[metric.higher_is_better]
    return ", ".join(part for part in (metric.unit, direction) if part)


def interval(metric: MetricComparison | KindComparison, decimals: int) -> str:
    """The interval of the difference, `+0.220 to +0.320`; empty where there is none."""
    if not (known(metric.low) and known(metric.high)):
        return ""
    return f"{signed(metric.low, decimals)} to {signed(metric.high, decimals)}"


def _interval_plot(
    key: str, metric: MetricComparison, limit: float, tone: str, decimals: int, comparison: Comparison
) -> Markup:
    if not (known(metric.difference) and known(metric.low) and known(metric.high)):
        return Markup("")
    turn = -1.0 if metric.higher_is_better is False else 1.0
    return charts.interval_plot(
        metric.difference * turn,
        metric.low * turn,
        metric.high * turn,
        limit,
        key=key,
        title=f"{metric.label}: {_verdict(metric)}",
        description=f"Difference {signed(metric.difference, decimals)}, {confidence(comparison)} interval "
        f"{interval(metric, decimals)}. Right of the line is better.",
        tone=tone,
    )


def confidence(comparison: Comparison) -> str:
    """The confidence level, `95 %`."""
    return UNKNOWN if not known(comparison.confidence) else f"{plain(comparison.confidence * 100)}{THIN}%"


def _method(comparison: Comparison) -> str:
    items = f"Means over {plural(comparison.num_items, 'test item')}." if comparison.num_items else ""
    if not known(comparison.confidence):
        return items
    draws = f", from {count(comparison.num_resamples)} resamples" if comparison.num_resamples else ""
    seed = f" (seed {comparison.seed})" if comparison.num_resamples else ""
    return (
        f"{items} Intervals are paired, at {confidence(comparison)}{draws}{seed}: "
        "both models answered the same items. A verdict needs an interval without zero and a permutation test that agrees."
    ).strip()
