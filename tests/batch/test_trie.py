"""Tries: every distinct prefix once, who sees whom, who predicts what; all against brute force over random records."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from tests.doubles.engine import assert_is_trie_of, record, tries

from tuneful.batch.trie import build_trie, common_prefix, cut_blocks, draw, token_order, visible
from tuneful.types import Example

A, B, C, D, X, Y, Z = range(1, 8)
THREE = [record([A], [B, C, X]), record([A], [B, D]), record([A], [B, D, Y, Z])]  # the records of the design's drawing


def test_the_drawing_of_the_design_is_what_is_built():
    batch = build_trie(THREE)
    assert batch.input_ids.tolist() == [A, B, C, D, Y]
    assert batch.positions.tolist() == [0, 1, 2, 2, 3]
    assert batch.subtree_end.tolist() == [5, 5, 3, 5, 5]
    targets = zip(batch.target_rows.tolist(), batch.target_ids.tolist(), batch.target_weights.tolist(), strict=True)
    assert list(targets) == [(0, B, 3), (1, C, 1), (1, D, 2), (2, X, 1), (3, Y, 1), (4, Z, 1)]
    assert batch.num_record_tokens == 12
    assert batch.target_weights.sum() == 9


def test_blocks_are_cut_as_drawn():
    blocks = cut_blocks(build_trie(THREE), 48)
    assert [block.queries.tolist() for block in blocks] == [[0, 1, 2], [3, 4]]
    assert [block.path.tolist() for block in blocks] == [[0, 1, 2], [0, 1, 3, 4]]
    halves = cut_blocks(build_trie(THREE), 2)
    assert [block.queries.tolist() for block in halves] == [[0, 1], [2], [3, 4]]
    assert [block.path.tolist() for block in halves] == [[0, 1], [0, 1, 2], [0, 1, 3, 4]]


def test_under_a_window_a_path_begins_with_the_first_node_that_the_blocks_first_query_sees():
    batch = build_trie(THREE)
    paths = {window: [block.path.tolist() for block in cut_blocks(batch, 48, window)] for window in (1, 2, 3, 4)}
    assert paths == {
        1: [[0, 1, 2], [3, 4]],
        2: [[0, 1, 2], [1, 3, 4]],
        3: [[0, 1, 2], [0, 1, 3, 4]],
        4: [[0, 1, 2], [0, 1, 3, 4]],
    }
    assert [block.path.tolist() for block in cut_blocks(batch, 2, 1)] == [[0, 1], [2], [3, 4]]
    assert [row.nonzero()[0].tolist() for row in visible(batch, 2)] == [[0], [0, 1], [1, 2], [1, 3], [3, 4]]


def test_a_trie_is_drawn_as_text():
    lines = draw(build_trie(THREE), lambda token_id: ".abcdxyz"[token_id]).splitlines()
    assert lines[0].split() == ["a", "->", "b", "x3"]
    assert lines[1].split() == ["b", "->", "c", "x1,", "d", "x2"]
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 4, 6]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tries(prompt_weights=(0.0, 1.0, 0.3)))
def test_random_tries_hold_every_prefix_once_and_every_target(examples):
    assert_is_trie_of(build_trie(examples), examples)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tries(prompt_weights=(0.0, 1.0, 0.3)))
def test_each_record_finds_its_own_targets_in_the_order_given(examples):
    batch = build_trie(examples)
    assert len(batch.record_targets) == len(examples)
    for example, own in zip(examples, batch.record_targets, strict=True):
        assert batch.target_ids[own].tolist() == example.token_ids[example.weights > 0].tolist()
        assert batch.positions[batch.target_rows[own]].tolist() == (np.flatnonzero(example.weights) - 1).tolist()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tries())
def test_the_order_of_the_records_changes_nothing_in_the_trie(examples):
    there, back = build_trie(examples), build_trie(examples[::-1])
    for name in ("input_ids", "positions", "subtree_end", "target_rows", "target_ids", "target_weights"):
        assert np.array_equal(getattr(there, name), getattr(back, name)), name


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tries())
def test_unshared_records_are_branches_of_their_own_in_the_order_given(examples):
    batch = build_trie(examples, share=False)
    assert batch.input_ids.tolist() == [token for example in examples for token in example.token_ids[:-1]]
    owner = np.repeat(np.arange(len(examples)), [len(example) - 1 for example in examples])
    node = np.arange(batch.num_nodes)
    assert np.array_equal(visible(batch), (owner[:, None] == owner) & (node[:, None] >= node))
    assert batch.target_weights.sum() == pytest.approx(sum(float(example.weights.sum()) for example in examples))


def test_identical_records_cost_once_and_weigh_twice():
    once, twice = build_trie(THREE[:1]), build_trie([THREE[0], THREE[0]])
    assert twice.num_nodes == once.num_nodes
    assert twice.target_weights.tolist() == (2 * once.target_weights).tolist()


def test_sort_keys_compare_as_tokens_do_a_prefix_first():
    ids = [[1, 2, 9], [1, 2, 0, 9], [1, 256, 9], [1, 3, 9], [70_000, 9], [255, 9]]
    keys = [token_order(record(tokens[:1], tokens[1:])) for tokens in ids]
    by_key = [tokens[:-1] for _, tokens in sorted(zip(keys, ids, strict=True), key=lambda pair: pair[0])]
    assert by_key == sorted(tokens[:-1] for tokens in ids)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 2, 3], [1, 2, 3], 2),  # the last tokens predict nothing: they are not stored
        ([1, 2], [1, 2, 3], 1),
        ([2, 1], [1, 2], 0),
    ],
)
def test_common_prefixes_leave_the_last_tokens_out(first, second, shared):
    examples = [record(tokens[:1], tokens[1:]) for tokens in (first, second)]
    assert common_prefix(*examples) == common_prefix(*examples[::-1]) == shared


def test_a_record_that_is_only_context_cannot_be_made():
    with pytest.raises(AssertionError, match="without a target"):
        Example(np.array([1, 2], np.int32), np.zeros(2, np.float32), 2, "a.json:1")


def test_an_empty_batch_is_refused():
    with pytest.raises(AssertionError, match="without records"):
        build_trie([])


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda batch: replace(batch, subtree_end=np.full_like(batch.subtree_end, batch.num_nodes)),
        lambda batch: replace(batch, positions=np.where(np.arange(5) == 3, 0, batch.positions).astype(np.int32)),
        lambda batch: replace(batch, target_weights=np.minimum(batch.target_weights, 1)),
        lambda batch: replace(
            batch,
            target_rows=batch.target_rows[:-1],
            target_ids=batch.target_ids[:-1],
            target_weights=batch.target_weights[:-1],
        ),
    ],
    ids=["a sibling made visible", "positions restarted", "a merged weight lost", "the last target dropped"],
)
def test_brute_force_notices(corrupt):
    batch = build_trie(THREE)
    assert_is_trie_of(batch, THREE)
    with pytest.raises(AssertionError):
        assert_is_trie_of(corrupt(batch), THREE)
