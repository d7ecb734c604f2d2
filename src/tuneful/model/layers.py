"""Decoder layers as one node of autograd, where the compiled kernels have all that a layer is made of.

Between the kernels of a layer transformers and autograd take some sixty steps in Python, each of a few microseconds: a
seventh of a small step. Here a hook computes the layer before it is called and hands it a stand-in that gives itself whatever
is done to it; the layer does its work on that, and another hook puts the result in its place. Residual sums are taken where
the products and the gradients of norms are in registers. Served are the classes of `_CLASSES`, whose text was read, as long
as they consist of plain parts and nobody listens inside; all others go by the hooks of the parts.
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
from tuneful.model.deferred import Angle
from tuneful.model.native import NUM_PRODUCTS, Layer, LayerGradients, kernels
from tuneful.model.norms import epsilon_of, shift_of
from tuneful.model.products import is_plain, is_product, work_room

# Legend of shapes: N nodes, D features of the stream, H query heads, K key/value heads, R size of a head
_FAMILIES = ("Llama", "Mistral", "Qwen2")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_HOOKED = "tuneful_layer"


def compute_layers(model: PreTrainedModel, wanted: Callable[[], bool]) -> None:
    """The decoder layers of `model` are computed as one while they are in bfloat16 and `wanted` says so.

    Does nothing where there are no compiled products, to layers that are made otherwise, and the second time. Comes after
    whatever else gives the layers hooks: who listens inside later switches it off for that layer.
    """
    library = kernels(model.device, model.dtype)
    if library is None or not library.has_products():
        return
    for stack in model.modules():
        for layer in stack if isinstance(stack, torch.nn.ModuleList) else ():
            if not hasattr(layer, _HOOKED) and _is_served(layer) and not _is_heard(layer):
                setattr(layer, _HOOKED, True)
                _Served(layer, stack, library, wanted)


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
    products = [*(getattr(layer.self_attn, name) for name in _ATTENTION), *(getattr(layer.mlp, name) for name in _MLP)]
    norms = [getattr(layer, name) for name in _NORMS]
    return (
        all(is_product(product) for product in products)
        and all(shift_of(norm) is not None for norm in norms)
        and type(layer.mlp.act_fn) in (torch.nn.SiLU, SiLUActivation)
        and layer.self_attn.head_dim % 2 == 0
        and sum(1 for _ in layer.parameters()) == sum(1 for part in (*products, *norms) for _ in part.parameters())
    )


def _class_of(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


class _Served:
    """The hooks before and after a layer of a `stack`."""

    def __init__(
        self, layer: Any, stack: torch.nn.ModuleList, library: ctypes.CDLL, wanted: Callable[[], bool]
    ) -> None:
        self.layer, self.stack, self.library, self.wanted = layer, stack, library, wanted
        self.norms = [getattr(layer, name) for name in _NORMS]
        self.shifts = [shift_of(norm) or 0.0 for norm in self.norms]
        self.products = [getattr(layer.self_attn, name) for name in _ATTENTION]
        self.products += [getattr(layer.mlp, name) for name in _MLP]
        # Functions, not methods: a model that is copied would copy what a method belongs to
        layer.register_forward_pre_hook(lambda *call: self.compute(*call), with_kwargs=True)
        layer.register_forward_hook(lambda layer, arguments, output: output.output if is_stand_in(output) else None)
        self.kind, self.modules = type(layer), list(layer.modules())
        self.watched = [watched for module in self.modules for watched in (module._modules, *_hooks(module))]
        self.as_found = [dict(watched) for watched in self.watched]

    def compute(
        self, layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The hook before: compute the layer, and give it a stand-in that brings the output to the hook after it."""
        attention, given = self.layer.self_attn, _given(arguments, options)
        parameters = [part.weight for part in (*self.norms, *self.products)] + [part.bias for part in self.products]
        if (
            given is None
            or layer is not self.layer  # a copy of the model has copies of the layers, and the same hooks
            or not self.wanted()
            or not all(parameter is None or is_plain(parameter) for parameter in parameters)
            or given.hidden.shape[2:] != self.norms[0].weight.shape
            or given.cosines.shape[2] != attention.head_dim
            or (attention.training and attention.attention_dropout)
            or self._is_changed()
        ):
            return None
        how = _How(
            again=layer.training and getattr(layer, "gradient_checkpointing", False),
            epsilons=tuple(epsilon_of(norm) for norm in self.norms),
            shifts=tuple(self.shifts),
            size=attention.head_dim,
            scale=attention.scaling,
            blocks=given.plan.blocks,
            read=given.plan.read_rows if self.stack[-1] is layer else None,
            library=self.library,
        )
        output = DecoderLayer.apply(given.hidden, given.cosines, given.sines, how, *parameters)  # type: ignore[no-untyped-call]
        stand_in = StandIn(output)
        return (stand_in,), {**options, "position_embeddings": (stand_in, stand_in)}

    def _is_changed(self) -> bool:
        """Whether parts were exchanged since, or somebody has begun to listen to one."""
        return (
            type(self.layer) is not self.kind
            or self.watched != self.as_found
            or any("forward" in vars(module) for module in self.modules)
        )


def _is_heard(layer: torch.nn.Module) -> bool:
    """Whether somebody else waits in the layer, who is not to be given stand-ins: hooks, or a forward of an object's own."""
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
class _Given:
    """What a layer is called with, as far as its output depends on it."""

    hidden: torch.Tensor  # [1, N, D]
    cosines: torch.Tensor  # [1, N, R]
    sines: torch.Tensor
    plan: Any


def _given(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> _Given | None:
    """What `DecoderLayer` has to know of a call; None for a call that is not the trie's."""
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
    hidden, cosines, sines = arguments[0], *(angle.parts[0] if type(angle) is Angle else angle for angle in angles)
    if not all(is_plain(tensor) and tensor.ndim == 3 and len(tensor) == 1 for tensor in (hidden, cosines, sines)):
        return None
    alike = cosines.shape == sines.shape and cosines.shape[1] == hidden.shape[1] == plan.num_nodes  # type: ignore[union-attr]
    learnt = cosines.requires_grad or sines.requires_grad
    return _Given(hidden, cosines, sines, plan) if alike and not learnt else None


class StandIn:
    """Stands for rows in a layer whose `output` is known already: whatever is done to it gives itself."""

    def __init__(self, output: torch.Tensor) -> None:
        self.output = output
        self.shape, self.dtype, self.device, self.ndim = output.shape, output.dtype, output.device, output.ndim

    def __getattr__(self, name: str) -> Callable[..., StandIn]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__same

    def __same(self, *arguments: Any, **options: Any) -> StandIn:
        return self

    __getitem__ = __add__ = __radd__ = __mul__ = __rmul__ = __neg__ = __same

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), options: Any = None
    ) -> StandIn:
        first, *others = arguments
        among = (*first, *others) if isinstance(first, (tuple, list)) else arguments
        return next(argument for argument in among if type(argument) is cls)


def is_stand_in(rows: Any) -> bool:
    """Whether `rows` stand for others: what is computed of them is not looked at."""
    return type(rows) is StandIn


@dataclass(frozen=True, slots=True)
class _How:
    """What a layer computes besides its tensors: of both norms epsilon and shift, of the scores their scale.

    again   whether the backward computes all of it once more instead of keeping it
    size    R
    read    int64 [M], rising: the rows of the output that somebody reads, all others being 0; None for all
    """

    again: bool
    epsilons: tuple[float, ...]
    shifts: tuple[float, ...]
    size: int
    scale: float
    blocks: NativeBlocks
    read: torch.Tensor | None
    library: ctypes.CDLL

    def layer(
        self,
        hidden: torch.Tensor,
        angles: Sequence[torch.Tensor],
        norms: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> Layer:
        """The layer as the kernels read it; who asks for it keeps the tensors, which are contiguous."""
        query, key, *_, down = weights
        num_heads, num_key_heads = query.shape[0] // self.size, key.shape[0] // self.size
        sizes = (hidden.shape[1], num_heads, num_key_heads, self.size, self.size)
        plan = lay_out_plan(self.blocks, *sizes, self.scale, hidden.dtype, torch.get_num_threads())
        return Layer(
            *(ctypes.pointer(plan), hidden.shape[2], down.shape[1], self.epsilons, self.shifts),
            *(tensor.data_ptr() for tensor in (hidden, *angles)),
            *(_addresses(tensors) for tensors in (norms, weights, biases)),
            *((None, 0) if self.read is None else (self.read.data_ptr(), len(self.read))),
        )


def _addresses(tensors: Sequence[torch.Tensor | None]) -> tuple[int | None, ...]:
    return tuple([None if tensor is None else tensor.data_ptr() for tensor in tensors])


class DecoderLayer(torch.autograd.Function):
    """middle = hidden + attention(norm(hidden)); output = middle + down(silu(gate(norm(middle))) * up(norm(middle))).

    hidden [1, N, D] -> [1, N, D]; parameters: the weights of both norms; the weights of query, key, value, output, gate, up
    and down; their biases, or None. All in bfloat16. Query and key are rotated by cosines and sines [1, N, R].
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        how: _How,
        *parameters: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden = hidden.contiguous()
        read = [hidden, *(None if each is None else each.contiguous() for each in (cosines, sines, *parameters))]
        output, kept = _computed(how, hidden, how.layer(*_parted(read)))
        ctx.save_for_backward(None if how.again else kept, *read)
        ctx.how = how
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, *read = ctx.saved_tensors
        how, layer, to_output = ctx.how, ctx.how.layer(*_parted(read)), grads[0].contiguous()
        if kept is None:
            _, kept = _computed(how, read[0], layer)
        wanted = (True, *ctx.needs_input_grad[4:])
        found = [
            torch.empty_like(one) if want else None for one, want in zip((read[0], *read[3:]), wanted, strict=True)
        ]
        room = work_room(how.library.layer_room(layer, 1))
        layer.kept, layer.room = kept.data_ptr(), room.data_ptr()
        to_hidden, *others = _addresses(found)
        gradients = LayerGradients(to_hidden, *(tuple(others[part]) for part in (_NORM_PART, _WEIGHT_PART, _BIAS_PART)))
        how.library.layer_backward(layer, to_output.data_ptr(), gradients)
        return found[0], None, None, None, *found[1:]


def _computed(how: _How, hidden: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's output, and what its backward reads."""
    output, kept = torch.empty_like(hidden), _kept_room(how.library.layer_kept(layer))
    room = work_room(how.library.layer_room(layer, 0))
    layer.kept, layer.room = kept.data_ptr(), room.data_ptr()
    how.library.layer_forward(layer, output.data_ptr())
    return output, kept


def _kept_room(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device="cpu")


_NORM_PART, _WEIGHT_PART, _BIAS_PART = slice(2), slice(2, 2 + NUM_PRODUCTS), slice(2 + NUM_PRODUCTS, None)


def _parted(read: Sequence[Any]) -> tuple[Any, ...]:
    """hidden, (cosines, sines), norms, weights, biases."""
    hidden, cosines, sines, *parameters = read
    return hidden, (cosines, sines), parameters[_NORM_PART], parameters[_WEIGHT_PART], parameters[_BIAS_PART]
