"""Shares of a step: every record once, pairs whole, and the dearest share as cheap as a cut between neighbours can make it."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.doubles.pairs import random_pairs

from tuneful.batch import shares
from tuneful.batch.shares import costs_of, cut_shares, share_examples
from tuneful.batch.trie import build_trie, token_order
from tuneful.train.distributed import ProcessGroup
from tuneful.types import Example, sides_of

LAYOUTS = ("trie", "unshared", "padded")


def example(ids: list[int], num_targets: int = 1) -> Example:
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[-num_targets:] = 1
    return Example(np.array(ids, dtype=np.int32), weights, len(ids) - num_targets, "a record")


def nodes(share: list[Example]) -> int:
    return build_trie([side for one in share for side in sides_of(one)]).num_nodes if share else 0


records = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12).map(example), max_size=24)
"""Of three tokens: most of them share prefixes."""


def shares_by_tokens(examples: list[Example], count: int) -> list[list[Example]]:
    """Each record where its middle falls among all tokens as given: what a weight that knows no trie makes."""
    ordered = sorted(examples, key=token_order)
    lengths = np.array([len(one) for one in ordered], dtype=float)
    owners = np.floor((np.cumsum(lengths) - lengths / 2) * count / lengths.sum()).astype(int)
    return [[one for one, owner in zip(ordered, owners, strict=True) if owner == rank] for rank in range(count)]


@given(records, st.integers(1, 8), st.sampled_from(LAYOUTS))
def test_every_record_is_in_exactly_one_share(examples: list[Example], count: int, layout: str) -> None:
    found = share_examples(examples, count, layout, 0.3)
    assert len(found) == count
    assert sorted(id(one) for share in found for one in share) == sorted(map(id, examples))


@given(records.filter(bool), st.integers(1, 8))
def test_what_a_share_costs_is_the_nodes_of_its_trie(examples: list[Example], count: int) -> None:
    ordered = sorted(examples, key=token_order)
    costs = costs_of(ordered, "trie", 0)
    for part in cut_shares(costs, count):
        cost = costs.alone[part.start] + sum(costs.added[part.start + 1 : part.stop])
        assert cost == 256 * nodes(ordered[part])


@given(records.filter(bool), st.integers(1, 8))
def test_the_largest_share_is_near_the_mean(examples: list[Example], count: int) -> None:
    """Off by no more than one whole record, which is also what a prefix that is cut apart costs."""
    largest = max(map(nodes, share_examples(examples, count, "trie", 0)))
    assert largest <= nodes(examples) / count + max(len(one) - 1 for one in examples)


@given(records.filter(bool).map(lambda rows: rows[:8]), st.integers(1, 4), st.sampled_from([0.0, 0.4, 3.0]))
def test_no_cut_between_neighbours_has_a_cheaper_largest_share(
    examples: list[Example], count: int, target_cost: float
) -> None:
    costs = costs_of(sorted(examples, key=token_order), "trie", target_cost)

    def largest(stops: tuple[int, ...]) -> int:
        parts = pairwise([0, *stops, len(costs.added)])
        return max(costs.alone[a] + sum(costs.added[a + 1 : b]) for a, b in parts)

    size = len(costs.added)
    best = min(
        largest(stops) for num_cuts in range(min(count, size)) for stops in combinations(range(1, size), num_cuts)
    )
    found = cut_shares(costs, count)
    assert len(found) <= count
    assert largest(tuple(part.stop for part in found[:-1])) == best


def test_records_of_one_long_prefix_weigh_what_they_compute() -> None:
    """16 records of 250 tokens that share 200 of them compute 1,000 nodes, 16 others of 250 compute 4,000."""
    generator = np.random.default_rng(0)
    prefix = [0, *generator.integers(0, 50, 199).tolist()]
    alike = [example([*prefix, *generator.integers(0, 50, 50).tolist()]) for _ in range(16)]
    apart = [example([1, *generator.integers(0, 50, 249).tolist()]) for _ in range(16)]
    even = nodes([*alike, *apart]) / 4
    by_nodes = max(map(nodes, share_examples([*alike, *apart], 4, "trie", 0)))
    by_tokens = max(map(nodes, shares_by_tokens([*alike, *apart], 4)))
    assert by_nodes <= 1.15 * even
    assert by_tokens >= 1.5 * even


def test_a_target_weighs_as_much_as_the_head_takes() -> None:
    """Two records are all targets, four have one each: with a head as dear as the layers the two weigh as much as the four."""
    trained = [example([index, *range(10, 21)], 10) for index in range(2)]
    asked = [example([index, *range(10, 21)], 1) for index in range(2, 6)]
    assert [len(share) for share in share_examples([*trained, *asked], 2, "trie", 0)] == [3, 3]
    assert [len(share) for share in share_examples([*trained, *asked], 2, "trie", 1)] == [2, 4]


def test_a_pair_stays_together_and_counts_with_both_sides() -> None:
    pairs = random_pairs(12)
    found = share_examples(pairs, 3, "trie", 0)
    assert sorted(id(one) for share in found for one in share) == sorted(map(id, pairs))
    even = nodes(pairs) / 3
    assert max(map(nodes, found)) <= even + max(nodes([pair]) for pair in pairs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_sorted_once_for_all_ranks(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Example] = []

    def noted(one: Example) -> bytes:
        asked.append(one)
        return token_order(one)

    for name in ("token_order", "longest_side"):
        monkeypatch.setattr(shares, name, noted)
    examples = [example([index % 7, index, 3]) for index in range(50)]
    ProcessGroup(3, 64).shares(examples, layout)
    assert len(asked) == 50
