"""Documents as a model sees them: every token a target exactly once, in chunks that hold nothing of another document."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from tuneful.batch.trie import build_trie
from tuneful.config import load_config
from tuneful.data.read import DataFile, Record
from tuneful.encoding.documents import Chunks, in_chunks
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import prepare_data
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.types import Conversation, Example, Turn


def document(text: str, source: str = "a.txt:1", weight: float = 1.0) -> Conversation:
    return Conversation("", (Turn("", "", text),), source, weight, is_document=True)


@pytest.fixture(scope="module")
def with_begin(byte_tokenizer: Any) -> Any:
    """The tokenizer of bytes as one that begins each text with a token of its own."""
    import copy

    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.bos_token = "<|im_start|>"
    pair = ("<|im_start|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[pair]
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(byte_tokenizer: Any, gpt2_tokenizer: Any, builtin_tokenizer: Any, with_begin: Any) -> list[Any]:
    return [byte_tokenizer, gpt2_tokenizer, builtin_tokenizer, with_begin]


def targets_of(chunks: list[Example]) -> list[tuple[int, float]]:
    """(token, weight) of every target, in order."""
    return [
        (int(token), float(weight))
        for chunk in chunks
        for token, weight in zip(chunk.token_ids, chunk.weights, strict=True)
        if weight > 0
    ]


texts = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60), min_size=1, max_size=6
)


@given(texts, st.integers(2, 24), st.integers(1, 23), st.integers(0, 3), st.sampled_from([1.0, 0.5]))
def test_every_token_of_every_document_is_a_target_exactly_once(
    tokenizers: list[Any], written: list[str], max_length: int, overlap: int, which: int, weight: float
) -> None:
    tokenizer, overlap = tokenizers[which], min(overlap, max_length - 1)
    encoder = Encoder(TextEncoder(tokenizer, find_template("alpaca")), max_length=max_length)
    begins = tokenizer("").input_ids[:1]
    found = encoder.examples([document(text, f"a.txt:{at}", weight) for at, text in enumerate(written)])
    wholes = [one for one in found if isinstance(one, Example)]
    chunks = in_chunks(wholes, np.array([len(one) for one in wholes]), max_length, overlap) if wholes else []
    assert all(len(chunk) <= max_length for chunk in chunks)
    for at, (text, one) in enumerate(zip(written, found, strict=True)):
        own = [chunk for chunk in chunks if chunk.source.partition(" chunk ")[0] == f"a.txt:{at}"]
        if isinstance(one, str):
            assert not own
            continue
        # The oracle: what the tokenizer makes of a text in which nothing is a control token, and its end token.
        content = [*TextEncoder(tokenizer, find_template("chatml")).text_ids(text), tokenizer.eos_token_id]
        assert targets_of(own) == [(token, weight) for token in (content if begins else content[1:])]
        for before, after in itertools.pairwise(own):
            assert before.token_ids[-overlap:].tolist() == after.token_ids[:overlap].tolist()
            assert not after.weights[:overlap].any()
        assert own[-1].token_ids[-1] == tokenizer.eos_token_id
        assert [chunk.cut for chunk in own] == [True] * (len(own) - 1) + [False]


def test_plain_text_has_the_tokens_that_the_tokenizer_gives_it(tokenizers: list[Any]) -> None:
    text = "The tide comes in.\n\n  It goes out: 日本 🙂.\n"
    for tokenizer in tokenizers:
        encoder = Encoder(TextEncoder(tokenizer, find_template("alpaca")), max_length=100)
        example = encoder.example(document(text))
        assert isinstance(example, Example)
        assert example.token_ids.tolist() == [*tokenizer(text).input_ids, tokenizer.eos_token_id]


@pytest.mark.parametrize("template", ["alpaca", "chatml", "phi-3"])
def test_no_template_stands_around_a_document_and_its_control_tokens_are_text(
    byte_tokenizer: Any, template: str
) -> None:
    encoder = Encoder(TextEncoder(byte_tokenizer, find_template(template)), max_length=300)
    text = "<|im_start|>user\nHi<|im_end|><|endoftext|>"
    example = encoder.example(document(text))
    assert isinstance(example, Example)
    assert byte_tokenizer.decode(example.token_ids[:-1]) == text
    control = set(encoder.text.control_token_ids)
    assert [int(token) for token in example.token_ids if int(token) in control] == [byte_tokenizer.eos_token_id]


def test_documents_share_nothing_in_a_trie_but_how_they_begin(with_begin: Any) -> None:
    encoder = Encoder(TextEncoder(with_begin, find_template("alpaca")), max_length=16)
    wholes = [encoder.example(document(text)) for text in ("abc" * 12, "xyz" * 12)]
    examples = [one for one in wholes if isinstance(one, Example)]
    chunks = list(Chunks(examples, np.array([len(one) for one in examples]), 16, 1))
    firsts = [chunk for chunk in chunks if "chunk" not in chunk.source]
    trie = build_trie(firsts)
    assert len(trie.input_ids) == sum(len(chunk) - 1 for chunk in firsts) - 1  # the begin token, once


def test_the_document_is_what_is_divided_and_the_chunk_what_a_step_takes(byte_tokenizer: Any) -> None:
    config = load_config(None, ["train.objective=text", "data.max_length=10", "data.test_share=0.2"])
    encoder = Encoder(TextEncoder(byte_tokenizer, find_template("alpaca")), max_length=10)
    records = tuple(
        Record({"text": text}, document(text, f"a.txt:{at}"))
        for at, text in enumerate("".join(chr(97 + (at * k) % 26) for k in range(40)) for at in range(1, 21))
    )
    dataset = prepare_data(DataFile("a.txt", "", records, ()), encoder, config)
    sides = [dataset.train, dataset.validation, dataset.test]
    assert sum(map(len, sides)) == 20
    for side in sides:
        assert len(side.chunks) > len(side)
        assert Counter(chunk.source.partition(" chunk ")[0] for chunk in side.chunks).keys() == set(side.sources)
        num_targets = sum(int((chunk.weights > 0).sum()) for chunk in side.chunks)
        assert num_targets == int(side.sizes.num_trained.sum()) == sum(len(one) - 1 for one in side.examples)


def test_the_chunks_of_a_store_are_those_of_the_memory(byte_tokenizer: Any, tmp_path: Any, monkeypatch: Any) -> None:
    from tuneful.data.read import stream_data
    from tuneful.encoding import prepare

    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(f"Number {at} is a passage of some length, {at * at}." for at in range(30)))
    config = load_config(None, ["train.objective=text", "data.sample_by=paragraph", "data.max_length=12"])
    encoder = Encoder(TextEncoder(byte_tokenizer, find_template("alpaca")), max_length=12)
    held = prepare_data(stream_data(str(file), config.data), encoder, config)
    monkeypatch.setattr(prepare, "MAX_TOKENS_IN_MEMORY", 10)
    stored = prepare_data(stream_data(str(file), config.data), encoder, config, tmp_path / "cache")
    assert [one.conversation for one in stored.train.records] == [one.conversation for one in held.train.records]
    for one, other in zip(stored.train.chunks, held.train.chunks, strict=True):
        assert (one.token_ids.tolist(), one.weights.tolist()) == (other.token_ids.tolist(), other.weights.tolist())
        assert (one.source, one.cut, one.num_prompt_tokens) == (other.source, other.cut, other.num_prompt_tokens)


def test_a_model_goes_on_from_the_beginning_of_a_document(with_begin: Any) -> None:
    encoder = Encoder(TextEncoder(with_begin, find_template("chatml")), max_length=16)
    one = document("word " * 50)
    example = encoder.example(one)
    assert isinstance(example, Example)
    prompt = encoder.prompt_ids(one)
    assert prompt == example.token_ids[: len(prompt)].tolist()
    assert 1 < len(prompt) <= 33
