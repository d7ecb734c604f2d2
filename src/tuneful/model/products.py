"""Linear layers in bfloat16 by the compiled matrix products (`products.h`), where a processor has a dot product of that type.

oneDNN, torch's library for them, runs large matrix products at the processor's rate and those of a step, a few hundred rows, at
four fifths of it. Layers that read the same rows are one call, and the sum of the gradients that they give those rows is
rounded once. An adapter beside a layer (LoRA, Hu et al. 2021) is a second stretch of the depth of its product. A weight in 4 bits
(`nf4.py`) is decoded part by part where it is laid out for the product: the result is that of the whole matrix, bit for bit.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tuneful.model.lora import linear_parts
from tuneful.model.native import Factor, kernels
from tuneful.model.nf4 import BLOCK as NF4_BLOCK
from tuneful.model.nf4 import NF4, compiled
from tuneful.model.nf4_layers import NF4Linear

# Legend of shapes: M rows, K features that go in, N that come out, r between the two matrices of an adapter
_MIN_FEATURES = 64
"""PANEL_WIDTH of products.h: a narrower layer would leave its panels half empty."""
_KEPT_BYTES = 1 << 26
"""Workspaces larger than this are not kept between calls."""
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def projected(layers: Sequence[Any], rows: torch.Tensor) -> Sequence[torch.Tensor]:
    """What each of `layers`, which read the same `rows` [..., K], makes of them: together, by the compiled products, where those
    serve all of them; else each by itself."""
    library, parts = (
        kernels(rows.device, rows.dtype),
        [parts for parts in map(linear_parts, layers) if parts is not None],
    )
    if (
        library is None
        or not library.has_matrix_products()
        or rows.ndim < 2
        or not rows.numel()
        or len(parts) < len(layers)
        or not all(is_served_linear(one.base) for one in parts)
        or not all(
            each is None or is_plain(each) for each in (rows, *(each for one in parts for each in one.parameters))
        )
    ):
        return [layer(rows) for layer in layers] if len(layers) == 1 else [projected([one], rows)[0] for one in layers]
    scalings, parameters = [one.scaling for one in parts], [each for one in parts for each in one.parameters]
    outputs: tuple[torch.Tensor, ...] = MatrixProducts.apply(library, rows, scalings, *parameters)  # type: ignore[no-untyped-call]
    return outputs


def is_served_linear(layer: Any) -> bool:
    """Whether `layer` is a linear layer of a class and of sizes that the kernels multiply."""
    if type(layer) is not torch.nn.Linear and (type(layer) is not NF4Linear or layer.in_features % NF4_BLOCK):
        return False
    sizes = (layer.in_features, layer.out_features)
    return min(sizes) >= _MIN_FEATURES and not any(size % 2 for size in sizes)


def is_plain(tensor: Any) -> bool:
    """Whether `tensor` is one that the kernels read: of no subclass, in bfloat16, in memory; or a matrix in 4 bits."""
    if isinstance(tensor, NF4):
        return tensor.codes.device.type == "cpu"
    return type(tensor) in _PLAIN and tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu"


class MatrixProducts(torch.autograd.Function):
    """rows * weight^T + bias + scaling * (rows * A^T) * B^T, for each scaling and the four parameters that belong to it.

    rows [..., K] -> [..., N] for each weight [N, K], bias [N] or None, A [r, K] and B [N, r] or None, with r even. All in
    bfloat16, a weight also in 4 bits; every sum is taken in float32 and rounded once, the gradient of the rows over all weights
    and adapters too. What passes between A and B, r numbers a row each way, is scaled and then rounded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        library: ctypes.CDLL,
        rows: torch.Tensor,
        scalings: Sequence[float],
        *parameters: torch.Tensor | NF4 | None,
    ) -> tuple[torch.Tensor, ...]:
        rows = rows.contiguous()
        parts: Any = [[laid_out(one) for one in parameters[i::4]] for i in range(4)]
        weights, biases, lora_a, lora_b = parts
        low = _low(library, rows, lora_a, scalings)
        _, to_rows, _, *wanted = ctx.needs_input_grad
        ctx.save_for_backward(
            rows if any(wanted[::4]) or any(wanted[2::4]) else None,
            *(one if learns else None for one, learns in zip(low, wanted[3::4], strict=True)),
            *(one if to_rows and not isinstance(one, NF4) else None for one in (*weights, *lora_a)),
            *(one if to_rows or learns else None for one, learns in zip(lora_b, wanted[2::4], strict=True)),
        )
        ctx.library, ctx.scalings = library, scalings
        ctx.quantized = [one if isinstance(one, NF4) else None for one in weights]
        return multiply(library, rows, _present(weights), biases, list(zip(low, lora_b, strict=True)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        library, scalings, (rows, *others) = ctx.library, ctx.scalings, ctx.saved_tensors
        upstreams, count = [upstream.contiguous() for upstream in grads], len(grads)
        low, weights, lora_a, lora_b = (others[start : start + count] for start in range(0, 4 * count, count))
        to_low = [
            None if b is None else multiply_back(library, [upstream], [b], scale=scaling)
            for upstream, b, scaling in zip(upstreams, lora_b, scalings, strict=True)
        ]
        _, to_rows, _, *wanted = ctx.needs_input_grad
        gradients: list[torch.Tensor | None] = [None] * len(wanted)
        of_rows = {4 * i: upstream for i, upstream in enumerate(upstreams)}
        of_rows |= {4 * i + 2: one for i, one in enumerate(to_low) if one is not None}
        if learning := {place: upstream for place, upstream in of_rows.items() if wanted[place]}:
            found = multiply_outer(library, list(learning.values()), rows)
            for place, gradient in zip(learning, found, strict=True):
                gradients[place] = gradient
        for i, upstream in enumerate(upstreams):
            if wanted[4 * i + 1]:
                gradients[4 * i + 1] = upstream.flatten(end_dim=-2).sum(0)
            if wanted[4 * i + 3]:
                (gradients[4 * i + 3],) = multiply_outer(library, [upstream], low[i])
        if not to_rows:
            return None, None, None, *gradients
        weights = [
            one if quantized is None else quantized for one, quantized in zip(weights, ctx.quantized, strict=True)
        ]
        adapters = list(zip(to_low, lora_a, strict=True))
        return None, multiply_back(library, upstreams, weights, adapters), None, *gradients


def laid_out(tensor: torch.Tensor | NF4 | None) -> torch.Tensor | NF4 | None:
    """`tensor` as the kernels read it: contiguous."""
    return tensor.contiguous() if isinstance(tensor, torch.Tensor) else tensor


def _present(tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _low(
    library: ctypes.CDLL, rows: torch.Tensor, lora_a: Sequence[torch.Tensor | None], scalings: Sequence[float]
) -> list[torch.Tensor | None]:
    """scaling * rows * A^T [..., r] of each adapter; None where there is none."""
    there = [i for i, a in enumerate(lora_a) if a is not None]
    if not there:
        return [None] * len(lora_a)
    scales = [scalings[i] for i in there]
    found = multiply(library, rows, _present(lora_a), [None] * len(there), scales=scales)
    by_place = dict(zip(there, found, strict=True))
    return [by_place.get(i) for i in range(len(lora_a))]


_Low = tuple[torch.Tensor | None, torch.Tensor | None]
"""The second stretch of a product's depth: the r columns beside its rows, and what they are multiplied by; or nothing."""


def multiply(
    library: ctypes.CDLL,
    rows: torch.Tensor,
    weights: Sequence[torch.Tensor | NF4],
    biases: Sequence[torch.Tensor | None],
    low: Sequence[_Low] | None = None,
    scales: Sequence[float | None] | None = None,
) -> tuple[torch.Tensor, ...]:
    """scale * (rows [..., K] * weight [N, K]^T + bias [N] + low[0] [..., r] * low[1] [N, r]^T) -> [..., N] for each weight."""
    depth, num_threads = rows.shape[-1], torch.get_num_threads()
    assert all(weight.shape[1] == depth for weight in weights), (rows.shape, [weight.shape for weight in weights])
    num_rows = rows.numel() // depth
    outputs = tuple(rows.new_empty(*rows.shape[:-1], weight.shape[0]) for weight in weights)
    biases = [None if bias is None else bias.contiguous() for bias in biases]
    low, scales = low or [(None, None)] * len(weights), scales or [None] * len(weights)
    factors = [
        _factor(rows, weight, bias, output, weight.shape[0], second, scale)
        for weight, bias, output, second, scale in zip(weights, biases, outputs, low, scales, strict=True)
    ]
    _call_product(library.product, library, (num_threads, num_rows, depth), depth, factors)
    return outputs


def multiply_back(
    library: ctypes.CDLL,
    upstreams: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor | NF4],
    low: Sequence[_Low] | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """scale * the sum of upstream [..., N] * weight [N, K] + low[0] [..., r] * low[1] [r, K] over all of them: [..., K]."""
    columns, num_threads, first = weights[0].shape[1], torch.get_num_threads(), upstreams[0]
    assert all(one.shape[-1] == other.shape[0] for one, other in zip(upstreams, weights, strict=True))
    num_rows, deepest = first.numel() // first.shape[-1], max(weight.shape[0] for weight in weights)
    output = first.new_empty(*first.shape[:-1], columns)
    factors = [
        _factor(upstream, weight, None, output, weight.shape[0], second, scale)
        for upstream, weight, second in zip(upstreams, weights, low or [(None, None)] * len(weights), strict=True)
    ]
    _call_product(library.sum_of_products, library, (num_threads, num_rows, columns, deepest), deepest, factors)
    return output


def multiply_outer(library: ctypes.CDLL, upstreams: Sequence[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """upstream [..., N]^T * rows [..., K] -> [N, K] for each upstream."""
    columns, num_threads = rows.shape[-1], torch.get_num_threads()
    assert all(upstream.shape[:-1] == rows.shape[:-1] for upstream in upstreams), rows.shape
    num_rows = rows.numel() // columns
    outputs = [rows.new_empty(upstream.shape[-1], columns) for upstream in upstreams]
    factors = [
        _factor(upstream, rows, None, output, output.shape[0])
        for upstream, output in zip(upstreams, outputs, strict=True)
    ]
    workspace = thread_workspace(library.outer_products_workspace_bytes(num_threads, num_rows, columns))
    library.outer_products(num_threads, num_rows, columns, len(factors), _array(factors), workspace.data_ptr())
    return outputs


def _factor(
    left: torch.Tensor,
    right: torch.Tensor | NF4,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    size: int,
    low: _Low = (None, None),
    scale: float | None = None,
) -> Factor:
    low_left, low_right = low
    rank = 0 if low_left is None else low_left.shape[-1]
    return Factor(
        *(left.data_ptr(), address(right), address(bias), None, out.data_ptr(), size),
        *(address(low_left), address(low_right), rank),
        None if scale is None else ctypes.pointer(ctypes.c_float(scale)),
        pointer_to(right),
    )


def address(tensor: torch.Tensor | NF4 | None) -> int | None:
    """Where the numbers of `tensor` lie; None where there are none, or where they are in 4 bits."""
    return tensor.data_ptr() if isinstance(tensor, torch.Tensor) else None


def pointer_to(tensor: torch.Tensor | NF4 | None) -> Any:
    """`tensor` as the kernels read what is in 4 bits; None where it is not. The caller keeps both."""
    return ctypes.pointer(compiled(tensor)) if isinstance(tensor, NF4) else None


def _call_product(
    function: Any, library: ctypes.CDLL, sizes: tuple[int, ...], deepest: int, factors: Sequence[Factor]
) -> None:
    """Call `product` or `sum_of_products` of products.h with its workspace; `sizes` begin with threads and rows."""
    rank = max(factor.rank for factor in factors)
    workspace = thread_workspace(library.product_workspace_bytes(*sizes[:2], deepest, rank))
    function(*sizes, len(factors), _array(factors), workspace.data_ptr())


def _array(factors: Sequence[Factor]) -> ctypes.Array[Factor]:
    return (Factor * len(factors))(*factors)


class _Kept(threading.local):
    workspace = torch.empty(0, dtype=torch.uint8)


_kept = _Kept()


def thread_workspace(num_bytes: int) -> torch.Tensor:
    """Memory that the kernels work in for this thread: the same each time, so that it stays in the cache, unless it is large."""
    if num_bytes > _KEPT_BYTES:
        return torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
    if _kept.workspace.numel() < num_bytes:
        _kept.workspace = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
    return _kept.workspace
