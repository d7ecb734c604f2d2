"""Intervals of checks, tests, judges and sweeps by simulation: a few hundred draws of what benchmarks/simulations.py draws."""

from __future__ import annotations

import numpy as np
import pytest
from tests.doubles.simulated_scores import SCORES, choices_of_two, share_of_one
from tests.doubles.simulated_sweeps import SWEEPS
from tests.doubles.simulations import Draw, Simulation, shown

DRAWS, ERRORS = 200, 3.5
"""Draws, and the standard errors of so many that a share may be off."""

SMALL = {
    ("macro F1, two models", "3 labels, 60 items, 0.55 to 0.7"),
    ("macro F1, one model", "3 labels, 60 items, 0.85"),
    ("multiple choice, two models", "30 items, 0.45 to 0.6"),
    ("instructions, two models", "30 items, lift 0"),
    ("instructions, one model", "10 items"),
    ("win rate, two models", "60 items, 0.4 won"),
    ("kappa", "20 items, 2 raters"),
    ("many sides, all equal", "3 sides, 60 items"),
    ("learning curve", "4 sizes, 3 seeds, exponent 0.3, noise 0.01"),
    ("learning curve, flat", "4 sizes, 3 seeds"),
    ("chosen run, all equal to the base", "12 runs, 60 validation records, 130 test items"),
    ("judge that guesses", "score, 10 items"),
}


def simulations() -> list[Simulation]:
    every = (*SCORES, *SWEEPS)
    assert len({(one.name, one.setting) for one in every}) == len(every), "every simulation has a name of its own"
    chosen = [one for one in every if (one.name, one.setting) in SMALL]
    assert len(chosen) == len(SMALL)
    return chosen


@pytest.mark.parametrize("simulation", simulations(), ids=lambda one: f"{one.name}: {one.setting}")
def test_intervals_hold_the_truth_and_verdicts_are_seldom_false(simulation: Simulation) -> None:
    assert shown(simulation, DRAWS, 200).faults(ERRORS) == []


def test_what_is_not_as_asked_is_named() -> None:
    def wrong(generator: np.random.Generator, num_resamples: int, seed: int) -> Draw:
        return Draw((seed % 2 == 0,), (1.0,), is_false=seed % 2 == 0)

    found = shown(Simulation("a", "b", wrong), 100, 10)
    assert found.coverage == found.false == 0.5
    assert found.faults(3.0) == ["a, b: covers 50.0%, not 93% to 97%", "a, b: 50.0% false, not under 5%"]


def test_the_same_draws_give_the_same_figures() -> None:
    simulation = Simulation("share", "", lambda *given: share_of_one(*given, num_items=10))
    one, other = shown(simulation, 20, 10), shown(simulation, 20, 10)
    assert (one.coverage, one.mean_width) == (other.coverage, other.mean_width)


def test_equal_answers_of_one_item_say_nothing() -> None:
    draw = choices_of_two(np.random.default_rng(0), 100, 0, num_items=1, right=(0.5, 0.5))
    assert draw.covers == ()
    assert draw.is_false is False
