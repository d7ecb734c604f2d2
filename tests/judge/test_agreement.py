"""Kappa and Spearman by hand-worked values, and ratings files whose every fault is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.errors import DataError
from tuneful.judge.agreement import agree, read_ratings, spearman, spearman_interval, weighted_kappa
from tuneful.types import Verdict


def test_weighted_kappa_by_hand():
    # Squared distances 0 + 0 + 1 + 1 = 2. By chance each of (0, 1, 2, 2) meets each of (0, 1, 1, 3): 11 + 5 + 7 + 7 = 30, over 4.
    assert weighted_kappa([0, 1, 2, 2], [0, 1, 1, 3], 5) == pytest.approx(1 - 2 / (30 / 4))
    assert weighted_kappa([0, 1, 2, 4], [0, 1, 2, 4], 5) == 1
    assert weighted_kappa([0, 0, 4, 4], [4, 4, 0, 0], 5) == -1
    assert weighted_kappa([2, 2, 2], [2, 2, 2], 5) is None


def test_spearman_by_hand():
    # Ranks 1 2 3 4 5 against 2 1 4 3 5: sum of squared differences 4, 1 - 6 * 4 / (5 * 24) = 0.8.
    assert spearman(np.array([10.0, 20, 30, 40, 50]), np.array([2.0, 1, 4, 3, 5])) == pytest.approx(0.8)
    # Ties share their mean rank: (1.5, 1.5, 3, 4) against (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5).
    assert spearman(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=30))
def test_spearman_is_symmetric_bounded_and_blind_to_scale(pairs):
    first, second = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    found = spearman(first, second)
    assert found == spearman(second, first)
    assert found is None or -1 <= found <= 1
    assert found is None or spearman(first**3 + 7, second) == pytest.approx(found)


def test_the_interval_of_a_rank_correlation_by_hand():
    # r = 0.6, n = 28: z = 0.693147, error = sqrt(1.18 / 25) = 0.217256; 95 %: 0.267334 .. 1.118961.
    assert spearman_interval(0.6, 28, 0.95) == pytest.approx((math.tanh(0.2673336), math.tanh(1.1189607)), abs=1e-5)
    assert spearman_interval(1.0, 28, 0.95) == (None, None)  # the z of 1 is infinite


def verdict(n: int, score: float | None) -> Verdict:
    return Verdict(f"t:{n}", "j", "score", score, None if score is not None else "no", "")


def rated(folder: Path, rows: list[object]) -> Path:
    file = folder / "ratings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_stars_and_points_say_the_same(tmp_path: Path):
    verdicts = [verdict(n, score) for n, score in enumerate((0, 25, 50, 75, 100, None))]
    stars = read_ratings(rated(tmp_path, [{"source": f"t:{n}", "rating": n + 1} for n in range(5)]))
    points = read_ratings(rated(tmp_path, [{"source": f"t:{n}", "rating": 25 * n} for n in range(5)]))
    assert stars == points == {f"t:{n}": n / 4 for n in range(5)}
    found = agree(verdicts, {**stars, "t:5": 0.5, "t:99": 0.1}, 0.95)
    assert (found.num_items, found.num_unmatched, found.kappa, found.spearman) == (5, 2, 1, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"source": "a", "rating": 3}, {"source": "a", "rating": 4}], "ratings.jsonl:2: a is rated twice"),
        ([{"source": "a", "rating": True}], "ratings.jsonl:1: `rating` is True"),
        ([{"source": "a", "rating": 101}], "`rating` is 101"),
        ([{"source": "a"}], "`rating` is None"),
        ([{"rating": 3}], "expected an object with `source` and `rating`"),
        ([[3]], "expected an object"),
        ([{"source": "a", "rating": 0}, {"source": "b", "rating": 4}], "1 to 5, or 0 to 100"),
        ([], "holds no rating"),
    ],
)
def test_a_ratings_file_that_cannot_be_used_is_named(tmp_path: Path, rows: list[object], message: str):
    with pytest.raises(DataError) as refused:
        read_ratings(rated(tmp_path, rows))
    assert message in str(refused.value)


def test_too_few_ratings_of_scored_answers_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="only 1 of 2 ratings are of answers that the judge scored"):
        agree([verdict(1, 50)], {"t:1": 0.5, "t:2": 0.5}, 0.95)


def test_preferences_of_the_page_are_no_grades_and_the_message_says_where_they_go(tmp_path: Path):
    with pytest.raises(DataError, match=r"ratings.jsonl:1: holds a preference .* without --ratings"):
        read_ratings(rated(tmp_path, [{"source": "t:1", "rater": "ada", "preference": "a"}]))
