"""The section of standard tests: which files both models took, and how many of their items count.

Feeds `sections.py`. Their accuracies have a table of their own: they are over other items than the measures of the test set.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneful.numbers import count, plural
from tuneful.report.scores import ScoreRow, rows_of
from tuneful.runs.schema import Comparison, TaskSummary


@dataclass(frozen=True, slots=True)
class TasksView:
    """The table of accuracies, and a sentence for each test."""

    rows: tuple[ScoreRow, ...]
    sentences: tuple[str, ...]


def view_tasks(comparison: Comparison) -> TasksView:
    """Lay out the tests of `comparison`, of which there is one at least."""
    metrics = [metric for metric in comparison.metrics if comparison.test_of(metric) is not None]
    rows = rows_of(metrics, comparison, "test", lambda metric: f"{metric.unit}; {plural(metric.num_items, 'item')}")
    return TasksView(rows, tuple(map(_sentence, comparison.tests)))


def _sentence(test: TaskSummary) -> str:
    kind = "multiple choice, by log-likelihood" if test.kind == "choices" else "instructions, by what the models answer"
    asked = (
        "under the template of the training" if test.prompt == "template" else "as the raw text that stands in the file"
    )
    shots = f", after {plural(test.num_fewshot, 'item')} with the answer" if test.num_fewshot else ""
    reasons = "".join(f" {count(number)} could not be scored: {reason}." for reason, number in test.unscored.items())
    scored = f"{count(test.num_scored)} of {plural(test.num_items - test.num_fewshot, 'item')} count."
    return f"{test.name} ({test.file.rpartition('/')[2]}): {kind}, asked {asked}{shots}. {scored}{reasons}"
