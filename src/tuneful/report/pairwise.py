"""The page of `tuneful compare A B C ...`, `pairwise.html`: what all sides reach, and every two of them with their interval.

Beside `build.py`, whose styles and safety it shares: one file without a script, that opens without a network and loads nothing.
Drawings are turned so that better is always to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tuneful.files import write_text
from tuneful.numbers import THIN, UNKNOWN, decimals_for, fixed, plain, plural, signed
from tuneful.report import charts
from tuneful.report.build import content_policy, make_visible, resource
from tuneful.runs.schema import PairOfSides, PairwiseComparison, PairwiseMetric

PAGE = "pairwise.html"


@dataclass(frozen=True, slots=True)
class PairView:
    """A pair as a line of a table; `tone` is `better`, `worse`, `changed` or `unclear`."""

    name: str
    difference: str
    interval: str
    chance: str
    items: str
    verdict: str
    tone: str
    plot: Markup


@dataclass(frozen=True, slots=True)
class MetricView:
    """A metric in finished words."""

    label: str
    aim: str
    sentence: str
    values: tuple[str, ...]
    pairs: tuple[PairView, ...]
    is_main: bool


def build_pairwise_page(compared: PairwiseComparison, folder: Path) -> Path:
    """Write the page into `folder`, whole or not at all; its path."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = resource("page.css")
    html = environment.from_string(resource("pairwise.html.j2")).render(
        compared=compared,
        metrics=sorted((_view(metric, compared) for metric in compared.metrics), key=lambda one: not one.is_main),
        items=plural(compared.sides[0].num_items, "test item") if compared.sides[0].num_items else "held-out documents",
        levels=[f"{plain(100 * level)}{THIN}%" for level in (compared.confidence, compared.pair_confidence)],
        style=Markup(style),
        policy=content_policy(style),
    )
    write_text(folder / PAGE, make_visible(html))
    return folder / PAGE


def _view(metric: PairwiseMetric, compared: PairwiseComparison) -> MetricView:
    direction = {True: "higher is better", False: "lower is better", None: "neither is better"}[metric.higher_is_better]
    ends = [value for pair in metric.pairs for value in (pair.low, pair.high, pair.difference) if value is not None]
    limit = max(map(abs, ends)) * 1.08
    decimals = decimals_for(*metric.values)
    return MetricView(
        label=metric.label,
        aim=", ".join(part for part in (metric.unit, direction) if part),
        sentence=metric.sentence[:1].upper() + metric.sentence[1:] + ".",
        values=tuple(fixed(value, decimals) for value in metric.values),
        pairs=tuple(_pair(metric, pair, limit, max(decimals, 3)) for pair in metric.pairs),
        is_main=metric.name == compared.headline,
    )


def _pair(metric: PairwiseMetric, pair: PairOfSides, limit: float, decimals: int) -> PairView:
    turn = -1.0 if metric.higher_is_better is False else 1.0
    name = f"{pair.tuned} against {pair.base}"
    ends = None if pair.low is None or pair.high is None else (pair.low, pair.high)
    interval = "not known" if ends is None else f"{signed(ends[0], decimals)} to {signed(ends[1], decimals)}"
    tone = "unclear" if pair.verdict == "cannot tell" else pair.verdict
    p_value = pair.p_corrected
    return PairView(
        name=name,
        difference=signed(pair.difference, decimals),
        interval=interval,
        chance=UNKNOWN if p_value is None else "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}",
        items=f"{pair.wins} / {pair.losses} / {pair.ties}",
        verdict=pair.verdict if pair.verdict == "cannot tell" else f"{pair.tuned} {pair.verdict}",
        tone=tone,
        plot=Markup("")
        if ends is None
        else charts.interval_plot(
            pair.difference * turn,
            ends[0] * turn,
            ends[1] * turn,
            limit,
            key=f"{metric.name}-{pair.base}-{pair.tuned}",
            title=f"{metric.label}, {name}: {pair.verdict}",
            description=f"Difference {signed(pair.difference, decimals)}, interval {interval}. "
            f"Right of the line {pair.tuned} is better.",
            tone=tone,
        ),
    )
