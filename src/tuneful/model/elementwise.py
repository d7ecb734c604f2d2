"""Rotary embedding and gated activation: in one compiled pass each on a CPU, else by torch's operations.

Written with torch's operations both are a handful of passes over memory, and three to go back: two multiplications, a negated
half, a concatenation and a sum for each of query and key; an activation and a multiplication for the gate.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.activations import SiLUActivation

from tuneful.model.native import KINDS, Heads, kernels

# Legend of shapes: N nodes, H heads, R size of the part of a head that is rotated
_SILU = (torch.nn.SiLU, SiLUActivation)


def rotated(values: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """`values` [1, H, N, size of a head], of which the first R are rotated by angles (Su et al. 2021); cosines, sines [1, N, R].

    Each half is turned against the other: first * cosines - second * sines, and second * cosines + first * sines.
    """
    size = cosines.shape[-1]
    if size < values.shape[-1]:  # Phi 3's part of a head
        return torch.cat((rotated(values[..., :size], cosines, sines), values[..., size:]), dim=-1)
    library = kernels(values.device, values.dtype)
    if library is None or not _fits(values, cosines) or not _fits(values, sines):
        first, second = values.chunk(2, dim=-1)
        plain = values * cosines[:, None] + torch.cat((-second, first), dim=-1) * sines[:, None]
        return plain.to(values.dtype)  # OLMo's angles are in float32
    turned: torch.Tensor = Rotation.apply(values, cosines, sines, library)  # type: ignore[no-untyped-call]
    return turned


def _fits(values: torch.Tensor, angles: torch.Tensor) -> bool:
    """Whether the kernels rotate `values` by `angles`: of its nodes, size and type, and not trained themselves."""
    num_sequences, _, num_nodes, size = values.shape
    alike = angles.shape == (1, num_nodes, size) and angles.dtype is values.dtype and not angles.requires_grad
    return alike and num_sequences == 1 and size % 2 == 0


def gated(activation: Callable[[torch.Tensor], torch.Tensor], gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """activation(gate) * up, of one shape."""
    library = kernels(gate.device, gate.dtype)
    if library is None or type(activation) not in _SILU or gate.dtype is not up.dtype or gate.shape != up.shape:
        return activation(gate) * up
    found: torch.Tensor = GatedSilu.apply(gate, up, library)  # type: ignore[no-untyped-call]
    return found


class Rotation(torch.autograd.Function):
    """`values` [1, H, N, R] rotated; the gradient is the upstream one rotated back. Laid out [1, N, H, R]."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, library: ctypes.CDLL
    ) -> torch.Tensor:
        cosines, sines = cosines.contiguous(), sines.contiguous()
        ctx.save_for_backward(cosines, sines)
        ctx.library = library
        return _turned(values, cosines, sines, library, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cosines, sines = ctx.saved_tensors
        return _turned(grads[0], cosines, sines, ctx.library, back=True), None, None, None


def _turned(
    values: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, library: ctypes.CDLL, *, back: bool
) -> torch.Tensor:
    values = values if values.stride(-1) == 1 else values.clone(memory_format=torch.contiguous_format)
    _, num_heads, num_nodes, size = values.shape
    output = values.new_empty(1, num_nodes, num_heads, size)
    workspace = torch.empty(torch.get_num_threads() * 4 * size, dtype=torch.promote_types(values.dtype, torch.float32))
    library.rotate(
        *(torch.get_num_threads(), KINDS[values.dtype], num_nodes, num_heads, size),
        *(Heads.of(values), back),
        *(tensor.data_ptr() for tensor in (cosines, sines, output, workspace)),
    )
    return output.transpose(1, 2)


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
