"""Paired scores from populations whose true difference is known, and what the statistics of the product say of them.

The populations have the shapes of real scores: bounded, skewed, full of ties. `plain` is the coverage of the percentile
interval without its widening, for comparison. The worst case, `rare`, is not met: where one answer in twelve changed at all,
no interval that only knows the sample can know of the changes that it missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import METRICS, MetricSpec
from tuneful.evaluation.statistics import Ratio, resampled_differences
from tuneful.runs.schema import MetricComparison

Array = npt.NDArray[np.float64]
SEED = 20261122
_CHUNK = 100
_TRUTH_DRAWS = 4_000_000

Draw = Callable[[np.random.Generator, int, float], tuple[Ratio, Ratio]]


@dataclass(frozen=True, slots=True)
class Population:
    """Where paired scores come from, the metric of the product that has this shape, and the effect that is simulated."""

    draw: Draw
    metric: str
    effect: float

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.draw.__name__


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the table; coverage and verdicts are shares of `num_runs`, in 0..1."""

    population: str
    num_items: int
    effect: float
    true_difference: float
    num_runs: int
    coverage: float
    plain_coverage: float
    better: float
    worse: float
    mean_width: float


def means(base: Array, tuned: Array) -> tuple[Ratio, Ratio]:
    """Scores that are averaged over items."""
    return Ratio(base, np.ones(len(base))), Ratio(tuned, np.ones(len(tuned)))


def rouge(generator: np.random.Generator, num_items: int, effect: float) -> tuple[Ratio, Ratio]:
    """0 to 1, many noughts and some ones; a third of the answers stay the same, a share `effect` becomes right."""

    def scores() -> Array:
        kind = generator.random(num_items)
        drawn = np.round(generator.beta(1.1, 2.6, num_items), 2)
        return np.where(kind < 0.15, 0.0, np.where(kind > 0.94, 1.0, drawn))

    base, other = scores(), scores()
    tuned = np.where(generator.random(num_items) < 0.35, base, other)
    return means(base, np.where(generator.random(num_items) < effect, 1.0, tuned))


def shares(
    generator: np.random.Generator, num_items: int, effect: float, changed: float, right: float
) -> tuple[Ratio, Ratio]:
    """Right or wrong: half of `changed` is lost, half of it and `effect` is gained, the rest is `right` or wrong alike."""
    kind = generator.random(num_items)
    same = (generator.random(num_items) < right).astype(np.float64)
    gained, lost = kind < changed / 2 + effect, kind > 1 - changed / 2
    return means(np.where(gained, 0.0, np.where(lost, 1.0, same)), np.where(gained, 1.0, np.where(lost, 0.0, same)))


def match(generator: np.random.Generator, num_items: int, effect: float) -> tuple[Ratio, Ratio]:
    """Exact match: one answer in eight changes sides."""
    return shares(generator, num_items, effect, changed=0.12, right=0.15)


def ended(generator: np.random.Generator, num_items: int, effect: float) -> tuple[Ratio, Ratio]:
    """Stopping at the end token: nearly all answers do."""
    return shares(generator, num_items, effect, changed=0.06, right=0.9)


def judge(generator: np.random.Generator, num_items: int, effect: float) -> tuple[Ratio, Ratio]:
    """0 to 100 in steps of 5 with heaps at 0, 85, 95 and 100; 40 % stay the same, a share `effect` becomes 100."""

    def scores() -> Array:
        heaps = generator.choice([0.0, 85.0, 95.0, 100.0], num_items, p=[0.2, 0.4, 0.2, 0.2])
        return np.where(generator.random(num_items) < 0.6, heaps, 5.0 * generator.integers(4, 17, num_items))

    base, other = scores(), scores()
    tuned = np.where(generator.random(num_items) < 0.4, base, other)
    return means(base, np.where(generator.random(num_items) < effect, 100.0, tuned))


def loss(generator: np.random.Generator, num_items: int, effect: float) -> tuple[Ratio, Ratio]:
    """Nats over tokens: lengths from 1 to over 100 tokens, difficulty skewed, `effect` a share of the loss saved."""
    tokens = np.ceil(generator.lognormal(2.3, 0.8, num_items))
    difficulty = generator.gamma(2.0, 0.9, num_items)
    base, tuned = (difficulty * tokens * generator.lognormal(-0.08, 0.4, num_items) for _ in range(2))
    return Ratio(base, tokens), Ratio(tuned * (1 - effect), tokens)


def length(generator: np.random.Generator, num_items: int, effect: float) -> tuple[Ratio, Ratio]:
    """Words: no upper end, a few answers very long; `effect` is a share left out."""
    common = generator.lognormal(2.5, 0.6, num_items)
    base, tuned = (np.round(common * generator.lognormal(0.0, 0.5, num_items)) for _ in range(2))
    return means(base, np.round(tuned * (1 - effect)))


def uneven(generator: np.random.Generator, num_items: int, effect: float) -> tuple[Ratio, Ratio]:
    """Many answers gain a little and a few lose much, to nothing on the whole; `effect` is added to all."""
    base = generator.uniform(0.3, 0.7, num_items)
    change = np.where(generator.random(num_items) < 0.8, 0.06, -0.24) + generator.normal(0, 0.02, num_items)
    return means(base, base + change + effect)


def rare(generator: np.random.Generator, num_items: int, effect: float) -> tuple[Ratio, Ratio]:
    """One answer in twelve changes at all, by anything up to 0.5; `effect` lifts those that do."""
    base = np.round(generator.uniform(0.2, 0.5, num_items), 2)
    change = generator.uniform(-0.3, 0.3, num_items) + effect * 12
    return means(base, np.where(generator.random(num_items) < 1 / 12, base + change, base))


POPULATIONS = (
    Population(rouge, "rouge_l", 0.12),
    Population(match, "exact_match", 0.1),
    Population(ended, "ended", 0.08),
    Population(judge, "judge_score", 0.15),
    Population(loss, "reference_loss", 0.15),
    Population(length, "length", 0.2),
    Population(uneven, "chrf", 0.04),
    Population(rare, "rouge_l", 0.01),
)


def ends(metric: MetricComparison) -> tuple[float, float]:
    """The ends of an interval that is known."""
    assert metric.low is not None
    assert metric.high is not None
    return metric.low, metric.high


def true_difference(population: Population, effect: float, num_draws: int = _TRUTH_DRAWS) -> float:
    """Nought by construction without an effect, else the difference on millions of items."""
    if effect == 0:
        return 0.0
    base, tuned = population.draw(np.random.default_rng(SEED), num_draws, effect)
    return tuned.value() - base.value()


def simulate(
    population: Population, num_items: int, effect: float, num_runs: int, num_resamples: int, truth: float
) -> Setting:
    """Draw `num_runs` test sets and compare each as the product does.

    The runs of a chunk go through `compare_ratios` together: what it would give each of them alone, since the resamples
    are a function of the seed and of the number of items.
    """
    generator = np.random.default_rng((SEED, num_items, int(effect > 0)))
    spec: MetricSpec = next(one for one in METRICS if one.name == population.metric)
    sign = -1.0 if spec.higher_is_better is False else 1.0
    found, plain = [], []
    for start in range(0, num_runs, _CHUNK):
        pairs = [population.draw(generator, num_items, effect) for _ in range(min(_CHUNK, num_runs - start))]
        found += compare_ratios(
            [(spec, pair) for pair in pairs], confidence=0.95, num_resamples=num_resamples, seed=start
        )
        plain += [np.quantile(one, [0.025, 0.975]) for one in resampled_differences(pairs, num_resamples, start)]
    up = [one.verdict != "cannot tell" and one.difference * sign > 0 for one in found]
    down = [one.verdict != "cannot tell" and one.difference * sign < 0 for one in found]
    rounding = 1e-9
    return Setting(
        population=population.name,
        num_items=num_items,
        effect=effect,
        true_difference=round(truth, 5),
        num_runs=num_runs,
        coverage=float(np.mean([ends(one)[0] - rounding <= truth <= ends(one)[1] + rounding for one in found])),
        plain_coverage=float(np.mean([low - rounding <= truth <= high + rounding for low, high in plain])),
        better=float(np.mean(up)),
        worse=float(np.mean(down)),
        mean_width=float(np.mean([ends(one)[1] - ends(one)[0] for one in found])),
    )
