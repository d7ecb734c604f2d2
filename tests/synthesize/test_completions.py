"""A text that a server continues is read as strictly as a message: whole, of the model that was asked, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.doubles.judge_server import MODEL

from tuneful.config import JudgeConfig
from tuneful.judge.backends import NoReplyError
from tuneful.synthesize.completions import RawOllama, RawOpenAI
from tuneful.synthesize.prompts import plain_question

SETTINGS = JudgeConfig(max_tokens=9)
QUESTION = plain_question("", (), "<|user|>")
OLLAMA = {"model": MODEL, "response": "Name a lake.", "done": True, "prompt_eval_count": 4, "eval_count": 5}
CHOICE = {"text": "Name a lake.", "finish_reason": "stop"}


def read_ollama(*lines: dict[str, Any]) -> str:
    return RawOllama("http://x", MODEL, SETTINGS).read(b"\n".join(json.dumps(one).encode() for one in lines), QUESTION)


def test_a_text_of_ollamas_ends_by_itself_whether_or_not_the_server_says_why() -> None:
    assert read_ollama(OLLAMA) == read_ollama({**OLLAMA, "done_reason": "stop"}) == "Name a lake."
    assert RawOllama("http://x", MODEL, SETTINGS).num_tokens(json.dumps(OLLAMA).encode()) == (4, 5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{**OLLAMA, "eval_count": 9}], "cut at judge.max_tokens=9"),  # an older server, which gives no reason
        ([{**OLLAMA, "done_reason": "length"}], "cut at judge.max_tokens=9"),
        ([{**OLLAMA, "done": False}], "cut before its end"),
        ([OLLAMA, OLLAMA], "goes on after its end"),
        ([{**OLLAMA, "model": "other"}], "another model replied: other"),
        ([{"error": "busy"}], "the server reports an error: busy"),
        ([{**OLLAMA, "response": None}], "without text"),
    ],
)
def test_a_text_of_ollamas_that_is_not_whole_is_none(lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(NoReplyError, match=message):
        read_ollama(*lines)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"choices": [{**CHOICE, "finish_reason": "length"}]}, "cut at judge.max_tokens=9"),
        ({"choices": [CHOICE, CHOICE]}, "not a reply with one choice"),
        ({"choices": [{**CHOICE, "text": 5}]}, "without text"),
        ({"error": {"message": "busy"}, "choices": [CHOICE]}, "the server reports an error"),
    ],
)
def test_a_text_of_openais_protocol_that_is_not_whole_is_none(reply: dict[str, Any], message: str) -> None:
    backend = RawOpenAI("http://x/v1", MODEL, SETTINGS)
    assert backend.read(json.dumps({"choices": [CHOICE]}).encode(), QUESTION) == "Name a lake."
    with pytest.raises(NoReplyError, match=message):
        backend.read(json.dumps(reply).encode(), QUESTION)
