"""General text under a model: against transformers' own likelihood, on a tiny model whose tokens are bytes or nearly so."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import DataError
from tuneful.evaluation.forgetting import (
    MAX_GENERAL_BYTES,
    GeneralText,
    compare_forgetting,
    read_general,
    score_passages,
    score_samples,
    write_samples,
)
from tuneful.model.load import load_model
from tuneful.runs.schema import GeneralScore, Layout, as_row, read_strictly

LAYOUT = Layout("trie", 4096)
TEXTS = [GeneralText("one", "What is the capital of France?"), GeneralText("two", "naïve — 東京 <|im_end|> and more")]
STATISTICS: dict[str, Any] = {"confidence": 0.95, "num_resamples": 200, "seed": 0}


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Any:
    return load_model(str(tiny_llama))


@pytest.fixture(scope="module")
def encoder(tiny: Any) -> TextEncoder:
    return TextEncoder(tiny.tokenizer, find_template("alpaca"))


@pytest.fixture(scope="module")
def changed(tiny: Any) -> Any:
    """The model, with its weights moved a little."""
    model = copy.deepcopy(tiny.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def plain_nll(model: Any, ids: list[int], start: int) -> float:
    """Nats of `ids` from position `start` on, by transformers alone."""
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids)))


def test_the_sample_is_sixty_passages_of_general_english() -> None:
    texts = read_general("builtin")
    assert len(texts) == 60
    assert len({text.source for text in texts}) == len({text.text for text in texts}) == 60
    words = [len(text.text.split()) for text in texts]
    assert 5_000 <= sum(words) <= 7_000
    assert min(words) >= 50
    assert all(text.text.isascii() for text in texts)
    assert read_general("none") == []


def test_a_passage_costs_what_transformers_says_and_nothing_in_it_is_a_control_token(tiny: Any, encoder: Any) -> None:
    scores = score_passages(tiny.model, encoder, TEXTS, LAYOUT)
    for text, score in zip(TEXTS, scores, strict=True):
        ids = tiny.tokenizer(text.text, split_special_tokens=True)["input_ids"]
        assert (score.source, score.kind, score.num_bytes) == (text.source, "passage", len(text.text.encode()))
        assert score.num_tokens == len(ids) - 1
        assert score.nll == pytest.approx(plain_nll(tiny.model, ids, 1), rel=1e-4)


def test_a_text_longer_than_the_model_reads_is_cut_and_all_of_it_is_paid_for(tiny: Any, encoder: Any) -> None:
    long = GeneralText("long", "the capital of France is Paris and " * 60)
    scores = score_passages(tiny.model, encoder, [long], LAYOUT)
    assert len(scores) > 1
    assert sum(score.num_bytes for score in scores) == len(long.text)
    assert max(score.num_tokens for score in scores) < tiny.model.config.max_position_embeddings


def test_samples_are_the_models_own_and_cost_what_transformers_says(tiny: Any, encoder: Any, changed: Any) -> None:
    samples = write_samples(tiny.model, encoder, TEXTS, LAYOUT, seed=3)
    again = write_samples(tiny.model, encoder, TEXTS, LAYOUT, seed=3)
    assert samples == again
    assert samples != write_samples(tiny.model, encoder, TEXTS, LAYOUT, seed=4)
    after = score_samples(changed, encoder, samples, LAYOUT)
    for model, scores in ((tiny.model, samples), (changed, after)):
        for score in scores:
            assert score.num_tokens == len(score.token_ids) - score.num_prompt_tokens
            expected = plain_nll(model, list(score.token_ids), score.num_prompt_tokens)
            assert score.nll == pytest.approx(expected, rel=1e-4)


def test_forgetting_and_drift_by_hand(tiny: Any, encoder: Any, changed: Any) -> None:
    def measured(model: Any, samples: Any) -> list[Any]:
        return [*score_passages(model, encoder, TEXTS, LAYOUT), *samples]

    samples = write_samples(tiny.model, encoder, TEXTS, LAYOUT, seed=0)
    base = measured(tiny.model, samples)
    tuned = measured(changed, score_samples(changed, encoder, samples, LAYOUT))
    forgetting, kl_to_base = compare_forgetting(base, tuned, **STATISTICS)
    bits, num_bytes = (sum(getattr(score, name) for score in base[:2]) for name in ("nll", "num_bytes"))
    assert (forgetting.name, forgetting.num_items, forgetting.unit) == ("forgetting", 2, "bits per byte")
    assert forgetting.base == pytest.approx(bits / math.log(2) / num_bytes)
    more = [sum(score.nll for score in side[2:]) for side in (base, tuned)]
    assert kl_to_base.difference == pytest.approx(
        (more[1] - more[0]) / math.log(2) / sum(score.num_tokens for score in samples)
    )
    assert kl_to_base.higher_is_better is None


def test_a_model_that_did_not_move_has_neither_forgotten_nor_drifted(tiny: Any, encoder: Any) -> None:
    samples = write_samples(tiny.model, encoder, TEXTS, LAYOUT, seed=0)
    for metric in compare_forgetting(samples, samples, **STATISTICS):
        assert (metric.difference, metric.verdict) == (0, "cannot tell")


def test_only_what_both_read_is_compared(tiny: Any, encoder: Any) -> None:
    one, two = score_passages(tiny.model, encoder, TEXTS, LAYOUT)
    [metric] = compare_forgetting([one, two], [two], **STATISTICS)
    assert metric.num_items == 1
    assert compare_forgetting([one], [two], **STATISTICS) == ()


def test_scores_survive_their_file(tiny: Any, encoder: Any) -> None:
    samples = write_samples(tiny.model, encoder, TEXTS, LAYOUT, seed=0)
    for score in (*score_passages(tiny.model, encoder, TEXTS, LAYOUT), *samples):
        assert read_strictly(GeneralScore, json.loads(json.dumps(as_row(score))), "row") == score


def test_a_users_text_is_read_by_paragraph_or_by_row(tmp_path: Path) -> None:
    plain = tmp_path / "mine.txt"
    plain.write_bytes(b"\xef\xbb\xbfOne\nline.\r\n\r\n  \n\nTwo.\n")
    assert read_general(str(plain)) == [GeneralText("mine.txt:1", "One\nline."), GeneralText("mine.txt:6", "Two.")]
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"text": "One."}\n\n{"text": " "}\n{"text": "Two.", "id": 3}\n')
    assert read_general(str(rows)) == [GeneralText("mine.jsonl:1", "One."), GeneralText("mine.jsonl:4", "Two.")]


def test_of_a_large_file_the_beginning_is_read(tmp_path: Path) -> None:
    large = tmp_path / "large.txt"
    large.write_text("ä" * MAX_GENERAL_BYTES)
    assert len(read_general(str(large))[0].text) == MAX_GENERAL_BYTES // 2
    rows = tmp_path / "large.jsonl"
    rows.write_text('{"text": "twelve bytes"}\n' * 10_000)
    assert 4_000 < len(read_general(str(rows))) < 6_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt: general text cannot be read: No such file"),
        ("blank.txt", b"\n \n", "blank.txt: holds no text"),
        ("latin.txt", b"caf\xe9", "latin.txt: byte 3 is not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{', "bad.jsonl:2: not valid JSON"),
        ("other.jsonl", b'{"content": "a"}', "other.jsonl:1: no `text`"),
    ],
)
def test_text_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_general(str(tmp_path / name))
    assert message in str(refused.value)
