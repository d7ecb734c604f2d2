"""Numbers that are not finite: where one appears training ends, and the message names the step and the records.

Stands under the loop and whatever measures a loss. A NaN that is written down as a figure, or that only later breaks something,
would say nothing of where it came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuneful.errors import DivergedError
from tuneful.train.loss import MicroBatchLoss
from tuneful.types import Example

_NUM_NAMED = 8


def not_finite(step: int, what: str, examples: Sequence[Example]) -> DivergedError:
    """The error for a step in which `what` is not finite, and which has changed no weight."""
    return DivergedError(
        f"step {step}: {what}: not finite, so no weight was changed by this step. Its records: {_named(examples)}. Lower "
        "train.learning_rate, or look at these records"
    )


def validation_not_finite(step: int, loss: float, examples: Sequence[Example]) -> DivergedError:
    """The error for a validation loss after `step` steps that is not finite; `examples` are the records at fault, if known."""
    records = f" Its records: {_named(examples)}." if examples else ""
    when, advice = "in this step or before it", "Lower train.learning_rate"
    if not step:
        when, advice = "before any training", _UNTRAINED
    return DivergedError(f"step {step}: the validation loss is {loss}: not finite, {when}.{records} {advice}")


def culprits(batch: Sequence[Example], micro_batch: MicroBatchLoss) -> list[Example]:
    """The records of a micro-batch whose own loss is not finite, or all where each is and only their sum is not."""
    return _bad(batch, micro_batch.record_nll()) or list(batch)


def check_losses(examples: Sequence[Example], nll: Sequence[float]) -> None:
    """DivergedError where the loss of a record is not finite, which happens outside of any step."""
    if bad := _bad(examples, nll):
        raise DivergedError(f"the loss of {_named(bad)} is not finite under this model. {_UNTRAINED} {_TRAINED}")


_UNTRAINED = "A model that was not trained here may be damaged, or need another precision (model.dtype=float32)."
_TRAINED = "One that was trained has diverged: lower train.learning_rate."


def _bad(examples: Sequence[Example], nll: Sequence[float]) -> list[Example]:
    return [example for example, own in zip(examples, nll, strict=True) if not math.isfinite(own)]


def _named(examples: Sequence[Example]) -> str:
    more = f" and {len(examples) - _NUM_NAMED} more" if len(examples) > _NUM_NAMED else ""
    return ", ".join(example.source for example in examples[:_NUM_NAMED]) + more
