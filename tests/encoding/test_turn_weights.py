"""Weights of turns: an answer that is marked counts as its mark says, under every template, and a greeting is context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.doubles.written_weights import byte_tokenizer

from tuneful.config import load_config
from tuneful.data.read import stream_data
from tuneful.encoding import prepare
from tuneful.encoding.chat_template import ChatTemplate
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import prepare_data
from tuneful.encoding.template import TEMPLATES, find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.types import Conversation, Example, Turn

JINJA = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = [*TEMPLATES, "jinja"]


def encoder(name: str, **options: Any) -> Encoder:
    if name == "jinja":
        template: Any = ChatTemplate(JINJA, "here", added_tokens={"<|im_start|>": True, "<|im_end|>": True})
    else:
        template = find_template(name)
    return Encoder(TextEncoder(byte_tokenizer(), template), 4096, **options)


def weights_of(maker: Encoder, turns: tuple[Turn, ...], text: str) -> np.ndarray[Any, Any]:
    """The weights of the tokens of `text`, of which each character is one."""
    example = maker.example(Conversation("", turns, "here:1"))
    assert isinstance(example, Example), example
    whole = "".join(
        maker.text.token_text([int(token_id)]) if token_id < 256 else "\0" for token_id in example.token_ids
    )
    start = whole.index(text)
    return example.weights[start : start + len(text) + 1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"prompt_weight": 1.0}, {"prompt_weight": 0.25}])
def test_each_answer_weighs_what_its_turn_says(name: str, options: dict[str, Any]) -> None:
    maker = encoder(name, **options)
    turns = (Turn("Q", "", "first", 0.0), Turn("R", "", "second", 0.5), Turn("S", "", "third"))
    for text, weight in (("first", 0.0), ("second", 0.5), ("third", 1.0)):
        assert set(weights_of(maker, turns, text).tolist()) == {weight}
    example = maker.example(Conversation("", turns, "here:1"))
    assert isinstance(example, Example)
    doubled = maker.example(Conversation("", turns, "here:1", 2.0))
    assert isinstance(doubled, Example)
    assert np.array_equal(doubled.weights, 2 * example.weights)
    without = maker.example(Conversation("", (Turn("Q", "", "first"), *turns[1:]), "here:1"))
    assert isinstance(without, Example)
    assert np.array_equal(without.token_ids, example.token_ids)
    assert example.num_prompt_tokens > without.num_prompt_tokens


@pytest.mark.parametrize("name", NAMES)
def test_an_example_ends_with_the_last_answer_that_counts(name: str) -> None:
    maker = encoder(name)
    turns = (Turn("Q", "", "first"), Turn("R", "", "second", 0.0))
    example, short = (maker.example(Conversation("", one, "here:1")) for one in (turns, turns[:1]))
    assert isinstance(example, Example)
    assert isinstance(short, Example)
    assert np.array_equal(example.token_ids, short.token_ids)
    assert np.array_equal(example.weights, short.weights)


@pytest.mark.parametrize("name", NAMES)
def test_a_greeting_stands_before_the_first_question_and_is_not_trained(name: str) -> None:
    maker = encoder(name)
    turns = (Turn("", "", "Welcome!", 0.0), Turn("Where?", "", "Here."))
    assert not weights_of(maker, turns, "Welcome!").any()
    assert weights_of(maker, turns, "Here.").all()
    plain = maker.text.template.prompt(Conversation("", turns[1:], "here:1"))
    greeted = maker.text.template.prompt(Conversation("", turns, "here:1"))
    asked = "".join(piece.text for piece in greeted)
    assert asked.index("Welcome!") < asked.index("Where?")
    assert asked.count("### Instruction:") + asked.count("user") == "".join(piece.text for piece in plain).count(
        "### Instruction:"
    ) + "".join(piece.text for piece in plain).count("user")


def test_a_template_that_knows_no_greeting_refuses_it_with_a_way_out() -> None:
    strict = JINJA.replace(
        "{% for message in messages %}",
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('a user first') }}{% endif %}"
        "{% for message in messages %}",
        1,
    )
    template = ChatTemplate(strict, "here", added_tokens={"<|im_start|>": True, "<|im_end|>": True})
    maker = Encoder(TextEncoder(byte_tokenizer(), template), 4096)
    reason = maker.example(Conversation("", (Turn("", "", "Welcome!", 0.0), Turn("Where?", "", "Here.")), "here:1"))
    assert isinstance(reason, str)
    assert "a user first" in reason
    assert "template.name=chatml renders" in reason


@pytest.mark.parametrize("in_memory", [True, False])
def test_weights_of_turns_and_notes_come_back_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY", 8192 if in_memory else 0)
    messages = '[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "first", "loss": %s}, '
    messages += '{"from": "human", "value": "R"}, {"from": "gpt", "value": "second"}]'
    lines = [f'{{"conversations": {messages % loss}, "note": "some text"}}\n' for loss in ("false", "0.5", "true")]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    config = load_config(None, ["template.name=chatml", "data.test_share=0", "data.validation_share=0"])
    for _ in range(2):
        dataset = prepare_data(
            stream_data(str(tmp_path / "a.jsonl"), config.data),
            encoder("chatml"),
            config,
            tmp_path / "cache",
        )
        assert [one.turns[0].weight for one in dataset.train.conversations] == [0.0, 0.5, 1.0]
        kinds = {note.kind: note.count for note in dataset.file.notes}
        assert kinds == {"unused_text": 3, "marked_trained": 1, "marked_context": 1, "marked_weight": 1}
