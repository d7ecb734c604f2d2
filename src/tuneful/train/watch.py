"""What a person should hear of while a model is trained, besides figures: a loss that jumps, parameters that nothing reaches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tuneful.runs.schema import Notice
from tuneful.train.distributed import ProcessGroup
from tuneful.train.optimizer import AdamW

SPIKE_WINDOW, _SPIKE_SIGMAS, _SPIKE_RATIO = 64, 6.0, 1.5
"""A spike stands six standard deviations above the mean of the last 64 steps (at least a quarter of them), and by half."""


def without_gradient(optimizer: AdamW, group: ProcessGroup) -> Notice | None:
    """A notice that names the parameters that are to be trained and have had no gradient on any rank; None where there are none.

    A decoder that was cut out of an encoder-decoder has such, and one that can see.
    """
    missing = group.gather(optimizer.without_gradient())
    names = [name for name in dict.fromkeys(missing) if missing.count(name) == group.size]
    if not names:
        return None
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return Notice(
        1,
        "unused",
        f"no gradient has reached {', '.join(names[:8])}{more}: the model does not use them on these records, and they stay as "
        "they are until it does",
    )


def spike(step: int, loss: float, recent: Sequence[float]) -> Notice | None:
    """A notice where `loss` stands far above those of the `recent` steps."""
    if len(recent) < SPIKE_WINDOW // 4:
        return None
    mean = statistics.fmean(recent)
    if loss <= max(mean + _SPIKE_SIGMAS * statistics.pstdev(recent), _SPIKE_RATIO * mean):
        return None
    return Notice(
        step, "spike", f"the loss jumped to {loss:.3f}; over the {len(recent)} steps before it was {mean:.3f}"
    )
