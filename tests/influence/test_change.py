"""Tokens count by what training raised them: against transformers' logits, and by what is left of a weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.influence.test_scores import adapted, records

from tuneful.influence.change import counted_by, target_log_probs


def test_log_probabilities_are_those_of_the_logits() -> None:
    model, examples = adapted(), records(3, 5)
    for example, found in zip(examples, target_log_probs(model, examples), strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(example.token_ids).long()[None]).logits[0]
        targets = np.flatnonzero(example.weights)
        wanted = logits.log_softmax(-1)[targets - 1, example.token_ids[targets]]
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-12)


def test_a_token_counts_by_what_it_rose_and_one_that_fell_not_at_all() -> None:
    (example,) = records(1, 5)
    targets = np.flatnonzero(example.weights)
    gains = np.arange(len(targets), dtype=np.float64) - 1.0
    found = counted_by(gains, example)
    rose = np.maximum(gains, 0.0)
    np.testing.assert_allclose(found.weights[targets], rose * len(targets) / rose.sum(), rtol=1e-6)
    assert found.weights.sum() == pytest.approx(example.weights.sum())
    assert found.weights[: targets[0]].max() == 0


@pytest.mark.parametrize("rose", [-0.5, 0.0, 0.01])
def test_where_nothing_rose_but_by_rounding_all_tokens_count_as_they_did(rose: float) -> None:
    (example,) = records(1, 5)
    gains = np.full(int((example.weights > 0).sum()), -0.5)
    gains[0] = rose
    assert counted_by(gains, example) is example
