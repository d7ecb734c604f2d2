"""What was forgotten, on a scale that somebody can read: how much more general text costs, and which size of model that is.

Feeds `scores.py` and `decision.py`. Loss falls with the number of parameters N as N**-0.076 (Kaplan et al. 2020, figure 1), so a
loss r times as high is that of a model with r**(-1 / 0.076) of the parameters: 88 % of them for 1 % more loss, half for 5 %. The
trade: the law holds for models trained from nothing; here it only says which size a loss belongs to.
"""

from __future__ import annotations

from markupsafe import Markup

from tuneful.numbers import THIN, fixed, known, rough_percent, signed
from tuneful.report import charts
from tuneful.runs.schema import MetricComparison

SOME, MUCH = 0.01, 0.05
"""The share of more loss on general text from which on some of it is forgotten, and much."""

_EXPONENT = 0.076
_LOWEST, _HIGHEST = -0.03, 0.12


def forgotten_in_words(metric: MetricComparison) -> str:
    """`none`, `hardly any`, `some`, `much`, or that it cannot be told."""
    change = _relative(metric, metric.difference)
    if metric.verdict not in ("better", "worse") or change is None:
        return "cannot be told from none"
    if metric.verdict == "better":
        return "none"
    return "hardly any" if change < SOME else "some" if change < MUCH else "much"


def change_in_words(metric: MetricComparison) -> str:
    """The relative change: `+1.3 %`."""
    change = _relative(metric, metric.difference)
    return "" if change is None else f"{signed(100 * change, 1)}{THIN}%"


def how_much(metric: MetricComparison) -> str:
    """`, which is some: as if about 16 % of its parameters were gone` for more loss on general text; empty for other metrics."""
    change = _relative(metric, metric.difference) if metric.name == "forgetting" else None
    if change is None or change <= 0:
        return ""
    gone = 1 - (1 + change) ** (-1 / _EXPONENT)
    return f", which is {forgotten_in_words(metric)}: as if about {rough_percent(gone)} of its parameters were gone"


def forgetting_scale(metric: MetricComparison) -> tuple[Markup, str]:
    """The change on a scale with zones `hardly any`, `some` and `much`, and the same as a sentence; empty where there is none."""
    change = _relative(metric, metric.difference)
    if change is None:
        return Markup(""), ""
    low, high = (_relative(metric, end) for end in (metric.low, metric.high))
    sentence = (
        f"Forgotten: {forgotten_in_words(metric)}. General text costs {change_in_words(metric)} "
        f"({fixed(metric.base, 3)} → {fixed(metric.tuned, 3)} bits per byte){how_much(metric)}. Up to {100 * SOME:g} % is "
        f"hardly any, from {100 * MUCH:g} % on, where a model of half the size stands, it is much."
    )
    drawing = charts.zone_plot(
        change,
        low,
        high,
        (_LOWEST, _HIGHEST),
        ((SOME, "hardly any"), (MUCH, "some"), (_HIGHEST, "much")),
        key="forgotten",
        title="How much was forgotten",
        description=sentence,
        tone={"better": "better", "worse": "worse"}.get(metric.verdict, "unclear"),
    )
    return drawing, sentence


def _relative(metric: MetricComparison, value: float | None) -> float | None:
    """A difference as a share of what the text cost before; None where there is none."""
    return value / metric.base if known(value) and known(metric.base) and metric.base > 0 else None
