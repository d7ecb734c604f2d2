"""A decoder layer as one node of autograd, where the compiled kernels have all that it is made of.

Between the kernels of a layer Python and autograd take some sixty steps, each of a few microseconds: a seventh of a small
step. Here a layer is one call each way, and residual sums are taken while products and gradients of norms are in registers. It
is done for the layers of `_FAMILIES` as long as they consist of plain parts, an adapter beside a linear layer among them
(`lora.linear_parts`); `decoder.py` computes all others part by part.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from tuneful.model.attention import AttentionPlan, window_of
from tuneful.model.attention_native import NativeBlocks, lay_out_plan
from tuneful.model.lora import LinearParts, linear_parts
from tuneful.model.native import NUM_LINEARS, Layer, LayerGradients, Nf4, kernels
from tuneful.model.nf4 import NF4
from tuneful.model.norms import epsilon_of, shift_of
from tuneful.model.products import address, is_plain, is_served_linear, laid_out, pointer_to, thread_workspace
from tuneful.model.structure import decoder_layers

# Legend of shapes: N nodes, D features of the stream, H query heads, K key/value heads, R size of a head
_FAMILIES = ("Llama", "Mistral", "Qwen2")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def compiled_layer(
    layer: Any,
    hidden: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor] | None,
    plan: AttentionPlan,
    *,
    last: bool,
) -> torch.Tensor | None:
    """The layer's output [1, N, D] for hidden [1, N, D] over the trie of `plan`; None where the kernels do not serve it.

    `angles` are cosines and sines, each [1, N, R]. Of the `last` layer the rows that nobody reads (`plan.read_rows`) are 0.
    """
    library = kernels(hidden.device, hidden.dtype)
    if library is None or not library.has_matrix_products() or angles is None or not _is_served(layer):
        return None
    if (blocks := plan.within(window_of(layer.self_attn)).blocks) is None:
        return None
    attention, (cosines, sines) = layer.self_attn, angles
    norms = [getattr(layer, name) for name in _NORMS]
    modules = [*(getattr(attention, name) for name in _ATTENTION), *(getattr(layer.mlp, name) for name in _MLP)]
    linears = [parts for parts in map(linear_parts, modules) if parts is not None]
    parameters = [norm.weight for norm in norms] + linear_parameters(linears)
    if (
        not all(tensor is None or is_plain(tensor) for tensor in (hidden, cosines, sines, *parameters))
        or cosines.requires_grad
        or sines.requires_grad
        or hidden.shape != (1, plan.num_nodes, norms[0].weight.shape[0])
        or not cosines.shape == sines.shape == (1, plan.num_nodes, attention.head_dim)
        or (attention.training and attention.attention_dropout)
        or not _fit_together([linear.weight.shape for linear in linears], *norms[0].weight.shape)
    ):
        return None
    options = _LayerOptions(
        recompute=layer.training and getattr(layer, "gradient_checkpointing", False),
        epsilons=tuple(epsilon_of(norm) for norm in norms),
        shifts=tuple(shift_of(norm) or 0.0 for norm in norms),
        size=attention.head_dim,
        scale=attention.scaling,
        scalings=tuple(parts.scaling for parts in linears),
        blocks=blocks,
        read_rows=plan.read_rows if last else None,
        library=library,
    )
    output: torch.Tensor = DecoderLayer.apply(hidden, cosines, sines, options, *parameters)  # type: ignore[no-untyped-call]
    return output


def are_compiled(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Whether the layers of `model` will be computed so, once it computes in `dtype`."""
    library = kernels(model.device, dtype) if dtype is torch.bfloat16 else None
    layers = decoder_layers(model) or ()
    return (
        library is not None and bool(library.has_matrix_products()) and len(layers) > 0 and all(map(_is_served, layers))
    )


def _is_served(layer: Any) -> bool:
    """Whether `layer` is what `DecoderLayer` computes: of classes known, of plain parts, no parameter besides theirs."""
    family = type(layer).__qualname__.removesuffix("DecoderLayer")
    home = f"transformers.models.{family.lower()}.modeling_{family.lower()}"
    parts = (
        (layer, "DecoderLayer"),
        (getattr(layer, "self_attn", None), "Attention"),
        (getattr(layer, "mlp", None), "MLP"),
    )
    if family not in _FAMILIES or not all(_class_of(part) == f"{home}.{family}{kind}" for part, kind in parts):
        return False
    linears = [*(getattr(layer.self_attn, name) for name in _ATTENTION), *(getattr(layer.mlp, name) for name in _MLP)]
    norms = [getattr(layer, name) for name in _NORMS]
    return (
        all(parts is not None and is_served_linear(parts.base) for parts in map(linear_parts, linears))
        and all(shift_of(norm) is not None for norm in norms)
        and type(layer.mlp.act_fn) in (torch.nn.SiLU, SiLUActivation)
        and layer.self_attn.head_dim % 2 == 0
        and sum(1 for _ in layer.parameters()) == sum(1 for part in (*linears, *norms) for _ in part.parameters())
    )


def _fit_together(shapes: Sequence[tuple[int, ...]], size: int) -> bool:
    """Whether the weights of query, key, value, output, gate, up and down read what the others of a stream of `size` write."""
    (queries, *_), (keys, *_), *_, (inner, *_), _ = shapes
    inwards = [(queries, size), (keys, size), (keys, size), (inner, size), (inner, size)]
    return [*shapes[:3], *shapes[4:6]] == inwards and (shapes[3], shapes[6]) == ((size, queries), (size, inner))


def _class_of(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


@dataclass(frozen=True, slots=True)
class _LayerOptions:
    """What a layer computes with besides its tensors: of both norms epsilon and shift, of the scores their scale.

    recompute   whether the backward computes all of it once more instead of keeping it (activation checkpointing)
    size        R
    scalings    of the adapters of the linear layers, 1 where there is none
    read_rows   int64 [M], rising: the rows of the output that are read, all others being 0; None for all
    """

    recompute: bool
    epsilons: tuple[float, ...]
    shifts: tuple[float, ...]
    size: int
    scale: float
    scalings: tuple[float, ...]
    blocks: NativeBlocks
    read_rows: torch.Tensor | None
    library: ctypes.CDLL

    def layer(
        self,
        hidden: torch.Tensor,
        angles: Sequence[torch.Tensor],
        norms: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor | NF4],
        biases: Sequence[torch.Tensor | None],
        lora_a: Sequence[torch.Tensor | None],
        lora_b: Sequence[torch.Tensor | None],
    ) -> Layer:
        """The layer as the kernels read it; the caller keeps the tensors, which are contiguous."""
        pointers = (ctypes.POINTER(Nf4) * NUM_LINEARS)(*map(pointer_to, weights))
        query, key, *_, down = weights
        num_heads, num_key_heads = query.shape[0] // self.size, key.shape[0] // self.size
        sizes = (hidden.shape[1], num_heads, num_key_heads, self.size, self.size)
        plan = lay_out_plan(self.blocks, *sizes, self.scale, hidden.dtype, torch.get_num_threads())
        return Layer(
            *(ctypes.pointer(plan), hidden.shape[2], down.shape[1], self.epsilons, self.shifts),
            *(tensor.data_ptr() for tensor in (hidden, *angles)),
            *(_addresses(tensors) for tensors in (norms, weights, biases, lora_a, lora_b)),
            pointers,
            *(tuple([0 if one is None else one.shape[0] for one in lora_a]), self.scalings),
            *((None, 0) if self.read_rows is None else (self.read_rows.data_ptr(), len(self.read_rows))),
        )


def _addresses(tensors: Sequence[torch.Tensor | NF4 | None]) -> tuple[int | None, ...]:
    return tuple([address(tensor) for tensor in tensors])


class DecoderLayer(torch.autograd.Function):
    """middle = hidden + attention(norm(hidden)); output = middle + down(silu(gate(norm(middle))) * up(norm(middle))).

    hidden [1, N, D] -> [1, N, D]; parameters: the weights of both norms; the weights of query, key, value, output, gate, up
    and down; their biases, or None; A and B of their adapters, or None (`linear_parameters`). All in bfloat16, weights also in 4
    bits. Query and key
    are rotated by cosines and sines [1, N, R].
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        options: _LayerOptions,
        *parameters: torch.Tensor | NF4 | None,
    ) -> torch.Tensor:
        hidden = hidden.contiguous()
        read = [hidden, *map(laid_out, (cosines, sines, *parameters))]
        output, kept = _computed(options, hidden, options.layer(*_parted(read)))
        ctx.quantized = {place: one for place, one in enumerate(read) if isinstance(one, NF4)}
        tensors = [one if place not in ctx.quantized else None for place, one in enumerate(read)]
        ctx.save_for_backward(None if options.recompute else kept, *tensors)
        ctx.options = options
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, *tensors = ctx.saved_tensors
        read = [ctx.quantized.get(place, one) for place, one in enumerate(tensors)]
        library, layer, to_output = ctx.options.library, ctx.options.layer(*_parted(read)), grads[0].contiguous()
        if kept is None:
            _, kept = _computed(ctx.options, read[0], layer)
        wanted = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])
        found = [
            torch.empty_like(one) if want else None for one, want in zip((read[0], *read[3:]), wanted, strict=True)
        ]
        workspace = thread_workspace(library.layer_workspace_bytes(layer, 1))
        layer.kept, layer.workspace = kept.data_ptr(), workspace.data_ptr()
        to_hidden, *others = _addresses(found)
        gradients = LayerGradients(to_hidden, *(tuple(others[part]) for part in _PARTS))
        library.layer_backward(layer, to_output.data_ptr(), gradients)
        return found[0], None, None, None, *found[1:]


def _computed(options: _LayerOptions, hidden: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's output, and what its backward reads."""
    library = options.library
    output, kept = torch.empty_like(hidden), _kept_memory(library.layer_kept_bytes(layer))
    workspace = thread_workspace(library.layer_workspace_bytes(layer, 0))
    layer.kept, layer.workspace = kept.data_ptr(), workspace.data_ptr()
    library.layer_forward(layer, output.data_ptr())
    return output, kept


def _kept_memory(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device="cpu")


_PARTS = (slice(2), *(slice(start, start + NUM_LINEARS) for start in range(2, 2 + 4 * NUM_LINEARS, NUM_LINEARS)))


def _parted(read: Sequence[Any]) -> tuple[Any, ...]:
    """hidden, (cosines, sines), norms, weights, biases, A, B."""
    hidden, cosines, sines, *parameters = read
    return hidden, (cosines, sines), *(parameters[part] for part in _PARTS)


def linear_parameters(linears: Sequence[LinearParts]) -> list[torch.Tensor | NF4 | None]:
    """Of a decoder layer's linear layers all weights, all biases, all A, all B: what `DecoderLayer` takes after the norms."""
    bases = [parts.base for parts in linears]
    adapters = [parts.lora_a for parts in linears] + [parts.lora_b for parts in linears]
    return [parts.weight for parts in linears] + [base.bias for base in bases] + adapters
