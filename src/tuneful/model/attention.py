"""Attention over a trie, for any model in transformers: one registered function and a plan made once a batch.

A model that was prepared by `use_trie_attention` hands query, key and value of the flat node stream [1, heads, N, D] to
`trie_attention`, with the plan that came in through the model's keyword arguments. No model is forked or patched, and
registering the name with `AttentionInterface` alone keeps transformers from ever building an N x N mask.

What computes it: on a CPU the trie is cut into blocks (`batch.trie.cut_blocks`) and computed by compiled kernels
(`attention_native.py`) where there are any, else by torch's operations (`attention_torch.py`); on CUDA by FlexAttention, with the
same rule as a mask: `k <= q < subtree_end[k]`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel

from tuneful.batch.trie import TrieBatch, cut_blocks
from tuneful.model import attention_native, attention_torch
from tuneful.model.attention_native import NativeAttention, NativeBlocks, lay_out_blocks
from tuneful.model.attention_torch import BlockGroup, GroupedAttention, lay_out_groups
from tuneful.model.native import kernels

# Legend of shapes: N nodes, H query heads, K key/value heads, D head size of query and key, E of values
NAME = "tuneful_trie"


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """Who sees whom in one batch, laid out for what computes it: `blocks` for the compiled kernels, `groups` of blocks for
    torch, `block_mask` for FlexAttention on CUDA.

    read_rows   int64 [M], rising: the only nodes whose output of the last layer is read; None for all
    """

    num_nodes: int
    read_rows: torch.Tensor | None = None
    groups: tuple[BlockGroup, ...] = ()
    blocks: NativeBlocks | None = None
    block_mask: Any = None


def use_trie_attention(model: PreTrainedModel) -> None:
    """Make `model` attend through `trie_attention`, every later forward needing `trie_plan=`."""
    AttentionInterface.register(NAME, trie_attention)
    model.set_attn_implementation(NAME)


def why_no_trie(model: PreTrainedModel) -> str | None:
    """Why the layers of `model` cannot attend over a trie; None where they can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if "sliding_attention" in kinds or (getattr(config, "sliding_window", None) and _uses_sliding_window(config)):
        return "the model has sliding-window layers"
    if kinds or model._is_stateful:
        return f"the model has recurrent or other layers ({', '.join(sorted(kinds)) or 'stateful'})"
    if getattr(config, "attn_logit_softcapping", None):
        return "the model caps its attention scores"
    if not model._supports_attention_backend:
        return f"{type(model).__name__} brings an attention of its own"
    return None


def plan_attention(batch: TrieBatch, model: PreTrainedModel, *, only_targets: bool = False) -> AttentionPlan:
    """The plan of one batch for one model, on the model's device.

    `only_targets` says that of the last layer nothing but the nodes that predict a target is read: what it gives for others
    need not be computed.
    """
    if model.device.type == "cuda":
        return AttentionPlan(batch.num_nodes, block_mask=_flex_mask(batch, model.device))
    config = model.config.get_text_config()
    num_heads = config.num_attention_heads
    num_key_heads = getattr(config, "num_key_value_heads", None) or num_heads
    if (library := kernels(model.device, model.dtype)) is not None:
        blocks = cut_blocks(batch, attention_native.MAX_QUERIES)
        read = torch.from_numpy(np.unique(batch.target_rows)).to(torch.int64) if only_targets else None
        return AttentionPlan(batch.num_nodes, read, blocks=lay_out_blocks(blocks, num_key_heads, library))
    blocks = cut_blocks(batch, attention_torch.MAX_QUERIES)
    groups = lay_out_groups(blocks, batch.num_nodes, num_heads, num_key_heads, model.dtype)
    return AttentionPlan(batch.num_nodes, groups=groups)


def _uses_sliding_window(config: Any) -> bool:
    return bool(getattr(config, "use_sliding_window", True))


def trie_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    trie_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every layer.

    query [1, H, N, D], key [1, K, N, D], value [1, K, N, E] -> output [1, N, H, E], in the value's dtype.
    """
    check_plain(trie_plan, "trie_plan", attention_mask, dropout, kwargs)
    assert trie_plan is not None
    assert query.shape[:1] + query.shape[2:3] == (1, trie_plan.num_nodes), query.shape
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if trie_plan.block_mask is not None:
        return _flex_attention(query, key, value, trie_plan.block_mask, scale), None
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in (query, key, value)))
    query, key, own_value = (tensor.to(dtype) for tensor in (query, key, value))
    output: torch.Tensor
    if trie_plan.blocks is not None:
        output = NativeAttention.apply(query, key, own_value, trie_plan.blocks, scale)  # type: ignore[no-untyped-call]
    else:
        output = GroupedAttention.apply(query, key, own_value, trie_plan.groups, scale)  # type: ignore[no-untyped-call]
    return output.to(value.dtype), None


class UnsupportedAttentionError(AssertionError):
    """The layers of a family ask for attention that a plan does not describe; the message says how, in words for a reason."""


def check_plain(
    given: object, name: str, attention_mask: torch.Tensor | None, dropout: float, others: Mapping[str, Any]
) -> None:
    """UnsupportedAttentionError unless a layer hands on what it was `given` under `name` and wants softmax(scale Q K^T) V."""
    if given is None:
        raise UnsupportedAttentionError(f"its layers call attention without {name}=, which they were given")
    if attention_mask is not None:
        raise UnsupportedAttentionError("its layers bring a mask of their own")
    if dropout:
        raise UnsupportedAttentionError(f"its layers have attention dropout {dropout:g}")
    if others.get("softcap") is not None:
        raise UnsupportedAttentionError("its layers cap their attention scores")


def _flex_mask(batch: TrieBatch, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    mask_mod = trie_mask_mod(torch.from_numpy(batch.subtree_end).to(device))
    return create_block_mask(mask_mod, None, None, batch.num_nodes, batch.num_nodes, device=device)


def trie_mask_mod(subtree_end: torch.Tensor) -> Any:
    """The trie's rule as a FlexAttention `mask_mod`, for `subtree_end` int [N] on the device."""

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < subtree_end[key])

    return sees


def _flex_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block_mask: Any, scale: float
) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    output: torch.Tensor = _compiled_flex()(query, key, value, block_mask=block_mask, scale=scale, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous()


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
