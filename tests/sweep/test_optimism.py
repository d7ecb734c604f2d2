"""How much choosing flatters, by simulation: the measured optimism against the true one, and where it cannot be measured."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tuneful.sweep.optimism import MIN_RECORDS, as_arrays, choice_optimism, choice_shares

NUM_TRIALS = 250


def simulated(num_runs: int, num_records: int, spread: float, seed: int) -> tuple[float, float]:
    """(true optimism, measured one), means over trials; losses differ by `spread` between runs, by 0.4 between records."""
    generator = np.random.default_rng(seed)
    true, measured = [], []
    for trial in range(NUM_TRIALS):
        losses_K = 2.0 + generator.normal(0, spread, num_runs) if spread else np.full(num_runs, 2.0)
        weights_I = generator.integers(5, 40, num_records).astype(float)
        shared_I, own_KI = generator.normal(0, 0.5, num_records), generator.normal(0, 0.4, (num_runs, num_records))
        sums_KI = (losses_K[:, None] + shared_I + own_KI) * weights_I
        found_K = (losses_K[:, None] + own_KI) @ weights_I / weights_I.sum()  # what all runs share flatters none
        chosen = int(found_K.argmin())
        true.append(losses_K[chosen] - found_K[chosen])
        measured.append(choice_optimism(sums_KI, weights_I, num_draws=30, seed=trial) or 0.0)
    return float(np.mean(true)), float(np.mean(measured))


@pytest.mark.parametrize(("num_runs", "num_records"), [(3, 20), (8, 60), (12, 20)])
def test_among_equal_runs_the_optimism_is_that_of_the_lowest_of_so_many(num_runs: int, num_records: int) -> None:
    true, measured = simulated(num_runs, num_records, 0.0, seed=num_runs)
    assert true > 0.03
    assert measured == pytest.approx(true, rel=0.2)


def test_among_runs_that_differ_it_is_less_and_still_about_right() -> None:
    equal, _ = simulated(8, 40, 0.0, seed=1)
    true, measured = simulated(8, 40, 0.1, seed=2)
    assert true < 0.8 * equal
    assert measured == pytest.approx(true, rel=0.35)


def test_where_one_run_is_better_by_far_choosing_flatters_nobody() -> None:
    true, measured = simulated(6, 30, 5.0, seed=3)
    assert abs(true) < 0.02
    assert measured < 0.01


def sums(*rows: list[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return as_arrays([[(loss, 2.0) for loss in row] for row in rows])


def test_one_run_alone_is_not_flattered_and_too_few_records_tell_nothing() -> None:
    assert choice_optimism(*sums([1.0, 2.0, 3.0, 4.0]), num_draws=9, seed=0) == 0.0
    few = [1.0] * (MIN_RECORDS - 1)
    assert choice_optimism(*sums(few, few), num_draws=9, seed=0) is None


def test_runs_that_are_equal_record_by_record_flatter_nobody() -> None:
    row = [1.0, 2.0, 4.0, 3.0, 9.0]
    assert choice_optimism(*sums(row, row, row), num_draws=50, seed=0) == pytest.approx(0.0, abs=0.2)
    assert choice_shares(*sums(row, row), num_draws=50, seed=0) == [1.0, 0.0]


def test_a_run_that_is_better_on_every_record_is_always_chosen() -> None:
    shares = choice_shares(*sums([2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0]), num_draws=200, seed=0)
    assert shares == [0.0, 1.0]


def test_how_often_each_run_would_be_chosen_sums_to_one() -> None:
    generator = np.random.default_rng(0)
    shares = choice_shares(generator.random((4, 12)), np.ones(12), num_draws=300, seed=0)
    assert sum(shares) == pytest.approx(1.0)
    assert sorted(shares)[-2] > 0
