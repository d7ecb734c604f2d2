"""How much choosing flatters: by how much the chosen run's validation loss lies below its loss on new records.

The lowest of several validation losses is low partly by luck: the more runs, the nearer they are, and the fewer records, the
more. The luck is measured on the validation records themselves: a run is chosen on a random half of them and looked at on the
other half, again and again. Half of the records are sqrt(2) times as noisy as all of them, so the mean difference between the
halves is divided by that. Where the runs are equal but for noise this is right on average; where one is better by more than the
noise it is 0, as it should be. (The bootstrap's own estimate, choosing on a resample and looking at the whole, comes to 0.7 of
the truth where the runs are equal, because the luck of the whole is taken for a difference between the runs.)

What it does not count: runs that were stopped early, and within each run the step whose weights were kept.

Legend of shapes: K runs, I validation records, R draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tuneful.evaluation.statistics import resampled_counts

Array = npt.NDArray[np.float64]

MIN_RECORDS = 4
_MAX_CELLS = 1 << 20


def choice_optimism(losses_KI: Array, weights_I: Array, *, num_draws: int, seed: int) -> float | None:
    """The loss of the chosen run on new records less that on these, in nats a token, an expectation; None where it is not known.

    `losses_KI` are weighted sums by record, the loss of run k being losses_KI[k].sum() / weights_I.sum(). It is not known of
    fewer than MIN_RECORDS records. Negative estimates, which are noise about 0, are 0.
    """
    num_runs, num_records = losses_KI.shape
    if num_runs < 2:
        return 0.0
    if num_records < MIN_RECORDS:
        return None
    generator = np.random.Generator(np.random.PCG64(seed))
    half, found = num_records // 2, list[Array]()
    for start in range(0, num_draws, chunk := max(1, _MAX_CELLS // num_records)):
        order_RI = generator.random((min(chunk, num_draws - start), num_records)).argsort(axis=1)
        one_RI = (order_RI < half).astype(np.float64)
        halves = [_losses(losses_KI, weights_I, side) for side in (one_RI, 1 - one_RI)]
        for choosing_KR, looking_KR in (halves, halves[::-1]):
            chosen_R = np.argmin(choosing_KR, axis=0)[None]
            found.append(
                (np.take_along_axis(looking_KR, chosen_R, 0) - np.take_along_axis(choosing_KR, chosen_R, 0))[0]
            )
    return max(0.0, float(np.concatenate(found).mean()) / math.sqrt(2))


def choice_shares(losses_KI: Array, weights_I: Array, *, num_draws: int, seed: int) -> list[float]:
    """How often each run would be chosen, were the validation set drawn again: shares of bootstrap resamples, summing to 1."""
    times_K = np.zeros(len(losses_KI))
    for counts_RI in resampled_counts(losses_KI.shape[1], num_draws, seed):
        chosen_R = np.argmin(_losses(losses_KI, weights_I, counts_RI), axis=0)
        times_K += np.bincount(chosen_R, minlength=len(losses_KI))
    return [float(times) / num_draws for times in times_K]


def _losses(losses_KI: Array, weights_I: Array, counts_RI: Array) -> Array:
    """The loss of each run on each draw of records, [K, R]."""
    return np.asarray((losses_KI @ counts_RI.T) / (weights_I @ counts_RI.T))


def as_arrays(rows: Sequence[Sequence[tuple[float, float]]]) -> tuple[Array, Array]:
    """(losses [K, I], weights [I]) of (loss, weight) a record of each run; all runs have the same records."""
    whole = np.array(rows, dtype=np.float64)
    return whole[:, :, 0], whole[0, :, 1]
