"""Attention over a trie's blocks in torch's own operations, forward and backward: for every CPU and dtype.

Blocks of like size are padded together and run as batched matrix products. Grouped-query heads share gathered keys: their
queries are rows of one product. Why not `scaled_dot_product_attention`: on short branches forward and backward take 4
(float32) to 11 (bfloat16) times as long on a CPU as these products, and it cannot skip what a branch does not see. Where a C
compiler is at hand `attention_native.py` does the same two to three times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tuneful.batch.trie import Block

# Legend of shapes: N nodes, H query heads, K key/value heads, R = H / K query heads a key head, D head size,
#                   B blocks of a group, Q queries of a block, P path (keys) of a block
MAX_QUERIES = 48
"""Queries of a block, at most: more would be padded further, fewer would gather the same path more often."""
KEPT_PATH = 1024
"""Softmax results are kept for the backward where a query sees up to this many keys on average, padding included: then they
are at most half of what a layer keeps anyway. Longer ones are computed again."""
_CALL_COST = 4_000
"""What one more batched call costs, in query-key pairs: padding up to this much is cheaper than another call."""
_MOST_BLOCKS = 128
"""Blocks in one group."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockGroup:
    """Blocks of like size, padded to B x Q queries and P keys; flat row indices into [N * heads] rows of size D.

    query_rows   int64 [B * K * R * Q]   rows of the query; padding reads row 0
    output_rows  int64 [B * K * R * Q]   rows of the output; padding writes the spare node N
    key_rows     int64 [B * K * P]       rows of key and value; padding reads row 0
    hidden       float [B * K, R * Q, P] 0 where the query sees the key, -inf where not
    """

    num_blocks: int
    query_rows: torch.Tensor
    output_rows: torch.Tensor
    key_rows: torch.Tensor
    hidden: torch.Tensor


def lay_out_groups(
    blocks: Sequence[Block], num_nodes: int, num_heads: int, num_key_heads: int, dtype: torch.dtype
) -> tuple[BlockGroup, ...]:
    """The blocks of a batch in groups of like size, for heads of `dtype`."""
    scored = torch.promote_types(dtype, torch.float32)
    return tuple(_lay_out(group, num_nodes, num_heads, num_key_heads, scored) for group in _grouped(blocks))


def _grouped(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks of like size together: the cut of the blocks, sorted by path, that costs least in padded pairs and calls.

    best[n] is the least cost of the n longest blocks, found by trying every last group (dynamic programming).
    """
    ordered = sorted(blocks, key=lambda block: (len(block.path), len(block.queries)), reverse=True)
    best, cuts = [0.0], [0]
    for stop in range(1, len(ordered) + 1):
        num_queries, least, cut = 0, float("inf"), 0
        for start in range(stop - 1, max(stop - 1 - _MOST_BLOCKS, -1), -1):
            num_queries = max(num_queries, len(ordered[start].queries))
            padded = (stop - start) * num_queries * len(ordered[start].path)
            if best[start] + padded + _CALL_COST < least:
                least, cut = best[start] + padded + _CALL_COST, start
        best.append(least)
        cuts.append(cut)
    groups: list[list[Block]] = []
    stop = len(ordered)
    while stop:
        groups.append(ordered[cuts[stop] : stop])
        stop = cuts[stop]
    return groups


def _lay_out(
    blocks: Sequence[Block], num_nodes: int, num_heads: int, num_key_heads: int, dtype: torch.dtype
) -> BlockGroup:
    num_blocks, repeats = len(blocks), num_heads // num_key_heads
    num_queries = max(len(block.queries) for block in blocks)
    num_keys = max(len(block.path) for block in blocks)
    queries_BQ = np.zeros((num_blocks, num_queries), dtype=np.int64)
    outputs_BQ = np.full((num_blocks, num_queries), num_nodes, dtype=np.int64)
    keys_BP = np.zeros((num_blocks, num_keys), dtype=np.int64)
    num_seen_BQ = np.ones((num_blocks, num_queries), dtype=np.int64)
    for row, block in enumerate(blocks):
        queries_BQ[row, : len(block.queries)] = block.queries
        outputs_BQ[row, : len(block.queries)] = block.queries
        keys_BP[row, : len(block.path)] = block.path
        num_seen_BQ[row, : len(block.queries)] = len(block.path) - np.arange(len(block.queries))[::-1]
    heads_KR1 = np.arange(num_heads).reshape(1, num_key_heads, repeats, 1)
    key_heads_K1 = np.arange(num_key_heads).reshape(1, num_key_heads, 1)
    sees_BQP = torch.from_numpy(np.arange(num_keys) < num_seen_BQ[..., None])
    if (window := blocks[0].window) is not None:
        sees_BQP &= torch.from_numpy(np.arange(num_keys) >= num_seen_BQ[..., None] - window)
    hidden_BQP = torch.zeros(sees_BQP.shape, dtype=dtype).masked_fill_(~sees_BQP, -torch.inf)
    hidden = hidden_BQP[:, None, None].expand(-1, num_key_heads, repeats, -1, -1)
    return BlockGroup(
        num_blocks=num_blocks,
        query_rows=torch.from_numpy((queries_BQ[:, None, None] * num_heads + heads_KR1).ravel()),
        output_rows=torch.from_numpy((outputs_BQ[:, None, None] * num_heads + heads_KR1).ravel()),
        key_rows=torch.from_numpy((keys_BP[:, None] * num_key_heads + key_heads_K1).ravel()),
        hidden=hidden.reshape(num_blocks * num_key_heads, repeats * num_queries, num_keys),
    )


class GroupedAttention(torch.autograd.Function):
    """softmax(scale * Q K^T + hidden) V, a group of blocks at a time (Vaswani et al. 2017), with its gradient by hand. With a
    `softcap` above 0 the scores are softcap * tanh(scale * Q K^T / softcap) (Gemma Team 2024), and dS is times 1 - tanh^2.

    With P the probabilities and dO the output's gradient: dV = P^T dO, dS = P * (dO V^T - rowsum(dO * O)),
    dQ = scale * dS K, dK = scale * dS^T Q (Dao et al. 2022, appendix B). As there, scores and softmax are at least float32,
    the other products in the dtype of the model, and what several blocks add to a key is added in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        groups: tuple[BlockGroup, ...],
        scale: float,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        scored = _rows_for_scores(query, key)
        value_rows = _rows(value)
        _, num_heads, num_nodes, _ = query.shape
        size = value.shape[-1]
        output = value_rows.new_empty((num_nodes + 1) * num_heads, size)
        kept = []
        for group in groups:
            probabilities = _probabilities(scored, group, scale, softcap)[0].to(value.dtype)
            values = value_rows.index_select(0, group.key_rows).view(len(probabilities), -1, size)
            output.index_copy_(0, group.output_rows, torch.bmm(probabilities, values).view(-1, size))
            kept.append(probabilities)
        short = not softcap and sum(part.numel() for part in kept) <= KEPT_PATH * num_nodes * num_heads
        output = output[: num_nodes * num_heads]
        ctx.save_for_backward(query, key, value, output, *(kept if short else ()))
        ctx.groups, ctx.scale, ctx.softcap = groups, scale, softcap
        return output.view(1, num_nodes, num_heads, size)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *kept = ctx.saved_tensors
        num_nodes, num_heads, value_size = grads[0].shape[1:]
        size = query.shape[-1]
        query_rows, key_rows, value_rows = (_rows(tensor) for tensor in (query, key, value))
        scored = None if kept else _rows_for_scores(query, key)
        high = torch.promote_types(query.dtype, torch.float32)
        grad_output = output.new_zeros((num_nodes + 1) * num_heads, value_size)
        grad_output[: num_nodes * num_heads].view(num_nodes, num_heads, value_size).copy_(grads[0][0])
        delta = output.new_zeros((num_nodes + 1) * num_heads, 1, dtype=high)
        products = grad_output[: num_nodes * num_heads].to(high) * output
        torch.sum(products, 1, keepdim=True, out=delta[: num_nodes * num_heads])
        grad_query = output.new_empty(len(grad_output), size)
        grad_key, grad_value = (torch.zeros_like(rows, dtype=high) for rows in (key_rows, value_rows))
        for index, group in enumerate(ctx.groups):
            slopes = None
            if scored is None:
                probabilities = kept[index]
            else:
                probabilities, slopes = _probabilities(scored, group, ctx.scale, ctx.softcap)
                probabilities = probabilities.to(value.dtype)
            num_pairs = len(probabilities)
            queries = query_rows.index_select(0, group.query_rows).view(num_pairs, -1, size)
            keys = key_rows.index_select(0, group.key_rows).view(num_pairs, -1, size)
            values = value_rows.index_select(0, group.key_rows).view(num_pairs, -1, value_size)
            grads_out = grad_output.index_select(0, group.output_rows).view(num_pairs, -1, value_size)
            deltas = delta.index_select(0, group.output_rows).view(num_pairs, -1, 1)
            to_values = torch.bmm(probabilities.mT, grads_out).view(-1, value_size)
            grad_value.index_add_(0, group.key_rows, to_values.to(high))
            grad_scores = torch.bmm(grads_out, values.mT).sub_(deltas).mul_(probabilities)
            if slopes is not None:
                grad_scores.mul_(slopes)
            grad_query.index_copy_(0, group.output_rows, torch.bmm(grad_scores, keys).view(-1, size))
            to_keys = torch.bmm(grad_scores.mT, queries).view(-1, size)
            grad_key.index_add_(0, group.key_rows, to_keys.to(high))
        return (
            _heads_first(grad_query[: num_nodes * num_heads].mul_(ctx.scale), query),
            _heads_first(grad_key.mul_(ctx.scale), key),
            _heads_first(grad_value, value),
            None,
            None,
            None,
        )


def _probabilities(
    scored: tuple[torch.Tensor, torch.Tensor], group: BlockGroup, scale: float, softcap: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[B * K, R * Q, P], a row sums to 1; and, of capped scores, the slope of the cap at each."""
    query_rows, key_rows = scored
    num_pairs, size = len(group.hidden), query_rows.shape[1]
    queries = query_rows.index_select(0, group.query_rows).view(num_pairs, -1, size)
    keys = key_rows.index_select(0, group.key_rows).view(num_pairs, -1, size)
    if not softcap:
        return torch.baddbmm(group.hidden, queries, keys.mT, alpha=scale).softmax(-1), None
    tangents = torch.bmm(queries, keys.mT).mul_(scale / softcap).tanh_()
    return (tangents * softcap).add_(group.hidden).softmax(-1), 1 - tangents * tangents


def _rows_for_scores(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key as rows in the precision of the scores, at least float32."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    return _rows(query.to(dtype)), _rows(key.to(dtype))


def _rows(heads: torch.Tensor) -> torch.Tensor:
    """[1, heads, N, D] as rows [N * heads, D]."""
    return heads[0].transpose(0, 1).reshape(-1, heads.shape[-1])


def _heads_first(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rows [N * heads, D] as [1, heads, N, D] in the dtype of `like`."""
    _, num_heads, num_nodes, size = like.shape
    return rows.view(1, num_nodes, num_heads, size).to(like.dtype).transpose(1, 2)
