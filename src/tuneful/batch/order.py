"""Which example comes when, and with which random numbers: pure functions of the seed, so that there is nothing to restore.

Each epoch is one permutation of all examples; a run is the permutations end to end, cut into steps of `batch_size`.
The last step of a run may be smaller; a step never spans the end of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

_REPLAY = 1
"""The stream of replayed examples; training examples have none."""


def num_steps(num_examples: int, batch_size: int, num_train_epochs: float, max_steps: int | None = None) -> int:
    """Optimizer steps of a run: enough for `num_train_epochs` passes, or `max_steps`."""
    return max_steps or math.ceil(_num_positions(num_examples, num_train_epochs) / batch_size)


@lru_cache(maxsize=4)  # every step asks for its epoch's, and of a million examples it takes 40 ms
def epoch_order(num_examples: int, seed: int, epoch: int, *stream: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The permutation of epoch `epoch` (from 0): int64 [num_examples]; another one for each `stream`."""
    order = np.random.Generator(np.random.PCG64([seed, epoch, *stream])).permutation(num_examples)
    order.flags.writeable = False
    return order


def step_indices(
    num_examples: int, batch_size: int, seed: int, step: int, *, last_position: int | None = None
) -> list[int]:
    """Indices of the examples of step `step` (from 1), which may span two epochs; cut off at `last_position`."""
    first = (step - 1) * batch_size
    last = first + batch_size if last_position is None else min(first + batch_size, last_position)
    return _indices(num_examples, seed, first, last)


def replay_indices(num_replayed: int, ratio: float, seed: int, first: int, last: int) -> list[int]:
    """Indices of the replayed examples that join the training examples at the positions `first` up to `last` of a run.

    Up to any position they are `ratio` for each training example, taken from permutations of their own, end to end: the
    training examples come as they would alone.
    """
    first, last = (math.floor(round(ratio * position, 6)) for position in (first, last))
    return _indices(num_replayed, seed, first, last, _REPLAY) if last > first else []


def _indices(num_examples: int, seed: int, first: int, last: int, *stream: int) -> list[int]:
    indices: list[int] = []
    for epoch in range(first // num_examples, (last - 1) // num_examples + 1):
        start, stop = max(first - epoch * num_examples, 0), min(last - epoch * num_examples, num_examples)
        indices += epoch_order(num_examples, seed, epoch, *stream)[start:stop].tolist()
    return indices


def all_steps(
    num_examples: int,
    batch_size: int,
    seed: int,
    num_train_epochs: float,
    max_steps: int | None = None,
    *,
    first_step: int = 1,
) -> Iterator[list[int]]:
    """The indices of every step of a run from `first_step` on, in order."""
    total = num_steps(num_examples, batch_size, num_train_epochs, max_steps)
    last = None if max_steps else _num_positions(num_examples, num_train_epochs)
    for step in range(first_step, total + 1):
        yield step_indices(num_examples, batch_size, seed, step, last_position=last)


def derived_seed(seed: int, number: int) -> int:
    """64 bits for each `number` (a step, a prompt) under `seed`, unlike those of any other number or seed, however large."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def _num_positions(num_examples: int, num_train_epochs: float) -> int:
    """Examples that a run visits; 0.07 epochs of 100 examples are 7, though 0.07 * 100 is a little more."""
    return math.ceil(round(num_train_epochs * num_examples, 6))
