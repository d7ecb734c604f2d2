"""The learning curve: a power law with an offset through validation losses of trainings on shares of the records, and what twice
and four times the records would bring.

L(n) = a + b n^-c, over n training records (Hestness et al. 2017; Rosenfeld et al. 2020). At a given exponent the law is a
straight line in n^-c, so the least squares are found along a grid of exponents that is made denser where they are low, and
nothing is started from a guess. `b` may be negative: losses that rise are found to rise.

The interval of what more records bring is that of the profile: all gains that some (a, b, c) has whose squared errors are at
most 1 + t^2 / degrees of freedom times the least (Bates & Watts 1988, chapter 6). It holds what differs from run to run: the
seed, and which records a share took. That the validation set is a sample is added in quadrature, from the gains fitted to
resampled records. The trade: exponents are searched between 0.02 (a fall by about the same at every doubling) and 3; and that
the law goes on beyond the data is an assumption, which no interval holds.

Legend of shapes: P points (runs), C exponents, I validation records, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from tuneful.evaluation.statistics import resampled_counts, t_quantile

Array = npt.NDArray[np.float64]

MIN_SIZES = 3
"""Sizes without which three parameters cannot be told."""

_EXPONENTS_C = np.geomspace(0.02, 3.0, 160)
_DENSE_EXPONENTS_C = np.geomspace(0.02, 3.0, 1600)
_REFINEMENTS = 4
_NUM_PARAMETERS = 3


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much `factor` times the largest number of records would lower the validation loss, in nats a token, with its
    interval; negative where it would rise."""

    factor: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """L(n) = offset + scale (n / num_largest)^-exponent, and what it says of more records."""

    offset: float
    scale: float
    exponent: float
    num_largest: int
    gains: tuple[Gain, ...]

    def __call__(self, num_records: float) -> float:
        """The loss after training on so many records, in nats a token."""
        return float(self.offset + self.scale * (num_records / self.num_largest) ** -self.exponent)


def fit_power_law(
    sizes: Sequence[int],
    losses: Sequence[float],
    *,
    confidence: float,
    record_losses: tuple[Array, Array] | None = None,
    num_resamples: int = 200,
    seed: int = 0,
    factors: Sequence[float] = (2, 4),
) -> PowerLaw | None:
    """The law through the points (training records, validation loss); None where there are fewer than three sizes, or than four
    points.

    `record_losses` are ([P, I] weighted sums, [I] weights) by validation record, where they are known.
    """
    sizes_P, losses_P = np.array(sizes, dtype=np.float64), np.array(losses, dtype=np.float64)
    if len(set(sizes)) < MIN_SIZES or len(sizes) <= _NUM_PARAMETERS:
        return None
    shares_P = sizes_P / sizes_P.max()
    t = t_quantile((1 + confidence) / 2, len(sizes) - _NUM_PARAMETERS)
    slack = 1 + t**2 / (len(sizes) - _NUM_PARAMETERS)
    lines = _refined(shares_P, losses_P, slack)
    slopes_C, errors_C = (found[0] for found in lines.fitted(losses_P[None]))
    best = int(np.argmin(errors_C))
    with np.errstate(invalid="ignore"):  # nan where the exponent itself is too far off
        half_C = np.sqrt((errors_C[best] * slack - errors_C) / lines.squares)
    from_records = _deviations(shares_P, record_losses, factors, num_resamples, seed)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    gains = []
    for factor, deviation in zip(factors, from_records, strict=True):
        share_C = 1 - factor**-lines.exponents
        value = float(slopes_C[best] * share_C[best])
        low = float(np.nanmin((slopes_C - half_C) * share_C))
        high = float(np.nanmax((slopes_C + half_C) * share_C))
        below, above = (math.hypot(value - end, z * deviation) for end in (low, high))
        gains.append(Gain(factor, value, value - below, value + above))
    slope = float(slopes_C[best])
    offset = float(losses_P.mean() - slope * lines.means[best])
    return PowerLaw(offset, slope, float(lines.exponents[best]), int(sizes_P.max()), tuple(gains))


@dataclass(frozen=True, slots=True)
class _Lines:
    """The straight lines over n^-c at every one of `exponents` [C]: `centred` [C, P], their summed `squares` [C], and the `means`
    [C] taken off."""

    exponents: Array
    centred: Array
    squares: Array
    means: Array

    @classmethod
    def of(cls, shares_P: Array, exponents_C: Array) -> _Lines:
        """Lines through points at these shares of the largest size."""
        powers_CP = shares_P[None] ** -exponents_C[:, None]
        means_C = powers_CP.mean(1)
        centred_CP = powers_CP - means_C[:, None]
        return cls(exponents_C, centred_CP, (centred_CP**2).sum(1), means_C)

    def fitted(self, losses_BP: Array) -> tuple[Array, Array]:
        """Slope and summed squared error at each exponent, both [B, C], for each row of losses."""
        centred_BP = losses_BP - losses_BP.mean(1, keepdims=True)
        products_BC = centred_BP @ self.centred.T
        errors_BC = (centred_BP**2).sum(1)[:, None] - products_BC**2 / self.squares
        return products_BC / self.squares, np.maximum(errors_BC, 0.0)


def _refined(shares_P: Array, losses_P: Array, slack: float) -> _Lines:
    """Lines at exponents that lie dense where the squared errors are at most `slack` times the least."""
    exponents_C = _EXPONENTS_C
    for _ in range(_REFINEMENTS):
        _, errors_BC = _Lines.of(shares_P, exponents_C).fitted(losses_P[None])
        within = np.flatnonzero(errors_BC[0] <= errors_BC.min() * slack)
        first, last = max(0, within[0] - 1), min(len(exponents_C) - 1, within[-1] + 1)
        exponents_C = np.geomspace(exponents_C[first], exponents_C[last], len(exponents_C))
    return _Lines.of(shares_P, exponents_C)


def _deviations(
    shares_P: Array,
    record_losses: tuple[Array, Array] | None,
    factors: Sequence[float],
    num_resamples: int,
    seed: int,
) -> list[float]:
    """Standard deviation of the gain at each factor over resampled validation records, the same records for all points."""
    if record_losses is None or record_losses[0].shape[1] < 2:
        return [0.0] * len(factors)
    losses_PI, weights_I = record_losses
    num_records = len(weights_I)
    losses_BP = np.concatenate(
        [
            (counts_RI @ losses_PI.T) / (counts_RI @ weights_I)[:, None]
            for counts_RI in resampled_counts(num_records, num_resamples, seed)
        ]
    )
    lines = _Lines.of(shares_P, _DENSE_EXPONENTS_C)
    slopes_BC, errors_BC = lines.fitted(losses_BP)
    best_B = np.argmin(errors_BC, axis=1)
    slope_B, exponent_B = slopes_BC[np.arange(len(best_B)), best_B], lines.exponents[best_B]
    widening = math.sqrt(num_records / (num_records - 1))
    return [float((slope_B * (1 - factor**-exponent_B)).std()) * widening for factor in factors]
