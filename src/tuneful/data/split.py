"""Records are divided into train, validation and test, the same way every time.

`ordered` cuts the file as it stands: train first, then test, then validation, as in Raschka's book. `grouped` keeps records
with the same or nearly the same prompt together (`duplicates.py`), so that no prompt of the test set was trained on.
`random` divides record by record.

Under `grouped` the side of a cluster is a seeded hash of the prompt of its earliest record, under `random` a seeded hash
of the record's position: rows that are appended later move no record, and shares are met on average, not to the record. Four
things to know of `grouped`:

- What many prompts share word for word is no likeness (`wording.py`). Rows that are appended may bring such wording, and then
  records that were together are so no longer.
- A record that is similar to records of two clusters joins the earlier and merges nothing, because merging would move
  records that had their side; the audit reports it where the two clusters are on different sides.
- A cluster larger than a whole side should be is trained on, whatever its hash: it would be the test set.
- A side that would be empty takes the smallest cluster whose hash is nearest; only sets of some dozen prompts come to this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from tuneful.data.duplicates import Sketches, normal_text
from tuneful.data.hashes import mixed
from tuneful.errors import DataError
from tuneful.types import Conversation

Sides = npt.NDArray[np.int8]

SPLIT_VERSION = 2
"""Raised with every change that may divide records otherwise: sides that are kept beside a data set are of one version."""

_MAX_COMPARED_CHARACTERS = 1 << 14
"""What of a document is compared with others: documents that agree so far are the same to whoever divides them."""

_SHARE_SEEDS = 1 << 32
"""Above every seed of a split, so that which records a share takes has nothing to do with the side they are on."""

TRAIN, VALIDATION, TEST = 0, 1, 2
SIDE_NAMES = ("train", "validation", "test")
"""The name of each side, by its number."""


def split_sides(
    normal_prompts: Iterable[str], method: str, *, test_share: float, validation_share: float, seed: int
) -> Sides:
    """The side of each record, by its `normal_prompt`: int8 [N] of TRAIN, VALIDATION and TEST.

    `method` is `grouped`, `random` or `ordered`. Raises DataError where there are too few records, or too few clusters,
    for a train set and each wanted share. Prompts are consumed once; `random` and `ordered` only count them.
    """
    if method == "grouped":
        sketches = Sketches(normal_prompts)
        return grouped_sides(
            sketches.clusters(),
            sketches.text_hashes,
            test_share=test_share,
            validation_share=validation_share,
            seed=seed,
        )
    num_records = sum(1 for _ in normal_prompts)
    num_test, num_validation = _sizes(num_records, test_share, validation_share)
    if method == "random":
        positions = _positions(np.arange(num_records, dtype=np.uint64), seed)
        ones = np.ones(num_records, dtype=np.int64)
        return _filled(positions, ones, test_share, validation_share)
    sides = np.zeros(num_records, dtype=np.int8)
    num_train = num_records - num_test - num_validation
    sides[num_train : num_train + num_test] = TEST
    sides[num_train + num_test :] = VALIDATION
    return sides


def grouped_sides(
    clusters: npt.NDArray[np.int64],
    text_hashes: npt.NDArray[np.uint64],
    *,
    test_share: float,
    validation_share: float,
    seed: int,
) -> Sides:
    """The sides under `grouped` of records whose `clusters` (index of the earliest member, [N]) are known already."""
    num_test, num_validation = _sizes(len(clusters), test_share, validation_share)
    earliest, cluster_of, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    wanted = 1 + bool(num_test) + bool(num_validation)
    if len(earliest) < wanted:
        raise DataError(
            f"data.split=grouped keeps records with the same prompt together, and there are only {len(earliest)} "
            f"different prompt(s) for {wanted} sets; set data.split=random, or data.validation_share=0 or "
            "data.test_share=0"
        )
    positions = _positions(text_hashes[earliest], seed)
    sides = _filled(positions, sizes, test_share, validation_share, (num_validation, num_test))
    return np.asarray(sides[cluster_of])


def nested_share(num_records: int, share: float, seed: int) -> npt.NDArray[np.int64]:
    """The indices, rising, of a `share` of so many records, at least one: those whose seeded hashes are lowest, so that a smaller
    share is part of a larger one."""
    if share >= 1:
        return np.arange(num_records)
    positions = _positions(np.arange(num_records, dtype=np.uint64), seed + _SHARE_SEEDS)
    num_kept = max(1, round(share * num_records))
    return np.sort(np.argsort(positions, kind="stable")[:num_kept])


def normal_prompt(conversation: Conversation) -> str:
    """The prompt's fields, one a line, without what people vary without meaning to: what `split_sides` divides by.

    Of a document it is the document, or the beginning of a long one.
    """
    return "\n".join(normal_text(field) for field in _prompt_fields(conversation))


def _prompt_fields(conversation: Conversation) -> Iterator[str]:
    yield conversation.system
    for turn in conversation.turns:
        yield from (result.text for result in turn.results)
        yield turn.response[:_MAX_COMPARED_CHARACTERS] if conversation.is_document else turn.instruction
        yield turn.input


def _sizes(num_records: int, test_share: float, validation_share: float) -> tuple[int, int]:
    """Records for test and validation: train and test are rounded down, as in the book, and no wanted set is empty."""
    num_test = int(num_records * test_share + 1e-9)
    if test_share and not num_test:
        num_test = 1
    num_validation = 0
    if validation_share:
        num_train = int(num_records * (1 - test_share - validation_share) + 1e-9)
        num_validation = max(1, num_records - max(num_train, 1) - num_test)
    if num_records - num_test - num_validation < 1:
        raise DataError(
            f"{num_records} record(s) are too few for a train, a validation and a test set; bring more, or set "
            "data.validation_share=0 and data.test_share=0"
        )
    return num_test, num_validation


def _positions(hashes: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each hash and `seed`: where it falls decides the side."""
    seeded = mixed(hashes ^ mixed(np.full(1, seed + 1, dtype=np.uint64)))
    return (seeded >> np.uint64(11)) / float(1 << 53)


def _filled(
    positions: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
    test_share: float,
    validation_share: float,
    limits: tuple[int, int] | None = None,
) -> Sides:
    """The side of each cluster: test at the head of [0, 1), then validation, then train; no wanted side empty.

    `limits` are the most records that one cluster may bring into validation and test.
    """
    sides = np.full(len(positions), TRAIN, dtype=np.int8)
    sides[positions < test_share + validation_share] = VALIDATION
    sides[positions < test_share] = TEST
    if limits:
        for side, limit in zip((VALIDATION, TEST), limits, strict=True):
            sides[(sides == side) & (sizes > limit)] = TRAIN
    for side, share in ((TRAIN, 1.0), (TEST, test_share), (VALIDATION, validation_share)):
        if share and not (sides == side).any():
            largest = np.argmax(np.bincount(sides, minlength=3))
            donors = np.flatnonzero(sides == largest)
            nearest = np.lexsort((-positions[donors] if side == TRAIN else positions[donors], sizes[donors]))
            sides[donors[nearest[0]]] = side
    return sides
