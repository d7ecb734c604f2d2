"""The padded batch: the specification's worked example to the number, and a plain rewriting of its text as the oracle."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuneful.batch.collate import IGNORE_INDEX, custom_collate_fn, pad_examples
from tuneful.types import Example

BATCH = [[1, 2, 3, 4, 5], [10, 11, 12], [20, 21, 22, 23, 24, 25]]


def test_the_worked_example_of_the_specification() -> None:
    inputs, targets = custom_collate_fn([[1, 2, 3], [20, 21, 22, 23, 24, 25]])
    assert inputs.tolist() == [[1, 2, 3, 50256, 50256, 50256], [20, 21, 22, 23, 24, 25]]
    assert targets.tolist() == [[2, 3, 50256, -100, -100, -100], [21, 22, 23, 24, 25, 50256]]
    assert inputs.dtype == targets.dtype == torch.int64
    assert custom_collate_fn(BATCH)[0].shape == (3, 6)


def test_an_end_token_is_added_to_every_record_and_the_first_one_is_learned() -> None:
    inputs, targets = custom_collate_fn(BATCH)
    assert inputs[0].tolist() == [1, 2, 3, 4, 5, 50256]
    assert targets[0].tolist() == [2, 3, 4, 5, 50256, -100]
    assert (targets == 50256).sum(1).tolist() == [1, 1, 1]


def test_rows_are_cut_to_the_allowed_length() -> None:
    inputs, targets = custom_collate_fn(BATCH, allowed_max_length=4)
    assert inputs.tolist() == [[1, 2, 3, 4], [10, 11, 12, 50256], [20, 21, 22, 23]]
    assert targets.tolist() == [[2, 3, 4, 5], [11, 12, 50256, -100], [21, 22, 23, 24]]


def test_pad_token_and_ignored_index_are_the_callers_to_choose() -> None:
    inputs, targets = custom_collate_fn([[1], [2, 3, 4]], pad_token_id=0, ignore_index=-1)
    assert inputs.tolist() == [[1, 0, 0], [2, 3, 4]]
    assert targets.tolist() == [[0, -1, -1], [3, 4, 0]]


def test_torch_counts_the_loss_over_kept_targets_only() -> None:
    inputs, targets = custom_collate_fn([[1, 2], [3, 4, 5, 6]], pad_token_id=0)
    logits = torch.randn(*inputs.shape, 7, generator=torch.Generator().manual_seed(0))
    both = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    kept = (targets != IGNORE_INDEX).flatten()
    assert torch.equal(both, torch.nn.functional.cross_entropy(logits.flatten(0, 1)[kept], targets.flatten()[kept]))


def specified(batch: list[list[int]], pad: int, ignore: int, allowed: int | None) -> tuple[list[Any], list[Any]]:
    """The specification's steps in plain lists, one after the other."""
    longest = max(len(item) + 1 for item in batch)
    all_inputs, all_targets = [], []
    for item in batch:
        new_item = [*item, pad]
        padded = new_item + [pad] * (longest - len(new_item))
        inputs, targets = padded[:-1], padded[1:]
        seen = 0
        for index, target in enumerate(targets):
            if target == pad:
                seen += 1
                if seen > 1:
                    targets[index] = ignore
        all_inputs.append(inputs if allowed is None else inputs[:allowed])
        all_targets.append(targets if allowed is None else targets[:allowed])
    return all_inputs, all_targets


batches = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=5)


@given(batches, st.integers(0, 12), st.sampled_from([-100, -1]), st.none() | st.integers(1, 9))
def test_every_batch_is_as_the_specification_builds_it(
    batch: list[list[int]], pad: int, ignore: int, allowed: int | None
) -> None:
    """Pads that occur inside a record, as the specification has it, count as the first one too."""
    inputs, targets = custom_collate_fn(batch, pad, ignore, allowed)
    assert (inputs.tolist(), targets.tolist()) == specified(batch, pad, ignore, allowed)


def example(token_ids: list[int], weights: list[float]) -> Example:
    return Example(np.array(token_ids, np.int32), np.array(weights, np.float32), 1, "here:1")


def test_examples_are_padded_with_their_weights() -> None:
    inputs, targets, weights = pad_examples([example([1, 2, 3, 9], [0, 0, 1, 0.5]), example([4, 9], [0, 1])], 0)
    assert inputs.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert targets.tolist() == [[-100, 3, 9], [9, -100, -100]]
    assert weights.tolist() == [[0, 1, 0.5], [1, 0, 0]]


@given(batches)
def test_examples_weighted_whole_are_the_specifications_batch(batch: list[list[int]]) -> None:
    end = 99
    examples = [example([*item, end], [0.0] + [1.0] * len(item)) for item in batch]
    inputs, targets, weights = pad_examples(examples, end)
    expected_inputs, expected_targets = custom_collate_fn(batch, end)
    assert torch.equal(inputs, expected_inputs)
    assert torch.equal(targets, expected_targets)
    assert torch.equal(weights, (targets != IGNORE_INDEX).float())
