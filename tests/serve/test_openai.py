"""Every object of OpenAI's protocol has its shape, and every key of a request is obeyed or refused in words."""

from __future__ import annotations

import json
import math

import httpx
import pytest

from tuneful.infer.session import question
from tuneful.serve.prompts import conversation_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Name three rivers."}]


def post(server, path, **body):
    return httpx.post(server.url + path, json={"model": "lively", **body}, timeout=60)


def chat(server, **body):
    given = post(server, CHAT, **{"messages": MESSAGES, "max_tokens": 16, **body})
    assert given.status_code == 200, given.text
    return given.json()


def events(server, path, **body):
    """The objects of a stream, whose frame is checked."""
    given = post(server, path, stream=True, **body)
    assert given.status_code == 200
    assert given.headers["content-type"].startswith("text/event-stream")
    assert given.headers["cache-control"] == "no-cache"
    assert given.headers["x-accel-buffering"] == "no"
    assert given.text.endswith("\n\n")
    lines = given.text.split("\n\n")[:-1]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_every_chunk_of_a_stream_has_its_shape(server):
    chunks = events(server, CHAT, messages=MESSAGES, max_tokens=12, n=2, stream_options={"include_usage": True})
    for chunk in chunks:
        assert set(chunk) - {"usage"} == {"id", "object", "created", "model", "system_fingerprint", "choices"}
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"].startswith("chatcmpl-")
        assert isinstance(chunk["created"], int)
        assert (chunk["id"], chunk["created"], chunk["model"]) == (chunks[0]["id"], chunks[0]["created"], "lively")
    *told, last = chunks
    assert last["choices"] == []
    assert set(last["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    assert all("usage" not in chunk for chunk in told)
    for index in (0, 1):
        own = [choice for chunk in told for choice in chunk["choices"] if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert own[-1]["delta"] == {}
        assert own[-1]["finish_reason"] == "length"
        for choice in own:
            assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
        for choice in own[1:-1]:
            assert set(choice["delta"]) == {"content"}
            assert choice["delta"]["content"]
            assert choice["finish_reason"] is None


def test_usage_comes_only_where_it_was_asked_for(server):
    chunks = events(server, CHAT, messages=MESSAGES, max_tokens=3)
    assert all(chunk["choices"] for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stop_text_ends_an_answer_is_not_shown_and_is_told_as_stop(server):
    whole = chat(server, max_tokens=24)["choices"][0]["message"]["content"]
    stop = whole[6:10]  # over the seam of tokens
    for given in (stop, [stop, "never said"]):
        choice = chat(server, max_tokens=24, stop=given)["choices"][0]
        assert choice["message"]["content"] == whole.partition(stop)[0].strip()
        assert choice["finish_reason"] == "stop"
        chunks = events(server, CHAT, messages=MESSAGES, max_tokens=24, stop=given)
        said = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        assert said == whole.partition(stop)[0].strip()
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_stand_beside_every_token(server, models):
    text = models.find("lively").loaded.encoder.text
    choice = chat(server, logprobs=True, top_logprobs=3)["choices"][0]
    found = choice["logprobs"]["content"]
    assert len(found) == 16
    for one in found:
        assert set(one) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(one["top_logprobs"]) == 3
        assert one["top_logprobs"][0]["logprob"] == pytest.approx(one["logprob"])  # greedy
        assert one["logprob"] <= 0
        assert one["bytes"] is None or bytes(one["bytes"]).decode() == one["token"]
    assert all(isinstance(one["token"], str) for one in found)
    chunks = events(server, CHAT, messages=MESSAGES, max_tokens=16, logprobs=True, top_logprobs=3)
    streamed = [
        one
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["logprobs"]
        for one in choice["logprobs"]["content"]
    ]
    assert streamed == found
    assert chat(server)["choices"][0]["logprobs"] is None
    assert chat(server, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert text.token_text([text.end_token_id])


def test_a_completion_continues_the_text_as_it_stands(server, models):
    lively = models.find("lively")
    given = post(server, COMPLETIONS, prompt="One river is the", max_tokens=8).json()
    assert given["object"] == "text_completion"
    [choice] = given["choices"]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert given["usage"]["prompt_tokens"] == len(lively.loaded.encoder.text.rendered_ids("One river is the"))
    ids = lively.loaded.encoder.text.rendered_ids("One river is the")
    assert post(server, COMPLETIONS, prompt=ids, max_tokens=8).json()["choices"][0]["text"] == choice["text"]
    both = post(server, COMPLETIONS, prompt=["One river is the", ids], n=2, max_tokens=8).json()
    assert [one["text"] for one in both["choices"]] == [choice["text"]] * 4
    assert [one["index"] for one in both["choices"]] == [0, 1, 2, 3]
    chunks = events(server, COMPLETIONS, prompt="One river is the", max_tokens=8)
    assert "".join(one["choices"][0]["text"] for one in chunks) == choice["text"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert post(server, COMPLETIONS, prompt="a").json()["usage"]["completion_tokens"] <= 16
    assert post(server, COMPLETIONS, max_tokens=2).status_code == 200  # an empty prompt: whatever begins a document


def test_a_rendered_prompt_is_answered_as_the_conversation(server, models):
    encoder = models.find("lively").loaded.encoder
    conversation = question("", (), "Name three rivers.")
    prompt = encoder.prompt_text(conversation)
    assert encoder.text.rendered_ids(prompt) == encoder.prompt_ids(conversation)
    raw = post(server, COMPLETIONS, prompt=prompt, max_tokens=16).json()["choices"][0]["text"]
    assert raw.strip() == chat(server)["choices"][0]["message"]["content"]


def test_echo_scores_the_prompt_as_evaluation_harnesses_need_it(server, models):
    """`token_logprobs[number of context tokens : -1]` is summed, and greedy is where each is the largest of `top_logprobs`."""
    text = models.find("lively").loaded.encoder.text
    context, continuation = text.rendered_ids("The capital of France is"), text.continued_ids(" Paris")
    ids = [*context, *continuation]
    body = {"prompt": [ids, ids], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    first, second = post(server, COMPLETIONS, **body).json()["choices"]
    assert first["logprobs"] == second["logprobs"]
    found = first["logprobs"]
    assert set(found) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(one) for one in found.values()} == {len(ids) + 1}
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert "".join(found["tokens"][:-1]) == "The capital of France is Paris"
    assert found["text_offset"][:2] == [0, len(found["tokens"][0])]
    own = found["token_logprobs"][len(context) : -1]
    assert len(own) == len(continuation)
    for logprob, top in zip(own, found["top_logprobs"][len(context) : -1], strict=True):
        assert logprob <= max(top.values()) + 1e-6
    # What was generated is scored alike when it is given.
    whole = post(server, COMPLETIONS, prompt=context, max_tokens=5, logprobs=1).json()["choices"][0]["logprobs"]
    assert len(whole["tokens"]) == 5
    nothing = post(server, COMPLETIONS, prompt="abc", echo=True, max_tokens=0).json()["choices"][0]
    assert (nothing["text"], nothing["finish_reason"]) == ("abc", "length")
    chunks = events(server, COMPLETIONS, prompt="abc", echo=True, max_tokens=3)
    plain = post(server, COMPLETIONS, prompt="abc", max_tokens=3).json()["choices"][0]["text"]
    assert "".join(one["choices"][0]["text"] for one in chunks) == "abc" + plain
    scored = events(server, COMPLETIONS, prompt="abc", echo=True, max_tokens=3, logprobs=2)
    assert "".join(one["choices"][0]["text"] for one in scored) == "abc" + plain
    assert all(math.isfinite(one) for one in own)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": [1]}, "messages"),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "messages"),
        (CHAT, {"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "messages"),
        (CHAT, {"messages": [{"role": "system", "content": "a"}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": ""}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
        ),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages"),
        (
            CHAT,
            {"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format",
        ),
        (CHAT, {"messages": MESSAGES, "tools": [{"type": "function"}], "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"messages": MESSAGES, "temperature": -1}, "temperature"),
        (CHAT, {"messages": MESSAGES, "temperature": "hot"}, "temperature"),
        (CHAT, {"messages": MESSAGES, "top_p": 2}, "top_p"),
        (CHAT, {"messages": MESSAGES, "n": 0}, "n"),
        (CHAT, {"messages": MESSAGES, "n": 1000}, "n"),
        (CHAT, {"messages": MESSAGES, "max_tokens": -1}, "max_tokens"),
        (CHAT, {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"5": 1}}, "logit_bias"),
        (CHAT, {"messages": MESSAGES, "stop": ["a"] * 99}, "stop"),
        (CHAT, {"messages": MESSAGES, "stop": "a" * 1001}, "stop"),
        (CHAT, {"messages": MESSAGES, "presence_penalty": 9}, "presence_penalty"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": [999_999]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 99}, "logprobs"),
    ],
)
def test_what_is_not_done_is_refused_in_words(server, path, body, param):
    given = post(server, path, **body)
    assert given.status_code == 400, given.text
    error = given.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert len(error["message"]) > 10


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/api/chat", "/api/generate", "/api/show", "/api/pull"])
def test_a_body_that_is_none_is_refused_in_the_shape_of_its_protocol(server, path):
    for content in (b"", b"{", b"[]", b"null", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"model": 5}'):
        given = httpx.post(server.url + path, content=content)
        assert given.status_code == 400, given.text
        error = given.json()["error"]
        assert isinstance(error["message"] if path.startswith("/v1") else error, str)


@pytest.mark.parametrize("path", [CHAT, "/api/chat"])
def test_half_a_character_is_no_text(server, path):
    content = b'{"model": "lively", "messages": [{"role": "user", "content": "\\ud800"}]}'
    assert httpx.post(server.url + path, content=content).status_code == 400


def test_what_is_not_there_is_said_in_the_shape_of_its_protocol(server):
    for path in ("/v1/embeddings", "/v1/nothing"):
        given = httpx.post(server.url + path, json={})
        assert given.status_code == 404
        assert given.json()["error"]["type"] == "not_found_error"
    assert httpx.get(server.url + CHAT).status_code == 405
    given = httpx.get(server.url + "/v1/models/unknown")
    assert (given.status_code, given.json()["error"]["code"]) == (404, "model_not_found")
    assert httpx.get(server.url + "/nothing").json() == {"error": "/nothing is not served here"}


def test_messages_become_the_turns_of_training():
    conversation = conversation_of(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "three"},
            {"role": "user", "content": "four", "name": "me"},
        ]
    )
    wanted = question("Be brief.", (), "four")
    assert conversation.system == wanted.system
    assert [(turn.instruction, turn.response) for turn in conversation.turns] == [("one\ntwo", "three"), ("four", "?")]
