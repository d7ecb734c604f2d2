"""Hashes that are the same on every machine: of a text, of a number, and which of many agree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b of `text`: the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`values` scattered over all 64-bit numbers, one to one (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def groups_of_equal(keys: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.int64]]:
    """The indices, rising, of each group of equal `keys` with two members or more; groups in the order of their key."""
    by_key = np.argsort(keys, kind="stable")
    sorted_keys = keys[by_key]
    same_as_before = np.concatenate([[False], sorted_keys[1:] == sorted_keys[:-1], [False]])
    borders = np.flatnonzero(same_as_before[1:] != same_as_before[:-1])
    for start, end in zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True):
        yield by_key[start : end + 1]
