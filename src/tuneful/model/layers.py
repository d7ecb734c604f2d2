"""Decoder layers as one node of autograd, where the compiled kernels have all that a layer is made of.

Between the kernels of a layer transformers and autograd take some sixty steps in Python, each of a few microseconds: a
seventh of a small step. Here a hook computes the layer before it is called and hands it a placeholder, on which every operation
returns the placeholder; the layer runs its own code on that, and another hook puts the result in its place. Residual sums are
taken where matrix products and the gradients of norms are in registers. It is done for the decoder layers of `_FAMILIES`, whose
source was read, as long as they consist of plain parts and hold no foreign hooks; all others go by the hooks of the parts. Plain
parts are linear layers with an adapter beside them too (`lora.linear_parts`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from tuneful.model.attention_native import NativeBlocks, lay_out_plan
from tuneful.model.deferred import CosSin
from tuneful.model.lora import LinearParts, linear_parts
from tuneful.model.native import NUM_LINEARS, Layer, LayerGradients, kernels
from tuneful.model.norms import epsilon_of, shift_of
from tuneful.model.products import is_plain, is_served_linear, thread_workspace
from tuneful.model.structure import decoder_layers

# Legend of shapes: N nodes, D features of the stream, H query heads, K key/value heads, R size of a head
_FAMILIES = ("Llama", "Mistral", "Qwen2")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_HOOKED = "tuneful_layer"


def compute_layers(model: PreTrainedModel, wanted: Callable[[], bool]) -> None:
    """The decoder layers of `model` are computed as one while they are in bfloat16 and `wanted` says so.

    Does nothing where there are no compiled matrix products, to layers that are made otherwise, and the second time. To be called
    after whatever else gives the layers hooks: a hook that comes later switches it off for its layer.
    """
    library = kernels(model.device, model.dtype)
    if library is None or not library.has_matrix_products():
        return
    if (stack := decoder_layers(model)) is None:
        return
    for layer in stack:
        if not hasattr(layer, _HOOKED) and _is_served(layer) and not _has_foreign_hooks(layer):
            setattr(layer, _HOOKED, True)
            _LayerHooks(layer, stack, library, wanted)


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


def _class_of(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


class _LayerHooks:
    """The hooks before and after a layer of a `stack`."""

    def __init__(
        self, layer: Any, stack: torch.nn.ModuleList, library: ctypes.CDLL, wanted: Callable[[], bool]
    ) -> None:
        self.layer, self.stack, self.library, self.wanted = layer, stack, library, wanted
        self.norms = [getattr(layer, name) for name in _NORMS]
        self.shifts = [shift_of(norm) or 0.0 for norm in self.norms]
        self.linears = [getattr(layer.self_attn, name) for name in _ATTENTION]
        self.linears += [getattr(layer.mlp, name) for name in _MLP]
        # Functions, not methods: a model that is copied would copy what a method belongs to
        layer.register_forward_pre_hook(lambda *call: self.compute(*call), with_kwargs=True)
        layer.register_forward_hook(lambda layer, arguments, output: output.output if is_placeholder(output) else None)
        self.kind, self.modules = type(layer), list(layer.modules())
        self.watched = [watched for module in self.modules for watched in (module._modules, *_hooks(module))]
        self.as_found = [dict(watched) for watched in self.watched]

    def compute(
        self, layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The hook before: compute the layer, and give it a placeholder that brings the output to the hook after it."""
        attention, inputs = self.layer.self_attn, _layer_inputs(arguments, options)
        linears = [parts for parts in map(linear_parts, self.linears) if parts is not None]
        if len(linears) < NUM_LINEARS:
            return None
        parameters = [norm.weight for norm in self.norms] + linear_parameters(linears)
        if (
            inputs is None
            or layer is not self.layer  # a copy of the model has copies of the layers, and the same hooks
            or not self.wanted()
            or not all(parameter is None or is_plain(parameter) for parameter in parameters)
            or inputs.hidden.shape[2:] != self.norms[0].weight.shape
            or inputs.cosines.shape[2] != attention.head_dim
            or (attention.training and attention.attention_dropout)
            or self._is_changed()
        ):
            return None
        layer_options = _LayerOptions(
            recompute=layer.training and getattr(layer, "gradient_checkpointing", False),
            epsilons=tuple(epsilon_of(norm) for norm in self.norms),
            shifts=tuple(self.shifts),
            size=attention.head_dim,
            scale=attention.scaling,
            scalings=tuple(parts.scaling for parts in linears),
            blocks=inputs.plan.blocks,
            read_rows=inputs.plan.read_rows if self.stack[-1] is layer else None,
            library=self.library,
        )
        output = DecoderLayer.apply(  # type: ignore[no-untyped-call]
            inputs.hidden, inputs.cosines, inputs.sines, layer_options, *parameters
        )
        placeholder = LayerPlaceholder(output)
        return (placeholder,), {**options, "position_embeddings": (placeholder, placeholder)}

    def _is_changed(self) -> bool:
        """Whether parts were exchanged since, or one has got a hook."""
        return (
            type(self.layer) is not self.kind
            or self.watched != self.as_found
            or any("forward" in vars(module) for module in self.modules)
        )


def _has_foreign_hooks(layer: torch.nn.Module) -> bool:
    """Whether the layer holds code of others that must not be given placeholders: hooks, or a forward of a module's own."""
    return any(
        "forward" in vars(module)
        or any(
            not str(getattr(hook, "__module__", "")).startswith("tuneful.")
            for hooks in _hooks(module)
            for hook in hooks.values()
        )
        for module in layer.modules()
    )


def _hooks(module: torch.nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks


@dataclass(frozen=True, slots=True)
class _LayerInputs:
    """What a layer is called with, as far as its output depends on it."""

    hidden: torch.Tensor  # [1, N, D]
    cosines: torch.Tensor  # [1, N, R]
    sines: torch.Tensor
    plan: Any


def _layer_inputs(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> _LayerInputs | None:
    """What `DecoderLayer` needs of a call; None for a call that is not over a trie."""
    plan, angles = options.get("trie_plan"), options.get("position_embeddings")
    if (
        len(arguments) != 1
        or getattr(plan, "blocks", None) is None
        or not isinstance(angles, tuple)
        or len(angles) != 2
    ):
        return None
    if any(options.get(name) is not None for name in ("attention_mask", "past_key_values", "softcap")):
        return None
    hidden, cosines, sines = arguments[0], *(angle.parts[0] if type(angle) is CosSin else angle for angle in angles)
    if not all(is_plain(tensor) and tensor.ndim == 3 and len(tensor) == 1 for tensor in (hidden, cosines, sines)):
        return None
    alike = cosines.shape == sines.shape and cosines.shape[1] == hidden.shape[1] == plan.num_nodes  # type: ignore[union-attr]
    trained = cosines.requires_grad or sines.requires_grad
    return _LayerInputs(hidden, cosines, sines, plan) if alike and not trained else None


class LayerPlaceholder:
    """Stands for rows in a layer whose `output` is known already: every operation on it returns itself."""

    def __init__(self, output: torch.Tensor) -> None:
        self.output = output
        self.shape, self.dtype, self.device, self.ndim = output.shape, output.dtype, output.device, output.ndim

    def __getattr__(self, name: str) -> Callable[..., LayerPlaceholder]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__same

    def __same(self, *arguments: Any, **options: Any) -> LayerPlaceholder:
        return self

    __getitem__ = __add__ = __radd__ = __mul__ = __rmul__ = __neg__ = __same

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), options: Any = None
    ) -> LayerPlaceholder:
        first, *others = arguments
        among = (*first, *others) if isinstance(first, (tuple, list)) else arguments
        return next(argument for argument in among if type(argument) is cls)


def is_placeholder(rows: Any) -> bool:
    """Whether `rows` are a placeholder: what is computed of them is not used."""
    return type(rows) is LayerPlaceholder


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
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        lora_a: Sequence[torch.Tensor | None],
        lora_b: Sequence[torch.Tensor | None],
    ) -> Layer:
        """The layer as the kernels read it; the caller keeps the tensors, which are contiguous."""
        query, key, *_, down = weights
        num_heads, num_key_heads = query.shape[0] // self.size, key.shape[0] // self.size
        sizes = (hidden.shape[1], num_heads, num_key_heads, self.size, self.size)
        plan = lay_out_plan(self.blocks, *sizes, self.scale, hidden.dtype, torch.get_num_threads())
        return Layer(
            *(ctypes.pointer(plan), hidden.shape[2], down.shape[1], self.epsilons, self.shifts),
            *(tensor.data_ptr() for tensor in (hidden, *angles)),
            *(_addresses(tensors) for tensors in (norms, weights, biases, lora_a, lora_b)),
            *(tuple([0 if one is None else one.shape[0] for one in lora_a]), self.scalings),
            *((None, 0) if self.read_rows is None else (self.read_rows.data_ptr(), len(self.read_rows))),
        )


def _addresses(tensors: Sequence[torch.Tensor | None]) -> tuple[int | None, ...]:
    return tuple([None if tensor is None else tensor.data_ptr() for tensor in tensors])


class DecoderLayer(torch.autograd.Function):
    """middle = hidden + attention(norm(hidden)); output = middle + down(silu(gate(norm(middle))) * up(norm(middle))).

    hidden [1, N, D] -> [1, N, D]; parameters: the weights of both norms; the weights of query, key, value, output, gate, up
    and down; their biases, or None; A and B of their adapters, or None (`linear_parameters`). All in bfloat16. Query and key
    are rotated by cosines and sines [1, N, R].
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        options: _LayerOptions,
        *parameters: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden = hidden.contiguous()
        read = [hidden, *(None if each is None else each.contiguous() for each in (cosines, sines, *parameters))]
        output, kept = _computed(options, hidden, options.layer(*_parted(read)))
        ctx.save_for_backward(None if options.recompute else kept, *read)
        ctx.options = options
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, *read = ctx.saved_tensors
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


def linear_parameters(linears: Sequence[LinearParts]) -> list[torch.Tensor | None]:
    """Of a decoder layer's linear layers all weights, all biases, all A, all B: what `DecoderLayer` takes after the norms."""
    bases = [parts.base for parts in linears]
    adapters = [parts.lora_a for parts in linears] + [parts.lora_b for parts in linears]
    return [base.weight for base in bases] + [base.bias for base in bases] + adapters
