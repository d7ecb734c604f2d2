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
    num_test, num_validation = _sizes(len(records), test_share, validation_share)
    if len(records) - num_test - num_validation < 1:
        raise DataError(
            f"{len(records)} record(s) are too few for a train, a validation and a test set; bring more, or set "
            "data.validation_share=0 and data.test_share=0"
        )
    if method == "grouped":
        split = _split_groups(_groups(records), num_test, num_validation, seed)
    else:
        ordered = list(records)
        if method == "random":
            random.Random(seed).shuffle(ordered)
        first_test = len(ordered) - num_validation - num_test
        first_validation = first_test + num_test
        split = Split(
            tuple(ordered[:first_test]), tuple(ordered[first_validation:]), tuple(ordered[first_test:first_validation])
        )
    assert len(split.train) + len(split.validation) + len(split.test) == len(records)
    return split


def normal_prompt(conversation: Conversation) -> str:
    """The prompt with what people vary without meaning to taken out: case, punctuation, white space, character form."""
    text = " ".join(f"{turn.instruction}\n{turn.input}" for turn in conversation.turns)
    folded = unicodedata.normalize("NFKC", f"{conversation.system}\n{text}").casefold()
    return re.sub(r"[\W_]+", " ", folded).strip() or folded


def _sizes(num_records: int, test_share: float, validation_share: float) -> tuple[int, int]:
    """Records for test and validation: train and test are rounded down, as the chapter does, and no wanted set is empty."""
    num_test = int(num_records * test_share + 1e-9)
    if test_share and not num_test:
        num_test = 1
    if not validation_share:
        return num_test, 0
    num_train = int(num_records * (1 - test_share - validation_share) + 1e-9)
    return num_test, max(1, num_records - max(num_train, 1) - num_test)


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """Records with the same prompt together, in file order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(normal_prompt(record.conversation), []).append(record)
    return list(groups.values())


def _split_groups(groups: list[list[Record]], num_test: int, num_validation: int, seed: int) -> Split:
    """Whole groups to each set: validation and test take, from the end of a seeded order, what fits; train has the rest.

    Without groups of several records this is the `random` split.
    """
    wanted = 1 + bool(num_test) + bool(num_validation)
    if len(groups) < wanted:
        raise DataError(
            f"data.split=grouped keeps records with the same prompt together, and there are only {len(groups)} different "
            f"prompt(s) for {wanted} sets; set data.split=random, or data.validation_share=0 or data.test_share=0"
        )
    random.Random(seed).shuffle(groups)
    train: list[list[Record]] = []
    validation: list[list[Record]] = []
    test: list[list[Record]] = []
    room = [(validation, num_validation), (test, num_test)]
    for group in reversed(groups):
        taken_by = next((taken for taken, size in room if sum(map(len, taken)) + len(group) <= size), train)
        taken_by.append(group)
    for taken, size in room:
        if size and not taken:  # every group is larger than the whole set should be: the smallest will do
            taken.append(train.pop(min(range(len(train)), key=lambda index: len(train[index]))))
    return Split(
        *(tuple(record for group in reversed(taken) for record in group) for taken in (train, validation, test))
    )
