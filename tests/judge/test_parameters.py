"""Servers of OpenAI's protocol differ in the parameters that they take: one that is refused is learnt once, and said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.doubles.judge_server import MODEL, Request, head, honest_body
from tests.judge.test_client import QUESTION, SETTINGS, TEXT, answering, whole

from tuneful.config import JudgeConfig, load_config
from tuneful.judge.backends import NoReplyError, OllamaBackend, OpenAIBackend, refused_parameter
from tuneful.judge.client import AskResult, NoReply, Reply, open_http_judge
from tuneful.judge.questions import Question

SENT = ("model", "messages", "max_tokens", "temperature", "seed", "response_format")


def refusing(*names: str, said: str = "Unsupported parameter: '{}' is not supported with this model.") -> Any:
    """A server that refuses these parameters, one at a time, and the bodies that it was sent."""
    bodies: list[dict[str, Any]] = []

    def play(request: Request) -> bytes:
        bodies.append(dict(request.body))
        refused = next((name for name in names if name in request.body), None)
        if refused is None:
            return whole(request)
        body = json.dumps({"error": {"message": said.format(refused)}}).encode()
        return head(400, length=len(body)) + body

    return bodies, answering(play)


def ask(origin: str, count: int = 6, settings: JudgeConfig = SETTINGS) -> tuple[list[AskResult], list[str]]:
    said: list[str] = []
    judge = open_http_judge(
        f"openai/{MODEL}", settings, {"OPENAI_BASE_URL": origin, "OPENAI_API_KEY": "sk-canary-4711"}, notify=said.append
    )
    results: list[Any] = [None] * count
    judge.ask_all([QUESTION] * count, results.__setitem__)
    return results, said


def test_a_parameter_that_is_refused_is_left_out_from_then_on_and_said_once() -> None:
    bodies, server = refusing("max_tokens", "temperature")
    with server as origin:
        results, said = ask(origin)
    assert results == [Reply(TEXT)] * 6
    assert len(said) == 2, said
    assert "does not take max_tokens (HTTP 400: Unsupported parameter" in said[0]
    assert said[0].endswith("judge.max_tokens is sent as max_completion_tokens")
    assert "judge.temperature is not sent" in said[1]
    assert (bodies[-1]["max_completion_tokens"], "temperature" in bodies[-1]) == (512, False)
    first_wave = SETTINGS.concurrency * 2
    assert all("max_completion_tokens" in body and "temperature" not in body for body in bodies[first_wave:])


def test_a_server_that_takes_next_to_nothing_is_asked_all_the_same() -> None:
    bodies, server = refusing("max_tokens", "max_completion_tokens", "temperature", "seed", "response_format")
    with server as origin:
        results, said = ask(origin, settings=SETTINGS.model_copy(update={"max_retries": 0}))
    assert results == [Reply(TEXT)] * 6
    assert set(bodies[-1]) == {"model", "messages"}
    assert "no limit of tokens" in said[1]
    assert len(said) == 5


def test_what_cannot_be_left_out_stays_an_error() -> None:
    bodies, server = refusing("messages")
    with server as origin:
        results, said = ask(origin, count=1)
    assert results == [NoReply("HTTP 400: Unsupported parameter: 'messages' is not supported with this model.")]
    assert (said, len(bodies)) == ([], 1)


REFUSED = {
    '{"error": {"message": "Unsupported value: it does not support 0.0.", "param": "temperature"}}': "temperature",
    '{"error": {"message": "Unsupported parameter.", "param": "response_format.type"}}': "response_format",
    '{"error": "unknown field seed"}': "seed",
    '{"error": {"message": "`max_tokens` or `max_completion_tokens` is too large: 512."}}': None,
    '{"error": {"message": "This model does not support tools."}}': None,
    '{"error": {"message": "Unknown model.", "param": "model"}}': None,
    '{"error": {"message": 5}}': None,
    '{"detail": []}': None,
    "no JSON": None,
}


@pytest.mark.parametrize("body", REFUSED)
def test_an_error_names_the_parameter_or_is_none_of_this(body: str) -> None:
    assert refused_parameter(body.encode(), SENT) == REFUSED[body]


def test_without_a_limit_none_is_sent() -> None:
    settings = load_config(None, ["judge.max_tokens=none"]).judge
    assert settings.max_tokens is None
    openai = OpenAIBackend("http://127.0.0.1:1/v1", MODEL, settings)
    assert not {"max_tokens", "max_completion_tokens"} & set(openai.body(QUESTION))
    ollama = OllamaBackend("http://127.0.0.1:1", MODEL, settings)
    assert "num_predict" not in ollama.body(QUESTION)["options"]
    whole_reply = honest_body("ollama", TEXT)
    assert ollama.read(
        whole_reply.replace(b', "done_reason": "stop"', b"").replace(b', "eval_count": 9', b""), QUESTION
    )


def test_the_longer_name_of_the_limit_is_the_first_at_openai() -> None:
    backend = OpenAIBackend("https://api.openai.com/v1", MODEL, SETTINGS)
    assert backend.body(QUESTION)["max_completion_tokens"] == 512
    assert backend.body(QUESTION, {"max_completion_tokens"})["max_tokens"] == 512


@pytest.mark.parametrize(
    ("backend", "counted"),
    [
        (OllamaBackend("http://127.0.0.1:1", MODEL, SETTINGS), {"prompt_eval_count": 300}),
        (OpenAIBackend("http://127.0.0.1:1/v1", MODEL, SETTINGS), {"usage": {"prompt_tokens": 300}}),
    ],
    ids=["ollama", "openai"],
)
def test_a_prompt_of_which_earlier_turns_were_cut_is_not_taken_for_read(backend: Any, counted: dict[str, Any]) -> None:
    reply = honest_body("ollama" if isinstance(backend, OllamaBackend) else "openai", TEXT, **counted)
    long = Question("", "And then?", "", None, earlier=(("Tell me a story.", "Once upon a time. " * 500),))
    with pytest.raises(NoReplyError, match="read only 300 tokens of a prompt of 9,0"):
        backend.read(reply, long)
    assert backend.read(reply, Question("", "And then?", "", None)) == TEXT
