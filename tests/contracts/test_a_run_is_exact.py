"""Fifty steps of the engine are fifty steps of the classical padded loop: the run of `benchmarks/exactness.py`, in small.

The benchmark trains the built-in model; here a random two-layer Llama reads the starter set word by word.
"""

import json
import re
from dataclasses import replace

import pytest
from tests.doubles.engine import record, tiny_model
from tests.doubles.padded_loop import TOLERANCE, compare

from tuneful.batch.trie import build_trie
from tuneful.config import TrainConfig
from tuneful.data.sources import STARTER_FILE
from tuneful.train import loss

CONFIG = TrainConfig(max_steps=50, batch_size=8, learning_rate=1e-3, eval_steps=1000)
VOCABULARY = 1000


@pytest.fixture(scope="module")
def examples():
    """The starter set with a token for each of the first words met, 1 for any other, 0 for the end."""
    rows = json.loads(STARTER_FILE.read_text(encoding="utf-8"))[:400]
    known: dict[str, int] = {}

    def ids(text):
        words = re.findall(r"\w+|[^\w\s]", text)
        return [
            known.setdefault(word, len(known) + 2) if len(known) < VOCABULARY - 2 else known.get(word, 1)
            for word in words
        ]

    preamble = (
        "Below is an instruction that describes a task. Write a response that completes the request. Instruction:"
    )
    return [
        record(ids(f"{preamble} {row['instruction']} {row['input']} Response:"), [*ids(row["output"]), 0])
        for row in rows
    ]


def make_model():
    return tiny_model(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, initializer_range=0.05)


def test_fifty_steps_equal_the_padded_oracles(examples):
    result = compare(make_model, examples, CONFIG)
    assert len(result.trie) == len(result.padded) == 50
    assert result.trie[-1] < 0.8 * result.trie[0]
    assert result.largest_difference <= TOLERANCE


def test_a_lost_target_is_seen_within_a_few_steps(examples, monkeypatch):
    original = build_trie

    def build(given, **options):
        batch = original(given, **options)
        weights = batch.target_weights.copy()
        weights[-1] = 0
        return replace(batch, target_weights=weights)

    monkeypatch.setattr(loss, "build_trie", build)
    result = compare(make_model, examples, CONFIG.model_copy(update={"max_steps": 3}))
    assert result.largest_difference > 10 * TOLERANCE
