"""Attention over a trie by FlashAttention for sequences of unlike length: nothing is compiled (compute capability 8.0 and up).

A trie is cut into its branches. Each is one sequence: its nodes are the queries, and the keys are the path from the root to its
last node, gathered from the nodes' keys. That is causal attention with the queries at the end of the keys, which FlashAttention
has; under a window the path begins with the first node that any query sees. Every node is a query of exactly one branch, in the
order of the stream, so queries and outputs need no gathering.

The trade: a prefix that b branches share is read b times, 134 MB a layer for 16 branches of 2,000 shared nodes at 8 heads of 128
in bfloat16. What it gets back as gradients is added in float32 in the order of the stream: the same bits in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tuneful.batch.trie import TrieBatch, cut_blocks
from tuneful.model.repeatable import strictly_repeatable
from tuneful.model.transfer import on_device

# Legend of shapes: N nodes, B branches, P keys of all branches, H query heads, K key/value heads, D head size


@dataclass(frozen=True, slots=True, eq=False)
class VarlenLayout:
    """The branches of a batch as sequences.

    path          int32 [P]      the node of each key, branch after branch
    order         int32 [P]      the keys by their node: those of node 0 first, of one node in the order of the branches
    counts        int64 [N]      how many keys are of each node, one at least
    query_starts  int32 [B + 1]  where the queries of each branch begin, and where the last ends
    key_starts    int32 [B + 1]  the same of the keys
    """

    path: torch.Tensor
    order: torch.Tensor
    counts: torch.Tensor
    query_starts: torch.Tensor
    key_starts: torch.Tensor
    max_queries: int
    max_keys: int
    window: int | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, softcap: float | None
    ) -> torch.Tensor:
        """query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]."""
        assert not softcap, "FlashAttention as torch has it caps no scores"
        query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
        output: torch.Tensor = _VarlenAttention.apply(query, key, value, self, scale)  # type: ignore[no-untyped-call]
        return output[None]


def lay_out_varlen(batch: TrieBatch, window: int | None, device: torch.device) -> VarlenLayout:
    """The layout of a batch for layers of `window`."""
    blocks = cut_blocks(batch, batch.num_nodes, window)
    path = np.concatenate([block.path for block in blocks])
    num_queries, num_keys = [len(block.queries) for block in blocks], [len(block.path) for block in blocks]
    arrays = (
        path,
        np.argsort(path, kind="stable"),
        np.bincount(path, minlength=batch.num_nodes),
        np.cumsum([0, *num_queries]),
        np.cumsum([0, *num_keys]),
    )
    found = on_device(device, *(array.astype(np.int32) for array in arrays), integers=torch.int32)
    nodes, order, counts, query_starts, key_starts = found
    return VarlenLayout(nodes, order, counts.long(), query_starts, key_starts, max(num_queries), max(num_keys), window)


class _VarlenAttention(torch.autograd.Function):
    """query [N, H, D], key and value [N, K, D] -> [N, H, D] along the paths of a layout."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: VarlenLayout, scale: float
    ) -> torch.Tensor:
        keys, values = _along_paths(layout, key, value)
        output, *kept = flash_forward(query, keys, values, layout, scale)
        ctx.save_for_backward(query, key, value, output, *kept)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *kept = ctx.saved_tensors
        layout, (keys, values) = ctx.layout, _along_paths(ctx.layout, key, value)
        grad = grads[0].contiguous()
        to_query, to_keys, to_values = flash_backward(grad, query, keys, values, output, kept, layout, ctx.scale)
        return to_query, summed_by_node(to_keys, layout), summed_by_node(to_values, layout), None, None


def _along_paths(layout: VarlenLayout, *rows: torch.Tensor) -> list[torch.Tensor]:
    """Of nodes [N, K, D] the rows of all paths [P, K, D]; made twice, for they are not worth their memory until the backward."""
    return [tensor.index_select(0, layout.path) for tensor in rows]


def summed_by_node(rows: torch.Tensor, layout: VarlenLayout) -> torch.Tensor:
    """What each node gets from the keys that are its own: rows [P, K, D] -> [N, K, D], added in float32 or better, in an order
    that is always the same: on a GPU no atomic additions."""
    ordered = rows.index_select(0, layout.order).to(torch.promote_types(rows.dtype, torch.float32))
    found = torch.segment_reduce(ordered.flatten(1), "sum", lengths=layout.counts, axis=0, unsafe=True)
    return found.to(rows.dtype).view(-1, *rows.shape[1:])


def flash_forward(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: VarlenLayout, scale: float
) -> list[torch.Tensor]:
    """query [N, H, D], keys and values [P, K, D] -> the output [N, H, D], and what the backward needs besides."""
    output, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
        *(query, keys, values, layout.query_starts, layout.key_starts, layout.max_queries, layout.max_keys),
        *(0.0, layout.window is None, False),
        **_options(layout, scale),
    )
    return [output, logsumexp]


def flash_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    kept: list[torch.Tensor],
    layout: VarlenLayout,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query [N, H, D], keys and values [P, K, D], the same bits whenever they are computed."""
    (logsumexp,) = kept
    random = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of a dropout that there is not
    with strictly_repeatable():
        to_query, to_keys, to_values = torch.ops.aten._flash_attention_backward(
            *(grad, query, keys, values, output, logsumexp),
            *(layout.query_starts, layout.key_starts, layout.max_queries, layout.max_keys),
            *(0.0, layout.window is None, random, torch.empty(0, device=query.device)),
            **_options(layout, scale),
        )
    return to_query, to_keys, to_values


def _options(layout: VarlenLayout, scale: float) -> dict[str, Any]:
    """Causal attention, its window counted from the last key backwards; -1 for none."""
    left = -1 if layout.window is None else layout.window - 1
    return {"scale": scale, "window_size_left": left, "window_size_right": 0}
