"""Weights laid out once as the processor multiplies them, for as long as answers are generated.

A bfloat16 matrix product on the CPU lays its weights out anew in every call, however few its rows: with a token a row that is a
fifth to a third of its time. Inside `packed_weights(model)` the linear layers find theirs laid out (oneDNN's packed format). The
model is not touched: a TorchFunctionMode computes `torch.nn.functional.linear` for the weights that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from tuneful.model.memory import room_for_a_copy
from tuneful.model.onednn import multiplies_bfloat16, packed, packed_linear


def packed_weights(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """A context, to be entered as often as wanted, in which `model` multiplies by its weights as they are now, packed.

    Nothing changes in it where packing does not apply: another device or dtype, no native bfloat16, too little memory.
    """
    weights = _packable(model)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    if not weights or not room_for_a_copy(num_bytes):
        return nullcontext()
    with torch.no_grad():
        return _PackedLinears({id(weight): packed(weight) for weight in weights})


def _packable(model: PreTrainedModel) -> list[torch.Tensor]:
    """The weights of linear layers that oneDNN multiplies natively, each once."""
    if model.device.type != "cpu" or not multiplies_bfloat16():
        return []
    layers = (module for module in model.modules() if type(module) is torch.nn.Linear)
    layers = (layer for layer in layers if type(layer.weight) is torch.nn.Parameter)  # and no slice of one
    return list({id(layer.weight): layer.weight for layer in layers if layer.weight.dtype is torch.bfloat16}.values())


class _PackedLinears(TorchFunctionMode):
    """`linear` by packed weights, for the weights that are packed: `packed` by the id of the weight."""

    def __init__(self, packed: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self._packed = packed

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if (laid_out := self._packed.get(id(weight))) is None:
            return torch.nn.functional.linear(input, weight, bias)
        return packed_linear(input, laid_out, bias)
