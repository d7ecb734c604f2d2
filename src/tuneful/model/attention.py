"""Attention over a trie, for any model in transformers: one registered function and a plan made once a batch.

A model that was prepared by `use_trie_attention` hands query, key and value of the flat node stream [1, heads, N, D] to
`trie_attention`, with the plan that came in through the model's keyword arguments. No model is forked or patched, and
registering the name with `AttentionInterface` alone keeps transformers from ever building an N x N mask.

What computes it: the trie is cut into blocks (`batch.trie.cut_blocks`), which are computed on a CPU by compiled kernels
(`attention_native.py`) where there are any, else by torch's operations (`attention_torch.py`). On a GPU FlashAttention computes
the branches (`attention_varlen.py`), torch's operations what it does not take, and FlexAttention (`attention_flex.py`) all of
it where that is asked for (`gpu_attention`). A layer with a sliding window says so, and sees of its path the nearest nodes
alone: `depth(q) - depth(k) < window`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel

from tuneful.batch.trie import TrieBatch, cut_blocks, padded_trie
from tuneful.errors import ConfigError
from tuneful.model import attention_native, attention_torch
from tuneful.model.attention_flex import FlexLayout, lay_out_flex, padded_length
from tuneful.model.attention_native import NativeAttention, NativeBlocks, lay_out_blocks
from tuneful.model.attention_torch import BlockGroup, GroupedAttention, lay_out_groups
from tuneful.model.attention_varlen import VarlenLayout, lay_out_varlen
from tuneful.model.native import kernels
from tuneful.model.precision import computes_in

# Legend of shapes: N nodes, H query heads, K key/value heads, D head size of query and key, E of values
NAME = "tuneful_trie"

Implementation = Literal["auto", "varlen", "flex_attention", "torch"]
"""What computes attention over a trie on a GPU; `auto` for what `gpu_attention` takes."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayout:
    """Who sees whom in layers of one window, for what computes it: torch, the compiled kernels, or kernels of a GPU.

    `groups` lays out for heads as a layer hands them over, query and key heads: some families repeat their keys themselves.
    """

    groups: Callable[[int, int], tuple[BlockGroup, ...]] | None = None
    blocks: NativeBlocks | None = None
    gpu: VarlenLayout | FlexLayout | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """Who sees whom in one batch, whose longest path is of `num_positions` nodes: a layout for each window of a layer.

    read_rows   int64 [M], rising: the only nodes whose output of the last layer is read; None for all
    """

    num_nodes: int
    num_positions: int
    lay_out: Callable[[int | None], AttentionLayout]
    read_rows: torch.Tensor | None = None
    has_windows: bool = False

    def within(self, window: int | None) -> AttentionLayout:
        """The layout of a layer whose nodes see `window` nodes of their path, themselves among them; None for all."""
        if window is not None and window < 1:
            raise UnsupportedAttentionError(f"its layers have a window of {window}")
        return self.lay_out(None if window is None or window >= self.num_positions else window)


def use_trie_attention(model: PreTrainedModel) -> None:
    """Make `model` attend through `trie_attention`, every later forward needing `trie_plan=`."""
    AttentionInterface.register(NAME, trie_attention)
    model.set_attn_implementation(NAME)


def why_no_trie(model: PreTrainedModel) -> str | None:
    """Why the layers of `model` cannot attend over a trie; None where they can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or model._is_stateful:
        return f"the model has recurrent or other layers ({', '.join(sorted(kinds)) or 'stateful'})"
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "the model sees tokens that come later"
    if not model._supports_attention_backend:
        return f"{type(model).__name__} brings an attention of its own"
    return None


def has_windows(model: PreTrainedModel) -> bool:
    """Whether any layer of `model` may see a sliding window of its path alone."""
    config = model.config.get_text_config()
    used = getattr(config, "use_sliding_window", True)
    in_layers = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return bool(in_layers or (used and getattr(config, "sliding_window", None)))


def window_of(attention: Any) -> int | None:
    """The window of a layer, by its attention: what transformers hands on as `sliding_window`. None where it sees all."""
    of_config = type(attention).__qualname__ in ("MistralAttention", "Phi3Attention")
    window: int | None = getattr(attention.config if of_config else attention, "sliding_window", None)
    return window


def softcap_of(attention: Any) -> float | None:
    """What the scores of a layer are capped at; None for nothing. Gemma 3 has the number too, and does not read it."""
    softcap: float | None = (
        attention.attn_logit_softcapping if type(attention).__qualname__ == "Gemma2Attention" else None
    )
    return softcap


_ASKED = "tuneful_attention"
_FLASH_CAPABILITY, _FLASH_HEAD = (8, 0), 256
"""The least compute capability, and the largest head, that FlashAttention has kernels for."""


def ask_for(model: PreTrainedModel, implementation: Implementation) -> None:
    """Let `implementation` compute the attention of `model` over tries; ConfigError on a CPU, where there is no choice."""
    if model.device.type != "cuda" and implementation != "auto":
        raise ConfigError(
            f"`model.attn_implementation`: {implementation} is for a GPU, and this model is on {model.device}; leave it at auto"
        )
    setattr(model, _ASKED, implementation)


def gpu_attention(model: PreTrainedModel) -> Implementation:
    """What computes the attention of `model` over tries: what was asked for, else FlashAttention where it has kernels, which are
    those of 16 bits, heads of eight times something, and scores without a cap; else torch's operations. They alone on a CPU."""
    asked = cast(Implementation, getattr(model, _ASKED, "auto"))
    if model.device.type != "cuda" or asked != "auto":
        return "torch" if model.device.type != "cuda" else asked
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    served = computes_in(model).itemsize == 2 and size <= _FLASH_HEAD and not size % 8
    capped = getattr(config, "attn_logit_softcapping", None)
    return "varlen" if served and not capped and compute_capability(model.device) >= _FLASH_CAPABILITY else "torch"


def compute_capability(device: torch.device) -> tuple[int, int]:
    """Of a CUDA device."""
    return torch.cuda.get_device_capability(device)


def laid_out(batch: TrieBatch, model: PreTrainedModel) -> TrieBatch:
    """`batch` as what computes the attention of `model` takes it: for FlexAttention padded to whole tiles."""
    return padded_trie(batch, padded_length(batch.num_nodes)) if gpu_attention(model) == "flex_attention" else batch


def moved(groups: tuple[BlockGroup, ...], device: torch.device) -> tuple[BlockGroup, ...]:
    """The same groups with their tensors on `device`."""
    names = () if device.type == "cpu" else ("query_rows", "output_rows", "key_rows", "hidden")
    return tuple(replace(group, **{name: getattr(group, name).to(device) for name in names}) for group in groups)


def plan_attention(batch: TrieBatch, model: PreTrainedModel, *, only_targets: bool = False) -> AttentionPlan:
    """The plan of one batch for one model, on the model's device.

    `only_targets` says that of the last layer nothing but the nodes that predict a target is read: what it gives for others
    need not be computed.
    """
    read = torch.from_numpy(np.unique(batch.target_rows)).to(torch.int64) if only_targets else None
    lay_out = functools.cache(functools.partial(_lay_out, batch, model))
    return AttentionPlan(batch.num_nodes, int(batch.positions.max()) + 1, lay_out, read, has_windows(model))


def _lay_out(batch: TrieBatch, model: PreTrainedModel, window: int | None) -> AttentionLayout:
    if (kind := gpu_attention(model)) in ("varlen", "flex_attention"):
        lay_out_on_gpu = lay_out_varlen if kind == "varlen" else lay_out_flex
        return AttentionLayout(gpu=lay_out_on_gpu(batch, window, model.device))
    if (library := kernels(model.device, model.dtype)) is not None:
        config = model.config.get_text_config()
        num_key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        blocks = cut_blocks(batch, attention_native.MAX_QUERIES, window)
        return AttentionLayout(blocks=lay_out_blocks(blocks, num_key_heads, library))
    blocks = cut_blocks(batch, attention_torch.MAX_QUERIES, window)

    @functools.cache
    def groups(num_heads: int, num_key_heads: int) -> tuple[BlockGroup, ...]:
        return moved(lay_out_groups(blocks, batch.num_nodes, num_heads, num_key_heads, model.dtype), model.device)

    return AttentionLayout(groups)


def trie_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    trie_plan: AttentionPlan | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every layer.

    query [1, H, N, D], key [1, K, N, D], value [1, K, N, E] -> output [1, N, H, E], in the value's dtype. A layer says its window
    as `sliding_window`; a `softcap` caps the scores.
    """
    check_plain(trie_plan, "trie_plan", attention_mask, dropout, {**kwargs, "sliding_window": None})
    assert trie_plan is not None
    if trie_plan.has_windows and "sliding_window" not in kwargs:
        raise UnsupportedAttentionError("its layers do not say which of them have a sliding window")
    assert query.shape[:1] + query.shape[2:3] == (1, trie_plan.num_nodes), query.shape
    layout = trie_plan.within(kwargs.get("sliding_window"))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout.gpu is not None:
        return layout.gpu.attend(query, key, value, scale, softcap), None
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in (query, key, value)))
    query, key, own_value = (tensor.to(dtype) for tensor in (query, key, value))
    groups = layout.groups and layout.groups(query.shape[1], key.shape[1])
    apply: Any = GroupedAttention.apply if groups else NativeAttention.apply
    output: torch.Tensor = apply(query, key, own_value, groups or layout.blocks, scale, softcap or 0.0)
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
    for argument, what_they_do in _NOT_PLAIN.items():
        if others.get(argument) is not None:
            raise UnsupportedAttentionError(f"its layers {what_they_do}")


_NOT_PLAIN = {
    "softcap": "cap their attention scores",
    "sliding_window": "have a sliding window",
    **dict.fromkeys(("s_aux", "sinks"), "have attention sinks"),
    "position_bias": "add to their scores what is learnt of positions",
    "indices": "choose which tokens they attend to",
}
"""What transformers hands on to attention that changes what is computed: argument -> what the layers do by it."""
