"""Examples of a micro-batch become a TrieBatch: each distinct prefix once, whoever shares it.

A batch is a trie over token ids, stored depth first:

    records                     a b c x        a b d          a b d y z
    trie, depth first     node  0  1  2  3  4            the last token of a record predicts nothing: it is not stored
                     token id   a  b  c  d  y
                     position   0  1  2  2  3
                  subtree_end   5  5  3  5  5            node i sees node j  <=>  j <= i < subtree_end[j]
                      targets   0->b weight 3, 1->c 1, 1->d 2, 2->x 1, 3->y 1, 4->z 1      (every token weighing 1)

Padding, packing, isolation, prefix sharing, deduplication and weighted losses are this one structure. Loss and gradient
are those of the records run one by one: a node's hidden state depends on its prefix alone, and the weights of records
that want the same prediction from the same node are summed. Sorting costs O(records log records) comparisons, the rest is
linear in tokens. On Alpaca-style data of about 60 tokens a record, 8 records make 1.55 times fewer nodes than tokens,
32 records 1.65 times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tuneful.types import Example, FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class TrieBatch:
    """A micro-batch as a trie of N nodes with M targets, drawn in the module's docstring.

    input_ids       int32 [N]   token of each node, depth first
    positions       int32 [N]   depth of each node: its position in every record that runs through it
    subtree_end     int32 [N]   node i sees node j exactly if j <= i < subtree_end[j]
    target_rows     int32 [M]   the node that predicts, rising
    target_ids      int32 [M]   the token it predicts; a (row, id) pair stands once
    target_weights  float64 [M] the summed weight of that prediction over all records; above 0
    record_targets  for each record, in the order given: which targets are its own, int64 into [M]
    num_record_tokens: tokens of the records as given, end tokens included.
    """

    input_ids: IntArray
    positions: IntArray
    subtree_end: IntArray
    target_rows: IntArray
    target_ids: IntArray
    target_weights: np.ndarray[Any, np.dtype[np.float64]]
    record_targets: tuple[np.ndarray[Any, np.dtype[np.int64]], ...]
    num_record_tokens: int

    def __post_init__(self) -> None:
        assert len(self.input_ids) == len(self.positions) == len(self.subtree_end)
        assert len(self.target_rows) == len(self.target_ids) == len(self.target_weights) > 0

    @property
    def num_nodes(self) -> int:
        """N: the tokens that are computed."""
        return len(self.input_ids)


def build_trie(examples: Sequence[Example], *, share: bool = True) -> TrieBatch:
    """The trie of `examples`; without `share` each record is a branch of its own from its first token on."""
    assert examples, "a batch without records"
    order = (
        sorted(range(len(examples)), key=lambda index: token_order(examples[index])) if share else range(len(examples))
    )
    ordered = [examples[index] for index in order]
    longest = max(len(example) for example in ordered)
    path = np.zeros(longest, dtype=np.int64)  # the node at each depth of the record in hand
    ids, positions, starts, parents_depth = [], [], [], []
    rows, targets, weights = [], [], []
    num_nodes = 0
    previous: Example | None = None
    for example in ordered:
        tokens = example.token_ids[:-1]
        shared = common_prefix(previous, example) if previous and share else 0
        path[shared : len(tokens)] = np.arange(num_nodes, num_nodes + len(tokens) - shared)
        ids.append(tokens[shared:])
        positions.append(np.arange(shared, len(tokens), dtype=np.int32))
        starts.append(num_nodes)
        parents_depth.append(shared)
        num_nodes += len(tokens) - shared
        at = np.flatnonzero(example.weights[1:])
        rows.append(path[at].copy())
        targets.append(example.token_ids[1:][at])
        weights.append(example.weights[1:][at])
        previous = example
    target_rows, target_ids, target_weights, merged = _merge_targets(
        np.concatenate(rows), np.concatenate(targets), np.concatenate(weights)
    )
    own_targets = np.split(merged, np.cumsum([len(part) for part in rows])[:-1])
    all_positions = np.concatenate(positions)
    return TrieBatch(
        input_ids=np.concatenate(ids),
        positions=all_positions,
        subtree_end=_subtree_ends(starts, parents_depth, all_positions),
        target_rows=target_rows,
        target_ids=target_ids,
        target_weights=target_weights,
        record_targets=tuple(own for _, own in sorted(zip(order, own_targets, strict=True), key=lambda pair: pair[0])),
        num_record_tokens=sum(len(example) for example in ordered),
    )


def padded_trie(batch: TrieBatch, num_nodes: int) -> TrieBatch:
    """`batch` with nodes behind its own, `num_nodes` in all, for kernels that compute in tiles: each is a root that sees itself
    alone, holds token 0 and predicts nothing, so neither loss nor gradient knows of it."""
    more = np.arange(batch.num_nodes, num_nodes, dtype=np.int32)
    roots = np.zeros_like(more)
    return replace(
        batch,
        input_ids=np.concatenate([batch.input_ids, roots]),
        positions=np.concatenate([batch.positions, roots]),
        subtree_end=np.concatenate([batch.subtree_end, more + 1]),
    )


def token_order(example: Example) -> bytes:
    """A sort key: bytes that compare as the token ids do, a prefix before what it is a prefix of."""
    return example.token_ids[:-1].astype(">u4").tobytes()


def common_prefix(first: Example, second: Example) -> int:
    """How many leading tokens two examples share, their last tokens (which predict nothing) aside."""
    length = min(len(first), len(second)) - 1
    differs = np.flatnonzero(first.token_ids[:length] != second.token_ids[:length])
    return int(differs[0]) if len(differs) else length


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Queries that follow one another on a branch, and the path they see: nodes int64. Each sees the path up to itself, of that
    at most the last `window` nodes; None for all."""

    queries: np.ndarray[Any, np.dtype[np.int64]]
    path: np.ndarray[Any, np.dtype[np.int64]]
    window: int | None = None


def cut_blocks(batch: TrieBatch, max_queries: int, window: int | None = None) -> list[Block]:
    """Every node in exactly one block, the unit that attention on a CPU is computed in.

    A block is a stretch of a branch of at most `max_queries` nodes, cut evenly; its keys are the path from the root to its last
    query, in order of depth, so a query at position p sees the first p + 1 of them. Each query's keys are in one block: softmax
    needs no second pass. With a `window` a query sees the last nodes of its path alone, itself among them, and the block's path
    begins with the first that any of its queries sees.

        trie (depth first)  0 1 2 3 4      branches 0-1-2, 3-4 below 1      blocks   queries   keys (path)
        position            0 1 2 2 3                                         0      0 1 2     0 1 2
                                                                              1      3 4       0 1 3 4
    """
    positions = batch.positions.astype(np.int64)
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    path = np.zeros(int(positions.max()) + 1, dtype=np.int64)
    blocks = []
    for start, stop in zip(starts, [*starts[1:], batch.num_nodes], strict=True):
        nodes = np.arange(start, stop)
        path[positions[start] : positions[start] + len(nodes)] = nodes
        for part in np.array_split(nodes, -(-len(nodes) // max_queries)):
            first = max(0, positions[part[0]] + 1 - window) if window else 0
            blocks.append(Block(part, path[first : positions[part[-1]] + 1].copy(), window))
    return blocks


def visible(batch: TrieBatch, window: int | None = None) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """The rule as a dense matrix, bool [N, N]: row i sees column j. The oracle of tests; training never builds it."""
    node, depth = np.arange(batch.num_nodes), batch.positions
    sees = (node[None, :] <= node[:, None]) & (node[:, None] < batch.subtree_end[None, :])
    return np.asarray(sees if window is None else sees & (depth[:, None] - depth[None, :] < window))


def draw(batch: TrieBatch, text_of: Callable[[int], str] = str) -> str:
    """The trie as text: a line a node, indented by depth, with the targets it predicts and their weights.

    a                    -> b x3
      b                  -> c x1, d x2
        c                -> x x1
        d                -> y x1
          y              -> z x1
    """
    wanted: dict[int, list[str]] = {}
    for row, token_id, weight in zip(batch.target_rows, batch.target_ids, batch.target_weights, strict=True):
        wanted.setdefault(int(row), []).append(f"{text_of(int(token_id))} x{weight:g}")
    lines = []
    for node in range(batch.num_nodes):
        name = "  " * int(batch.positions[node]) + text_of(int(batch.input_ids[node]))
        lines.append(f"{name:<20} -> {', '.join(wanted[node])}" if node in wanted else name)
    return "\n".join(lines)


def _subtree_ends(starts: Sequence[int], parents_depth: Sequence[int], positions: IntArray) -> IntArray:
    """Where each node's subtree ends: at the first later branch that leaves the path at the node's depth or above.

    Branch b starts at node starts[b] below depth parents_depth[b]; it closes every open node of that depth or deeper.
    """
    num_nodes = len(positions)
    ends = np.full(num_nodes, num_nodes, dtype=np.int32)
    open_nodes = np.zeros(int(positions.max()) + 1, dtype=np.int64)
    num_open = 0
    for start, depth, stop in zip(starts, parents_depth, [*starts[1:], num_nodes], strict=True):
        ends[open_nodes[depth:num_open]] = start
        num_open = depth + stop - start
        open_nodes[depth:num_open] = np.arange(start, stop)
    return ends


def _merge_targets(
    rows: np.ndarray[Any, np.dtype[np.int64]], ids: IntArray, weights: FloatArray
) -> tuple[IntArray, IntArray, np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Each (row, id) pair once, in rising order, with its weights summed; and for each given pair, which one it became."""
    order = np.lexsort((ids, rows))
    rows, ids, weights = rows[order], ids[order], weights[order]
    new = np.concatenate(([True], (rows[1:] != rows[:-1]) | (ids[1:] != ids[:-1])))
    first = np.flatnonzero(new)
    merged = np.empty(len(order), dtype=np.int64)
    merged[order] = np.cumsum(new) - 1
    summed = np.add.reduceat(weights.astype(np.float64), first)
    return rows[first].astype(np.int32), ids[first].astype(np.int32), summed, merged
