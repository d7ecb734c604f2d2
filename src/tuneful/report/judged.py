"""The judge section: its scores as two distributions on one scale, and what calibration found out about it.

Feeds `sections.py` from scores/{base,tuned}.jsonl and calibration.json. Items without a score are counted by reason; none is left
out silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tuneful.judge.protocols import PROTOCOLS
from tuneful.numbers import UNKNOWN, count, fixed, known, percent, plural
from tuneful.report import charts
from tuneful.report.folder import Run
from tuneful.runs.schema import CalibrationFigure, JudgeScore

_EDGES = tuple(range(0, 101, 10))
_TONES = {"usable": "better", "not usable": "worse"}


@dataclass(frozen=True, slots=True)
class Distribution:
    """The scores of one model: a drawing, their mean, and the items that have none."""

    name: str
    drawing: Markup
    sentence: str
    unscored: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One finding about the judge; `standing` is `good`, `doubtful` or `bad`."""

    label: str
    value: str
    interval: str
    wanted: str
    standing: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Everything about the judge; `verdict` is empty where it was not probed, `tone` is `better`, `worse` or `unclear`, `remarks`
    are on the scale that it uses."""

    judge: str
    sentence: str
    distributions: tuple[Distribution, ...]
    verdict: str
    tone: str
    remarks: tuple[str, ...]
    calibration: tuple[CalibrationRow, ...]
    table: tuple[tuple[str, ...], ...]


def view_judged(run: Run) -> Judged | None:
    """Lay out the judge's scores; None where no judge was asked."""
    sides = [(name, scores) for name, scores in zip(_sides(run), run.scores.values(), strict=False) if scores]
    finding = run.judged.finding if run.judged else run.comparison.judge if run.comparison else None
    calibration = run.calibration or (run.judged.probes if run.judged else None)
    if not sides and calibration is None:
        return None
    counts = [_counts(scores) for _, scores in sides]
    most = max((max(own) for own in counts), default=1)
    first = sides[0][1][0] if sides else None
    return Judged(
        judge=first.judge if first else calibration.judge if calibration else "",
        sentence=f"It was asked for {PROTOCOLS[first.protocol].in_words}."
        if first and first.protocol in PROTOCOLS
        else "",
        distributions=tuple(
            _distribution(name, scores, own, most, finding.verdict if finding else "")
            for (name, scores), own in zip(sides, counts, strict=True)
        ),
        verdict=finding.sentence if finding else calibration.sentence if calibration else "",
        tone=_TONES.get(finding.verdict if finding else calibration.verdict if calibration else "", "unclear"),
        remarks=tuple(run.judged.remarks) if run.judged else (),
        calibration=tuple(map(_calibration_row, calibration.figures if calibration else ())),
        table=tuple(
            (f"{low} to {high}", *(count(own[index]) for own in counts))
            for index, (low, high) in enumerate(pairwise(_EDGES))
        ),
    )


def _sides(run: Run) -> tuple[str, str]:
    return ("A", "B") if run.comparison and run.comparison.names else ("Before", "After")


def _counts(scores: Sequence[JudgeScore]) -> list[int]:
    """How many scores lie in each tenth of the scale; 100 belongs to the last."""
    found = Counter(min(9, int(score.score // 10)) for score in scores if score.score is not None and score.score >= 0)
    return [found[index] for index in range(10)]


def _distribution(
    name: str, scores: Sequence[JudgeScore], counts: Sequence[int], most: int, finding: str
) -> Distribution:
    given = [score.score for score in scores if score.score is not None]
    reasons = Counter(score.unscored_reason or "no reason given" for score in scores if score.score is None)
    mean = f", mean {fixed(sum(given) / len(given), 1)}" if given else ""
    drawing = charts.histogram(
        _EDGES,
        counts,
        key=f"judge-{name.lower()}",
        title=f"Judge scores, {name.lower()}",
        description="; ".join(f"{low} to {low + 10}: {own}" for low, own in zip(_EDGES, counts, strict=False)),
        x_label="score",
        y_label="answers",
        frame=charts.SMALL,
        most=most,
    )
    return Distribution(
        name=name,
        drawing=drawing,
        sentence=f"{plural(len(scores), 'item')} = {count(len(given))} scored + {count(len(scores) - len(given))} "
        f"unscored{mean}{f' by a judge that is {finding}' if finding and given else ''}",
        unscored=tuple((reason, count(number)) for reason, number in reasons.most_common()),
    )


def _calibration_row(figure: CalibrationFigure) -> CalibrationRow:
    low, high = _in_words(figure, figure.low), _in_words(figure, figure.high)
    return CalibrationRow(
        label=figure.label,
        value=_in_words(figure, figure.value),
        interval=f"{low} to {high}" if known(figure.low) else plural(figure.num_items, "item"),
        wanted=figure.wanted,
        standing=figure.standing,
    )


def _in_words(figure: CalibrationFigure, value: float | None) -> str:
    if not known(value):
        return UNKNOWN
    return percent(value) if figure.unit == "share" else f"{fixed(value, 1)} points"
