"""Linear layers in bfloat16 by the compiled matrix products (`products.h`), where a processor has a dot product of that type.

oneDNN, torch's library for them, runs large matrix products at the processor's rate and those of a step, a few hundred rows, at
four fifths of it. Layers that read the same rows are one call, and the sum of the gradients that they give those rows is
rounded once.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tuneful.model.native import Factor, kernels

# Legend of shapes: M rows, K features that go in, N that come out
_MIN_FEATURES = 64
"""PANEL_WIDTH of products.h: a narrower layer would leave its panels half empty."""
_KEPT_BYTES = 1 << 26
"""Workspaces larger than this are not kept between calls."""
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def projected(layers: Sequence[Any], rows: torch.Tensor) -> Sequence[torch.Tensor]:
    """What each of `layers`, which read the same `rows` [..., K], makes of them: together, by the compiled products, where those
    serve all of them; else each by itself."""
    library, served = kernels(rows.device, rows.dtype), all(map(is_served_linear, layers))
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)] if served else []
    if (
        library is None
        or not served
        or not library.has_matrix_products()
        or rows.ndim < 2
        or not rows.numel()
        or not all(parameter is None or is_plain(parameter) for parameter in (rows, *parameters))
    ):
        return [layer(rows) for layer in layers] if len(layers) == 1 else [projected([one], rows)[0] for one in layers]
    outputs: tuple[torch.Tensor, ...] = MatrixProducts.apply(library, rows, *parameters)  # type: ignore[no-untyped-call]
    return outputs


def is_served_linear(layer: Any) -> bool:
    """Whether `layer` is a linear layer of the class and the sizes that the kernels multiply."""
    if type(layer) is not torch.nn.Linear:
        return False
    sizes = (layer.in_features, layer.out_features)
    return min(sizes) >= _MIN_FEATURES and not any(size % 2 for size in sizes)


def is_plain(tensor: Any) -> bool:
    """Whether `tensor` is one that the kernels read: no subclass, in bfloat16, in this machine's memory."""
    return type(tensor) in _PLAIN and tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu"


class MatrixProducts(torch.autograd.Function):
    """rows [..., K] * weight [N, K]^T + bias [N] -> [..., N] for each weight and bias (or None) that follow one another.

    All in bfloat16; every sum is taken in float32 and rounded once, the gradient of the rows over all weights too.
    """

    @staticmethod
    def forward(
        ctx: Any, library: ctypes.CDLL, rows: torch.Tensor, *parameters: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        rows, weights = rows.contiguous(), [weight.contiguous() for weight in parameters[::2] if weight is not None]
        _, to_rows, *wanted = ctx.needs_input_grad
        ctx.save_for_backward(rows if any(wanted[::2]) else None, *(weights if to_rows else ()))
        ctx.library = library
        return multiply(library, rows, weights, parameters[1::2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, *weights = ctx.saved_tensors
        upstreams = [upstream.contiguous() for upstream in grads]
        _, to_rows, *wanted = ctx.needs_input_grad
        gradients: list[torch.Tensor | None] = [None] * len(wanted)
        trained = [i for i in range(len(upstreams)) if wanted[2 * i]]
        if trained:
            found = multiply_outer(ctx.library, [upstreams[i] for i in trained], rows)
            for i, gradient in zip(trained, found, strict=True):
                gradients[2 * i] = gradient
        for i, upstream in enumerate(upstreams):
            if wanted[2 * i + 1]:
                gradients[2 * i + 1] = upstream.flatten(end_dim=-2).sum(0)
        return None, multiply_back(ctx.library, upstreams, weights) if to_rows else None, *gradients


def multiply(
    library: ctypes.CDLL,
    rows: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
) -> tuple[torch.Tensor, ...]:
    """rows [..., K] * weight [N, K]^T + bias [N] -> [..., N] for each weight and bias."""
    depth, num_threads = rows.shape[-1], torch.get_num_threads()
    assert all(weight.shape[1] == depth for weight in weights), (rows.shape, [weight.shape for weight in weights])
    num_rows = rows.numel() // depth
    outputs = tuple(rows.new_empty(*rows.shape[:-1], weight.shape[0]) for weight in weights)
    biases = [None if bias is None else bias.contiguous() for bias in biases]
    factors = [
        Factor(
            rows.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None,
            output.data_ptr(),
            weight.shape[0],
        )
        for weight, bias, output in zip(weights, biases, outputs, strict=True)
    ]
    workspace = thread_workspace(library.product_workspace_bytes(num_threads, num_rows, depth))
    library.product(num_threads, num_rows, depth, len(factors), _array(factors), workspace.data_ptr())
    return outputs


def multiply_back(
    library: ctypes.CDLL, upstreams: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The sum of upstream [..., N] * weight [N, K] over all of them: [..., K]."""
    columns, num_threads, first = weights[0].shape[1], torch.get_num_threads(), upstreams[0]
    assert all(one.shape[-1] == other.shape[0] for one, other in zip(upstreams, weights, strict=True))
    num_rows, deepest = first.numel() // first.shape[-1], max(weight.shape[0] for weight in weights)
    output = first.new_empty(*first.shape[:-1], columns)
    factors = [
        Factor(upstream.data_ptr(), weight.data_ptr(), None, None, output.data_ptr(), weight.shape[0])
        for upstream, weight in zip(upstreams, weights, strict=True)
    ]
    workspace = thread_workspace(library.product_workspace_bytes(num_threads, num_rows, deepest))
    library.sum_of_products(
        num_threads, num_rows, columns, deepest, len(factors), _array(factors), workspace.data_ptr()
    )
    return output


def multiply_outer(library: ctypes.CDLL, upstreams: Sequence[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """upstream [..., N]^T * rows [..., K] -> [N, K] for each upstream."""
    columns, num_threads = rows.shape[-1], torch.get_num_threads()
    assert all(upstream.shape[:-1] == rows.shape[:-1] for upstream in upstreams), rows.shape
    num_rows = rows.numel() // columns
    outputs = [rows.new_empty(upstream.shape[-1], columns) for upstream in upstreams]
    factors = [
        Factor(upstream.data_ptr(), rows.data_ptr(), None, None, output.data_ptr(), output.shape[0])
        for upstream, output in zip(upstreams, outputs, strict=True)
    ]
    workspace = thread_workspace(library.outer_products_workspace_bytes(num_threads, num_rows, columns))
    library.outer_products(num_threads, num_rows, columns, len(factors), _array(factors), workspace.data_ptr())
    return outputs


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
