"""What is rated and browsed: the answers of a run beside the tasks of its test set, and in which order a rater sees them.

    answer_names       the sets of answers in RUN/answers          load_answers   their rows, joined by source
    items_for          two sets, in a rater's own order            search         rows that hold all words

Stands under `pages.py`, over `evaluation/answers.py`. Which of two answers stands first, and which item comes when, follows from
a hash of seed, rater and item: random to people, the same after a restart, and never sent to the browser.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneful.config import DataConfig
from tuneful.errors import DataError
from tuneful.evaluation.answers import read_answer_rows, task_text
from tuneful.evaluation.ratings import text_sha256

_NO_ANSWERS = ("-references",)


@dataclass(frozen=True, slots=True)
class TestItem:
    """A record of the test set, with the text of each set of answers that has one; `reference` is "" where there is none."""

    source: str
    task: str
    reference: str
    answers: Mapping[str, str]
    finish_reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BlindItem:
    """An item as a rater sees it: `first` is the name of the answers that stand first, which is kept from the browser."""

    item: TestItem
    first: Literal["a", "b"]
    a: str
    b: str

    @property
    def texts(self) -> tuple[str, str]:
        """The two answers, in the order in which they are shown."""
        both = (self.item.answers[self.a], self.item.answers[self.b])
        return both if self.first == "a" else (both[1], both[0])

    @property
    def digest(self) -> str:
        """The item and what the rater sees of it, as a hash: whoever rates says what was rated."""
        return text_sha256(json.dumps([self.item.source, self.item.task, *self.texts]))


def answer_names(run: Path) -> list[str]:
    """The sets of answers of the run folder `run`, by the names of their files."""
    found = (file.stem for file in sorted((run / "answers").glob("*.jsonl")) if file.is_file())
    return [name for name in found if not name.endswith(_NO_ANSWERS)]


def load_answers(run: Path, names: Sequence[str]) -> list[TestItem]:
    """The test items of `run` with the answers called `names`, in the order of the first file that has them.

    DataError where a file is damaged, or no answers are called so.
    """
    known = answer_names(run)
    items: dict[str, tuple[str, str, dict[str, str], dict[str, str]]] = {}
    for name in names:
        if name not in known:
            raise DataError(f"{run.name}: has no answers called {name!r}; there are: {', '.join(known) or 'none'}")
        for row in read_answer_rows(run / "answers" / f"{name}.jsonl", DataConfig(), needs_reference=False):
            task, reference = task_text(row.record.conversation), row.reference
            _, _, texts, reasons = items.setdefault(row.source, (task, reference, {}, {}))
            texts[name], reasons[name] = row.text, row.finish_reason
    return [TestItem(source, *rest) for source, rest in items.items()]


def items_for(items: Sequence[TestItem], rater: str, a: str, b: str, seed: int) -> list[BlindItem]:
    """The items whose answers `a` and `b` differ, in the order of `rater`, each with its order of the two answers."""
    differing = [item for item in items if {a, b} <= item.answers.keys() and item.answers[a] != item.answers[b]]
    differing.sort(key=lambda item: _random(seed, rater, a, b, item.source, "place"))
    return [
        BlindItem(item, "a" if _random(seed, rater, a, b, item.source, "first") % 2 else "b", a, b)
        for item in differing
    ]


def num_equal(items: Sequence[TestItem], a: str, b: str) -> int:
    """How many items have the same answer in `a` and in `b`: there is nothing to rate."""
    return sum({a, b} <= item.answers.keys() and item.answers[a] == item.answers[b] for item in items)


def search(items: Sequence[TestItem], words: str) -> list[TestItem]:
    """The items that hold all of `words` somewhere, in any case."""
    wanted = words.casefold().split()
    return [item for item in items if all(word in _searched(item) for word in wanted)] if wanted else list(items)


def _searched(item: TestItem) -> str:
    return "\n".join((item.source, item.task, item.reference, *item.answers.values())).casefold()


def _random(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode("utf-8")).digest()[:8], "big")
