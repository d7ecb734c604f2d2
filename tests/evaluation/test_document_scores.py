"""What held-out documents cost two models is compared by the text, in perplexity per token and bits per byte."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tuneful.evaluation.documents import (
    compare_documents,
    comparison_without_answers,
    document_score,
    pair_documents,
)

SETTINGS: Any = {"confidence": 0.95, "num_resamples": 100, "seed": 0}
TEXTS = ["abcd", "éé", "a longer document than those"]


def scores(factor: float, file: str = "book.txt"):
    return [
        document_score(f"{file}:{at}", text, factor * math.log(2) * len(text.encode()), 2 + at)
        for at, text in enumerate(TEXTS, start=1)
    ]


def test_a_bit_a_byte_is_a_nat_times_log_2_and_perplexity_is_per_token() -> None:
    perplexity, bits = compare_documents(scores(2), scores(1), **SETTINGS)
    num_bytes, num_tokens = sum(len(text.encode()) for text in TEXTS), 3 + 4 + 5
    assert [perplexity.name, bits.name] == ["document_perplexity", "document_bits"]
    assert [bits.base, bits.tuned] == pytest.approx([2, 1])
    assert perplexity.tuned == pytest.approx(2 ** (num_bytes / num_tokens))


def test_documents_are_paired_by_their_text_wherever_they_were_read() -> None:
    one, other = scores(2), scores(1, "moved/book.txt")[::-1]
    base, tuned = pair_documents([*one, one[0]], other)
    assert [row.source for row in base] == ["book.txt:1", "book.txt:2", "book.txt:3"]
    assert [row.source for row in tuned] == ["moved/book.txt:1", "moved/book.txt:2", "moved/book.txt:3"]


def test_models_that_count_other_tokens_are_compared_by_bits_a_byte_alone() -> None:
    others = [replace(row, num_tokens=row.num_tokens + 1) for row in scores(1)]
    found = compare_documents(scores(2), others, **SETTINGS)
    assert [metric.name for metric in found] == ["document_bits"]
    sentence = comparison_without_answers(found, (), **SETTINGS).sentence
    assert "bits per byte" in str(sentence)
    assert "perplexity" not in str(sentence)
