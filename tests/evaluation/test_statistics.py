"""The statistics by brute force, by hand and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.evaluation.statistics import (
    Ratio,
    detectable_difference,
    fewest_items,
    holm,
    influences,
    interval,
    largest_unseen_share,
    permutation_tests,
    resampled_counts,
    resampled_differences,
    t_quantile,
    wilson_interval,
    with_average_items,
    with_pseudo_counts,
)


def ratio(*numerators: float, denominators: list[float] | None = None) -> Ratio:
    return Ratio(np.array(numerators), np.array(denominators or [1.0] * len(numerators)))


def brute_force_p(changes: list[float]) -> float:
    """Every way to swap, one by one."""
    total = abs(sum(changes)) - 1e-9
    sums = [abs(sum(s * c for s, c in zip(signs, changes, strict=True))) for signs in
            itertools.product((1, -1), repeat=len(changes))]  # fmt: skip
    return sum(one >= total for one in sums) / len(sums)


@given(st.lists(st.sampled_from([-0.5, -0.25, -0.1, 0.0, 0.1, 0.1, 0.3, 1.0]), min_size=1, max_size=11))
def test_the_counted_test_is_the_brute_force_one(changes: list[float]) -> None:
    [test] = permutation_tests([np.array(changes)], 100, 0)
    assert test.is_exact
    assert test.p_value == pytest.approx(brute_force_p(changes))


@pytest.mark.parametrize(("gained", "lost", "p_value"), [(5, 0, 2 / 32), (6, 0, 2 / 64), (9, 1, 22 / 1024), (3, 3, 1)])
def test_right_or_wrong_is_the_sign_test_by_hand(gained: int, lost: int, p_value: float) -> None:
    changes = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 50)
    [test] = permutation_tests([changes], 100, 0)
    assert test.p_value == pytest.approx(p_value)
    assert test.is_exact


def test_the_sign_test_counts_thousands_of_items() -> None:
    changes = np.array([1.0] * 5200 + [-1.0] * 4800)
    [test] = permutation_tests([changes], 100, 0)
    assert test.is_exact
    assert test.p_value == pytest.approx(math.erfc(399 / 100 / math.sqrt(2)), rel=0.01)  # normal, with its correction


def test_what_is_too_many_to_count_is_sampled_and_agrees() -> None:
    generator = np.random.default_rng(0)
    changes = generator.normal(0.2, 1, 32)
    [counted] = permutation_tests([changes], 100, 0)
    more = np.concatenate([changes, [1e-12, -1e-12]])  # two items more than are counted, which change nothing
    [sampled] = permutation_tests([more], 20_000, 0)
    assert counted.is_exact
    assert not sampled.is_exact
    assert sampled.p_value == pytest.approx(counted.p_value, abs=0.01)


def test_a_sampled_p_value_is_never_nought() -> None:
    [test] = permutation_tests([np.linspace(0.5, 1, 60)], 999, 0)
    assert test.p_value == 1 / 1000


def test_rows_are_tested_together_as_they_would_be_alone() -> None:
    generator = np.random.default_rng(1)
    rows = [generator.normal(0.1, 1, 50), np.sign(generator.normal(0, 1, 50)), generator.normal(0.3, 1, 50)]
    assert permutation_tests(rows, 500, 7) == [permutation_tests([row], 500, 7)[0] for row in rows]


def test_the_interval_counts_from_both_ends() -> None:
    differences = np.random.default_rng(0).permutation(np.arange(1, 1000, dtype=np.float64))  # 999 draws
    # 1000 items: sqrt(n / (n - 1)) t = 1.9633, a tail of 2.48 %: the 24th from either end
    assert interval(differences, 1000, 0.95) == (24, 976)
    # 10 items: 1.0541 * 2.2622 = 2.3846, a tail of 0.855 %
    assert interval(differences, 10, 0.95) == (8, 992)
    assert interval(np.append(differences, np.nan), 1000, 0.95) == (24, 976)
    assert interval(differences[:50], 10, 0.95) == (differences[:50].min(), differences[:50].max())


def test_heavy_and_long_tails_make_the_interval_wider_on_their_side_and_never_narrower() -> None:
    generator = np.random.default_rng(0)
    base = ratio(*[0.0] * 60)
    shapes = {
        "even": generator.uniform(-1, 1, 60),
        "heavy": generator.standard_t(2, 60),
        "long": generator.exponential(1, 60) ** 2,
    }
    for name, changes in shapes.items():
        pair = (base, ratio(*changes))
        [differences] = resampled_differences([pair], 2000, 0)
        low, high = interval(differences, 60, 0.95)
        wide_low, wide_high = interval(differences, 60, 0.95, influences(*pair))
        assert wide_low <= low
        assert wide_high >= high
        if name == "even":
            assert wide_high - wide_low < 1.02 * (high - low)
        if name == "heavy":
            assert wide_high - wide_low > 1.02 * (high - low)
        if name == "long":
            assert wide_high - high > 3 * (low - wide_low)


def test_influences_are_what_an_item_more_or_less_would_do() -> None:
    """Against the difference recomputed with one item weighing a little more."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(1, 20, 12).astype(float)
    base, tuned = (Ratio(generator.gamma(2, 1, 12) * tokens, tokens, exponential=True) for _ in range(2))

    def difference(weights: np.ndarray) -> float:
        before, after = (
            Ratio(one.numerators * weights, one.denominators * weights, exponential=True) for one in (base, tuned)
        )
        return after.value() - before.value()

    for index in range(12):
        weights = np.ones(12)
        weights[index] += 1e-6
        slope = (difference(weights) - difference(np.ones(12))) / 1e-6
        assert influences(base, tuned)[index] / 12 == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (5, 2.5706), (9, 2.2622), (19, 2.0930), (49, 2.0096), (130, 1.9784), (10**6, 1.96)],
)
def test_students_quantile_is_the_one_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, rel=0.005)
    assert t_quantile(0.025, degrees) == pytest.approx(-quantile, rel=0.005)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_chunks_change_nothing_and_hold_no_more_than_their_cells() -> None:
    generator = np.random.default_rng(0)
    pairs = [(ratio(*generator.random(30)), ratio(*generator.random(30))) for _ in range(5)]
    whole, cut = (resampled_differences(pairs, 200, 0, max_cells) for max_cells in (10**6, 7 * 30 + 1))
    np.testing.assert_allclose(whole, cut, rtol=0, atol=1e-12)
    chunks = list(resampled_counts(30, 100, seed=0, max_cells=1000))
    assert [len(chunk_RI) for chunk_RI in chunks] == [33, 33, 33, 1]
    assert all((chunk_RI.sum(axis=1) == 30).all() for chunk_RI in chunks)


def test_where_all_items_are_alike_what_was_not_seen_is_bounded_as_binomials_are() -> None:
    """Were the share larger, n items alike would have been seen in less than one case of twenty."""
    for num_items in (6, 20, 130):
        share = largest_unseen_share(num_items, 0.95)
        assert (1 - share) ** num_items == pytest.approx(0.05)
        assert share < 3 / num_items  # the rule of three, an upper bound of it
    generator = np.random.default_rng(0)
    seen = (generator.random((4000, 20)) < 0.1).any(axis=1)  # one item in ten is otherwise: below the bound of 13.9 %
    assert largest_unseen_share(20, 0.95) > 0.1
    assert (~seen).mean() == pytest.approx(0.9**20, abs=0.02)


def test_fewer_items_than_a_test_needs_have_no_interval() -> None:
    assert [fewest_items(confidence) for confidence in (0.5, 0.9, 0.95, 0.99)] == [2, 5, 6, 8]


def test_average_items_are_one_as_seen_and_one_swapped() -> None:
    base, tuned = ratio(1.0, 3.0, denominators=[1.0, 3.0]), ratio(2.0, 6.0, denominators=[1.0, 3.0])
    before, after = with_average_items(base, tuned)
    assert before.numerators.tolist() == [1, 3, 2, 4]
    assert after.numerators.tolist() == [2, 6, 4, 2]
    assert before.denominators.tolist() == after.denominators.tolist() == [1, 3, 2, 2]
    assert after.value() - before.value() == pytest.approx(0.5)


def test_an_item_that_was_not_measured_counts_nowhere() -> None:
    with_gap = ratio(1.0, 3.0, 0.0, denominators=[1.0, 1.0, 0.0])
    assert with_gap.value() == 2
    [differences] = resampled_differences([(with_gap, with_gap)], 200, 0)
    assert np.isnan(differences).any()  # a draw of nothing but the gap
    assert interval(differences, 2, 0.95) == (0, 0)


def test_imagined_items_are_a_win_and_a_loss_and_swapping_the_models_swaps_them() -> None:
    base, tuned = ratio(1.0, 0.0, 0.0), ratio(1.0, 1.0, 1.0)
    one, other = with_pseudo_counts(base, tuned)
    assert (other.numerators - one.numerators).tolist() == [0, 1, 1, -1, 1]
    back, forth = with_pseudo_counts(tuned, base)
    assert (forth.numerators - back.numerators).tolist() == [0, -1, -1, 1, -1]


def test_the_detectable_difference_is_detected_in_four_of_five_cases() -> None:
    """The promise of the word, by simulation: normal changes of 1, so an error of 0.1 on 100 items."""
    generator = np.random.default_rng(0)
    pair = (ratio(*[0.0] * 100), ratio(*generator.normal(0, 1, 100)))
    found = detectable_difference(resampled_differences([pair], 2000, 0)[0], 100, 0.95)
    assert found == pytest.approx((1.96 + 0.8416) * pair[1].numerators.std(ddof=1) / 10, rel=0.04)
    means = generator.normal(0.28, 0.1, 20_000)
    assert (means > 0.196).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(np.zeros(100), 10, 0.95) is None


def test_wilson_agrees_with_the_published_example() -> None:
    """Newcombe (1998), table I: 81 of 263, and 0 of 20, and 1 of 29, at 95 %."""
    for hits, num_items, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert wilson_interval(hits / num_items, num_items, 0.95) == pytest.approx((low, high), abs=1e-4)
