"""Answers files become items to judge: a task, its reference, an answer, and under `pairwise` the rival answer.

Stands between `evaluation/answers.py`, which reads the files, and `run.py`, which has the items judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneful.config import DataConfig
from tuneful.errors import DataError
from tuneful.evaluation.answers import read_answer_rows, task_text
from tuneful.judge.protocols import Item


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """The items of one answers file; `name` is the file's without its ending."""

    name: str
    items: tuple[Item, ...]


def read_answers(path: Path, config: DataConfig, answer_key: str | None = None) -> AnswerSet:
    """The items of the answers file `path`; arguments and errors as for `read_answer_rows`."""
    rows = read_answer_rows(path, config, answer_key)
    items = (Item(row.source, task_text(row.record.conversation), row.reference, row.text) for row in rows)
    return AnswerSet(path.stem, tuple(items))


def paired(items: Sequence[Item], rivals: Sequence[Item]) -> list[Item]:
    """`items`, each with the answer of the rival of the same source; DataError where one has none."""
    rival_of = {rival.source: rival for rival in rivals}
    for item in items:
        if item.source not in rival_of:
            raise DataError(f"{item.source}: only one of the two files answers it; a comparison needs both")
        if rival_of[item.source].task != item.task:
            raise DataError(f"{item.source}: the two files hold different tasks under it")
    return [
        Item(item.source, item.task, item.reference, item.answer, rival=rival_of[item.source].answer) for item in items
    ]
