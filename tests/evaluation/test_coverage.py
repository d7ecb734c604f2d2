"""The statistics of the product on populations whose truth is known: a short run of benchmarks/coverage.py."""

from __future__ import annotations

import numpy as np
import pytest
from tests.doubles.populations import POPULATIONS, simulate, true_difference

RUNS = 400


@pytest.mark.parametrize("name", ["rouge", "match", "judge", "loss"])
def test_intervals_cover_and_verdicts_are_seldom_wrong(name: str) -> None:
    population = next(one for one in POPULATIONS if one.name == name)
    effect = population.effect
    truth = true_difference(population, effect, 500_000)
    some = simulate(population, 60, effect, RUNS, 500, truth)
    none = simulate(population, 60, 0.0, RUNS, 500, 0.0)
    # 400 runs: a true 95 % is seen between 91.7 and 98.3 % (three standard errors), a true 2.5 % below 5 %.
    assert some.coverage >= 0.917
    assert (
        some.coverage <= 0.983 or name == "match"
    )  # right or wrong comes in steps; on few items they err to the safe side
    assert none.better <= 0.05
    assert none.worse <= 0.05
    assert some.better > 0.1  # and they are able to tell
    assert some.worse <= 0.01


def test_the_populations_are_what_they_say() -> None:
    for population in POPULATIONS:
        base, tuned = population.draw(np.random.default_rng(0), 400_000, 0.0)
        spread = np.std(tuned.numerators - base.numerators) / np.sqrt(400_000) / base.denominators.mean()
        assert abs(tuned.value() - base.value()) < 4 * spread, population.name  # nought without an effect
        assert len(np.unique(base.numerators)) < len(base.numerators) or population.name in ("loss", "uneven")
