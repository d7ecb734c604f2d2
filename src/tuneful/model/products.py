"""Linear layers in bfloat16 by the compiled matrix products (`products.h`), where a processor has a dot product of that type.

oneDNN, torch's library for them, runs large matrix products at the processor's rate and those of a step, a few hundred rows, at
four fifths of it. The layers stay what they are: while the model attends over tries a hook hands them, instead of rows, their
output, and `torch.nn.functional.linear`, which they call, returns it (torch's `__torch_function__` protocol). Layers that read
the same rows are one call, and the sum of the gradients that they give those rows is rounded once.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from tuneful.model.native import Factor, kernels

# Legend of shapes: M rows, K features that go in, N that come out
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one parent that transformers' models give the same rows; whether they do is seen each time."""
_MIN_FEATURES = 64
"""PANEL_WIDTH of products.h: a narrower layer would leave its panels half empty."""
_KEPT_BYTES = 1 << 26
"""Workspaces larger than this are not kept between calls."""
_HOOKED = "tuneful_product"
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def multiply_compiled(model: PreTrainedModel, wanted: Callable[[], bool]) -> None:
    """The linear layers of `model` multiply by the compiled kernels while they are in bfloat16 and `wanted` says so.

    Does nothing where the processor is not one of those that the kernels were written for, to classes that inherit from
    `torch.nn.Linear` (they multiply otherwise), and the second time.
    """
    library = kernels(model.device, model.dtype)
    if library is None or not library.has_matrix_products():
        return
    for layers in (*_siblings(model), *([module] for module in model.modules())):
        if all(is_served_linear(layer) and not hasattr(layer, _HOOKED) for layer in layers):
            _Group(layers, library, wanted)


def _siblings(model: torch.nn.Module) -> Iterator[list[Any]]:
    """Groups of layers that read the same rows; of a layer with an adapter its base layer."""
    for module in model.modules():
        for names in _SIBLINGS:
            children = [getattr(module, name, None) for name in names]
            layers = [getattr(child, "base_layer", child) for child in children]
            if all(isinstance(layer, torch.nn.Linear) for layer in layers):
                yield layers


def is_served_linear(layer: Any) -> bool:
    """Whether `layer` is a linear layer of the class and the sizes that the kernels multiply."""
    if type(layer) is not torch.nn.Linear:
        return False
    sizes = (layer.in_features, layer.out_features)
    return min(sizes) >= _MIN_FEATURES and not any(size % 2 for size in sizes)


class _Group:
    """Layers that are multiplied together: the first that is called computes the outputs of all."""

    def __init__(self, layers: Sequence[Any], library: ctypes.CDLL, wanted: Callable[[], bool]) -> None:
        self.layers, self.library, self.wanted = layers, library, wanted
        self.key: tuple[Any, ...] = ()
        self.ready: dict[torch.nn.Module, torch.Tensor] = {}
        for layer in layers:
            setattr(layer, _HOOKED, True)
            layer.register_forward_pre_hook(lambda layer, arguments: self.compute(layer, arguments))

    def compute(self, layer: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[_PrecomputedOutput] | None:
        """The hook before each layer: its output for the one tensor that goes in, where the kernels serve it."""
        rows: Any = arguments[0] if len(arguments) == 1 else None
        known = layer in self.layers  # a copy of the model has copies of the layers, and the same hooks
        if not known or not is_plain(rows) or rows.ndim < 2 or not rows.numel() or not self.wanted():
            return None
        key = (rows, None if rows.is_inference() else rows._version, torch.is_grad_enabled())
        if layer not in self.ready or key[0] is not self.key[0] or key[1:] != self.key[1:]:
            parameters = [parameter for each in self.layers for parameter in (each.weight, each.bias)]
            if not all(parameter is None or is_plain(parameter) for parameter in parameters):
                return None
            outputs = MatrixProducts.apply(self.library, rows, *parameters)  # type: ignore[no-untyped-call]
            self.key, self.ready = key, dict(zip(self.layers, outputs, strict=True))
        output = self.ready.pop(layer)
        if not self.ready:
            self.key = ()
        return (_PrecomputedOutput(output),)


def is_plain(tensor: Any) -> bool:
    """Whether `tensor` is one that the kernels read: no subclass, in bfloat16, in this machine's memory."""
    return type(tensor) in _PLAIN and tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu"


class _PrecomputedOutput:
    """The output that a linear layer is about to ask for."""

    def __init__(self, output: torch.Tensor) -> None:
        self.output = output

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), options: Any = None
    ) -> torch.Tensor:
        assert function is torch.nn.functional.linear, f"a linear layer called {function}"
        precomputed: _PrecomputedOutput = arguments[0]
        return precomputed.output


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
