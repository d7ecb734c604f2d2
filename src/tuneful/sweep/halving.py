"""Which runs of a sweep are stopped early: successive halving on validation loss (Jamieson & Talwalkar 2016).

All runs are trained up to a rung, a share of their steps; the better half goes on to the next rung, where there are twice as
many steps behind it. Eight runs come to the training of four. The trade: a run that would have overtaken the others late is
lost, as one with a low learning rate may be, whose loss falls slowly; so the last rung keeps two at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MIN_RUNS = 4
MAX_RUNGS = 3
MIN_KEPT = 2


def rungs_of(num_runs: int) -> tuple[float, ...]:
    """The shares of the steps after which the worse half of the runs is stopped; none for fewer than MIN_RUNS.

    Of four runs half the steps, of eight a quarter and half, of sixteen and more an eighth, a quarter and half.
    """
    if num_runs < MIN_RUNS:
        return ()
    num_rungs = min(MAX_RUNGS, int(math.log2(num_runs)) - 1)
    return tuple(0.5**power for power in range(num_rungs, 0, -1))


def survivors(losses: Sequence[float | None]) -> list[int]:
    """The indices of the runs that go on, rising: the better half by loss, at least MIN_KEPT; of equal ones the first.

    A run without a loss counts as the worst.
    """
    num_kept = max(MIN_KEPT, math.ceil(len(losses) / 2))
    order = sorted(range(len(losses)), key=lambda index: math.inf if (loss := losses[index]) is None else loss)
    return sorted(order[:num_kept])
