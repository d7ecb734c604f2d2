"""A reply counts when the server says that it is whole; everything else has a reason, a limit and no key in it."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from typing import Any

import ollama
import pytest
from tests.doubles.judge_server import MODEL, Request, head, honest_body, serving, tags

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError, JudgeError
from tuneful.judge.backends import Backend, NoReplyError, OllamaBackend, OpenAIBackend
from tuneful.judge.client import AskResult, HttpJudge, NoReply, Reply, ollama_origin, open_http_judge
from tuneful.judge.questions import Question

SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
QUESTION = Question("You grade.", "How good is <answer abc>x</answer abc>?", "abc", SCHEMA)
SETTINGS = JudgeConfig(timeout_seconds=5, backoff_seconds=0, max_retries=2)
BACKENDS: dict[str, Backend] = {
    "ollama": OllamaBackend("http://127.0.0.1:1", MODEL, SETTINGS),
    "openai": OpenAIBackend("http://127.0.0.1:1/v1", MODEL, SETTINGS),
}
TEXT = '{"id": "abc", "score": 85}'


def answering(play: Callable[[Request], bytes]) -> Any:
    """A server that answers every question with the bytes of `play`, and Ollama's question for its models."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        listed = head(200, length=len(tags())) + tags()
        writer.write(listed if request.method == "GET" else play(request))
        await writer.drain()

    return serving(behave)


def whole(request: Request) -> bytes:
    body = honest_body(request.wire, TEXT)
    return head(200, length=len(body)) + body


def judge_at(
    origin: str, wire: str = "openai", settings: JudgeConfig = SETTINGS, key: str = "sk-canary-4711"
) -> HttpJudge:
    environment = {"OLLAMA_HOST": origin, "OPENAI_BASE_URL": f"{origin}/v1/", "OPENAI_API_KEY": key}
    return open_http_judge(f"{wire}/{MODEL}", settings, environment)


def asked(judge: HttpJudge, num_questions: int = 1) -> list[AskResult]:
    results: dict[int, AskResult] = {}

    def on_result(index: int, result: AskResult) -> None:
        assert index not in results
        results[index] = result

    judge.ask_all([QUESTION] * num_questions, on_result)
    return [results[index] for index in range(num_questions)]


@pytest.mark.parametrize("wire", BACKENDS)
def test_a_reply_is_whole_or_none_at_every_byte(wire):
    content = honest_body(wire, TEXT)
    assert BACKENDS[wire].read(content, QUESTION) == TEXT
    last = content.rstrip()[-1:]
    for end in range(len(content.rstrip())):
        with pytest.raises(NoReplyError):
            BACKENDS[wire].read(content[:end], QUESTION)
    assert last == b"}"


def test_the_double_is_what_ollamas_own_client_takes_for_ollama():
    seen = []

    def play(request):
        seen.append(request)
        return whole(request)

    with answering(play) as origin:
        client = ollama.Client(host=origin)
        assert [model.model for model in client.list().models] == [f"{MODEL}:latest"]
        messages = [{"role": "user", "content": QUESTION.user}]
        pieces = list(client.chat(model=MODEL, messages=messages, stream=True, format=SCHEMA, options={"seed": 1}))
        client._client.close()
        (reply,) = asked(judge_at(origin, "ollama"))
    assert isinstance(reply, Reply)
    assert "".join(piece.message.content or "" for piece in pieces) == TEXT == reply.text
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    theirs, ours = (request.body for request in seen)
    assert theirs.keys() <= ours.keys() | {"tools"}
    assert (seen[0].path, theirs["format"], theirs["stream"]) == (seen[1].path, ours["format"], ours["stream"])


def test_ollama_is_asked_with_everything_that_settles_its_reply():
    body = BACKENDS["ollama"].body(QUESTION)
    assert body["options"] == {"num_ctx": 4096, "num_predict": 512, "seed": 123, "temperature": 0.0}
    assert (body["stream"], body["truncate"], body["format"], body["keep_alive"]) == (True, False, SCHEMA, "10m")
    types = importlib.import_module("ollama._types")
    sent = types.ChatRequest(**body).model_dump(exclude_none=True)
    assert sent["options"] == body["options"], "an option that Ollama's own types do not know"


def test_openai_is_asked_under_its_newer_name_of_the_limit_and_others_under_the_older():
    assert BACKENDS["openai"].body(QUESTION)["max_tokens"] == 512
    at_openai = OpenAIBackend("https://api.openai.com/v1", "gpt", SETTINGS).body(QUESTION)
    assert at_openai["max_completion_tokens"] == 512
    assert "max_tokens" not in at_openai
    assert at_openai["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    "host",
    ["", "example.com", "example.com:56789", "http://example.com", "https://example.com", "https://example.com:56789",
     "example.com/", "example.com:56789/path", "example.com/path/", "[::1]", "[0001:002:003:0004::1]:56789",
     "http://[::1]", " 10.0.0.5 "],
)  # fmt: skip
def test_ollama_host_means_what_it_means_to_ollamas_own_client(host):
    assert ollama_origin(host) == importlib.import_module("ollama._client")._parse_host(host.strip())


def test_a_server_that_listens_everywhere_is_called_on_loopback():
    assert ollama_origin("0.0.0.0") == ollama_origin(":11434") == ollama_origin("") == "http://127.0.0.1:11434"


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com", "example.com", "http://", "http://user:pw@example.com/v1", "http://127.0.0.1\\@evil.example",
     "http://example.com/v1?key=sk-1", "http://example.com/#x", "file:///etc/passwd", "http://example.com:port/v1",
     "http://example.com:0", "javascript:alert(1)", "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL") as refused:
        open_http_judge("openai/x", SETTINGS, {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-1"})
    assert "pw" not in str(refused.value)
    assert "sk-1" not in str(refused.value)


def test_openai_itself_needs_a_key_and_another_server_none():
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        open_http_judge("openai/gpt", SETTINGS, {})
    assert open_http_judge("openai/x", SETTINGS, {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}).key is None
    with pytest.raises(ConfigError, match="characters that no key has"):
        open_http_judge("openai/x", SETTINGS, {"OPENAI_API_KEY": "sk-1\n"})


def test_an_ollama_that_is_not_there_or_lacks_the_model_is_one_message():
    with pytest.raises(JudgeError, match="Start it with `ollama serve`"):
        judge_at("http://127.0.0.1:1", "ollama")
    with answering(whole) as origin, pytest.raises(JudgeError, match=r"ollama pull no-such.*it has: judge-8b:latest"):
        open_http_judge("ollama/no-such", SETTINGS, {"OLLAMA_HOST": origin})


def test_the_build_of_a_model_is_part_of_its_identity_and_the_key_is_not():
    with answering(whole) as origin:
        assert judge_at(origin, "ollama").identity["digest"] == "365c0bd3c000"
        judge = judge_at(origin)
    assert "canary" not in json.dumps(judge.identity)
    assert "canary" not in repr(judge)


def test_a_transient_error_is_retried_and_a_lasting_one_is_not():
    seen: list[int] = []
    error = b'{"error": {"message": "busy"}}'
    for status, num_tries in ((503, 3), (429, 3), (400, 1), (404, 1), (302, 1)):
        seen.clear()

        def play(request: Request, status: int = status) -> bytes:
            seen.append(status)
            return head(status, length=len(error)) + error

        with answering(play) as origin:
            (outcome,) = asked(judge_at(origin))
        assert isinstance(outcome, NoReply)
        assert f"HTTP {status}" in outcome.reason
        assert len(seen) == num_tries


def test_a_reply_at_the_second_try_counts():
    seen: list[int] = []

    def play(request: Request) -> bytes:
        seen.append(1)
        return head(503, "Retry-After: 0", length=0) if len(seen) == 1 else whole(request)

    with answering(play) as origin:
        assert asked(judge_at(origin)) == [Reply(TEXT)]
    assert len(seen) == 2


def test_a_wait_that_is_longer_than_a_call_may_take_is_not_waited_for():
    seen: list[int] = []

    def play(request: Request) -> bytes:
        seen.append(1)
        return head(429, "Retry-After: 6", length=0)

    with answering(play) as origin:
        (outcome,) = asked(judge_at(origin))
    assert isinstance(outcome, NoReply)
    assert len(seen) == 1


def test_silence_ends_at_the_deadline():
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    settings = SETTINGS.model_copy(update={"timeout_seconds": 0.3, "max_retries": 0})
    with serving(behave) as origin:
        (outcome,) = asked(judge_at(origin, settings=settings))
    assert outcome == NoReply("no whole reply within 0.3 s")


def test_a_redirect_takes_neither_the_question_nor_the_key_elsewhere():
    elsewhere: list[Request] = []

    async def victim(request: Request, writer: asyncio.StreamWriter) -> None:
        elsewhere.append(request)

    with serving(victim) as other:
        for status in (301, 302, 303, 307, 308):
            redirect = head(status, f"Location: {other}/v1/chat", length=0)
            with answering(lambda _: redirect) as origin:  # noqa: B023
                (outcome,) = asked(judge_at(origin))
            assert isinstance(outcome, NoReply)
            assert "is not followed" in outcome.reason
    assert elsewhere == []


def test_a_server_that_repeats_the_key_does_not_get_it_into_a_reply_or_a_reason():
    error = json.dumps({"error": {"message": "invalid key sk-canary-4711"}}).encode()
    body = honest_body("openai", "the key is sk-canary-4711")
    seen: list[str] = []

    def play(request: Request) -> bytes:
        seen.append(request.headers["authorization"])
        return head(401, length=len(error)) + error if len(seen) == 1 else head(200, length=len(body)) + body

    with answering(play) as origin:
        refused, replied = (asked(judge_at(origin))[0] for _ in range(2))
    assert seen == ["Bearer sk-canary-4711"] * 2
    assert refused == NoReply("HTTP 401: invalid key [key]")
    assert replied == Reply("the key is [key]")


def test_a_key_that_is_no_secret_does_not_cut_holes_into_replies():
    with answering(whole) as origin:
        assert asked(judge_at(origin, key="8")) == [Reply(TEXT)]


def test_a_judge_can_be_asked_from_inside_a_running_loop():
    async def notebook() -> list[AskResult]:
        return asked(judge_at(origin, "ollama"))

    with answering(whole) as origin:
        assert asyncio.run(notebook()) == [Reply(TEXT)]


def test_ollama_is_never_sent_the_key_of_openai():
    seen: list[Request] = []

    def play(request: Request) -> bytes:
        seen.append(request)
        return whole(request)

    with answering(play) as origin:
        asked(judge_at(origin, "ollama"))
    assert "authorization" not in seen[0].headers


def test_a_judge_that_never_replied_is_not_asked_for_ever():
    seen: list[int] = []

    def play(request: Request) -> bytes:
        seen.append(1)
        return head(401, length=0)

    settings = SETTINGS.model_copy(update={"concurrency": 2})
    with answering(play) as origin:
        outcomes = asked(judge_at(origin, settings=settings), 50)
    assert 8 <= len(seen) <= 10
    assert outcomes[-1] == NoReply("not asked: the first 8 questions got no reply; HTTP 401")


def test_no_more_questions_are_in_flight_than_allowed():
    flying, most = 0, 0

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal flying, most
        flying, most = flying + 1, max(most, flying + 1)
        await asyncio.sleep(0.02)
        flying -= 1
        writer.write(whole(request))

    with serving(behave) as origin:
        outcomes = asked(judge_at(origin, settings=SETTINGS.model_copy(update={"concurrency": 3})), 12)
    assert outcomes == [Reply(TEXT)] * 12
    assert most == 3
