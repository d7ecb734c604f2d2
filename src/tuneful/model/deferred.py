"""Rotary embedding and gated activation in one compiled pass each, in models whose code is left as it is.

transformers' models write both as a handful of torch's operations: two multiplications, a negated half, a concatenation and a
sum for each of query and key; an activation and a multiplication for the gate. Each is a pass over memory, and three to go
back. Here the operations are not carried out where they stand. While a model attends over tries, hooks give its rotary
embedding's output and its gate's input a type of their own, a tensor whose value is deferred (torch's `__torch_function__`
protocol). The last operation of the chain computes what the whole chain says; any other operation on the way gets plain tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from tuneful.model.native import KINDS, Heads, kernels

# Legend of shapes: N nodes, H heads, R size of the part of a head that is rotated
_HOOKED = "tuneful_deferred"


def defer_elementwise(model: PreTrainedModel, wanted: Callable[[], bool]) -> None:
    """The rotary embedding and gated SiLU of `model` run in one pass each as long as `wanted` says so.

    Does nothing where there are no compiled kernels, and the second time.
    """
    if (library := kernels(model.device, model.dtype)) is None:
        return
    for module in model.modules():
        if hasattr(module, _HOOKED):
            continue
        if type(module).__name__.endswith("RotaryEmbedding"):
            setattr(module, _HOOKED, True)
            module.register_forward_hook(_deferring_rotation(library, wanted))
        elif type(module) in (torch.nn.SiLU, SiLUActivation):
            setattr(module, _HOOKED, True)
            module.register_forward_pre_hook(_deferring_gate(library, wanted))


def _deferring_rotation(library: ctypes.CDLL, wanted: Callable[[], bool]) -> Callable[..., Any]:
    """A hook after the rotary embedding, whose output is (cosines, sines), each [1, N, R]."""

    def defer(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        pair = isinstance(output, tuple) and len(output) == 2 and all(_is_plain(part) for part in output)
        if not pair or output[0].shape != output[1].shape or output[0].ndim != 3 or not wanted():
            return None
        if output[0].requires_grad or output[1].requires_grad:  # angles that are trained
            return None
        return CosSin(output[0], library), CosSin(output[1], library)

    return defer


def _deferring_gate(library: ctypes.CDLL, wanted: Callable[[], bool]) -> Callable[..., Any]:
    """A hook before an activation."""

    def defer(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        served = len(arguments) == 1 and _is_plain(arguments[0]) and wanted()
        return (GateInput(arguments[0], library),) if served else None

    return defer


def _is_plain(tensor: Any) -> bool:
    return type(tensor) is torch.Tensor and tensor.dtype in KINDS and tensor.device.type == "cpu"


class Deferred(torch.Tensor):
    """A tensor that is computed when its value is needed; `parts` are what it is computed of."""

    parts: tuple[torch.Tensor, ...]
    library: ctypes.CDLL

    @staticmethod
    def __new__(cls, like: torch.Tensor, library: ctypes.CDLL, *parts: torch.Tensor) -> Deferred:
        made: Deferred = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        made.parts, made.library = parts or (like,), library
        return made

    def __init__(self, like: torch.Tensor, library: ctypes.CDLL, *parts: torch.Tensor) -> None:
        pass

    def computed(self) -> torch.Tensor:
        """Its value, by torch's operations."""
        return self.parts[0]

    @classmethod
    def __torch_function__(
        cls,
        function: Any,
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        if function in _DESCRIPTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*arguments)
        rule = _RULES.get(function)
        found = None if rule is None or any(value is not False for value in options.values()) else rule(*arguments)
        if found is None:
            arguments, options = tree_map_only(
                Deferred, lambda tensor: tensor.computed(), (tuple(arguments), dict(options))
            )
            found = function(*arguments, **options)
        return found

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{function} of a deferred tensor: it has no value yet that autograd could follow")


_DESCRIPTIONS = {getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")}


class CosSin(Deferred):
    """Cosines or sines [1, N, R] of a rotary embedding, and the same with a dimension of heads [1, 1, N, R]."""


class RotatedTerm(Deferred):
    """A term of a rotation: a head's values times cosines, or its rotated halves times sines.

    parts (values [1, H, N, R], cosines or sines [1, 1, N, R]).
    """

    def computed(self) -> torch.Tensor:
        """values * angles, by torch."""
        return self.parts[0] * self.parts[1]


class GateInput(Deferred):
    """The input of an activation: parts (gate,)."""


class SiluOutput(Deferred):
    """silu(gate): parts (gate,)."""

    def computed(self) -> torch.Tensor:
        """silu(gate), by torch."""
        return torch.nn.functional.silu(self.parts[0])


def _activate(gate: Any) -> SiluOutput | None:
    return SiluOutput(gate.parts[0], gate.library, gate.parts[0]) if type(gate) is GateInput else None


def _unsqueeze(angle: Any, dimension: Any) -> CosSin | None:
    if type(angle) is not CosSin or angle.parts[0].ndim != 3 or dimension != 1:
        return None
    return CosSin(angle.parts[0].unsqueeze(1), angle.library)


def _multiply(one: Any, other: Any) -> torch.Tensor | None:
    for deferred, plain in ((one, other), (other, one)):
        if not _is_plain(plain):
            continue
        if type(deferred) is SiluOutput and _alike(plain, deferred.parts[0]):
            return GatedSilu.apply(deferred.parts[0], plain, deferred.library)  # type: ignore[no-any-return, no-untyped-call]
        if type(deferred) is CosSin and _fits(plain, deferred.parts[0]):
            return RotatedTerm(plain, deferred.library, plain, deferred.parts[0])
    return None


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype is other.dtype


def _fits(values: torch.Tensor, angle: torch.Tensor) -> bool:
    """Whether `values` [1, H, N, R] can be rotated by `angle` [1, 1, N, R]."""
    return (
        values.ndim == angle.ndim == 4
        and values.dtype is angle.dtype
        and values.shape[0] == angle.shape[0] == angle.shape[1] == 1
        and values.shape[2:] == angle.shape[2:]
        and values.shape[3] % 2 == 0
        and values.stride(3) == 1
    )


def _add(one: Any, other: Any) -> torch.Tensor | None:
    if not type(one) is type(other) is RotatedTerm or not _alike(one.parts[0], other.parts[0]):
        return None
    (values, cosines), (rotated_half, sines) = one.parts, other.parts
    return rotate(values, cosines, rotated_half, sines, one.library)


def rotate(
    values: torch.Tensor, cosines: torch.Tensor, rotated_half: torch.Tensor, sines: torch.Tensor, library: ctypes.CDLL
) -> torch.Tensor | None:
    """values * cosines + rotated_half * sines (Su et al. 2021): the first two [1, H, N, R], cosines and sines [1, 1, N, R].

    None where `rotated_half` is not (-second half, first half) of the values: some models exchange neighbours instead.
    """
    output = _rotated(values, rotated_half, cosines.contiguous(), sines.contiguous(), library)
    if output is None:
        return None
    found: torch.Tensor = Rotation.apply(values, output, cosines, sines, library)  # type: ignore[no-untyped-call]
    return found


def _rotated(
    values: torch.Tensor,
    rotated_half: torch.Tensor | None,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    library: ctypes.CDLL,
) -> torch.Tensor | None:
    """[1, H, N, R], laid out [1, N, H, R]; without `rotated_half` the rotation back."""
    _, num_heads, num_nodes, size = values.shape
    output = values.new_empty(1, num_nodes, num_heads, size)
    workspace = torch.empty(torch.get_num_threads() * 5 * size, dtype=torch.promote_types(values.dtype, torch.float32))
    alike = library.rotate(
        *(torch.get_num_threads(), KINDS[values.dtype], num_nodes, num_heads, size),
        *(Heads.of(values), None if rotated_half is None else Heads.of(rotated_half), rotated_half is None),
        *(tensor.data_ptr() for tensor in (cosines, sines, output, workspace)),
    )
    return output.transpose(1, 2) if alike else None


class Rotation(torch.autograd.Function):
    """`output`, which is `values` rotated, with its gradient: the upstream one rotated back."""

    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        output: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        library: ctypes.CDLL,
    ) -> torch.Tensor:
        ctx.save_for_backward(cosines.contiguous(), sines.contiguous())
        ctx.library = library
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        upstream = grads[0] if grads[0].stride(-1) == 1 else grads[0].clone(memory_format=torch.contiguous_format)
        cosines, sines = ctx.saved_tensors
        return _rotated(upstream, None, cosines, sines, ctx.library), None, None, None, None


class GatedSilu(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020), of one shape and dtype."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, library: ctypes.CDLL) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.library = library
        output = torch.empty_like(gate)
        library.gated_silu(
            *(torch.get_num_threads(), KINDS[gate.dtype], gate.numel()),
            *(tensor.data_ptr() for tensor in (gate, up, output)),
        )
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        gate, up = ctx.saved_tensors
        upstream, to_gate, to_up = grads[0].contiguous(), torch.empty_like(gate), torch.empty_like(up)
        ctx.library.gated_silu_backward(
            *(torch.get_num_threads(), KINDS[gate.dtype], gate.numel()),
            *(tensor.data_ptr() for tensor in (gate, up, upstream, to_gate, to_up)),
        )
        return to_gate, to_up, None


_RULES: dict[Any, Callable[..., torch.Tensor | None]] = {
    torch.nn.functional.silu: _activate,
    torch.Tensor.unsqueeze: _unsqueeze,
    torch.Tensor.mul: _multiply,
    torch.Tensor.add: _add,
}
