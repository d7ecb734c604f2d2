"""What a training descends: which sides of a record are computed, and what a micro-batch of them adds to the loss of a step.

The loss of a step is one mean over the whole step, whatever its micro-batches and ranks: each adds a sum, already divided by what
the whole step comes to. Here is that of responses; those of preferences are in `preference.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tuneful.train.loss import MicroBatchLoss
from tuneful.types import Example, sides_of

Row = tuple[float, ...]
"""What a step knows of one record; first the summed negative log-likelihood (nats) of its response."""

Share = Callable[[Sequence[Example], MicroBatchLoss], tuple[torch.Tensor, Sequence[Row]]]
"""Of a micro-batch and what was computed for it: its part of the step's loss, a scalar with its graph, and a row a record."""

Measure = Callable[[Sequence[Example]], list[float]]
"""The summed log-probability of each example's targets under the model as it is, on every rank alike."""


class Objective(Protocol):
    """What is descended."""

    @property
    def num_columns(self) -> int:
        """How many numbers a row of a record has."""
        ...

    @property
    def uses_reference(self) -> bool:
        """Whether it needs log-probabilities under the model that training starts from."""
        ...

    def sides(self, examples: Sequence[Example]) -> list[Example]:
        """What is computed of `examples`, in the order in which `begin`'s function takes it."""
        ...

    def begin(self, examples: Sequence[Example], measure: Measure) -> Share:
        """How the micro-batches of a step of `examples` become shares of its loss; `measure` computes more of them."""
        ...

    def figures(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """What a step with these rows shows besides its loss, field of `Step` to value."""
        ...


@dataclass(frozen=True, slots=True)
class ResponseLoss:
    """The weighted mean over all targets of the step, in nats a token. A row is the record's nll, plain and weighted."""

    num_columns: int = 2

    @property
    def uses_reference(self) -> bool:
        """False: a response is likely or not by itself."""
        return False

    def sides(self, examples: Sequence[Example]) -> list[Example]:
        """The examples themselves."""
        return list(examples)

    def begin(self, examples: Sequence[Example], measure: Measure) -> Share:
        """The weighted sum of a micro-batch, divided by the total target weight of the step."""
        weight = total_weight(examples)

        def share(batch: Sequence[Example], found: MicroBatchLoss) -> tuple[torch.Tensor, Sequence[Row]]:
            return found.total / weight, _ResponseRows(batch, found.detached())

        return share

    def figures(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """Nothing besides the loss."""
        return {}


class _ResponseRows(Sequence[Row]):
    """The rows of a micro-batch, read from the device when they are asked for: a step that asks at its end waits for it once."""

    def __init__(self, batch: Sequence[Example], found: MicroBatchLoss) -> None:
        self._batch, self._found = batch, found

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __iter__(self) -> Iterator[Row]:
        return zip(self._found.record_nll(), self._found.record_losses(self._batch), strict=True)


RESPONSE_LOSS = ResponseLoss()


class AllSides(Sequence[Example]):
    """What is computed of `examples`, one after another: of pairs both sides. Nothing is read before it is asked for."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self._sides = len(sides_of(examples[0])) if examples else 1

    def __len__(self) -> int:
        return len(self._examples) * self._sides

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        record, side = divmod(index % len(self), self._sides)
        return sides_of(self._examples[record])[side]

    def __iter__(self) -> Iterator[Example]:
        for example in self._examples:
            yield from sides_of(example)


def total_weight(examples: Sequence[Example]) -> float:
    """The summed target weight of `examples`: what a summed loss is divided by, once."""
    return float(sum(example.weights.sum(dtype="float64") for example in examples))
