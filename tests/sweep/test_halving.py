"""Successive halving: who goes on, and what that saves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.sweep.halving import rungs_of, survivors


@pytest.mark.parametrize(
    ("num_runs", "rungs"),
    [(1, ()), (3, ()), (4, (0.5,)), (7, (0.5,)), (8, (0.25, 0.5)), (16, (0.125, 0.25, 0.5)), (99, (0.125, 0.25, 0.5))],
)
def test_more_runs_are_compared_earlier_and_oftener(num_runs: int, rungs: tuple[float, ...]) -> None:
    assert rungs_of(num_runs) == rungs


@given(st.lists(st.none() | st.floats(0, 10), min_size=1, max_size=40))
def test_the_better_half_goes_on_and_at_least_two(losses: list[float | None]) -> None:
    kept = survivors(losses)
    assert kept == sorted(set(kept))
    assert len(kept) == min(len(losses), max(2, -(-len(losses) // 2)))
    worst = max((float("inf") if losses[index] is None else losses[index] or 0.0) for index in kept)
    for index, loss in enumerate(losses):
        assert index in kept or loss is None or loss >= worst


def test_of_equal_runs_the_first_go_on() -> None:
    assert survivors([1.0, 1.0, 1.0, 1.0]) == [0, 1]
    assert survivors([None, 2.0, None, 1.0]) == [1, 3]


@pytest.mark.parametrize("num_runs", [8, 16, 32])
def test_halving_takes_at_most_half_of_the_steps(num_runs: int) -> None:
    steps, active, before = 0.0, num_runs, 0.0
    for rung in (*rungs_of(num_runs), 1.0):
        steps += active * (rung - before)
        before, active = rung, len(survivors([0.0] * active))
    assert steps <= num_runs / 2
