"""Tokens and weights are those that an oracle writes out by hand: the campaign of `benchmarks/oracle_weights.py`, in small.

The oracle is put to the test as well: an example that is wrong in one token or one weight is found.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from tests.doubles import tool_templates
from tests.doubles import written_tools as tools
from tests.doubles import written_weights as oracle

from tuneful.data.formats import FormatReader, ReadRow
from tuneful.encoding.encode import Encoder
from tuneful.encoding.tokens import TextEncoder
from tuneful.types import Conversation, Example, Turn


@pytest.mark.parametrize("tokenizer", oracle.TOKENIZERS)
def test_every_template_agrees_with_the_oracle(tokenizer: str) -> None:
    made = oracle.TOKENIZERS[tokenizer]()
    for template in oracle.TEMPLATES:
        found = oracle.check(made, template, 60, 0)
        assert found["differences"] == 0, found["first"]
        assert found["records"] == 60
        assert found["cut"] > 0


@pytest.mark.parametrize("name", tool_templates.TEMPLATES)
def test_every_template_of_tools_agrees_with_the_oracle(name: str) -> None:
    found = tools.check(name, 40, 1)
    assert found["differences"] == 0, found["first"]
    assert found["records"] == 40
    assert min(found["calls"], found["thoughts"], found["trained"]) > 0


def test_the_oracle_of_tools_finds_a_thought_that_is_trained_and_a_call_that_is_not() -> None:
    takes, rng = tools.TAKES["hermes"], random.Random(0)
    maker = tools.Maker(rng, takes, ())
    tokenizer = tools.tokenizer_of(tool_templates.CONTROL["hermes"], tool_templates.TEMPLATES["hermes"], takes.end)
    text = TextEncoder(tokenizer, oracle.own_template(tokenizer, "tokenizer"))
    said = [tools.Said("user", maker.text()), tools.Said("assistant", "", maker.text(), [maker.call()])]
    row = tools.row_of(rng, said, maker.tools())
    read = FormatReader("auto", None).read(row, "here:1")
    assert isinstance(read, ReadRow)
    settings: dict[str, Any] = {"prompt_weight": 0.0, "last_turn": False, "train_reasoning": False}
    expected = tools.expected(tokenizer, takes, said, json.loads(read.conversation.tools), settings)
    good = Encoder(text, 10_000, train_reasoning=False).example(read.conversation)
    assert isinstance(good, Example)
    assert tools.difference(good, *expected, tokenizer, text) is None
    some = [*islice(spoilt(good), 0, None, 41), *list(spoilt(good))[-2:]]
    assert all(tools.difference(one, *expected, tokenizer, text) for one in some)
    trained = Encoder(text, 10_000).example(read.conversation)
    assert "should weigh 0" in str(tools.difference(trained, *expected, tokenizer, text))


def spoilt(example: Example) -> Iterator[Example]:
    """The example with one thing wrong with it, in as many ways as it has tokens."""
    for index in range(1, len(example)):
        weights = example.weights.copy()
        weights[index] = 1 - weights[index]
        yield replace(example, weights=weights)
        token_ids = example.token_ids.copy()
        token_ids[index] += 1
        yield replace(example, token_ids=token_ids)
    yield replace(example, token_ids=example.token_ids[:-1], weights=example.weights[:-1])
    yield replace(example, cut=True)


def test_the_oracle_finds_an_example_that_is_wrong() -> None:
    tokenizer = oracle.byte_tokenizer()
    text = TextEncoder(tokenizer, oracle.own_template(tokenizer, "chatml"))
    conversation = Conversation("", (Turn("Hi é", "", "Yo"), Turn("Again", "x", "So")), "here:1")
    settings: dict[str, Any] = {"prompt_weight": 0.25, "last_turn": False}
    example = Encoder(text, 1000, **settings).example(conversation)
    assert isinstance(example, Example)
    parts = list(oracle.WRITTEN["chatml"](conversation, tokenizer))

    def difference(one: Example) -> Any:
        return oracle.difference(one, parts, conversation, settings, tokenizer, text)

    assert difference(example) is None
    assert all(difference(one) for one in spoilt(example))
    hostile = replace(conversation, turns=(Turn("<|im_end|>", "", "Yo"),))
    posing = replace(conversation, turns=(Turn("", "", "Yo"),))
    good = Encoder(text, 1000, **settings).example(hostile)
    (end,) = (token_id for token_id, content in text.control_token_ids.items() if content == "<|im_end|>")
    bare = Encoder(text, 1000, **settings).example(posing)
    assert isinstance(good, Example)
    assert isinstance(bare, Example)
    start = len(text.ids([text.run(text.template.prompt(hostile)[:1])])[0])
    forged = replace(
        good,
        token_ids=np.insert(bare.token_ids, start, end).astype(np.int32),
        weights=np.insert(bare.weights, start, 0.25).astype(np.float32),
    )
    parts = list(oracle.WRITTEN["chatml"](hostile, tokenizer))
    assert oracle.difference(good, parts, hostile, settings, tokenizer, text) is None
    assert "control token" in str(oracle.difference(forged, parts, hostile, settings, tokenizer, text))
