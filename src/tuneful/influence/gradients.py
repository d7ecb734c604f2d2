"""The gradient of the loss of each record by itself, of several records in one forward.

Autograd gives the gradient of a sum. That of a linear layer's weight is the sum of output's gradient x input over the tokens of
all records; in a padded batch the tokens of a record are a row, so the same product, taken row by row, is the gradient of each
(Goodfellow 2015). Hooks on the layers take it while the backward passes, and hand it on: only one parameter's gradients are held
at a time. Nothing below the first layer that is asked for gets a backward.

What is no weight or bias of a linear layer that sees whole rows (experts, the lengths of DoRA) is computed one record after the
other. `Featurizer.why_alone` compares the two ways before one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneful.train.loss import micro_batch_loss
from tuneful.types import Example

# Legend of shapes: B records, T tokens of the longest, I numbers in, O numbers out

Parameters = Mapping[str, torch.nn.Parameter]
Sink = Callable[[str, torch.Tensor], None]
"""Takes the gradients [B, ...] of the parameter of that name; those of one name that come several times are added up."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A linear layer whose `weight` or `bias` is asked for, by their names."""

    module: torch.nn.Module
    weight: str | None
    bias: str | None


@dataclass(slots=True, eq=False)
class _Taken:
    """What the hooks of one forward and backward were met by: whether some layer saw no whole rows."""

    num_records: int
    is_odd: bool = False
    seen: set[int] = field(default_factory=set)


def linear_layers(model: PreTrainedModel, parameters: Parameters) -> list[_Layer] | None:
    """The linear layers that `parameters` belong to; None where some parameter belongs to none, or to several."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    layers, found = [], list[str]()
    for module in model.modules():
        if type(module) not in (torch.nn.Linear, Conv1D):
            continue
        own = [names.get(id(one)) if one is not None else None for one in (module.weight, module.bias)]
        if any(own):
            layers.append(_Layer(module, *own))
            found += filter(None, own)
    return layers if sorted(found) == sorted(parameters) else None


def gradients_together(
    model: PreTrainedModel, examples: Sequence[Example], layers: Sequence[_Layer], sink: Sink
) -> list[float] | None:
    """Hand the gradients of each of `examples` to `sink`, computed together; their losses (weighted sums, nats).

    None where some layer saw no whole rows, and so what `sink` got is worth nothing.
    """
    taken = _Taken(len(examples))
    with _frozen(model), _hooked(layers, taken, sink), torch.enable_grad():
        found = micro_batch_loss(model, examples, "padded")
        if not taken.is_odd and found.total.requires_grad:
            found.total.backward()
    if taken.is_odd or len(taken.seen) < len(layers):
        return None
    return found.record_losses(examples)


def gradients_alone(
    model: PreTrainedModel, examples: Sequence[Example], parameters: Parameters, sink: Sink
) -> list[float]:
    """The same, each record computed by itself and by autograd alone."""
    losses, rows = [], {name: list[torch.Tensor]() for name in parameters}
    with _frozen(model):
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for example in examples:
            with torch.enable_grad():
                found = micro_batch_loss(model, [example], "padded")
                gradients = torch.autograd.grad(found.total, list(parameters.values()), allow_unused=True)
            losses += found.record_losses([example])
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                rows[name].append(torch.zeros_like(parameter) if gradient is None else gradient)
    for name, own in rows.items():
        sink(name, torch.stack(own))
    return losses


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Inside, no parameter asks for a gradient: the hooks take what is wanted, and autograd computes no sums beside them."""
    model.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _hooked(layers: Sequence[_Layer], taken: _Taken, sink: Sink) -> Iterator[None]:
    handles = [layer.module.register_forward_hook(_forward_hook(layer, taken, sink)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward_hook(layer: _Layer, taken: _Taken, sink: Sink) -> Any:
    """Begins the graph where it has not begun yet, and takes what the gradient of the output makes of the input."""

    def take(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        given = inputs[0].detach()
        if given.ndim != 3 or len(given) != taken.num_records:
            taken.is_odd = True
            return output
        taken.seen.add(id(layer))
        # a copy of the leaf, so that what follows may change it in place
        begun = output if output.requires_grad else output.detach().requires_grad_(True).clone()

        def pass_on(gradient: torch.Tensor) -> None:
            if layer.weight is not None:
                one, other = (given, gradient) if isinstance(module, Conv1D) else (gradient, given)
                sink(layer.weight, torch.einsum("bto,bti->boi", one, other))
            if layer.bias is not None:
                sink(layer.bias, gradient.sum(1))

        begun.register_hook(pass_on)
        return begun

    return take
