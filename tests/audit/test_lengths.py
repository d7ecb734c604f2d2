"""Lengths as figures: every record is in one bin, bins are of a round width, and the last takes the long tail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.audit.lengths import length_histogram, summarize_lengths
from tuneful.runs.schema import Histogram


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=300))
def test_every_record_is_in_one_bin_and_all_but_the_last_are_of_one_round_width(lengths: list[int]) -> None:
    values = np.array(lengths)
    found = length_histogram(values)
    assert len(found.edges) == len(found.counts) + 1 <= 13
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert count == int(((values >= low) & (values < high)).sum())
    assert sum(found.counts) == len(values)
    widths = np.diff(found.edges)
    assert set(widths[:-1]) <= {found.edges[1]}
    assert str(int(found.edges[1])).rstrip("0") in ("1", "2", "25", "4", "5", "8") or len(found.counts) == 1


def test_the_longest_in_a_hundred_share_the_last_bin() -> None:
    found = length_histogram(np.array([*range(1, 1000), 50_000]))
    assert (found.edges[:2], found.edges[-2:], found.counts[-1]) == ((0, 100), (1100, 50_001), 1)


def test_of_no_record_there_is_no_bin() -> None:
    assert length_histogram(np.zeros(0, dtype=np.int64)) == Histogram((), ())


@pytest.mark.parametrize(("lengths", "spread"), [([7], (7, 7, 7, 7, 7)), (range(101), (50, 50, 95, 99, 100))])
def test_a_spread_is_its_mean_and_percentiles(lengths: list[int], spread: tuple[float, ...]) -> None:
    found = summarize_lengths(np.array(lengths))
    assert (found.mean, found.p50, found.p95, found.p99, found.max) == spread
