"""A difference watched while its items come: an interval that holds whenever one stops looking, and a p-value to go with it.

    differences in the order in which they came -> Sequential(difference, low, high, p_value)

Stands beside `statistics.py`, for a judge that is asked no more once its finding is clear (`judge.stop_early`). Whoever looks
again and again, and stops at the first interval without 0, is wrong far more often than the interval says. Here a mean m is given
up once a bet against it would have multiplied its stake by 1 / (1 - confidence), which under the true mean has at most that
probability however often one looks (Ville 1939). The bets are the hedged capital process of Waudby-Smith & Ramdas (2024,
"Estimating means of bounded random variables by betting", theorem 3, with the predictable plug-in of their equation 26). The
trade: on all items the interval is wider than the bootstrap's, by a half or so.

Legend of shapes: I items, M means that are tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NUM_MEANS = 1001
"""Odd, so that no difference is one of them: they lie 0.1 % of the range apart."""
_MOST_STAKED = 0.5
"""Of what there is, on a single item."""


@dataclass(frozen=True, slots=True)
class Sequential:
    """The mean difference over the items so far, its interval and p-value, both valid at whichever item this was looked at."""

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval is without 0."""
        return self.low > 0 or self.high < 0


def watched(differences: Sequence[float], span: float, confidence: float) -> Sequential:
    """`differences` in the order in which they came, each between -`span` and `span`; at least one."""
    assert len(differences), "nothing came"
    assert all(abs(one) <= span for one in differences), "a difference that cannot be"
    values_I = np.array(differences) / (2 * span) + 0.5
    means_M = np.linspace(0.0, 1.0, _NUM_MEANS)
    capital_M = _most_capital(values_I, means_M, 1 - confidence)
    left = np.flatnonzero(capital_M < 1 / (1 - confidence))
    mean = float(np.mean(differences))
    ends = [mean]
    if len(left):
        # One step wider than the means that are left, because the truth may lie between two of them.
        steps = (max(0, left[0] - 1), min(_NUM_MEANS - 1, left[-1] + 1))
        ends += [(float(means_M[step]) - 0.5) * 2 * span for step in steps]
    return Sequential(mean, min(ends), max(ends), min(1.0, 1 / float(capital_M[_NUM_MEANS // 2])))


def _most_capital(values_I: np.ndarray, means_M: np.ndarray, alpha: float) -> np.ndarray:
    """The most that either side of a bet against each of `means_M` was ever worth, from a stake of a half on each."""
    stakes_I = _stakes(values_I, alpha)
    with np.errstate(divide="ignore"):
        most_up_M, most_down_M = _MOST_STAKED / means_M, _MOST_STAKED / (1 - means_M)
    up_M, down_M = np.zeros_like(means_M), np.zeros_like(means_M)
    most_M = np.full_like(means_M, 0.5)
    for value, stake in zip(values_I, stakes_I, strict=True):
        up_M += np.log1p(np.minimum(stake, most_up_M) * (value - means_M))
        down_M += np.log1p(-np.minimum(stake, most_down_M) * (value - means_M))
        most_M = np.maximum(most_M, 0.5 * np.exp(np.minimum(np.maximum(up_M, down_M), 700.0)))
    return most_M


def _stakes(values_I: np.ndarray, alpha: float) -> np.ndarray:
    """How much is bet on each item, by the variance of those before it alone."""
    numbers_I = np.arange(1, len(values_I) + 1)
    means_I = (0.5 + np.cumsum(values_I)) / (numbers_I + 1)
    variances_I = (0.25 + np.cumsum((values_I - means_I) ** 2)) / (numbers_I + 1)
    before_I = np.concatenate([[0.25], variances_I[:-1]])
    stakes: np.ndarray = np.sqrt(2 * math.log(2 / alpha) / (before_I * numbers_I * np.log1p(numbers_I)))
    return stakes
