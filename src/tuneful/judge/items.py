"""Answers files become items to judge: a task, its reference, an answer, and under `pairwise` the rival answer.

Stands between `evaluation/answers.py`, which reads the files, and `run.py`, which has the items judged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneful.config import DataConfig
from tuneful.errors import DataError
from tuneful.evaluation.answers import read_answer_rows, task_text
from tuneful.judge.protocols import Item


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """The items of one answers file; `name` is the file's without its ending, and with the key of one answer among several."""

    name: str
    items: tuple[Item, ...]


def read_answers(
    path: Path, config: DataConfig, answer_key: str | None = None, *, use_reference: bool = True
) -> AnswerSet:
    """The items of the answers file `path`; arguments and errors as for `read_answer_rows`."""
    rows = read_answer_rows(path, config, answer_key, needs_reference=use_reference)
    items = (
        Item(row.source, task_text(row.record.conversation), row.reference if row.has_reference else None, row.text)
        for row in rows
    )
    return AnswerSet(path.stem, tuple(items))


def named_by_key(answers: AnswerSet, key: str) -> AnswerSet:
    """`answers`, which stand under `key` beside others in one file, under a name of their own."""
    return replace(answers, name=f"{answers.name}-{re.sub(r'[^A-Za-z0-9._]+', '-', key).strip('-')}")


def paired(items: Sequence[Item], rivals: Sequence[Item]) -> list[Item]:
    """`items`, each with the answer of the rival of the same source, or where files name no common sources of the same task.

    DataError where one has none, or where two references differ.
    """
    common = {rival.source: rival for rival in rivals}
    by_source = any(item.source in common for item in items)
    keyed = [(item.source, item) for item in items] if by_source else _by_task(items)
    rival_of = common if by_source else dict(_by_task(rivals))
    found = []
    for key, item in keyed:
        rival = rival_of.get(key)
        if rival is None:
            raise DataError(f"{item.source}: only one of the two files answers it; a comparison needs both")
        if rival.task != item.task:
            raise DataError(f"{item.source}: the two files hold different tasks under it")
        if None not in (item.reference, rival.reference) and item.reference != rival.reference:
            raise DataError(f"{item.source}: the two files hold different references to one task")
        found.append(replace(item, rival=rival.answer))
    return found


def _by_task(items: Sequence[Item]) -> list[tuple[str, Item]]:
    """Each item under its task, and how many of the same came before."""
    seen: Counter[str] = Counter()
    keyed = []
    for item in items:
        seen[item.task] += 1
        keyed.append((f"{seen[item.task]} {item.task}", item))
    return keyed
