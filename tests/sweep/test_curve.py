"""The learning curve, by simulation: its intervals cover what more records would bring, and say where nothing can be told."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tuneful.sweep.curve import PowerLaw, fit_power_law
from tuneful.sweep.words import curve_in_words

Array = npt.NDArray[np.float64]
SHARES = (0.125, 0.25, 0.5, 1.0)
NUM_RECORDS = 800
NUM_TRIALS = 300


def drawn(
    generator: np.random.Generator,
    exponent: float,
    scale: float,
    noise: float,
    num_seeds: int = 3,
    shares: tuple[float, ...] = SHARES,
) -> tuple[list[int], Array]:
    """Sizes and losses of runs along a curve, with noise from run to run."""
    sizes = np.repeat([round(NUM_RECORDS * share) for share in shares], num_seeds)
    losses = 1.0 + scale * (sizes / NUM_RECORDS) ** -exponent + generator.normal(0, noise, len(sizes))
    return sizes.tolist(), losses


def coverage(exponent: float, scale: float, noise: float, num_seeds: int = 3) -> list[float]:
    """How often the interval of twice and of four times the records holds the truth."""
    generator = np.random.default_rng(round(1000 * exponent) + num_seeds)
    hits = np.zeros(2)
    for _ in range(NUM_TRIALS):
        sizes, losses = drawn(generator, exponent, scale, noise, num_seeds)
        law = fit_power_law(sizes, losses.tolist(), confidence=0.95)
        assert law is not None
        truths = [scale * (1 - factor**-exponent) for factor in (2, 4)]
        hits += [gain.low <= truth <= gain.high for gain, truth in zip(law.gains, truths, strict=True)]
    return [float(share) for share in hits / NUM_TRIALS]


@pytest.mark.parametrize("exponent", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("num_seeds", [2, 3])
def test_the_interval_covers_what_more_records_would_bring(exponent: float, num_seeds: int) -> None:
    for share in coverage(exponent, scale=0.2, noise=0.01, num_seeds=num_seeds):
        assert 0.90 <= share <= 0.985


def test_of_a_flat_curve_a_fall_is_hardly_ever_claimed() -> None:
    generator, claimed = np.random.default_rng(0), 0
    for _ in range(NUM_TRIALS):
        sizes, losses = drawn(generator, 0.5, 0.0, 0.01)
        law = fit_power_law(sizes, losses.tolist(), confidence=0.95)
        assert law is not None
        claimed += law.gains[0].low > 0 or law.gains[0].high < 0
    assert claimed <= 0.08 * NUM_TRIALS


def test_the_validation_set_being_a_sample_widens_the_interval() -> None:
    """Records differ in how much they gain; what is wanted is the gain on all such records."""
    generator, hits, narrow = np.random.default_rng(5), 0, 0
    for trial in range(NUM_TRIALS):
        sizes, losses_P = drawn(generator, 0.5, 0.2, 0.002)
        gain_I, level_I = generator.normal(1, 0.6, 40), generator.normal(0, 0.5, 40)
        weights_I = generator.integers(5, 30, 40).astype(float)
        losses_PI = (1.0 + (losses_P[:, None] - 1.0) * gain_I + level_I) * weights_I
        found_P = losses_PI.sum(1) / weights_I.sum()
        truth = 0.2 * (1 - 2**-0.5)
        laws = [
            fit_power_law(sizes, found_P.tolist(), confidence=0.95, record_losses=rows, num_resamples=60, seed=trial)
            for rows in ((losses_PI, weights_I), None)
        ]
        covered = [law is not None and law.gains[0].low <= truth <= law.gains[0].high for law in laws]
        hits, narrow = hits + covered[0], narrow + covered[1]
    assert narrow < 0.85 * NUM_TRIALS
    assert 0.90 <= hits / NUM_TRIALS <= 0.985


def test_without_noise_the_law_is_found_and_the_gains_with_it() -> None:
    sizes, losses = drawn(np.random.default_rng(0), 0.5, 0.2, 0.0)
    law = fit_power_law(sizes, losses.tolist(), confidence=0.95)
    assert law is not None
    assert (law.offset, law.scale, law.exponent) == pytest.approx((1.0, 0.2, 0.5), rel=0.05)
    assert [gain.value for gain in law.gains] == pytest.approx([0.2 * (1 - 2**-0.5), 0.1], rel=0.03)
    assert law(NUM_RECORDS) == pytest.approx(1.2, abs=1e-3)


@pytest.mark.parametrize(
    "sizes", [[800], [400, 800], [400, 800] * 5, [200, 400, 800]], ids=["one", "two", "two, often", "three points"]
)
def test_of_too_few_points_nothing_is_told(sizes: list[int]) -> None:
    assert fit_power_law(sizes, [1.0] * len(sizes), confidence=0.95) is None
    assert "cannot be told" in curve_in_words(None, sizes, 1.0, 0.95)


def test_equal_losses_gain_nothing() -> None:
    law = fit_power_law([100, 200, 400, 800], [1.5] * 4, confidence=0.95)
    assert law is not None
    assert [(gain.value, gain.low, gain.high) for gain in law.gains] == [(0, 0, 0)] * 2
    assert "cannot be told" in said(law)


def said(law: PowerLaw) -> str:
    return curve_in_words(law, [100, 800], 1.2, 0.95)


def test_a_clear_fall_is_told_with_its_interval_and_a_rise_as_a_rise() -> None:
    generator = np.random.default_rng(1)
    falling = fit_power_law(*listed(drawn(generator, 0.5, 0.2, 0.002)), confidence=0.95)
    rising = fit_power_law(*listed(drawn(generator, 0.5, -0.2, 0.002)), confidence=0.95)
    noisy = fit_power_law(*listed(drawn(np.random.default_rng(0), 0.5, 0.05, 0.2)), confidence=0.95)
    assert falling is not None
    assert rising is not None
    assert noisy is not None
    assert said(falling).startswith("Twice the records (1,600) would lower the validation loss by about 0.05")
    assert "Four times the records (3,200) would lower" in said(falling)
    assert said(rising).startswith("Twice the records (1,600) would raise the validation loss by about 0.05")
    assert said(noisy).startswith("Whether twice the records (1,600) would lower the validation loss cannot be told")


def listed(points: tuple[list[int], Array]) -> tuple[list[int], list[float]]:
    return points[0], points[1].tolist()


def test_of_few_runs_the_interval_is_wide() -> None:
    generator = np.random.default_rng(2)
    widths = []
    for num_seeds in (1, 3):
        law = fit_power_law(*listed(drawn(generator, 0.5, 0.2, 0.01, num_seeds)), confidence=0.95)
        assert law is not None
        widths.append(law.gains[0].high - law.gains[0].low)
    assert widths[0] > 3 * widths[1]
