"""Attention over a trie by FlexAttention: a compiled kernel of tiles, for GPUs of compute capability 8.0 and above.

The stream is padded to whole tiles (`padded_length`), so that one compiled graph serves every length: from 256 nodes on the
kernel is the same one, and no load has to ask whether it is inside. Which tiles hold anything is told by lists, made on the
host: for a tile of keys the tiles of queries that see any of it are one interval, since the subtree of a node is one
(`tile_lists`). FlexAttention's own way to them, `create_block_mask`, evaluates N x N pairs.

A graph takes about 15 seconds to compile, and there are four: with and without gradient, in float32 and in the training dtype.
Beyond `recompile_limit` Dynamo would fall back, silently, to an implementation that holds all N x N scores: `fullgraph` makes
that an error. What fails to compile fails in the self-check before the first step (`train/layout.py`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tuneful.batch.trie import TrieBatch
from tuneful.model.transfer import on_device

# Legend of shapes: N nodes, T = N / TILE tiles, H query heads, K key/value heads, D head size of query and key, E of values
TILE = 128
MIN_NODES = 2 * TILE
"""Below this FlexAttention takes other kernels: one tile, or the one for decoding."""
RECOMPILE_LIMIT = 64

BoolArray = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int32]]


def padded_length(num_nodes: int) -> int:
    """How many nodes the stream of a batch of `num_nodes` has: whole tiles, and two of them at least."""
    return max(MIN_NODES, -(-num_nodes // TILE) * TILE)


@dataclass(frozen=True, slots=True, eq=False)
class FlexLayout:
    """Who sees whom, as FlexAttention's `BlockMask`."""

    block_mask: Any

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, softcap: float | None
    ) -> torch.Tensor:
        """query [1, H, N, D], key [1, K, N, D], value [1, K, N, E] -> [1, N, H, E]."""
        score_mod = softcap_score_mod(softcap) if softcap else None
        options = {"block_mask": self.block_mask, "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
        return _flex_attention(query, key, value, score_mod, **options).transpose(1, 2).contiguous()


def lay_out_flex(batch: TrieBatch, window: int | None, device: torch.device) -> FlexLayout:
    """The layout of a batch of whole tiles (`padded_length`), for layers of `window`."""
    from torch.nn.attention.flex_attention import BlockMask

    assert batch.num_nodes == padded_length(batch.num_nodes), batch.num_nodes
    some, full = tile_lists(batch.subtree_end, batch.positions, window)
    lists = [part for seen in (some, full, some.T, full.T) for part in _ordered(seen)]
    arrays = (batch.subtree_end, batch.positions, *lists)
    subtree_end, positions, *rest = on_device(device, *arrays, integers=torch.int32)
    names = [f"{prefix}_{what}" for prefix in ("kv", "full_kv", "q", "full_q") for what in ("num_blocks", "indices")]
    of_lists: dict[str, Any] = {name: part[None, None] for name, part in zip(names, rest, strict=True)}
    return FlexLayout(
        BlockMask(
            seq_lengths=(batch.num_nodes, batch.num_nodes),
            BLOCK_SIZE=(TILE, TILE),
            mask_mod=trie_mask_mod(subtree_end) if window is None else window_mask_mod(subtree_end, positions, window),
            **of_lists,
        )
    )


def tile_lists(
    subtree_end: IntArray, positions: IntArray, window: int | None = None, size: int = TILE
) -> tuple[BoolArray, BoolArray]:
    """Of each [tile of queries, tile of keys]: whether some pairs see each other and others do not; whether all do.

    A tile of keys is seen by the tiles from itself to that of its largest `subtree_end`, and wholly by those that begin behind it
    and end within its smallest. Under a window a tile is whole where its farthest pair is near enough; the first of the two may
    then be true of a tile that nobody sees.
    """
    ends = subtree_end.reshape(-1, size).astype(np.int64)
    key = np.arange(len(ends))
    query = key[:, None]
    seen = (query >= key) & (query <= (ends.max(1) - 1) // size)
    full = (query > key) & (query <= ends.min(1) // size - 1)
    if window is not None:
        depths = positions.reshape(-1, size).astype(np.int64)
        seen &= depths.min(1)[:, None] - depths.max(1) < window
        full &= depths.max(1)[:, None] - depths.min(1) < window
    return seen & ~full, full


def _ordered(seen: BoolArray) -> tuple[IntArray, IntArray]:
    """Of each row how many columns are true, int32 [T]; and the columns, those that are true first, int32 [T, T]."""
    columns = np.argsort(~seen, axis=1, kind="stable")
    return seen.sum(1, dtype=np.int32), columns.astype(np.int32)


def trie_mask_mod(subtree_end: torch.Tensor) -> Any:
    """The trie's rule as a FlexAttention `mask_mod`, for `subtree_end` int [N] on the device."""

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < subtree_end[key])

    return sees


def window_mask_mod(subtree_end: torch.Tensor, positions: torch.Tensor, window: int) -> Any:
    """The same of layers that see `window` nodes of a path, for `positions` int [N] on the device."""
    sees_path = trie_mask_mod(subtree_end)

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        near: torch.Tensor = positions[query] - positions[key] < window
        seen: torch.Tensor = sees_path(batch, head, query, key)
        return seen & near

    return sees


@functools.cache
def softcap_score_mod(softcap: float) -> Any:
    """Capped scores as a FlexAttention `score_mod`."""

    def capped(score: torch.Tensor, *place: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = softcap * torch.tanh(score / softcap)
        return found

    return capped


def _flex_attention(query: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
    """FlexAttention, compiled where it is for a GPU. On a CPU it computes every pair, which is for tests."""
    from torch.nn.attention.flex_attention import flex_attention

    if query.device.type == "cpu":
        on_cpu: torch.Tensor = flex_attention(query, *others, **options)
        return on_cpu
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
        found: torch.Tensor = _compiled_flex()(query, *others, **options)
        return found


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
