"""A trie cut into blocks, the units that attention on a CPU is computed in.

A block is some queries that follow one another on a branch; its keys are the path from the root to its last query, in
order of depth, so a query at position p sees the first p + 1 of them:

    trie (depth first)  0 1 2 3 4      branches 0-1-2, 3-4 below 1      blocks   queries   keys (path)
    position            0 1 2 2 3                                         0      0 1 2     0 1 2
                                                                          1      3 4       0 1 3 4

Each query's keys are in one block, so softmax needs no second pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneful.batch.trie import TrieBatch


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Queries that follow one another on a branch, and the path they see: nodes int64."""

    queries: np.ndarray[Any, np.dtype[np.int64]]
    path: np.ndarray[Any, np.dtype[np.int64]]


def cut_blocks(batch: TrieBatch, max_queries: int) -> list[Block]:
    """Every node in exactly one block; a block is a stretch of a branch of at most `max_queries` nodes, cut evenly."""
    positions = batch.positions.astype(np.int64)
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    path = np.zeros(int(positions.max()) + 1, dtype=np.int64)
    blocks = []
    for start, stop in zip(starts, [*starts[1:], batch.num_nodes], strict=True):
        nodes = np.arange(start, stop)
        path[positions[start] : positions[start] + len(nodes)] = nodes
        for part in np.array_split(nodes, -(-len(nodes) // max_queries)):
            blocks.append(Block(part, path[: positions[part[-1]] + 1].copy()))
    return blocks
