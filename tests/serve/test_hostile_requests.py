"""Whatever stands under a key of a request, it is answered or refused in the shape of its protocol, and so is the next one."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tuneful.serve import ollama_requests, openai_requests

VALUES = (
    "NaN", "1e400", "-1", "0", "1" + "0" * 30, "1e-320", '""', '"\\u0000a"', "[[1]]", '{"type": 1}', "true", "[null, 1]",
)  # fmt: skip
"""JSON, or what some clients take for it."""
MESSAGES = [{"role": "user", "content": "hi"}]
OPENAI: dict[str, Any] = {"model": "lively", "max_tokens": 2}
OLLAMA: dict[str, Any] = {"model": "lively", "options": {"num_predict": 2, "temperature": 1}}
REQUESTS: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/chat/completions": ({**OPENAI, "messages": MESSAGES, "stream": True}, openai_requests.ChatRequest),
    "/v1/completions": (
        {**OPENAI, "prompt": "hi", "echo": True, "logprobs": 1, "temperature": 1},
        openai_requests.CompletionRequest,
    ),
    "/api/chat": ({**OLLAMA, "messages": MESSAGES}, ollama_requests.ChatRequest),
    "/api/generate": ({**OLLAMA, "prompt": "hi"}, ollama_requests.GenerateRequest),
}


def with_value(body: dict[str, Any], key: str, value: str) -> bytes:
    """The JSON of `body` with `value`, as it is written, under `key`."""
    rest = json.dumps({name: one for name, one in body.items() if name != key})[1:-1]
    return ("{" + ", ".join(filter(None, (rest, f"{json.dumps(key)}: {value}"))) + "}").encode()


def check(path: str, given: httpx.Response) -> None:
    """It is an answer, or an error in words."""
    assert given.status_code in (200, 400, 404), given.text
    for word in ("NaN", "Infinity", "Traceback"):
        assert word not in given.text.replace("NaN and infinity", ""), given.text
    if given.status_code != 200:
        error = given.json()["error"]
        assert (
            (set(error) == {"message", "type", "param", "code"}) if path.startswith("/v1") else isinstance(error, str)
        )
        return
    lines = [
        line.removeprefix("data: ") for line in given.text.splitlines() if line.strip() not in ("", "data: [DONE]")
    ]
    assert lines
    assert all("error" not in json.loads(line) for line in lines), given.text


@pytest.mark.parametrize("path", REQUESTS)
def test_no_value_of_a_key_breaks_the_server(server, path):
    body, model = REQUESTS[path]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for key in model.model_fields:
            for value in VALUES:
                check(path, client.post(path, content=with_value(body, key, value)))
        if "options" in body:
            for key in ollama_requests.Options.model_fields:
                for value in VALUES:
                    options = with_value(body["options"], key, value).decode()
                    check(path, client.post(path, content=with_value(body, "options", options)))
        if "messages" in body:
            for key in ("role", "content", "tool_calls", "images"):
                for value in VALUES:
                    message = with_value(MESSAGES[0], key, value).decode()
                    check(path, client.post(path, content=with_value(body, "messages", f"[{message}]")))
        assert client.post(path, json=body).status_code == 200
    assert server.engine.num_unfinished == 0
