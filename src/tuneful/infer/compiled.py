"""Answers by the compiled kernels: a step of all layers is one call, and weights lie as the kernels multiply them (`decode.h`).

Stands beside `cache.py`, which does the same by torch's operations, some ninety a layer. With a token a row those, and the
Python between them, take several times as long as reading the weights does. The price is a second copy of the weights for as
long as answers are generated, or as the model is loaded (`decode.keep_laid_out`). An adapter is merged into that copy. Which
models are served, `why_not_compiled` says.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from tuneful.infer.cache import Room, Tokens
from tuneful.model.attention import AttentionPlan, plan_attention, why_no_trie, window_of
from tuneful.model.attention_native import lay_out_plan
from tuneful.model.decoder import family_name, is_served
from tuneful.model.lora import LinearParts, linear_parts
from tuneful.model.memory import room_for_a_copy
from tuneful.model.native import KINDS, Attention, DecodeLayer, Decoder, DecodeStep, LayerCache, Matrix, kernels
from tuneful.model.nf4 import NF4
from tuneful.model.norms import epsilon_of, shift_of
from tuneful.model.products import thread_workspace

# Legend of shapes: N tokens of a call, B rows, S slots, T tokens that a slot has room for, P tokens of the prefix,
#                   H query heads, K key/value heads, R size of a head, D features of the stream, V vocabulary
_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_NORMS, _HEAD_NORMS = ("input_layernorm", "post_attention_layernorm"), ("q_norm", "k_norm")
_MOST_GROUPED = 256  # MOST_QUERIES of kernels.c
_STEP = 16
"""VALUE_STEP of decode.h: what a value's size is rounded up to. Slots hold a multiple of it, so that keys end with a block."""


def compiled_model(model: PreTrainedModel) -> CompiledModel | None:
    """`model` with its weights as they are now, laid out for the kernels; None where they do not serve it, or memory is short."""
    if why_not_compiled(model) is not None:
        return None
    num_bytes = sum(layer.weight.numel() * layer.weight.element_size() for layer in _linears(model))
    if not room_for_a_copy(num_bytes):
        return None
    with torch.no_grad():
        return CompiledModel(model)


def why_not_compiled(model: PreTrainedModel) -> str | None:
    """Why torch's operations answer in place of the compiled step; None where that serves `model`."""
    name = family_name(model)
    if kernels(model.device, model.dtype) is None:
        return f"there are no kernels for {str(model.dtype).removeprefix('torch.')} on {model.device.type}"
    if name not in _FAMILIES or not is_served(model):
        return f"{type(model).__name__} is not one of the families that they know"
    if (reason := why_no_trie(model)) is not None:
        return reason
    if len(_windows(model)) > 1:
        return "its layers have windows of several sizes"
    reasons = (_fault_of_layer(model, layer) for layer in _layers(model))
    return _fault_of_ends(model) or next((reason for reason in reasons if reason), None)


def _fault_of_ends(model: Any) -> str | None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not torch.nn.Embedding or not _is_linear(head) or not _is_plain(embedding.weight, model):
        return "its embedding or its output head is not a plain one"
    return None if _is_norm(model.base_model.norm, model) else "its last norm is of another kind"


def _fault_of_layer(model: Any, layer: Any) -> str | None:
    attention, mlp = layer.self_attn, layer.mlp
    parts = [linear_parts(getattr(attention, name)) for name in _ATTENTION]
    parts += [linear_parts(getattr(mlp, name)) for name in _MLP]
    norms = [getattr(layer, name) for name in _NORMS]
    norms += [norm for norm in (getattr(attention, name, None) for name in _HEAD_NORMS) if norm is not None]
    if not all(one is not None and _is_linear(one.base) for one in parts):
        return "it has linear layers that are not plain ones"
    linears = [one for one in parts if one is not None]
    if not all(_is_plain(tensor, model) for one in linears for tensor in one.parameters if tensor is not None):
        return "its weights are not of one type"
    if not all(_is_norm(norm, model) for norm in norms):
        return "its norms are of another kind"
    if type(mlp.act_fn) not in (torch.nn.SiLU, SiLUActivation):
        return "its activation is not SiLU"
    if attention.head_dim % 2 or attention.num_key_value_groups > _MOST_GROUPED:
        return "its heads are of a size that they do not know"
    if model.dtype is torch.bfloat16 and any(one.base.in_features % 2 for one in linears):
        return "it has an odd number of features"
    known = sum(1 for norm in norms for _ in norm.parameters())
    known += sum(tensor is not None for one in linears for tensor in one.parameters)
    return None if known == sum(1 for _ in _parameters(layer)) else "its layers have parameters that they do not know"


def _parameters(layer: Any) -> Iterator[torch.Tensor | NF4]:
    """Those of a layer, of adapters only the one in use."""
    for name, module in layer.named_modules():
        parts = linear_parts(module) if hasattr(module, "base_layer") else None
        if parts is not None:
            yield from (tensor for tensor in parts.parameters if isinstance(tensor, torch.Tensor))
        elif not any(part in name for part in (".base_layer", ".lora_")):
            yield from module.parameters(recurse=False)


def _is_linear(layer: Any) -> bool:
    return type(layer) is torch.nn.Linear


def _is_plain(tensor: torch.Tensor | NF4, model: Any) -> bool:
    if isinstance(tensor, NF4) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return tensor.dtype is model.dtype and tensor.device == model.device


def _is_norm(norm: Any, model: Any) -> bool:
    """Whether `norm` is an RMS norm as all of the model's are."""
    last = model.base_model.norm
    same = (shift_of(norm), epsilon_of(norm)) == (shift_of(last), epsilon_of(last))
    return shift_of(norm) is not None and same and _is_plain(norm.weight, model)


def _layers(model: Any) -> Sequence[Any]:
    layers: Sequence[Any] = model.base_model.layers
    return layers


def _windows(model: Any) -> set[int]:
    """The windows of its layers, of those that have one."""
    windows = (window_of(layer.self_attn) for layer in _layers(model))
    return {window for window in windows if window}


def _linears(model: Any) -> Iterator[torch.nn.Linear]:
    yield model.get_output_embeddings()
    for layer in _layers(model):
        for parent, names in ((layer.self_attn, _ATTENTION), (layer.mlp, _MLP)):
            yield from (getattr(getattr(parent, name), "base_layer", getattr(parent, name)) for name in names)


class CompiledModel:
    """A model as the kernels read it: its weights in panels, as they were when it was made."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)  # which may keep this
        self.library = kernels(model.device, model.dtype)
        self.dtype, self.computed = model.dtype, torch.promote_types(model.dtype, torch.float32)
        attention, norm = _layers(model)[0].self_attn, model.base_model.norm
        self.size = attention.head_dim
        self.num_heads, self.num_key_heads = (
            attention.q_proj.out_features // self.size,
            attention.k_proj.out_features // self.size,
        )
        self.window = next(iter(_windows(model)), None)
        self.scale, self.num_words = float(attention.scaling), model.get_output_embeddings().out_features
        self._kept: list[torch.Tensor] = []  # what the kernels read, alive as long as this
        layers = [self._layer(layer) for layer in _layers(model)]
        self.decoder = Decoder(
            *(KINDS[self.dtype], len(layers), model.config.hidden_size, layers[0].gate.size),
            *(self.num_heads, self.num_key_heads, self.size, epsilon_of(norm), shift_of(norm), self.scale),
            (DecodeLayer * len(layers))(*layers),
            *(self._address(model.get_input_embeddings().weight), self._address(norm.weight)),
            self._matrix([LinearParts(model.get_output_embeddings())]),
        )

    @property
    def model(self) -> Any:
        """The model whose weights these are."""
        model = self._model()
        assert model is not None, "the model is gone"
        return model

    def _layer(self, layer: Any) -> DecodeLayer:
        attention, mlp = layer.self_attn, layer.mlp
        query, key, value, output = (_parts(attention, name) for name in _ATTENTION)
        matrices = [self._matrix(parts) for parts in ([query, key, value], [output])]
        matrices += [self._matrix([_parts(mlp, name)]) for name in _MLP]
        head_norms = [getattr(attention, name, None) for name in _HEAD_NORMS]
        return DecodeLayer(
            tuple(self._address(getattr(layer, name).weight) for name in _NORMS),
            tuple(None if norm is None else self._address(norm.weight) for norm in head_norms),
            *matrices,
            bool(getattr(attention, "use_rope", True)),  # SmolLM 3 leaves out some
            window_of(attention) or 0,
        )

    def _matrix(self, parts: Sequence[LinearParts]) -> Matrix:
        """Linear layers that read the same, one below the other."""
        assert self.library is not None
        weight = torch.cat([_merged(one) for one in parts]).contiguous()
        sizes = (KINDS[self.dtype], *weight.shape)
        panels = torch.empty(self.library.decode_panel_bytes(*sizes), dtype=torch.uint8)
        self.library.lay_out_weights(torch.get_num_threads(), *sizes, weight.data_ptr(), panels.data_ptr())
        biases = [_bias(one) for one in parts] if any(one.base.bias is not None for one in parts) else []
        bias = self._address(torch.cat(biases)) if biases else None
        return Matrix(self._address(panels), bias, weight.shape[1], weight.shape[0])

    def _address(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()


def _parts(parent: Any, name: str) -> LinearParts:
    parts = linear_parts(getattr(parent, name))
    assert parts is not None, name
    return parts


def _merged(parts: LinearParts) -> torch.Tensor:
    """The weight with the adapter in it, rounded once."""
    weight: torch.Tensor = parts.base.weight
    if parts.lora_a is None or parts.lora_b is None:
        return weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + parts.scaling * (parts.lora_b.to(wide) @ parts.lora_a.to(wide))).to(weight.dtype)


def _bias(parts: LinearParts) -> torch.Tensor:
    bias: torch.Tensor = (
        parts.base.weight.new_zeros(parts.base.out_features) if parts.base.bias is None else parts.base.bias
    )
    return bias


class CompiledEngine:
    """Calls of the kernels, with keys and values in slots as they lay them out: keys in blocks of tokens, values row by row."""

    def __init__(self, compiled: CompiledModel, num_slots: int, num_shared: int) -> None:
        self._compiled, self._most_slots, self._num_shared = compiled, num_slots, num_shared
        self._num_layers, self._has_prefix = compiled.decoder.num_layers, False
        self._room = Room()
        self._token_sizes = (compiled.size, _rounded_up(compiled.size))  # numbers of a token's key, and of its value
        self._prefixes = [self._stores(1, _rounded_up(num_shared)) for _ in range(self._num_layers)]
        self._slots: list[list[torch.Tensor]] = []
        self._logits = torch.empty(0, dtype=compiled.computed)
        self.make_room(1, 0, 1)  # a prompt that is nothing but the prefix writes to no slot

    def make_room(self, num_tokens: int, num_kept: int, num_rows: int) -> None:
        """Let `num_rows` slots hold `num_tokens` each; what the first `num_kept` slots hold is kept."""
        room = self._room.fitted(num_rows, num_tokens, self._most_slots, enters=num_rows > num_kept)
        if room == self._room:
            return
        held, self._room = self._room.num_tokens, Room(room.num_slots, _rounded_up(room.num_tokens))
        kept = min(held, self._room.num_tokens)
        for layer in range(self._num_layers):
            stores = self._stores(*self._room)
            if held:
                for size, old, new in zip(self._token_sizes, self._slots[layer], stores, strict=True):
                    new[:num_kept, :, : kept * size] = old[:num_kept, :, : kept * size]
                self._slots[layer] = stores
            else:
                self._slots.append(stores)
        both = zip(self._slots, self._prefixes, strict=True)
        caches = [LayerCache(*(one.data_ptr() for one in (*slots, *prefix))) for slots, prefix in both]
        self._caches = (LayerCache * len(caches))(*caches)

    def move(self, sources: Sequence[int], targets: Sequence[int], num_tokens: int) -> None:
        """Copy the first `num_tokens` tokens of some slots to others."""
        given, taken = list(sources), list(targets)
        for stores in self._slots:
            for size, store in zip(self._token_sizes, stores, strict=True):
                stop = _rounded_up(num_tokens) * size
                store[taken, :, :stop] = store[given, :, :stop]

    def logits(self, tokens: Tokens) -> torch.Tensor:
        """The logits [B, V] of the predictors, as they are until the next call."""
        compiled, plans = self._compiled, list[Attention | None]((None, None))
        assert compiled.library is not None
        if tokens.prompts is not None:
            plans = self._plans(plan_attention(tokens.prompts, compiled.model))
        angles = self._angles(tokens.positions)
        step = DecodeStep(
            *(torch.get_num_threads(), len(tokens.token_ids), len(tokens.written), len(tokens.predictors)),
            *(self._room.num_tokens, self._num_shared, tokens.prompts is not None and not self._has_prefix),
            *(None if plan is None else ctypes.pointer(plan) for plan in plans),
            *(one.data_ptr() for one in (tokens.token_ids, tokens.written, tokens.slots, tokens.places)),
            *(one.data_ptr() for one in (tokens.predictors, *angles)),
            self._caches,
        )
        workspace = thread_workspace(compiled.library.decode_workspace_bytes(compiled.decoder, step))
        num_logits = len(tokens.predictors) * compiled.num_words
        if self._logits.numel() < num_logits:
            self._logits = torch.empty(num_logits, dtype=compiled.computed)
        step.workspace, step.logits = workspace.data_ptr(), self._logits.data_ptr()
        compiled.library.decode(compiled.decoder, step)
        self._has_prefix = True
        return self._logits[:num_logits].view(-1, compiled.num_words)

    def _plans(self, of_batch: AttentionPlan) -> list[Attention | None]:
        """Who sees whom among prompts, in layers that see all, and in those with a window where there are any."""
        compiled = self._compiled
        sizes = (of_batch.num_nodes, compiled.num_heads, compiled.num_key_heads, compiled.size, compiled.size)

        def plan(window: int | None) -> Attention:
            blocks = of_batch.within(window).blocks
            assert blocks is not None
            return lay_out_plan(blocks, *sizes, compiled.scale, compiled.computed, torch.get_num_threads())

        return [plan(None), plan(compiled.window) if compiled.window else None]

    def _angles(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Cosines and sines, each [N, R]."""
        like = torch.empty(0, dtype=self._compiled.computed)
        both = self._compiled.model.base_model.rotary_emb(like, positions[None])
        assert all(one.shape == (1, len(positions), self._compiled.size) for one in both), both[0].shape
        return [one[0].contiguous() for one in both]

    def _stores(self, num_slots: int, num_tokens: int) -> list[torch.Tensor]:
        """Room for keys and for values: [slots, K, tokens * size] each."""
        shape = (num_slots, self._compiled.num_key_heads)
        return [torch.zeros(*shape, num_tokens * size, dtype=self._compiled.dtype) for size in self._token_sizes]


def _rounded_up(size: int) -> int:
    return -(-size // _STEP) * _STEP
