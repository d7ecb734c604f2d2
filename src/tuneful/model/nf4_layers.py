"""Linear layers whose frozen weight is kept in 4 bits (NF4) and turned back for each matrix product.

Stand-ins for `torch.nn.Linear` and transformers' `Conv1D`, of the same class as these for whoever asks, peft among them. What is
turned back is dropped after the product and made again for the backward: memory never holds more than one matrix of the base.
`weight` is that matrix, made anew each time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from tuneful.errors import ModelError
from tuneful.model.memory import drop_mapped_pages
from tuneful.model.nf4 import NF4, dequantize, quantize_nf4

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Legend of shapes: K features that go in, N that come out


class NF4Linear(torch.nn.Linear):
    """rows [..., K] * dequantized^T + bias -> [..., N], where `quantized` stands for a matrix [N, K]."""

    def __init__(self, quantized: NF4, bias: torch.nn.Parameter | None, compute_dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = quantized.shape
        _keep(self, quantized, bias, compute_dtype)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """What is computed with: [N, K], in the compute dtype."""
        return _weight(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N]."""
        return _product(self, input)


class NF4Conv1D(Conv1D):  # type: ignore[misc]
    """The same for GPT-2's layer, whose matrix is [K, N]: transposed it is quantized, as bitsandbytes does."""

    def __init__(self, quantized: NF4, bias: torch.nn.Parameter | None, compute_dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)
        self.nf, self.nx = quantized.shape
        _keep(self, quantized, bias, compute_dtype)

    @property
    def weight(self) -> torch.Tensor:
        """What is computed with: [K, N], in the compute dtype."""
        return _weight(self).T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N]."""
        return _product(self, x)


NF4_LAYERS = (NF4Linear, NF4Conv1D)


def quantize_layers(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Give `model` its linear layers, but for the output head, in 4 bits, in place: one matrix after the other, as it lies in its
    file. What is no linear layer stays as it is. ModelError where a number is not finite, or where there is no such layer."""
    replaced: dict[int, torch.nn.Module] = {}
    for name, parent, own, layer in list(linear_layers(model)):
        if id(layer) not in replaced:
            replaced[id(layer)] = _quantized_layer(name, layer, compute_dtype)
        setattr(parent, own, replaced[id(layer)])
    if not replaced:
        raise ModelError(f"{type(model).__name__} has no linear layers to keep in 4 bits; use train.method=lora")


def dequantize_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Undo `quantize_layers` but for its rounding: the layers are plain again, their weights in `dtype`."""
    for parent in list(model.modules()):
        for own, layer in list(parent.named_children()):
            if isinstance(layer, NF4_LAYERS):
                weight = dequantize(quantized_of(layer), dtype)
                weight = weight if isinstance(layer, NF4Linear) else weight.T.contiguous()
                setattr(parent, own, plain_layer(layer, weight))


def plain_layer(layer: Any, weight: torch.Tensor) -> torch.nn.Module:
    """The kind of layer that `layer`, one of `NF4_LAYERS`, stands for, with `weight` in place of its own."""
    num_outputs, num_inputs = layer.quantized_shape
    with torch.device("meta"):
        is_linear = isinstance(layer, NF4Linear)
        plain: Any = torch.nn.Linear(num_inputs, num_outputs, False) if is_linear else Conv1D(num_outputs, num_inputs)
    plain.weight, plain.bias = torch.nn.Parameter(weight), layer.bias
    made: torch.nn.Module = plain.train(layer.training)
    return made


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module, str, Any]]:
    """(name, parent, name in its parent, layer) of each linear layer of `model` but its output head."""
    head = model.get_output_embeddings()
    for path, parent in model.named_modules():
        for own, layer in parent.named_children():
            if type(layer) in (torch.nn.Linear, Conv1D) and layer is not head:
                yield f"{path}.{own}".lstrip("."), parent, own, layer


def quantized_of(layer: Any) -> NF4:
    """The matrix [N, K] of one of `NF4_LAYERS`, as it is kept."""
    return NF4(layer.codes, layer.scale_codes, layer.scale_scales, layer.mean_scale, layer.quantized_shape)


def is_in_4_bits(model: torch.nn.Module) -> bool:
    """Whether any layer of `model` is one of `NF4_LAYERS`."""
    return any(isinstance(layer, NF4_LAYERS) for layer in model.modules())


def num_weights(model: torch.nn.Module) -> int:
    """The parameters of `model`, those in 4 bits among them."""
    in_4_bits = (quantized_of(layer).shape for layer in model.modules() if isinstance(layer, NF4_LAYERS))
    return sum(one.numel() for one in model.parameters()) + sum(map(math.prod, in_4_bits))


def _quantized_layer(name: str, layer: Any, compute_dtype: torch.dtype) -> torch.nn.Module:
    is_linear, weight = type(layer) is torch.nn.Linear, layer.weight.data
    try:
        quantized = quantize_nf4(weight if is_linear else weight.T.contiguous())
    except ValueError as error:
        raise ModelError(f"{name}.weight {error}: the model is damaged; fetch it again") from None
    drop_mapped_pages(weight)
    made = (NF4Linear if is_linear else NF4Conv1D)(quantized, layer.bias, compute_dtype)
    return made.train(layer.training)


@contextlib.contextmanager
def weights_without_values(model: torch.nn.Module) -> Iterator[None]:
    """Inside, `weight` of `NF4_LAYERS` has a shape, a dtype and a device only: peft looks at these alone, many times."""
    layers = [layer for layer in model.modules() if isinstance(layer, NF4_LAYERS)]
    for layer in layers:
        layer.has_values = False
    try:
        yield
    finally:
        for layer in layers:
            layer.has_values = True


def _weight(layer: Any) -> torch.Tensor:
    if layer.has_values:
        return dequantize(quantized_of(layer), layer.compute_dtype)
    return torch.empty((), dtype=layer.compute_dtype, device=layer.codes.device).expand(layer.quantized_shape)


def _keep(layer: Any, quantized: NF4, bias: torch.nn.Parameter | None, compute_dtype: torch.dtype) -> None:
    # Not parameters: nothing that casts, counts or saves the model's parameters may touch them.
    for name, tensor in quantized.tensors.items():
        layer.register_buffer(name, tensor, persistent=False)
    layer.quantized_shape, layer.compute_dtype, layer.has_values = quantized.shape, compute_dtype, True
    layer.register_parameter("bias", bias)


def _product(layer: Any, rows: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = _Product.apply(rows, quantized_of(layer), layer.bias)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """rows [..., K] times the transposed matrix [N, K], plus bias [N] or nothing; the backward makes the matrix again."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, quantized: NF4, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.quantized = quantized
        return torch.nn.functional.linear(rows, dequantize(quantized, rows.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        to_rows, _, to_bias = ctx.needs_input_grad
        return (
            grads[0] @ dequantize(ctx.quantized, grads[0].dtype) if to_rows else None,
            None,
            grads[0].flatten(end_dim=-2).sum(0) if to_bias else None,
        )
