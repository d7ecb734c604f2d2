"""Numbers as people read them, on the page and on the terminal."""

from __future__ import annotations

import pytest

from tuneful import numbers


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (2.309, "2.31"),
        (0.02134, "0.0213"),
        (1234.5, "1,234"),
        (-0.5, "−0.500"),
        (None, "–"),
        (5e-6, "5.00 × 10⁻⁶"),
    ],
)
def test_three_digits_are_significant(number: float | None, text: str) -> None:
    assert numbers.significant(number).replace(numbers.THIN, " ") == text


def test_a_difference_carries_its_sign_and_zero_none() -> None:
    differences = (0.27, -0.27, 0.001, -0.001, None)
    assert [numbers.signed(value, 2) for value in differences] == ["+0.27", "−0.27", "0.00", "0.00", "–"]


def test_figures_of_one_row_share_their_decimals() -> None:
    assert numbers.decimals_for(0.21, 0.48) == 3
    assert numbers.decimals_for(48.0, -36.8) == 1
    assert numbers.decimals_for(0.0, None) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.81, "0.81 s"), (41.2, "41 s"), (59.9, "1 min 00 s"), (201, "3 min 21 s"), (7512, "2 h 05 min")],
)
def test_spans_of_time_are_in_the_units_of_their_size(seconds: float, text: str) -> None:
    assert numbers.duration(seconds).replace(numbers.THIN, " ") == text


def test_counts_shares_and_sizes() -> None:
    assert numbers.count(1298) == "1,298"
    assert numbers.percent(0.238).replace(numbers.THIN, " ") == "23.8 %"
    assert numbers.percent(1.0).replace(numbers.THIN, " ") == "100 %"
    assert numbers.storage(16_777_216_000).replace(numbers.THIN, " ") == "15.6 GiB"
    assert numbers.plain(5e-5).replace(numbers.THIN, " ") == "5 × 10⁻⁵"
    assert numbers.plural(1, "row") == "1 row"
    assert [numbers.compact(value) for value in (400, 2500, 20_000, 1_500_000)] == ["400", "2,500", "20k", "1.5M"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (201, "3 min"), (5399, "90 min"), (5400, "1.5 h"), (7512, "2.1 h")],
)
def test_an_estimated_span_of_time_is_rough(seconds: float, text: str) -> None:
    assert numbers.rough_duration(seconds) == text


def test_a_small_share_is_under_one_percent_and_no_share_is_none() -> None:
    shares = (1.0, 0.983, 0.01, 0.0099, 0.0)
    texts = [numbers.rough_percent(share).replace(numbers.NO_BREAK, " ") for share in shares]
    assert texts == ["100 %", "98 %", "1 %", "under 1 %", "0 %"]
