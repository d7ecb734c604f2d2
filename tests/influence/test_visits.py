"""Which step took which record, and how much that moved the weights."""

from __future__ import annotations

import numpy as np
import pytest

from tuneful.batch.order import all_steps
from tuneful.config import TrainConfig
from tuneful.influence.ranking import Sums, strongest
from tuneful.influence.visits import factors
from tuneful.train.optimizer import learning_rate

TRAIN = TrainConfig(batch_size=2, num_train_epochs=2, lr_scheduler_type="linear", warmup_steps=0, learning_rate=0.1)
WEIGHTS = np.array([1.0, 2.0, 3.0, 4.0, 5.0])


def test_a_factor_is_the_sum_over_visits_of_rate_times_clipping_over_the_steps_weight() -> None:
    """A visit belongs to the checkpoint before it, and those before the first checkpoint to that one."""
    found = factors(TRAIN, WEIGHTS, [2, 4], 5, {3: 4.0})
    wanted = np.zeros((2, 5))
    for step, indices in enumerate(all_steps(5, 2, TRAIN.seed, 2), start=1):
        clipping = 0.25 if step == 3 else 1.0
        for index in indices:
            wanted[0 if step <= 4 else 1, index] += learning_rate(TRAIN, step, 5) * clipping / WEIGHTS[indices].sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert (found.sum(0) > 0).all()


def test_steps_whose_weights_are_not_kept_count_for_nothing_and_untouched_records_have_none() -> None:
    found = factors(TRAIN, WEIGHTS, [1], 1, {})
    assert (found > 0).sum() == 2


def test_replayed_records_share_the_weight_of_a_step() -> None:
    alone, shared = (factors(TRAIN, WEIGHTS, [5], 5, {}, replayed) for replayed in (None, (np.array([6.0]), 1.0)))
    assert (shared < alone).all()
    first = next(all_steps(5, 2, TRAIN.seed, 2))
    rate, weight = learning_rate(TRAIN, 1, 5), WEIGHTS[first].sum()
    one = factors(TRAIN, WEIGHTS, [1], 1, {}, (np.array([6.0]), 1.0))[0, first[0]]
    assert one == pytest.approx(rate / (weight + 12.0))


def test_scores_and_cosines_add_up_over_weights_each_by_its_own_directions() -> None:
    sums = Sums(1, 3)
    alike, records = np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]], np.float32)
    directions = np.array([[0.5, -1.0]])
    sums.add((directions, alike), 0, records[:2], np.array([0.5, 1.0]), 1.0)
    sums.add((directions, alike), 2, records[2:], np.array([1.0]), 1.0)
    sums.add((-directions, -alike), 0, records, np.array([0.25, 1.0, 1.0]), 3.0)
    found = sums.influence()
    assert found.scores.tolist() == [[0.25, 0.0, 0.0]]
    assert found.cosines.tolist() == [[(1 - 3) / 4, 0.0, 0.0]]


def test_the_strongest_are_those_of_either_sign_and_zero_is_none() -> None:
    assert strongest([0.5, -2.0, 0.0, 3.0, -1.0], 2) == ([3, 0], [1, 4])
    assert strongest([0.0, 0.0], 2) == ([], [])
    assert strongest([1.0], 3) == ([0], [])
