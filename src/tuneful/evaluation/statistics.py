"""Paired statistics: intervals that cover, exact tests, and what a test set of this size could have shown.

Stands under `metric_comparison.py` and the judge's calibration. A measure of one model is a `Ratio` of two sums over items;
two models are compared on the same items, drawn together.

Intervals are percentile bootstraps (Efron & Tibshirani 1993, chapter 13), widened as Hesterberg (2015, section 5.3)
proposes: a plain percentile interval is too short by sqrt((n - 1) / n) and takes a normal quantile where a t quantile is
due, and covers 90 % instead of 95 % at 20 items. Heavy tails and long ones widen it further. Tests are sign-flip
permutation tests: were the models equal, each item might as well have had its two answers swapped. They are exact where the
swaps can be counted, else Monte Carlo with a seed (Phipson & Smyth 2010).

The trade: intervals err to the wide side, by a few percent of their width on usual scores; where only a handful of
items changed they are too narrow all the same. `benchmarks/coverage.py` measures both.

Legend of shapes: B resamples, R resamples of one chunk, I items, C columns, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

POWER = 0.8

_MAX_CELLS = 1 << 20  # resamples x items held at once: three arrays of 8 MiB
_MAX_EXPONENT = 100.0  # a larger mean loss is that of a model which has diverged; more, and what follows is no float64
_MAX_COUNTED = 32  # changed items whose 2**32 swaps are counted, two halves of 2**16
_NORMAL = NormalDist()


class Ratio(NamedTuple):
    """A measure of one model: sum(numerators) / sum(denominators), both [I], through exp() where `exponential`.

    An item with denominator 0 is not measured and counts nowhere.
    """

    numerators: Array
    denominators: Array
    exponential: bool = False

    def of_sums(self, numerators: Array, denominators: Array) -> Array:
        """The measure where the sums over items are already taken, whatever their shape; nan where nothing was drawn."""
        ratios = np.full(np.shape(numerators), np.nan)
        np.divide(numerators, denominators, out=ratios, where=np.asarray(denominators) > 0)
        return np.exp(np.minimum(ratios, _MAX_EXPONENT)) if self.exponential else ratios

    def value(self) -> float:
        """The measure over all items, each counted once."""
        return float(self.of_sums(self.numerators.sum(), self.denominators.sum()))


@dataclass(frozen=True, slots=True)
class PermutationTest:
    """`p_value` of a two-sided sign-flip test in 0..1, and whether all swaps were counted (`is_exact`) or sampled."""

    p_value: float
    is_exact: bool


def resampled_differences(
    pairs: Sequence[tuple[Ratio, Ratio]], num_resamples: int, seed: int, max_cells: int = _MAX_CELLS
) -> list[Array]:
    """Tuned - base on every resample, an array [B] a pair; all pairs and both models see the same resamples."""
    columns_CI = np.stack([column_I for pair in pairs for ratio in pair for column_I in ratio[:2]])
    # Equal columns are summed once: faster, and equal models differ by exactly 0 instead of by a rounding.
    distinct_CI, place_C = np.unique(columns_CI, axis=0, return_inverse=True)
    chunks = resampled_counts(columns_CI.shape[1], num_resamples, seed, max_cells)
    sums_CB = np.concatenate([distinct_CI @ counts_RI.T for counts_RI in chunks], axis=1)[place_C.reshape(-1)]
    differences = []
    for (base, tuned), sums_4B in zip(pairs, sums_CB.reshape(len(pairs), 4, num_resamples), strict=True):
        differences.append(tuned.of_sums(sums_4B[2], sums_4B[3]) - base.of_sums(sums_4B[0], sums_4B[1]))
    return differences


def resampled_counts(num_items: int, num_resamples: int, seed: int, max_cells: int = _MAX_CELLS) -> Iterator[Array]:
    """How often each item is in each resample: [R, I], chunk by chunk, at most `max_cells` cells (or one row) each."""
    generator = np.random.Generator(np.random.PCG64(seed))
    chunk_size = max(1, max_cells // num_items)
    for start in range(0, num_resamples, chunk_size):
        size = min(chunk_size, num_resamples - start)
        drawn_RI = generator.integers(num_items, size=(size, num_items))
        drawn_RI += num_items * np.arange(size)[:, None]  # each resample counts in cells of its own
        counts = np.bincount(drawn_RI.reshape(-1), minlength=size * num_items)
        yield counts.reshape(size, num_items).astype(np.float64)


def influences(base: Ratio, tuned: Ratio) -> Array:
    """How much each measured item pulls the difference, [items measured]: for means, its change less the mean change.

    The linear part of the difference as a function of the items' weights (Efron & Tibshirani 1993, section 21.3).
    """
    there_I = (base.denominators > 0) & (tuned.denominators > 0)
    pulls: list[Array] = []
    for ratio in (base, tuned):
        numerators_I, denominators_I = ratio.numerators[there_I], ratio.denominators[there_I]
        mean = float(numerators_I.sum() / denominators_I.sum())
        pull_I = (numerators_I - mean * denominators_I) / denominators_I.mean()
        pulls.append(pull_I * (math.exp(min(mean, _MAX_EXPONENT)) if ratio.exponential else 1.0))
    base_I, tuned_I = pulls
    return tuned_I - base_I


def interval(
    differences_B: Array, num_items: int, confidence: float, influences_I: Array | None = None
) -> tuple[float, float]:
    """The expanded percentile interval: the k-th smallest and k-th largest of the resampled differences.

    k = floor((B + 1) tail), where `tail` = Phi(-sqrt(n / (n - 1)) t) and t is Student's quantile with n - 1 degrees of
    freedom. Order statistics, not interpolations, so that swapping the models flips the interval.

    Where `influences_I` tell the shape of the changes, two more corrections make it wider, never narrower: heavy tails
    leave t fewer degrees of freedom, 2 (n - 1) / (kurtosis - 1), those of the variance's own estimate; and the end on the
    side of the longer tail moves out by |skewness| (t**2 + 2) / (12 sqrt(n)) errors: half of what the expansion of Hall
    (1983) asks, because the other end, which it would move in, stays.
    """
    ordered = np.sort(differences_B[np.isfinite(differences_B)])
    skewness, kurtosis, error = _shape(influences_I) if influences_I is not None else (0.0, 3.0, 0.0)
    degrees = max(1.0, min(num_items - 1.0, 2 * (num_items - 1) / max(kurtosis - 1, 1e-9)))
    t = t_quantile((1 + confidence) / 2, degrees)
    widening = math.sqrt(num_items / (num_items - 1)) if num_items > 1 else 1.0
    k = max(1, int((len(ordered) + 1) * _NORMAL.cdf(-widening * t) + 1e-9))
    stretch = error * skewness * (t**2 + 2) / (12 * math.sqrt(num_items))
    return float(ordered[k - 1]) + min(0.0, stretch), float(ordered[-k]) + max(0.0, stretch)


def fewest_items(confidence: float) -> int:
    """The smallest n with 2**(1 - n) <= 1 - confidence: 6 at 95 %.

    On fewer items no permutation test can show anything, and no interval between what was seen can cover: all n items lie on
    the same side of the middle with probability 2**(1 - n).
    """
    return math.ceil(1 - math.log2(1 - confidence) - 1e-9)


def largest_unseen_share(num_items: int, confidence: float) -> float:
    """The largest share of items that may be otherwise where all of `num_items` were alike: 1 - (1 - confidence)**(1 / n).

    The one-sided interval of Clopper & Pearson (1934) where nothing was seen; about 3 / n at 95 % (the rule of three).
    """
    return float(1 - (1 - confidence) ** (1 / num_items))


def with_average_items(base: Ratio, tuned: Ratio) -> tuple[Ratio, Ratio]:
    """The pair with two average items more: one as they were, and one whose two answers are swapped.

    For changes that are all alike, whose bootstrap is a point: what `with_pseudo_counts` does for shares, on the scale of the
    change that was seen.
    """
    there_I = (base.denominators > 0) & (tuned.denominators > 0)
    means = [(float(one.numerators[there_I].mean()), float(one.denominators[there_I].mean())) for one in (base, tuned)]
    (base_up, base_down), (tuned_up, tuned_down) = means
    return (
        Ratio(
            np.append(base.numerators, [base_up, tuned_up]),
            np.append(base.denominators, [base_down, tuned_down]),
            base.exponential,
        ),
        Ratio(
            np.append(tuned.numerators, [tuned_up, base_up]),
            np.append(tuned.denominators, [tuned_down, base_down]),
            tuned.exponential,
        ),
    )


def _shape(values: Array) -> tuple[float, float, float]:
    """Skewness, kurtosis (3 for a normal shape) and standard error of the mean; (0, 3, 0) where nothing varies."""
    centred = values - values.mean()
    # By a power of two, which rounds nothing: fourth powers of what a diverged model costs are no float64.
    scale = 2.0 ** math.frexp(float(np.abs(centred).max()))[1]
    centred = centred / scale
    variance = float((centred**2).mean())
    if variance * scale * scale <= 1e-24:
        return 0.0, 3.0, 0.0
    error = math.sqrt(variance / max(len(values) - 1, 1)) * scale
    return float((centred**3).mean()) / variance**1.5, float((centred**4).mean()) / variance**2, error


def with_pseudo_counts(base: Ratio, tuned: Ratio) -> tuple[Ratio, Ratio]:
    """The pair with one item more that only `tuned` gets right and one more that only `base` does.

    For shares of items: where few of them changed, a bootstrap knows too little of what it has not seen, and where none
    did its interval is a point. The two pseudo-counts put that right (Bonett & Price 2012, who do so for normal intervals).
    """
    against = [1.0, 0.0] if tuned.numerators.sum() >= base.numerators.sum() else [0.0, 1.0]
    # The item against the change comes first, so that swapping the models flips the interval.
    return (
        Ratio(np.append(base.numerators, against), np.append(base.denominators, [1.0, 1.0])),
        Ratio(np.append(tuned.numerators, against[::-1]), np.append(tuned.denominators, [1.0, 1.0])),
    )


def wilson_interval(share: float, num_items: int, confidence: float) -> tuple[float, float]:
    """Interval of a share of `num_items` (Wilson 1927): inside 0 to 1, and no point where all items agree."""
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    widened = 1 + z**2 / num_items
    middle = (share + z**2 / (2 * num_items)) / widened
    half = z / widened * math.sqrt(share * (1 - share) / num_items + z**2 / (4 * num_items**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def detectable_difference(differences_B: Array, num_items: int, confidence: float) -> float | None:
    """The true difference that a set like this shows in 4 of 5 cases; None where nothing varied.

    (z of the confidence + z of the power) standard errors, the error taken from the bootstrap.
    """
    finite = differences_B[np.isfinite(differences_B)]
    error = float(finite.std()) * math.sqrt(num_items / max(num_items - 1, 1))
    if error <= 1e-12:
        return None
    return (_NORMAL.inv_cdf((1 + confidence) / 2) + _NORMAL.inv_cdf(POWER)) * error


def permutation_tests(changes_PI: Sequence[Array], num_permutations: int, seed: int) -> list[PermutationTest]:
    """One test for each row of changes, tuned - base by item: how likely is so large a sum if every sign is a coin?

    Counted where at most 32 items changed or all changes are equally large; else from `num_permutations` draws of signs,
    the same draws for all rows, the data themselves counted as one more draw.
    """
    found = [_counted_test(changes_I) for changes_I in changes_PI]
    sampled = [index for index, test in enumerate(found) if test is None]
    if sampled:
        values = _sampled_p_values(np.stack([changes_PI[index] for index in sampled]), num_permutations, seed)
        for index, p_value in zip(sampled, values, strict=True):
            found[index] = PermutationTest(p_value, is_exact=False)
    return [test for test in found if test is not None]


def _counted_test(changes_I: Array) -> PermutationTest | None:
    sizes = np.abs(changes_I[changes_I != 0])
    total = abs(float(changes_I.sum()))
    if not len(sizes) or total <= _rounding(sizes):
        return PermutationTest(1.0, is_exact=True)
    if sizes.max() - sizes.min() <= 1e-12 * sizes.max():
        return PermutationTest(_sign_test(len(sizes), round(total / sizes[0])), is_exact=True)
    if len(sizes) > _MAX_COUNTED:
        return None
    half = len(sizes) // 2
    one, other = np.sort(_all_signed_sums(sizes[:half])), np.sort(_all_signed_sums(sizes[half:]))
    # Pairs of halves whose sum reaches the total: for each of `one`, those of `other` from the first that suffices.
    first = np.searchsorted(other, total - _rounding(sizes) - one, side="left")
    num_reached = int((len(other) - first).sum())
    return PermutationTest(min(1.0, 2.0 * num_reached / 2.0 ** len(sizes)), is_exact=True)


def _rounding(sizes: Array) -> float:
    """How far two sums of the same sizes may lie apart and still be equal."""
    return 1e-9 * float(sizes.sum())


def _all_signed_sums(sizes: Array) -> Array:
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def _sign_test(num_changed: int, excess: int) -> float:
    """P(|heads - tails| >= excess) of `num_changed` fair coins, through logarithms."""
    most = (num_changed - excess) // 2
    log_all = math.lgamma(num_changed + 1) - num_changed * math.log(2)
    tail = math.fsum(
        math.exp(log_all - math.lgamma(count + 1) - math.lgamma(num_changed - count + 1)) for count in range(most + 1)
    )
    return min(1.0, 2 * tail)


def _sampled_p_values(changes_PI: Array, num_permutations: int, seed: int) -> list[float]:
    generator = np.random.Generator(np.random.PCG64(seed))
    num_items = changes_PI.shape[1]
    totals_P = np.abs(changes_PI.sum(1)) - 1e-9 * np.abs(changes_PI).sum(1)
    num_reached_P = np.zeros(len(changes_PI), dtype=np.int64)
    chunk_size = max(1, _MAX_CELLS // num_items)
    for start in range(0, num_permutations, chunk_size):
        size = min(chunk_size, num_permutations - start)
        signs_RI = 2.0 * generator.integers(2, size=(size, num_items), dtype=np.int8) - 1.0
        num_reached_P += (np.abs(changes_PI @ signs_RI.T) >= totals_P[:, None]).sum(1)
    return [float(count + 1) / (num_permutations + 1) for count in num_reached_P]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values as they count when all of them are looked at together (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def t_quantile(probability: float, degrees: float) -> float:
    """Student's t quantile from the normal one (Abramowitz & Stegun 26.7.5); within 0.5 % from 5 degrees on.

    Up to two degrees have closed forms (between one and two: that of one). For three and four the series falls short by
    a few percent, on so few items that nothing can be told anyway.
    """
    if degrees < 2:
        return math.tan(math.pi * (probability - 0.5))
    if degrees < 3:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = _NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
