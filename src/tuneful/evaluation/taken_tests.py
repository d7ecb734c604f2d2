"""Standard tests that runs have taken, for `tuneful compare`: read from their folders, paired by what they asked.

Stands over `task_comparison.py`, which compares the scores, and under `answered.py`. A run names its tests in comparison.json and
holds their scores as tests/NAME-MODEL.jsonl; those that a finished run took later stand under tests/evaluated. Tests are the same
where the file's bytes are, and how it was asked: under the template or raw, after how many items and which. What only one side
took, or took otherwise, is named and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneful.errors import DataError
from tuneful.evaluation.task_comparison import ItemScore, compare_tests, counted, is_scored
from tuneful.runs.schema import (
    ChoiceScore,
    Comparison,
    InstructionScore,
    MetricComparison,
    TasksDocument,
    TaskSummary,
    check_sum,
    load_document,
    load_rows,
    noted_sums,
)

_EVALUATED = "tests/evaluated"


@dataclass(frozen=True, slots=True)
class TakenTest:
    """A test that one model took: what was asked, and its scores in the order of the items."""

    asked: TaskSummary
    scores: tuple[ItemScore, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """What is equal where two models were asked the same; sources name the file as each run did."""
        asked = self.asked
        lines = tuple(one.source.rpartition(":")[2] for one in self.scores)
        return asked.kind, asked.sha256, asked.prompt, asked.num_fewshot, lines


def read_tests(run: Path, model: str) -> tuple[tuple[TakenTest, ...], tuple[str, ...]]:
    """The tests that the `model` (`base`, `tuned`) of a run took, and remarks about those that cannot be read whole.

    DataError where a file is damaged.
    """
    if not (run / "tests").is_dir():
        return (), ()
    found, remarks = list[TakenTest](), list[str]()
    asked = {"tests": _asked_in_run(run), _EVALUATED: _asked_later(run, model)}
    for folder, own in asked.items():
        for test in own or ():
            scores = _scores(run, f"{folder}/{test.name}-{model}.jsonl", test)
            if not scores:
                remarks.append(f"{test.name} is not compared: {run / folder} has no scores of the {model} model")
            elif all(test.name != one.asked.name for one in found):
                found.append(TakenTest(test, scores))
    if asked["tests"] is None and any((run / "tests").glob(f"*-{model}.jsonl")):
        remarks.append(
            f"the tests of {run} are not compared: it has no comparison.json yet, which says what they asked"
        )
    return tuple(found), tuple(remarks)


def _asked_in_run(run: Path) -> tuple[TaskSummary, ...] | None:
    """What the run's comparison.json says; None where there is none."""
    try:
        document = load_document(Comparison, run / "comparison.json")
        check_sum(run / "comparison.json", noted_sums(run).get("comparison.json"))
    except DataError as error:
        raise DataError(f"{error}. Restore it, or remove it to compare without the tests of the run") from None
    return None if document is None else document.tests


def _asked_later(run: Path, model: str) -> tuple[TaskSummary, ...]:
    document = load_document(TasksDocument, run / _EVALUATED / "tests.json")
    return document.models[model].tests if document is not None and model in document.models else ()


def _scores(run: Path, name: str, test: TaskSummary) -> tuple[ItemScore, ...]:
    kind: type[ChoiceScore] | type[InstructionScore] = ChoiceScore if test.kind == "choices" else InstructionScore
    try:
        rows: Sequence[ItemScore] = load_rows(kind, run / name) or []
        check_sum(run / name, noted_sums(run).get(name) if rows else None)
    except DataError as error:
        raise DataError(f"{error}. Restore it, or remove it to compare without it") from None
    return tuple(rows)


def pair_tests(sides: Sequence[Sequence[TakenTest]]) -> tuple[list[tuple[TakenTest, ...]], list[str]]:
    """The tests that all sides took, named as the last one names them, for each the takers in order; and what is left out.

    Of three sides and more an item counts for none of them where one has no score of it.
    """
    *others, last = sides
    of_others = [{test.key: test for test in side} for side in others]
    rows = [(*(own[test.key] for own in of_others), test) for test in last if all(test.key in own for own in of_others)]
    paired = {test.key for row in rows for test in row}
    left = dict.fromkeys(test.asked.name for side in sides for test in side if test.key not in paired)
    remarks = [f"{name} is not compared: {_why_not(name, sides)}" for name in left]
    return [_named_alike(row) for row in rows], remarks


def _why_not(name: str, sides: Sequence[Sequence[TakenTest]]) -> str:
    taken = [test for side in sides for test in side if test.asked.name == name]
    if len(taken) < len(sides):
        return "not every side took it"
    if len({(test.asked.kind, test.asked.sha256) for test in taken}) > 1:
        return "the files of that name differ"
    return "it was asked in other ways (evaluation.tests_prompt, num_fewshot, fewshot_sampler)"


def _named_alike(row: tuple[TakenTest, ...]) -> tuple[TakenTest, ...]:
    last = row[-1]
    sources = [one.source for one in last.scores]
    whole = [len(row) < 3 or all(map(is_scored, of_all)) for of_all in zip(*(test.scores for test in row), strict=True)]
    return tuple(
        TakenTest(
            last.asked,
            tuple(
                replace(score, source=source)
                for score, source, counts in zip(test.scores, sources, whole, strict=True)
                if counts
            ),
        )
        for test in row
    )


def compare_taken(
    base: Sequence[TakenTest], tuned: Sequence[TakenTest], *, confidence: float, num_resamples: int, seed: int
) -> tuple[tuple[TaskSummary, ...], tuple[MetricComparison, ...]]:
    """Two sides of `pair_tests`: what was asked in each test, and all metrics of the items that both have a score of."""
    rows = [(test.asked, one.scores, test.scores) for one, test in zip(base, tuned, strict=True)]
    summaries = tuple(counted(*row) for row in rows)
    metrics = [
        metric
        for row in rows
        for metric in compare_tests(*row, confidence=confidence, num_resamples=num_resamples, seed=seed)
    ]
    return summaries, tuple(metrics)
