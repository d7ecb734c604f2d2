"""Draws from populations whose truth is known, and what the product's intervals and verdicts say of each.

Beside `populations.py`, which does so for the metrics of answers. A `Simulation` is drawn thousands of times by
`benchmarks/simulations.py`, and a few hundred times by the tests; `shown` counts how often its interval holds the truth, and how
often its verdict says something that is not so. Every draw goes through the functions that the product itself calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Generator = np.random.Generator
SEED = 20261130


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw: whether each of its intervals holds the truth and how wide it is, and whether a verdict was false, or right.

    `is_false` and `is_true` are None where there is no verdict that could be.
    """

    covers: tuple[bool, ...] = ()
    widths: tuple[float, ...] = ()
    is_false: bool | None = None
    is_true: bool | None = None


@dataclass(frozen=True, slots=True)
class Simulation:
    """A population and what is said of samples from it: `draw(generator, num_resamples, seed)`.

    `covers` are the bounds of coverage that are asked for, None where it has no interval; `most_false` the share of verdicts
    that may be false, None where none can be.
    """

    name: str
    setting: str
    draw: Callable[[Generator, int, int], Draw]
    covers: tuple[float, float] | None = (0.93, 0.97)
    most_false: float | None = 0.05


@dataclass(frozen=True, slots=True)
class Shown:
    """A simulation, drawn `num_draws` times: shares in 0..1, None where there is nothing to count."""

    name: str
    setting: str
    num_draws: int
    coverage: float | None
    mean_width: float | None
    false: float | None
    true: float | None
    asked_coverage: tuple[float, float] | None
    asked_false: float | None
    seconds: float

    def faults(self, num_errors: float = 0.0) -> list[str]:
        """What is not as asked, by more than `num_errors` standard errors of so many draws; empty for nothing."""
        found = []
        if self.asked_coverage is not None:
            low, high = self.asked_coverage
            assert self.coverage is not None, self.name
            slack = num_errors * (0.05 * 0.95 / self.num_draws) ** 0.5
            if not low - slack <= self.coverage <= high + slack:
                found.append(f"{self.name}, {self.setting}: covers {self.coverage:.1%}, not {low:.0%} to {high:.0%}")
        if self.asked_false is not None and self.false is not None:
            slack = num_errors * (self.asked_false * (1 - self.asked_false) / self.num_draws) ** 0.5
            if self.false >= self.asked_false + slack:
                found.append(f"{self.name}, {self.setting}: {self.false:.1%} false, not under {self.asked_false:.0%}")
        return found


def shown(simulation: Simulation, num_draws: int, num_resamples: int) -> Shown:
    """What the product says over `num_draws` draws; the same arguments give the same figures."""
    start = time.perf_counter()
    name = np.frombuffer(f"{simulation.name}, {simulation.setting}".encode(), dtype=np.uint8)
    generator = np.random.default_rng((SEED, *name.tolist()))
    draws = [simulation.draw(generator, num_resamples, seed) for seed in range(num_draws)]

    def share(values: list[bool | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    covers = [one for draw in draws for one in draw.covers]
    widths = [one for draw in draws for one in draw.widths]
    return Shown(
        simulation.name,
        simulation.setting,
        num_draws,
        coverage=sum(covers) / len(covers) if covers else None,
        mean_width=float(np.mean(widths)) if widths else None,
        false=share([draw.is_false for draw in draws]),
        true=share([draw.is_true for draw in draws]),
        asked_coverage=simulation.covers,
        asked_false=simulation.most_false,
        seconds=round(time.perf_counter() - start, 1),
    )
