"""Which example comes when, and with which random numbers: pure functions of the seed, so that there is nothing to restore.

Each epoch is one permutation of all examples; a run is the permutations end to end, cut into steps of `batch_size`.
The last step of a run may be smaller; a step never spans the end of the run.

Of a `Mixture` an epoch takes so many examples from each source: the permutations of a source, end to end, are cut into epochs, so
that each of its examples comes as often as another, and the examples of an epoch are permuted together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_REPLAY, _MIXTURE = 1, 2
"""The streams of replayed examples and of a mixture; training examples have none."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Training examples of several sources: the indices of those of each (`members`), and how many of them an epoch takes."""

    members: tuple[IntArray, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        """Examples of an epoch."""
        return sum(self.counts)

    def indices(self, seed: int, first: int, last: int) -> list[int]:
        """Indices of the training examples at the positions `first` up to `last` of a run."""
        found: list[int] = []
        for epoch, start, stop in _epochs(len(self), first, last):
            found += _mixed_epoch(self, seed, epoch)[start:stop].tolist()
        return found


def mixture_of(source_of: IntArray, shares: Sequence[float], strategy: str) -> Mixture:
    """The mixture in which source `s` gives `shares[s]` of an epoch, where `source_of[i]` is that of training example `i`.

    `strategy` is that of `data.stopping_strategy`: an epoch has all examples of each source, or none twice. Each source has at
    least one example.
    """
    members = tuple(np.flatnonzero(source_of == source) for source in range(len(shares)))
    lengths = [len(own) / share for own, share in zip(members, shares, strict=True)]
    if strategy == "all_exhausted":
        counts = [math.ceil(round(share * max(lengths), 6)) for share in shares]
    else:
        counts = [max(1, math.floor(round(share * min(lengths), 6))) for share in shares]
    return Mixture(members, tuple(counts))


@lru_cache(maxsize=4)
def _mixed_epoch(mixture: Mixture, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    taken = [
        own[_indices(len(own), seed, epoch * count, (epoch + 1) * count, _MIXTURE, source)]
        for source, (own, count) in enumerate(zip(mixture.members, mixture.counts, strict=True))
    ]
    return np.asarray(np.concatenate(taken)[epoch_order(len(mixture), seed, epoch, _MIXTURE)])


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
    examples: int | Mixture, batch_size: int, seed: int, step: int, *, last_position: int | None = None
) -> list[int]:
    """Indices of the examples of step `step` (from 1), which may span two epochs; cut off at `last_position`.

    `examples` says how many there are, or how they are mixed.
    """
    first = (step - 1) * batch_size
    last = first + batch_size if last_position is None else min(first + batch_size, last_position)
    return _indices(examples, seed, first, last)


def replay_indices(num_replayed: int, ratio: float, seed: int, first: int, last: int) -> list[int]:
    """Indices of the replayed examples that join the training examples at the positions `first` up to `last` of a run.

    Up to any position they are `ratio` for each training example, taken from permutations of their own, end to end: the
    training examples come as they would alone.
    """
    first, last = (math.floor(round(ratio * position, 6)) for position in (first, last))
    return _indices(num_replayed, seed, first, last, _REPLAY) if last > first else []


def _indices(examples: int | Mixture, seed: int, first: int, last: int, *stream: int) -> list[int]:
    if isinstance(examples, Mixture):
        return examples.indices(seed, first, last)
    indices: list[int] = []
    for epoch, start, stop in _epochs(examples, first, last):
        indices += epoch_order(examples, seed, epoch, *stream)[start:stop].tolist()
    return indices


def _epochs(length: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """(epoch, start, stop) of each part of the positions `first` up to `last`, where an epoch has `length` of them."""
    for epoch in range(first // length, (last - 1) // length + 1):
        yield epoch, max(first - epoch * length, 0), min(last - epoch * length, length)


def all_steps(
    examples: int | Mixture,
    batch_size: int,
    seed: int,
    num_train_epochs: float,
    max_steps: int | None = None,
    *,
    first_step: int = 1,
) -> Iterator[list[int]]:
    """The indices of every step of a run from `first_step` on, in order."""
    length = examples if isinstance(examples, int) else len(examples)
    total = num_steps(length, batch_size, num_train_epochs, max_steps)
    last = None if max_steps else _num_positions(length, num_train_epochs)
    for step in range(first_step, total + 1):
        yield step_indices(examples, batch_size, seed, step, last_position=last)


def derived_seed(seed: int, number: int) -> int:
    """64 bits for each `number` (a step, a prompt) under `seed`, unlike those of any other number or seed, however large."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def _num_positions(num_examples: int, num_train_epochs: float) -> int:
    """Examples that a run visits; 0.07 epochs of 100 examples are 7, though 0.07 * 100 is a little more."""
    return math.ceil(round(num_train_epochs * num_examples, 6))
