"""Charts: round ticks, no lost spike, nothing outside its frame, hostile names escaped."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.report import charts
from tuneful.report.charts import NARROW, SMALL, WIDE, PlotArea, Series

SVG = "{http://www.w3.org/2000/svg}"
NAMED = '<svg xmlns="http://www.w3.org/2000/svg" '


def line(points: list[tuple[float, float]], frame: PlotArea = WIDE, **more: object) -> str:
    series = (Series("loss", tuple(points), "raw"),)
    named = {"key": "k", "title": "Loss", "description": "It falls.", "x_label": "step", "y_label": "loss"} | more
    return str(charts.line_chart(series, frame=frame, **named))  # type: ignore[arg-type]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_enclose_the_data_in_few_steps(low: float, spread: float) -> None:
    high = low + spread
    found = charts.ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), spread)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 7


def test_ticks_are_round() -> None:
    assert charts.ticks(0.63, 2.48) == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert charts.ticks(0, 276) == [0, 50, 100, 150, 200, 250, 300]
    assert charts.ticks(3.0, 3.0)[0] < 3.0 < charts.ticks(3.0, 3.0)[-1]


def test_thinning_keeps_ends_and_spikes() -> None:
    points = [(float(step), 1.0) for step in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    points[77_777] = (77_777.0, -5.0)
    kept = charts.thin(points)
    assert len(kept) <= charts.MAX_POINTS
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert (54_321.0, 99.0) in kept
    assert (77_777.0, -5.0) in kept
    assert kept == sorted(kept)


def test_smoothing_is_the_mean_of_the_points_around() -> None:
    points = [(0.0, 0.0), (1.0, 3.0), (2.0, 6.0), (3.0, 0.0)]
    assert charts.smooth(points, 3) == [(0.0, 1.5), (1.0, 3.0), (2.0, 3.0), (3.0, 3.0)]
    assert charts.smooth(points, 1) == points


@pytest.mark.parametrize("frame", [WIDE, NARROW, SMALL])
@pytest.mark.parametrize(
    "points", [[(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], [(float(x), math.sin(x) * 1e-6) for x in range(900)]]
)
def test_a_chart_is_an_svg_within_its_frame(points: list[tuple[float, float]], frame: PlotArea) -> None:
    root = ElementTree.fromstring(line(points, frame).replace("<svg ", NAMED, 1))
    assert root.find(f"{SVG}title").text == "Loss"  # type: ignore[union-attr]
    assert root.find(f"{SVG}desc").text == "It falls."  # type: ignore[union-attr]
    for path in root.iter(f"{SVG}path"):
        places = re.findall(r"([\d.-]+),([\d.-]+)", path.get("d", ""))
        assert places
        assert all(frame.left - 1 <= float(x) <= frame.plot_right + 1 for x, _ in places)
        assert all(frame.top - 1 <= float(y) <= frame.plot_bottom + 1 for _, y in places)


def test_names_are_escaped_and_nothing_draws_nothing() -> None:
    assert "<b>" not in line([(1.0, 1.0)], title="<b>")
    assert "&lt;b&gt;" in line([(1.0, 1.0)], title="<b>")
    assert line([]) == ""
    assert charts.share_bar((("a", 0, "train"),), key="k", title="t") == ""


def test_an_interval_that_is_unclear_is_marked_beyond_colour() -> None:
    drawn = charts.interval_plot(0.02, -0.01, 0.05, 0.1, key="k", title="chrF", description="d", tone="unclear")
    assert '<g class="unclear">' in drawn
    assert 'cx="130.8"' in drawn  # 110 + 0.02 / 0.1 * 104


def test_histogram_bars_are_as_high_as_their_counts() -> None:
    drawn = charts.histogram(
        [0, 10, 20], [1, 4], key="k", title="t", description="d", x_label="x", y_label="y", frame=WIDE
    )
    heights = [float(height) for height in re.findall(r'class="bar"[^>]* height="([\d.]+)"', drawn)]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)
    assert charts.histogram([0], [], key="k", title="t", description="d", x_label="x", y_label="y", frame=WIDE) == ""
