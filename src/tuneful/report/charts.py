"""The charts of the page as SVG: pure functions from numbers to `Markup`.

Stands between `tuneful.numbers` and `sections.py`. Every chart names its parts by CSS class and takes its colours from
`page.css`, so that light, dark and print are one drawing. The trade: lines are thinned to `MAX_POINTS` by keeping the lowest and
the highest point of each stretch, so a run of 100,000 steps costs as much as one of 400, and no spike is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from markupsafe import Markup

from tuneful.numbers import compact, count, fixed, power_of_ten, significant

MAX_POINTS = 400

Point = tuple[float, float]
Kind = Literal["raw", "smooth", "single", "dots", "replay"]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: its points by rising x, drawn as `kind` says (`dots` are joined and marked)."""

    name: str
    points: tuple[Point, ...]
    kind: Kind


@dataclass(frozen=True, slots=True)
class PlotArea:
    """The size of a drawing and the room its axes take, in SVG units (about a pixel each)."""

    width: int
    height: int
    left: int = 46
    right: int = 14
    top: int = 30
    bottom: int = 44

    @property
    def plot_right(self) -> int:
        """The x of the plot's right edge."""
        return self.width - self.right

    @property
    def plot_bottom(self) -> int:
        """The y of the plot's bottom edge."""
        return self.height - self.bottom


WIDE = PlotArea(width=1000, height=340)
NARROW = PlotArea(width=360, height=270, left=40, right=12)
SMALL = PlotArea(width=340, height=180, left=40, right=14, top=26)


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight map from [low, high] to [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of `value`, in SVG units."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in steps of 1, 2 or 5 that enclose [low, high], `most` intervals at the utmost."""
    if not high > low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)]


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points that keep the first, the last, and the lowest and highest of every stretch."""
    if len(points) <= most:
        return list(points)
    inner, num_stretches = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for stretch in range(num_stretches):
        part = inner[len(inner) * stretch // num_stretches : len(inner) * (stretch + 1) // num_stretches]
        extremes = {
            part.index(min(part, key=lambda point: point[1])),
            part.index(max(part, key=lambda point: point[1])),
        }
        kept.extend(part[index] for index in sorted(extremes))
    return [*kept, points[-1]]


def smooth(points: Sequence[Point], window: int | None = None) -> list[Point]:
    """Each point replaced by the mean of the `window` points around it; at the ends it is cut short."""
    window = smoothing_window(len(points)) if window is None else window
    sums = [0.0, *accumulate(y for _, y in points)]
    smoothed = []
    for index, (x, _) in enumerate(points):
        first, last = max(0, index - window // 2), min(len(points), index + window // 2 + 1)
        smoothed.append((x, (sums[last] - sums[first]) / (last - first)))
    return smoothed


def smoothing_window(num_points: int) -> int:
    """How many points `smooth` takes together: a fifteenth of the run, odd."""
    return max(1, num_points // 15) | 1


def line_chart(
    series: Sequence[Series],
    *,
    key: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    frame: PlotArea,
    from_zero: bool = False,
    lowest: Point | None = None,
    marks: Sequence[tuple[float, str]] = (),
    x_names: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines over a common pair of axes.

    `key` makes the ids unique in the page. `lowest` gets a ring and its value; `marks` are labelled upright lines. `x_names`
    stand below the axis at their places, where it is no scale of numbers.
    """
    drawn = [Series(one.name, tuple(thin(one.points)), one.kind) for one in series if one.points]
    if not drawn:
        return Markup("")
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    x_ticks = [x for x, _ in x_names] or ticks(min(xs), max(xs), 10 if frame.width > 600 else 4)
    y_ticks = ticks(min(0.0, min(ys)) if from_zero else min(ys), max(ys), 6 if frame.height > 200 else 4)
    spread = (x_ticks[0], x_ticks[-1]) if x_ticks[-1] > x_ticks[0] else (x_ticks[0] - 1, x_ticks[0] + 1)
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else spread
    x_of = Scale(x_low, x_high, frame.left, frame.plot_right)
    y_of = Scale(y_ticks[0], y_ticks[-1], frame.plot_bottom, frame.top)
    parts = [
        _y_axis(y_ticks, y_of, y_label, frame),
        _x_axis([tick for tick in x_ticks if x_low <= tick <= x_high], x_of, x_label, frame, dict(x_names)),
        *(_mark(x_of(x), label, frame) for x, label in marks if x_low < x < x_high),
        *(_line(one, x_of, y_of) for one in drawn),
        _lowest(lowest, x_of, y_of, frame) if lowest else Markup(""),
    ]
    return _svg(key, title, description, frame, Markup("").join(parts))


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    key: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    frame: PlotArea,
    most: float = 1.0,
) -> Markup:
    """Bars between neighbouring `edges`; there is one edge more than there are `counts`.

    The upright axis reaches to `most` at least, so that two histograms can share a scale.
    """
    if not counts or len(edges) != len(counts) + 1 or edges[-1] <= edges[0]:
        return Markup("")
    y_ticks = ticks(0.0, max(*counts, most, 1.0), 5)
    x_of = Scale(edges[0], edges[-1], frame.left, frame.plot_right)
    y_of = Scale(0.0, y_ticks[-1], frame.plot_bottom, frame.top)
    bars = [
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
            _at(x_of(low) + 0.5),
            _at(y_of(height)),
            _at(max(0.5, x_of(high) - x_of(low) - 1)),
            _at(frame.plot_bottom - y_of(height)),
            f"{compact(low)} to {compact(high)}: {count(height)}",
        )
        for low, high, height in zip(edges[:-1], edges[1:], counts, strict=True)
        if height > 0
    ]
    x_ticks = [
        tick for tick in ticks(edges[0], edges[-1], 10 if frame.width > 600 else 5) if edges[0] <= tick <= edges[-1]
    ]
    parts = [_y_axis(y_ticks, y_of, y_label, frame), *bars, _x_axis(x_ticks, x_of, x_label, frame)]
    return _svg(key, title, description, frame, Markup("").join(parts))


def interval_plot(
    difference: float, low: float, high: float, limit: float, *, key: str, title: str, description: str, tone: str
) -> Markup:
    """A dot and its whisker around an upright line at zero, on a scale from -`limit` to `limit`.

    `tone` is `better`, `worse`, `changed` or `unclear`; an unclear dot is hollow, so that the reading never depends on colour.
    """
    frame = PlotArea(width=220, height=28, left=6, right=6, top=0, bottom=0)
    x_of = Scale(-(limit or 1.0), limit or 1.0, frame.left, frame.plot_right)
    left, right = sorted((x_of(low), x_of(high)))
    content = Markup(
        '<line class="axis" x1="6" x2="214" y1="14" y2="14"/><line class="zero" x1="110" x2="110" y1="1" y2="27"/>'
        '<g class="{tone}"><path class="whisker" d="M{left},14H{right}M{left},9v10M{right},9v10"/>'
        '<circle class="dot" cx="{dot}" cy="14" r="4.2"/></g>'
    ).format(tone=tone, left=_at(left), right=_at(right), dot=_at(x_of(difference)))
    return _svg(key, title, description, frame, content)


def zone_plot(
    value: float,
    low: float | None,
    high: float | None,
    ends: tuple[float, float],
    zones: Sequence[tuple[float, str]],
    *,
    key: str,
    title: str,
    description: str,
    tone: str,
) -> Markup:
    """A share and its interval on a scale of percent between `ends`, cut into `zones` of (upper end, name).

    What lies beyond the scale is drawn at its end.
    """
    frame = PlotArea(width=340, height=74, left=8, right=8, top=24, bottom=22)
    x_of, y = Scale(*ends, frame.left, frame.plot_right), 38

    def inside(share: float) -> float:
        return x_of(min(max(share, ends[0]), ends[1]))

    content, start = Markup(""), ends[0]
    for index, (end, name) in enumerate(zones):
        left, right = x_of(start), x_of(end)
        content += Markup(
            '<rect class="zone zone-{}" x="{}" y="{}" width="{}" height="28"/><text class="middle" x="{}" y="14">{}</text>'
        ).format(index, _at(left), frame.top, _at(right - left), _at((left + right) / 2), name)
        start = end
    content += Markup('<line class="zero" x1="{x}" x2="{x}" y1="24" y2="52"/>').format(x=_at(x_of(0.0)))
    for share in (0.0, *(end for end, _ in zones[:-1])):
        content += Markup('<text class="middle" x="{}" y="68">{}</text>').format(
            _at(x_of(share)), f"{100 * share:g} %" if share else "0"
        )
    if low is not None and high is not None:
        content += Markup('<g class="{}"><path class="whisker" d="M{},{}H{}"/></g>').format(
            tone, _at(inside(low)), y, _at(inside(high))
        )
    content += Markup('<g class="{}"><circle class="dot" cx="{}" cy="{}" r="4.6"/></g>').format(
        tone, _at(inside(value)), y
    )
    return _svg(key, title, description, frame, content)


def share_bar(parts: Sequence[tuple[str, float, str]], *, key: str, title: str) -> Markup:
    """One bar cut in proportion: `parts` are (name, amount, CSS class). It stretches to the width it is given."""
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return Markup("")
    starts = [0.0, *accumulate(amount / total * 1000 for _, amount, _ in parts)]
    pieces = [
        Markup('<rect class="{}" x="{}" y="0" width="{}" height="14"><title>{}</title></rect>').format(
            css_class, _at(start), _at(amount / total * 1000), f"{name}: {count(amount)}"
        )
        for start, (name, amount, css_class) in zip(starts, parts, strict=False)
        if amount > 0
    ]
    description = "; ".join(f"{name} {count(amount)}" for name, amount, _ in parts)
    return _svg(
        key,
        title,
        description,
        PlotArea(width=1000, height=14),
        Markup("").join(pieces),
        css_class="share",
        stretch=True,
    )


# Parts of a chart ---------------------------------------------------------------------------------------------


def _svg(
    key: str, title: str, description: str, frame: PlotArea, content: Markup, css_class: str = "", stretch: bool = False
) -> Markup:
    return Markup(
        '<svg class="chart{css_class}" viewBox="0 0 {width} {height}"{stretch} role="img" '
        'aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{title}</title><desc id="{key}-d">{description}</desc>'
        "{content}</svg>"
    ).format(
        css_class=f" {css_class}" if css_class else "",
        width=frame.width,
        height=frame.height,
        stretch=Markup(' preserveAspectRatio="none"') if stretch else "",
        key=key,
        title=title,
        description=description,
        content=content,
    )


def _y_axis(values: Sequence[float], y_of: Scale, label: str, frame: PlotArea) -> Markup:
    labels, factor = _tick_labels(values)
    lines = [
        Markup(
            '<line class="{}" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="tick end" x="{}" y="{}">{}</text>'
        ).format(
            "axis" if index == 0 else "grid",
            frame.left,
            frame.plot_right,
            frame.left - 8,
            _at(y_of(value) + 4),
            text,
            y=_at(y_of(value)),
        )
        for index, (value, text) in enumerate(zip(values, labels, strict=True))
    ]
    name = Markup('<text class="label" x="0" y="13">{}</text>').format(
        f"{label} × {factor}".strip() if factor else label
    )
    return Markup("").join([*lines, name])


def _x_axis(
    values: Sequence[float], x_of: Scale, label: str, frame: PlotArea, names: Mapping[float, str] | None = None
) -> Markup:
    texts = [
        Markup(
            '<line class="axis" x1="{x}" x2="{x}" y1="{}" y2="{}"/><text class="tick {}" x="{x}" y="{}">{}</text>'
        ).format(
            frame.plot_bottom,
            frame.plot_bottom + 4,
            "end" if x_of(value) > frame.plot_right - 12 else "middle",
            frame.plot_bottom + 18,
            (names or {}).get(value) or compact(value),
            x=_at(x_of(value)),
        )
        for value in values
    ]
    name = Markup('<text class="label end" x="{}" y="{}">{}</text>').format(frame.plot_right, frame.height - 6, label)
    return Markup("").join([*texts, name])


def _tick_labels(values: Sequence[float]) -> tuple[list[str], str]:
    """Texts of an axis that share their decimals, and the power of ten taken out of them (empty: none)."""
    largest = max(abs(value) for value in values)
    if 0 < largest < 0.01:
        exponent = math.floor(math.log10(largest))
        return [_shortest(value / 10.0**exponent, values, 10.0**exponent) for value in values], power_of_ten(exponent)
    if largest >= 10_000:
        return [compact(value) for value in values], ""
    return [_shortest(value, values, 1.0) for value in values], ""


def _shortest(value: float, values: Sequence[float], unit: float) -> str:
    step = (values[1] - values[0]) / unit if len(values) > 1 else 1.0
    return fixed(value, max(0, -math.floor(math.log10(step) + 1e-9)))


def _line(series: Series, x_of: Scale, y_of: Scale) -> Markup:
    placed = [(x_of(x), y_of(y)) for x, y in series.points]
    path = Markup('<path class="line {}" d="M{}"/>').format(
        series.kind, "L".join(f"{_at(x)},{_at(y)}" for x, y in placed)
    )
    if series.kind != "dots" and len(placed) > 1:
        return path
    dots = [
        Markup('<circle class="point {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
            series.kind,
            _at(cx),
            _at(cy),
            3.5 if len(placed) <= 60 else 2,
            f"{series.name} at {compact(x)}: {significant(y)}",
        )
        for (cx, cy), (x, y) in zip(placed, series.points, strict=True)
    ]
    return Markup("").join([path, *dots])


def _lowest(lowest: Point, x_of: Scale, y_of: Scale, frame: PlotArea) -> Markup:
    x, y = x_of(lowest[0]), y_of(lowest[1])
    at_edge = "end" if x > frame.plot_right - 50 else "start" if x < frame.left + 50 else "middle"
    below = y + 22 <= frame.plot_bottom - 4
    return Markup(
        '<circle class="ring" cx="{}" cy="{}" r="7"/><text class="note {}" x="{}" y="{}">lowest {}</text>'
    ).format(
        _at(x),
        _at(y),
        at_edge,
        _at(x + (7 if at_edge == "end" else 0)),
        _at(y + 22 if below else y - 13),
        significant(lowest[1]),
    )


def _mark(x: float, label: str, frame: PlotArea) -> Markup:
    return Markup(
        '<line class="mark" x1="{x}" x2="{x}" y1="{}" y2="{}"/><text class="tick middle" x="{x}" y="{}">{}</text>'
    ).format(frame.top - 6, frame.plot_bottom, frame.top - 10, label, x=_at(x))


def _at(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")
