"""How much each step moved the weights along a record's gradient: the factor of each record at each checkpoint.

Which records a step takes is a pure function of seed and configuration (`batch/order.py`), so the steps of a training are gone
through again without computing any: a record that was never trained on has a factor of 0, one that came three times has three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tuneful.batch.order import all_steps, num_steps, replay_indices
from tuneful.config import TrainConfig
from tuneful.train.optimizer import learning_rate

Weights = npt.NDArray[np.float64]


def factors(
    train: TrainConfig,
    weights: Weights,
    checkpoints: Sequence[int],
    last_step: int,
    grad_norms: Mapping[int, float],
    replayed: tuple[Weights, float] | None = None,
) -> Weights:
    """float64 [C, N]: of each training record, learning rate x clipping / target weight of the step, summed over its visits.

    A visit counts for the last of `checkpoints` (steps, ascending) that came before it, whose weights are nearest to those that
    the record changed, and one before all of them for the first; those after `last_step`, whose weights are not kept, for
    none. `weights` [N] are the summed target weights of the records, `replayed` those of replayed ones and their ratio.
    `grad_norms` are those before clipping, by step, where they are known.
    """
    found = np.zeros((len(checkpoints), len(weights)))
    first = 0
    total = num_steps(len(weights), train.batch_size, train.num_train_epochs, train.max_steps)
    steps = all_steps(len(weights), train.batch_size, train.seed, train.num_train_epochs, train.max_steps)
    for step, indices in enumerate(steps, start=1):
        if step > last_step:
            break
        weight = weights[indices].sum()
        if replayed is not None:
            own, ratio = replayed
            weight += own[replay_indices(len(own), ratio, train.seed, first, first + len(indices))].sum()
        first += train.batch_size
        norm, limit = grad_norms.get(step, 0.0), train.max_grad_norm
        clipping = limit / norm if limit and norm > limit else 1.0
        place = max(0, int(np.searchsorted(checkpoints, step)) - 1)
        np.add.at(found[place], indices, learning_rate(train, step, total) * clipping / weight)
    return found
