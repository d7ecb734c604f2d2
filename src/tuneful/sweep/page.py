"""sweep.html: what a sweep found, on one page in the style of a run's report.

Made from sweep.json alone, so that it says what that says; drawings are those of `report/charts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tuneful.files import write_text
from tuneful.numbers import compact
from tuneful.report import charts
from tuneful.report.build import render_in_style
from tuneful.report.charts import NARROW, Series
from tuneful.report.sections import moment_in_words
from tuneful.runs.schema import LearningCurve, SweepDocument
from tuneful.sweep.choice import SEED, SHARE
from tuneful.sweep.curve import PowerLaw
from tuneful.sweep.grid import as_text, in_words
from tuneful.sweep.words import choice_in_words, loss_in_words, table

PAGE = "sweep.html"
_LOG_SPREAD = 8
"""Positive values of which the largest is so many times the smallest stand on a logarithmic scale."""
_LAW_POINTS = 60
_BEYOND = 4
_FRAMES = {"wide": charts.PlotArea(width=900, height=300), "narrow": NARROW}

Drawings = tuple[Markup, ...]
"""One chart for each of _FRAMES; the page shows the one that fits."""


def build_sweep_page(path: Path, document: SweepDocument) -> Path:
    """Write `path/sweep.html` and return its path."""
    columns, rows = table(document)
    template = resources.files("tuneful.sweep").joinpath("page.html.j2").read_text(encoding="utf-8")
    page = render_in_style(
        template,
        title=f"{len(document.runs)} runs on {', '.join(Path(name).name for name in document.data)}",
        when=moment_in_words(document.finished or document.started),
        lede=choice_in_words(document),
        notes=document.notes,
        verdict=_verdict(document),
        curves=[
            (in_words(curve.settings), curve.sentence, _curve_chart(number, curve))
            for number, curve in enumerate(document.curves)
        ],
        responses=[(key, drawn) for key in document.keys if any(drawn := _response_chart(document, key))],
        responses_intro=_responses_intro(document),
        early=_early(document),
        columns=columns,
        rows=rows,
        reasons=[(run.name, run.reason) for run in document.runs if run.state == "failed"],
    )
    write_text(path / PAGE, page)
    return path / PAGE


def _verdict(document: SweepDocument) -> str:
    if document.verdict:
        verdict = document.verdict.replace(" -> ", " → ")
        return f"{verdict} The test set was used for {document.chosen} alone; its own report has the rest."
    if document.chosen is None:
        return "Nothing was measured, because no run was chosen."
    return "There is no test set, so there is no verdict."


def _responses_intro(document: SweepDocument) -> str:
    found = "The lowest validation loss at each value, whatever the other settings are: of the runs trained to the end (dots)"
    return (
        f"{found}, and of all runs after {document.rungs[0]:g} of the steps (line)." if document.rungs else f"{found}."
    )


def _early(document: SweepDocument) -> str:
    if not document.rungs:
        return f"No run was stopped early: {document.rungs_reason}."
    shares = " and ".join(f"{share:g}" for share in document.rungs)
    return f"The worse half of the runs was stopped after {shares} of their steps, by their validation loss then."


def _response_chart(document: SweepDocument, key: str) -> Drawings:
    """The lowest loss at each value of one setting; nothing for the seed, which is not there to be chosen by its value."""
    if key in (SEED, SHARE):
        return ()
    values = list({as_text(run.settings[key]): run.settings[key] for run in document.runs}.values())
    places = _places(values)
    at = dict(zip(map(as_text, values), places, strict=True))
    trained = [(at[as_text(run.settings[key])], run.validation_loss) for run in document.runs if run.state == "trained"]
    first = [(at[as_text(run.settings[key])], run.rungs[0].validation_loss) for run in document.runs if run.rungs]
    return _drawn(
        (Series("all runs", _lowest(first), "single"), Series("trained to the end", _lowest(trained), "dots")),
        key=f"response-{key.replace('.', '-')}",
        title=f"Validation loss over {key}",
        description=f"The lowest validation loss at each of {len(values)} values.",
        x_label=key,
        x_names=sorted(zip(places, map(as_text, values), strict=True)),
    )


def _drawn(
    series: Sequence[Series],
    *,
    key: str,
    title: str,
    description: str,
    x_label: str,
    x_names: Sequence[tuple[float, str]],
) -> Drawings:
    return tuple(
        charts.line_chart(
            series,
            key=f"{key}-{name}",
            title=title,
            description=description,
            x_label=x_label,
            y_label="validation loss, nats a token",
            frame=frame,
            x_names=x_names,
        )
        for name, frame in _FRAMES.items()
    )


def _lowest(points: Sequence[tuple[float, float | None]]) -> tuple[tuple[float, float], ...]:
    found: dict[float, float] = {}
    for x, loss in points:
        if loss is not None:
            found[x] = min(loss, found.get(x, math.inf))
    return tuple(sorted(found.items()))


def _places(values: Sequence[Any]) -> list[float]:
    """Where each value stands: as the number that it is, on a logarithmic scale where they spread far, else one after the
    other."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return [float(index) for index in range(len(values))]
    if min(numbers) > 0 and max(numbers) >= _LOG_SPREAD * min(numbers):
        return [math.log10(number) for number in numbers]
    return [float(number) for number in numbers]


def _curve_chart(number: int, curve: LearningCurve) -> Drawings:
    """The runs of a learning curve and its law, over training records on a logarithmic scale."""
    series = [
        Series(
            "run",
            tuple(sorted((math.log2(n), loss) for n, loss in zip(curve.sizes, curve.losses, strict=True))),
            "dots",
        )
    ]
    sizes = sorted(set(curve.sizes))
    if curve.offset is not None and curve.scale is not None and curve.exponent is not None:
        law = PowerLaw(curve.offset, curve.scale, curve.exponent, curve.num_largest, ())
        low, high = math.log2(sizes[0]), math.log2(sizes[-1] * _BEYOND)
        xs = [low + (high - low) * index / (_LAW_POINTS - 1) for index in range(_LAW_POINTS)]
        series.append(Series("power law", tuple((x, law(2**x)) for x in xs), "single"))
        sizes = [*sizes, 2 * sizes[-1], 4 * sizes[-1]]
    return _drawn(
        series,
        key=f"curve-{number}",
        title="Validation loss over training records",
        description=f"From {loss_in_words(max(curve.losses))} to {loss_in_words(min(curve.losses))}. {curve.sentence}",
        x_label="training records",
        x_names=[(math.log2(n), compact(n)) for n in sizes],
    )
