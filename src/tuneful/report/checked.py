"""The checks section: what each check of one's own found of both sides, why answers have no score, how labels are confused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuneful.numbers import UNKNOWN, count, fixed, known, plural
from tuneful.report.folder import Run
from tuneful.report.paths import without_folders
from tuneful.report.trained_on import Cells
from tuneful.runs.schema import CheckResult, ClassScores

_MAX_COLUMNS = 12
"""Labels up to which the confusion matrix is laid out; more are no table that anybody reads."""


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A row a label with the figures of one side; `confusion` has a head and a row a label, or nothing where it is too wide."""

    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]
    confusion: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class CheckedSide:
    """One side under one check."""

    name: str
    sentence: str
    unscored: Cells
    failed: Cells
    labels: LabelTable | None


@dataclass(frozen=True, slots=True)
class CheckView:
    """One check and both sides."""

    name: str
    asks: str
    sides: tuple[CheckedSide, ...]


def view_checks(run: Run, sides: tuple[str, str]) -> tuple[CheckView, ...]:
    """Every check of the run's comparison, in order; `sides` are what the two models are called."""
    checked = run.comparison.checks if run.comparison else None
    if checked is None:
        return ()
    tuned = {one.name: one for one in checked.tuned}
    return tuple(
        CheckView(
            name=one.name,
            asks=without_folders(one.asks) if one.kind == "python" else one.asks,
            sides=tuple(
                _side(name, own) for name, own in zip(sides, (one, tuned.get(one.name)), strict=True) if own is not None
            ),
        )
        for one in checked.base
    )


def _side(name: str, one: CheckResult) -> CheckedSide:
    value = f", {fixed(one.value, 3)}" if known(one.value) else ""
    between = f" ({fixed(one.low, 3)} to {fixed(one.high, 3)})" if value and known(one.low) and known(one.high) else ""
    return CheckedSide(
        name=name,
        sentence=f"{plural(one.num_items, 'item')} = {count(one.num_scored)} scored + {count(one.num_unscored)} unscored"
        f"{value}{between}",
        unscored=_counted(one.unscored),
        failed=_counted(one.failed),
        labels=_labels(one.classes, one.confusion) if one.classes and one.confusion else None,
    )


def _counted(reasons: Mapping[str, int]) -> Cells:
    return tuple((reason, count(number)) for reason, number in reasons.items())


def _labels(classes: tuple[ClassScores, ...], confusion: tuple[tuple[int, ...], ...]) -> LabelTable:
    def shown(value: float | None) -> str:
        return fixed(value, 3) if known(value) else UNKNOWN

    labels = tuple(one.label for one in classes)
    is_shown = len(labels) <= _MAX_COLUMNS
    return LabelTable(
        rows=tuple(
            (
                one.label,
                count(one.num_items),
                count(one.num_found),
                count(one.num_right),
                shown(one.precision),
                shown(one.recall),
                shown(one.f1),
            )
            for one in classes
        ),
        head=("Reference, answer", *labels, "no label"),
        confusion=tuple((label, *map(count, row)) for label, row in zip(labels, confusion, strict=False))
        if is_shown
        else (),
    )
