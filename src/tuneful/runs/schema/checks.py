"""What checks of one's own found: of an answer, of a set of answers, and of the labels in them.

Parts of comparison.json; and checks.json and checks/NAME.jsonl, which `tuneful evaluate --checks` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from tuneful.runs.schema.rows import ABSENT


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """What a check found of one answer: a score or the reason why there is none; never both."""

    score: Annotated[
        float | None, "1 where the check is met, 0 where not; of a function its own number; null where unscored"
    ]
    unscored_reason: Annotated[str | None, "why there is no score; null where there is one"] = None
    why: Annotated[str | None, "what keeps the answer from meeting the check", ABSENT] = None
    found: Annotated[str | None, "of a `label`, the label that the answer names", ABSENT] = None
    wanted: Annotated[str | None, "of a `label`, the label that the reference names", ABSENT] = None


@dataclass(frozen=True, slots=True)
class CheckRow:
    """What every check found of one answer."""

    source: Annotated[str, "`file:line` of the record"]
    checks: Annotated[Mapping[str, CheckOutcome], "each check by its name"]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One label in a set of answers."""

    label: Annotated[str, "the label"]
    num_items: Annotated[int, "scored items whose reference names it"]
    num_found: Annotated[int, "scored items whose answer names it"]
    num_right: Annotated[int, "scored items where both do"]
    precision: Annotated[float | None, "`num_right` of `num_found`; null where no answer names it"]
    recall: Annotated[float | None, "`num_right` of `num_items`; null where no reference names it"]
    f1: Annotated[float | None, "2 `num_right` / (`num_items` + `num_found`); null where nothing names it"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of one set of answers: `num_scored + num_unscored = num_items`."""

    name: Annotated[str, "the check, which is the name of its metric, too"]
    kind: Annotated[str, "its kind"]
    asks: Annotated[str, "what it asks, in words"]
    num_items: Annotated[int, "answers that were checked"]
    num_scored: Annotated[int, "answers that have a score"]
    num_unscored: Annotated[int, "answers that have none"]
    value: Annotated[float | None, "mean score of the scored ones: the share that meets the check; null without one"]
    low: Annotated[float | None, "lower end of its interval"]
    high: Annotated[float | None, "upper end of its interval"]
    unscored: Annotated[Mapping[str, int], "unscored answers by reason"]
    failed: Annotated[Mapping[str, int], "answers that do not meet the check by what keeps them from it, the commonest"]
    macro_f1: Annotated[
        float | None, "of a `label`, the mean of the F1 of all labels that a scored reference names", ABSENT
    ] = None
    macro_f1_low: Annotated[float | None, "lower end of its interval", ABSENT] = None
    macro_f1_high: Annotated[float | None, "upper end of its interval", ABSENT] = None
    classes: Annotated[tuple[ClassScores, ...] | None, "of a `label`, each label", ABSENT] = None
    confusion: Annotated[
        tuple[tuple[int, ...], ...] | None,
        "of a `label`, scored items: a row a label of the reference, a column a label of the answer, in the order of `classes`, "
        "and a last column for answers that name no label",
        ABSENT,
    ] = None


@dataclass(frozen=True, slots=True)
class CheckedSides:
    """Every check of both models' answers, in the order in which they were given."""

    base: Annotated[tuple[CheckResult, ...], "of the base model's answers"]
    tuned: Annotated[tuple[CheckResult, ...], "of the tuned model's answers"]


@dataclass(frozen=True, slots=True)
class ChecksDocument:
    """What checks found of answers, in numbers."""

    confidence: Annotated[float, "of the intervals, 0 to 1"]
    answers: Annotated[Mapping[str, tuple[CheckResult, ...]], "the checks of each set of answers, by its name"]
