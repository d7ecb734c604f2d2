"""A model computes in float32, whatever it is held in, with one layer's weights in float32 at a time.

Where two models are to be the same, rounding of products in bfloat16 would hide what is compared: through 28 layers it moves
logits by a tenth of the largest, more than most adapters do. In float32 the same models differ by a hundred-thousandth. A
whole copy in float32 would be larger than the memory that the model was trained in; a layer's is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from tuneful.model.stored import STRETCH
from tuneful.model.structure import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_MARK = "lora_"
"""What stands in the name of every parameter of an adapter."""

Change = Callable[[torch.Tensor], torch.Tensor]


def as_it_is(weight: torch.Tensor) -> torch.Tensor:
    """No change."""
    return weight


def leave_it(_: torch.Tensor) -> None:
    """Nothing is done with a weight that has been read."""


@contextlib.contextmanager
def widened(
    model: PreTrainedModel, change: Change = as_it_is, then: Callable[[torch.Tensor], None] = leave_it
) -> Iterator[None]:
    """Inside, the forward of `model` is in float32: of `change` of its weights (float32, any shape), or of them as they are. The
    numbers of an adapter stay what they are.

    `then` is called with each weight, as it is held, when what reads it has been computed.
    """
    parts = [_Part(*found, change, then) for found in _parts(model)]
    computing = [module for module in model.modules() if hasattr(module, "compute_dtype")]
    dtypes = [module.compute_dtype for module in computing]
    hooks = [hook for part in parts for hook in part.hooks()]
    for module in computing:
        module.compute_dtype = torch.float32
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in parts:
            part.restore()
        for module, dtype in zip(computing, dtypes, strict=True):
            module.compute_dtype = dtype


# Changes


def rounded_to(dtype: torch.dtype) -> Change:
    """A change of weights: what `dtype` can hold of them."""
    return lambda weight: weight.to(dtype).to(weight.dtype)


def moved_as_by_rounding(dtype: torch.dtype, seed: int = 7) -> Change:
    """A change of weights: each is moved by chance, up or down, by up to half a unit in the last place of `dtype`.

    Rounding to `dtype` moves numbers of which nothing is known in the same way. The changes follow from `seed` and their order.
    """
    generator, digits = torch.Generator().manual_seed(seed), torch.finfo(dtype).eps

    def moved(weight: torch.Tensor) -> torch.Tensor:
        share = torch.rand(weight.shape, generator=generator).to(weight.device) - 0.5
        exponents = torch.frexp(weight).exponent - 1  # weight is 2^exponent times 1 to 2
        last_place = digits * torch.exp2(exponents.to(weight.dtype)) * (weight != 0)
        return weight + share * last_place

    return moved


# Parts


def _parts(model: PreTrainedModel) -> Iterator[tuple[torch.nn.Module, list[torch.nn.Parameter]]]:
    """What computes by itself: each decoder layer, each layer with an adapter, each other module that has weights of its own."""
    whole = [*(decoder_layers(model) or ()), *(module for module in model.modules() if hasattr(module, "lora_A"))]
    inside: set[int] = set()
    for module in whole:
        if id(module) not in inside:
            yield module, list(module.parameters())
            inside.update(map(id, module.modules()))
    for module in model.modules():
        if id(module) not in inside and (own := list(module.parameters(recurse=False))):
            yield module, own


class _Part:
    """A module that has its weights in float32 while it computes. Of the widest matrix, which may be a quarter of the model, no
    more than is needed: of an embedding the rows that were read, of the output head some rows after the other."""

    def __init__(
        self,
        module: torch.nn.Module,
        parameters: list[torch.nn.Parameter],
        change: Change,
        then: Callable[[torch.Tensor], None],
    ) -> None:
        self._module, self._change, self._then = module, change, then
        self._parameters = [one for one in parameters if one.is_floating_point()]
        self._of_adapter = {id(one) for name, one in module.named_parameters() if ADAPTER_MARK in name}
        self._kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def hooks(self) -> Iterator[Any]:
        if type(self._module) is torch.nn.Embedding:
            yield self._module.register_forward_hook(lambda *call: self._changed(call[-1]))
            return
        if type(self._module) is torch.nn.Linear:
            yield _Replaced(self._module, self._product)
            return
        yield self._module.register_forward_pre_hook(self._widen)
        yield self._module.register_forward_hook(self._restored)

    def restore(self) -> None:
        while self._kept:
            parameter, data = self._kept.pop()
            parameter.data = data
            self._then(data)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N]: what a linear layer gives, a stretch of its weight [N, K] at a time."""
        layer: Any = self._module
        parts, step = [], max(1, STRETCH // layer.in_features)
        for start in range(0, layer.out_features, step):
            held = layer.weight.data[start : start + step]
            parts.append(torch.nn.functional.linear(rows, self._changed(held)))
            self._then(held)
        product = torch.cat(parts, -1)
        return product if layer.bias is None else product + self._changed(layer.bias.data)

    def _widen(self, *_: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():  # else they could not be a parameter's
            for parameter in self._parameters:
                self._kept.append((parameter, parameter.data))
                is_adapters = id(parameter) in self._of_adapter
                parameter.data = _widened(parameter.data) if is_adapters else self._changed(parameter.data)

    def _restored(self, *_: Any) -> None:
        self.restore()

    def _changed(self, weight: torch.Tensor) -> torch.Tensor:
        return self._change(_widened(weight))


def _widened(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


class _Replaced:
    """A module whose forward is another, until `remove`."""

    def __init__(self, module: torch.nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._module = module
        vars(module)["forward"] = forward

    def remove(self) -> None:
        """The module's own forward again."""
        del vars(self._module)["forward"]
