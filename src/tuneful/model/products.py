"""Linear layers in bfloat16 by the compiled products (`products.h`), where a processor has a dot product of that type.

oneDNN, torch's library for them, runs large products at the processor's rate and those of a step, a few hundred rows, at
three quarters of it. The layers stay what they are: while the model attends over tries a hook wraps what goes into them, and
`torch.nn.functional.linear`, which they call, asks the wrapper how to multiply it (torch's `__torch_function__` protocol).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from tuneful.model.native import kernels

# Legend of shapes: M rows, K features that go in, N that come out
_MIN_FEATURES = 64
"""PANEL_WIDTH of products.h: a narrower layer would leave its panels half empty."""
_HOOKED = "tuneful_product"


def multiply_compiled(model: PreTrainedModel, wanted: Callable[[], bool]) -> None:
    """The linear layers of `model` multiply by the compiled products as long as `wanted` says so.

    Does nothing where the processor is not one of those that they were written for, to layers in another dtype, to classes
    that inherit from `torch.nn.Linear` (they multiply otherwise), and the second time.
    """
    library = kernels(model.device, model.dtype)
    if model.dtype is not torch.bfloat16 or library is None or not library.has_products():
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear and _is_served(module) and not hasattr(module, _HOOKED):
            setattr(module, _HOOKED, True)
            module.register_forward_pre_hook(_wrapping(library, wanted))


def _is_served(linear: torch.nn.Linear) -> bool:
    sizes = (linear.in_features, linear.out_features)
    return min(sizes) >= _MIN_FEATURES and not any(size % 2 for size in sizes)


def _wrapping(library: ctypes.CDLL, wanted: Callable[[], bool]) -> Callable[..., Any]:
    """A hook that wraps the one tensor that goes into a layer, where the products serve it."""

    def wrap(module: torch.nn.Linear, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        tensors = (*arguments, module.weight) if module.bias is None else (*arguments, module.weight, module.bias)
        served = len(arguments) == 1 and all(map(_is_plain, tensors)) and arguments[0].ndim > 1 and arguments[0].numel()
        return (_Rows(arguments[0], library),) if served and wanted() else None

    return wrap


def _is_plain(tensor: Any) -> bool:
    return type(tensor) in _PLAIN and tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu"


_PLAIN = (torch.Tensor, torch.nn.Parameter)


class _Rows:
    """Rows [..., K] on their way into a linear layer."""

    def __init__(self, rows: torch.Tensor, library: ctypes.CDLL) -> None:
        self.rows, self.library = rows, library

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), options: Any = None
    ) -> torch.Tensor:
        assert function is torch.nn.functional.linear, f"a linear layer called {function}"
        wrapped, weight, bias = arguments
        found: torch.Tensor = Product.apply(  # type: ignore[no-untyped-call]
            wrapped.rows, weight, bias, wrapped.library
        )
        return found


class Product(torch.autograd.Function):
    """rows [..., K] * weight [N, K]^T + bias [N] -> [..., N], all in bfloat16, each sum in float32 and rounded once."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, library: ctypes.CDLL
    ) -> torch.Tensor:
        rows, weight = rows.contiguous(), weight.contiguous()
        ctx.save_for_backward(rows, weight)
        ctx.library = library
        return _product(library, rows, weight, None if bias is None else bias.contiguous(), transposed=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        to_output = grads[0].contiguous()
        to_rows, to_weight, to_bias, _ = ctx.needs_input_grad
        return (
            _product(ctx.library, to_output, weight, None, transposed=False) if to_rows else None,
            _outer_product(ctx.library, to_output, rows) if to_weight else None,
            to_output.flatten(end_dim=-2).sum(0) if to_bias else None,
            None,
        )


def _product(
    library: ctypes.CDLL, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, *, transposed: bool
) -> torch.Tensor:
    """left [..., depth] * right [depth, columns], or `transposed` right [columns, depth], + bias -> [..., columns]."""
    depth, columns = reversed(right.shape) if transposed else right.shape
    num_rows, num_threads = left.numel() // depth, torch.get_num_threads()
    assert left.shape[-1] == depth, (left.shape, right.shape)
    output = left.new_empty(*left.shape[:-1], columns)
    room = _room(library.product_room(num_threads, num_rows, depth))
    library.product(
        *(num_threads, int(transposed), num_rows, columns, depth),
        *(tensor.data_ptr() for tensor in (left, right)),
        None if bias is None else bias.data_ptr(),
        *(tensor.data_ptr() for tensor in (output, room)),
    )
    return output


def _outer_product(library: ctypes.CDLL, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [..., N]^T * right [..., K] -> [N, K]."""
    size, columns = left.shape[-1], right.shape[-1]
    num_rows, num_threads = left.numel() // size, torch.get_num_threads()
    assert left.shape[:-1] == right.shape[:-1], (left.shape, right.shape)
    output = left.new_empty(size, columns)
    room = _room(library.outer_product_room(num_threads, num_rows, columns))
    library.outer_product(
        *(num_threads, num_rows, size, columns),
        *(tensor.data_ptr() for tensor in (left, right, output, room)),
    )
    return output


class _Own(threading.local):
    room = torch.empty(0, dtype=torch.uint8)


_own = _Own()


def _room(num_bytes: int) -> torch.Tensor:
    """Memory that the products of this thread work in: always the same, so that it stays in the cache."""
    if len(_own.room) < num_bytes:
        _own.room = torch.empty(num_bytes, dtype=torch.uint8)
    return _own.room
