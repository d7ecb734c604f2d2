"""Records are divided into train, validation and test, the same way every time.

`ordered` cuts the file as it stands: train first, then test, then validation, as the chapter does. `random` shuffles with
the seed first. `grouped` shuffles groups of records whose prompts are the same after normalisation, so that no prompt of
the test set was trained on.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tuneful.data.read import Record
from tuneful.errors import DataError
from tuneful.types import Conversation


@dataclass(frozen=True, slots=True)
class Split:
    """Three disjoint lists whose lengths sum to the number of records divided."""

    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    test: tuple[Record, ...]


def split_records(
    records: Sequence[Record], method: str, *, test_share: float, validation_share: float, seed: int
) -> Split:
    """Divide `records`; raises DataError where there are too few for a train set and each wanted share."""
    num_train = int(len(records) * (1 - test_share - validation_share) + 1e-9)
    num_test = int(len(records) * test_share + 1e-9)
    if test_share and not num_test:
        num_test, num_train = 1, num_train - 1
    if validation_share and num_train + num_test >= len(records):
        num_train = len(records) - num_test - 1
    if num_train < 1:
        raise DataError(
            f"{len(records)} record(s) are too few for a train, a validation and a test set; bring more, or set "
            "data.validation_share=0 and data.test_share=0"
        )
    ordered = list(records) if method == "ordered" else _shuffled(records, seed, grouped=method == "grouped")
    if not validation_share:
        num_train = len(records) - num_test
    bounds: tuple[int, ...] = (num_train, num_train + num_test)
    if method == "grouped":
        bounds = _bounds_between_groups(ordered, *bounds)
    split = Split(tuple(ordered[: bounds[0]]), tuple(ordered[bounds[1] :]), tuple(ordered[bounds[0] : bounds[1]]))
    assert len(split.train) + len(split.validation) + len(split.test) == len(records)
    return split


def normal_prompt(conversation: Conversation) -> str:
    """The prompt with what people vary without meaning to taken out: case, punctuation, white space, character form."""
    text = " ".join(f"{turn.instruction}\n{turn.input}" for turn in conversation.turns)
    folded = unicodedata.normalize("NFKC", f"{conversation.system}\n{text}").casefold()
    return re.sub(r"[\W_]+", " ", folded).strip() or folded


def _shuffled(records: Sequence[Record], seed: int, *, grouped: bool) -> list[Record]:
    """All records in a seeded order; where `grouped`, records with the same prompt stay neighbours."""
    groups: dict[object, list[Record]] = {}
    for index, record in enumerate(records):
        groups.setdefault(normal_prompt(record.conversation) if grouped else index, []).append(record)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    return [record for group in shuffled for record in group]


def _bounds_between_groups(ordered: Sequence[Record], *bounds: int) -> tuple[int, ...]:
    """Each bound moved on to where the next group begins, but never to the end: a set that was wanted is not emptied."""
    prompts = [normal_prompt(record.conversation) for record in ordered]

    def between(index: int) -> bool:
        return index in (0, len(prompts)) or prompts[index] != prompts[index - 1]

    moved = []
    for bound in bounds:
        later = next((index for index in range(bound, len(prompts)) if between(index)), len(prompts))
        if later == len(prompts) != bound:
            later = next((index for index in range(bound, -1, -1) if between(index)), 0)
        moved.append(later)
    return tuple(moved)
