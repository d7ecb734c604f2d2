"""Records for the pieces: tries of a given size, and steps as instruction data has them."""

from __future__ import annotations

import numpy as np

from tuneful.batch.trie import TrieBatch, build_trie
from tuneful.types import Example

PREAMBLE, PROMPT, RESPONSE = 30, (8, 20), (10, 60)
"""Tokens as Alpaca's records have them: shared by all, of the instruction, of the answer."""


def example(prompt: list[int], response: list[int]) -> Example:
    """A record whose response is trained."""
    ids = np.array([*prompt, *response], dtype=np.int32)
    weights = np.array([0.0] * len(prompt) + [1.0] * len(response), dtype=np.float32)
    return Example(ids, weights, len(prompt), "benchmark")


def records_of(num_nodes: int, vocabulary: int, seed: int = 0) -> list[Example]:
    """Records of one preamble that come to about `num_nodes` nodes, and never more."""
    rng = np.random.default_rng(seed)
    opening = rng.integers(1, vocabulary, PREAMBLE).tolist()
    found: list[Example] = []
    nodes = PREAMBLE
    while True:
        own, answer = int(rng.integers(*PROMPT)), int(rng.integers(*RESPONSE))
        if found and nodes + own + answer > num_nodes:
            return found
        ids = rng.integers(1, vocabulary, own + answer).tolist()
        found.append(example([*opening, *ids[:own]], [*ids[own:], 0]))
        nodes += own + answer


def trie_of(num_nodes: int, seed: int = 0) -> TrieBatch:
    """A trie of exactly `num_nodes`: records of a preamble, the last one as long as it takes."""
    records = records_of(num_nodes, 1000, seed) if num_nodes > PREAMBLE + PROMPT[1] + RESPONSE[1] else []
    have = build_trie(records).num_nodes if records else 0
    if have < num_nodes:
        rng = np.random.default_rng(seed + 1)
        ids = [1001, *rng.integers(1, 1000, num_nodes - have).tolist()]
        records.append(example(ids[:1], ids[1:]))
    return build_trie(records)
