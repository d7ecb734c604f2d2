"""An interval that may be looked at after every item: how often it is wrong, where a usual one would be; and its plain cases."""

from __future__ import annotations

import numpy as np
import pytest

from tuneful.evaluation.sequential import watched
from tuneful.evaluation.statistics import wilson_interval

NUM_TRIALS, NUM_ITEMS, EVERY = 150, 100, 20


def first_clear(differences: np.ndarray, confidence: float = 0.95) -> int | None:
    """After how many items somebody who looks after every twenty stops."""
    looks = range(EVERY, len(differences) + 1, EVERY)
    return next((num for num in looks if watched(differences[:num].tolist(), 100.0, confidence).is_clear), None)


@pytest.mark.parametrize("shape", ["grades", "skewed"])
def test_looking_after_every_twenty_items_finds_a_difference_that_is_not_there_in_5_of_100_at_most(shape: str) -> None:
    rng = np.random.default_rng(7)
    draws = {
        "grades": rng.integers(-4, 5, size=(NUM_TRIALS, NUM_ITEMS)) * 10.0,
        "skewed": rng.choice([-10.0, 90.0], p=[0.9, 0.1], size=(NUM_TRIALS, NUM_ITEMS)),
    }
    wrong = sum(first_clear(own) is not None for own in draws[shape])
    assert wrong / NUM_TRIALS <= wilson_interval(0.05, NUM_TRIALS, 0.95)[1]


def test_a_usual_interval_looked_at_as_often_is_wrong_far_more_often() -> None:
    """What the sequential one is for: the same looks, a normal interval."""
    draws = np.random.default_rng(7).integers(-4, 5, size=(NUM_TRIALS, NUM_ITEMS)) * 10.0

    def is_clear(own: np.ndarray) -> bool:
        return bool(abs(own.mean()) > 1.96 * own.std(ddof=1) / np.sqrt(len(own)))

    wrong = sum(any(is_clear(own[:num]) for num in range(EVERY, NUM_ITEMS + 1, EVERY)) for own in draws)
    assert wrong / NUM_TRIALS > 0.08


def test_it_covers_at_every_look_and_a_clear_difference_is_found_early() -> None:
    rng = np.random.default_rng(3)
    draws = np.clip(rng.normal(25, 30, size=(NUM_TRIALS // 2, NUM_ITEMS)), -100, 100)
    truth = float(np.clip(rng.normal(25, 30, size=1_000_000), -100, 100).mean())
    misses = 0
    for own in draws:
        ends = [watched(own[:num].tolist(), 100.0, 0.95) for num in (20, 60, 100)]
        misses += any(not one.low <= truth <= one.high for one in ends)
    assert misses / len(draws) <= 0.09
    stops = [first_clear(own) or NUM_ITEMS for own in draws[:40]]
    assert np.median(stops) <= 50


def test_one_item_equal_items_and_all_at_the_end_of_the_range() -> None:
    (one,) = [watched([40.0], 100.0, 0.95)]
    assert (one.difference, one.is_clear) == (40.0, False)
    assert one.p_value > 0.5
    equal = watched([0.0] * 50, 100.0, 0.95)
    assert (equal.difference, equal.p_value) == (0.0, 1.0)
    assert equal.low < 0 < equal.high
    unanimous = watched([100.0] * 20, 100.0, 0.95)
    assert unanimous.low > 0
    assert unanimous.high == 100.0
    assert unanimous.p_value < 0.05
    mirrored = watched([-100.0] * 20, 100.0, 0.95)
    assert (mirrored.low, mirrored.high) == pytest.approx((-unanimous.high, -unanimous.low), abs=0.21)
