"""RMS norms in one compiled pass each way, instead of transformers' eight and autograd's fifteen.

A norm of transformers is eight operations on a row of a few hundred numbers; autograd keeps three copies of the row, in
float32: with their gradients a twentieth of a small step and a fifth of what a layer keeps. Whether a class of norms computes
what the formula says is tried out, once a class.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tuneful.model.native import KINDS, kernels

_ACCUMULATORS = 16  # NORM_ACCUMULATORS of kernels.c


def normalized(norm: Any, rows: torch.Tensor) -> torch.Tensor:
    """What the module `norm` makes of `rows` [..., D]: an RMS norm on a CPU by the compiled kernels, where there are any."""
    library = kernels(rows.device, rows.dtype)
    if library is None or (shift := shift_of(norm)) is None or not _fits(rows, norm.weight):
        plain: torch.Tensor = norm(rows)
        return plain
    found: torch.Tensor = RmsNorm.apply(rows, norm.weight, epsilon_of(norm), shift, library)  # type: ignore[no-untyped-call]
    return found


def _fits(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernels normalize `rows` by `weight`: of its size and type, and not empty."""
    return rows.dtype is weight.dtype and rows.shape[-1:] == weight.shape and rows.numel() > 0


class RmsNorm(torch.autograd.Function):
    """(weight + shift) * input / rms(input) for input [..., D] and weight [D] of one dtype (Zhang & Sennrich 2019)."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, epsilon: float, shift: float, library: ctypes.CDLL
    ) -> torch.Tensor:
        input, weight = input.contiguous(), weight.contiguous()
        ctx.save_for_backward(input, weight)
        ctx.epsilon, ctx.shift, ctx.library = epsilon, shift, library
        output, size = torch.empty_like(input), weight.shape[0]
        workspace = _workspace(input, 2 * size)
        library.rms_norm(
            *(torch.get_num_threads(), KINDS[input.dtype], input.numel() // size, size, epsilon, shift),
            *(tensor.data_ptr() for tensor in (input, weight, output, workspace)),
        )
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        to_output, size = grads[0].to(input.dtype).contiguous(), weight.shape[0]
        to_input, to_weight = torch.empty_like(input), torch.empty_like(weight)
        sums, workspace = input.new_empty(_ACCUMULATORS * size, dtype=_wide(input)), _workspace(input, 3 * size)
        ctx.library.rms_norm_backward(
            *(torch.get_num_threads(), KINDS[input.dtype], input.numel() // size, size, ctx.epsilon, ctx.shift),
            *(tensor.data_ptr() for tensor in (input, weight, to_output)),
            *(None, *(tensor.data_ptr() for tensor in (to_input, to_weight, sums, workspace))),
        )
        return to_input, to_weight, None, None, None


def _workspace(input: torch.Tensor, size: int) -> torch.Tensor:
    """Memory for `size` numbers a thread."""
    return input.new_empty(torch.get_num_threads() * size, dtype=_wide(input))


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def shift_of(module: torch.nn.Module) -> float | None:
    """What `module` adds to its weight if it is an RMS norm: 0 (as Llama's) or 1 (as Gemma's); None if it is none."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or epsilon_of(module) is None or getattr(weight, "ndim", 0) != 1:
        return None
    return _tried(type(module))  # type: ignore[arg-type]


@functools.cache
def _tried(norm: type[torch.nn.Module]) -> float | None:
    """The shift with which a norm of this class computes what the formula says, on random rows; None where none does."""
    size, epsilon = 24, 0.3
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, size, generator=generator)
    weight = torch.randn(size, generator=generator)
    try:
        with torch.no_grad():
            module: Any = norm(size, eps=epsilon)
            module.weight.copy_(weight)
            found = module(rows)
    except (TypeError, RuntimeError):
        return None
    if epsilon_of(module) != epsilon:
        return None
    plain = rows * (rows.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    shifts = (shift for shift in (0.0, 1.0) if torch.allclose(found, (weight + shift) * plain, rtol=1e-4, atol=1e-5))
    return next(shifts, None)


def epsilon_of(module: Any) -> Any:
    """What a norm adds to the mean square; None where it has no such attribute."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))
