"""Requests as real clients send them are answered: the keys, types and order of what was recorded, with texts of our own.

Recorded from Continue's command line 1.5.47 (its agent), the `Ollama` class of Continue's core 1.1.0, and what Open WebUI 0.12.4
makes of a chat (`convert_payload_openai_to_ollama`, `apply_params_to_form_data`) for its tasks and its interface. Both offer
tools that nobody asked for: the model may call none.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

ASKED = "Name three rivers."
ANSWERED = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "Nile."}]


def function(name: str, **properties: str) -> dict[str, Any]:
    """A tool, as both clients write them down."""
    parameters = {
        "type": "object",
        "required": [*properties],
        "properties": {key: {"type": "string", "description": told} for key, told in properties.items()},
    }
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


CONTINUE_AGENT: dict[str, Any] = {
    "model": "lively",
    "messages": [{"role": "system", "content": "You are an agent."}, {"role": "user", "content": ASKED}],
    "stream": True,
    "tools": [function("Read", filepath="Which file."), function("List", dirpath="Which folder.")],
    "stream_options": {"include_usage": True},
}
CONTINUE_TITLE: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Name the talk."}, *ANSWERED, {"role": "user", "content": "A title?"}],
    "model": "lively",
    "max_tokens": 16,
    "temperature": 0.5,
    "stream": True,
    "stop": ["\n\n"],
    "stream_options": {"include_usage": True},
}
CONTINUE_CHAT: dict[str, Any] = {
    "model": "lively",
    "messages": [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "And one more?"},
    ],
    "options": {"temperature": 0.5, "num_predict": 16, "num_ctx": 8096},
    "keep_alive": 1800,
    "stream": True,
}
CONTINUE_CHAT_WITH_TOOLS: dict[str, Any] = {
    "model": "lively",
    "messages": [{"role": "user", "content": ASKED}],
    "options": {"temperature": 0.5, "num_predict": 16, "num_ctx": 8096},
    "keep_alive": 1800,
    "stream": False,
    "tools": [function("read_file", filepath="Which file.")],
}
CONTINUE_COMPLETION: dict[str, Any] = {
    "model": "lively",
    "prompt": "def f(",
    "raw": True,
    "options": {"temperature": 0.01, "num_predict": 16, "stop": ["\n\n"], "num_ctx": 8096},
    "keep_alive": 1800,
    "stream": True,
}
OPEN_WEBUI_CHAT: dict[str, Any] = {
    "model": "lively:latest",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}],
    "options": {"temperature": 0.7, "num_predict": 16},
    "stream": True,
    "keep_alive": "5m",
    "tools": [function("get_current_timestamp"), function("search_notes", query="Which words.")],
}
OPEN_WEBUI_TITLE: dict[str, Any] = {
    "model": "lively:latest",
    "messages": [{"role": "user", "content": "### Task:\nName the talk as a JSON object."}],
    "options": {"num_predict": 16},
    "stream": False,
}
OPEN_WEBUI_UNLOAD: dict[str, Any] = {"model": "lively:latest", "keep_alive": 0, "prompt": ""}
OPEN_WEBUI_OPENAI_CHAT: dict[str, Any] = {
    "stream": True,
    "model": "lively",
    "messages": [{"role": "user", "content": ASKED}],
    "temperature": 0.7,
    "max_tokens": 16,
    "stream_options": {"include_usage": True},
    "tools": [function("get_current_timestamp")],
}
OPEN_WEBUI_OPENAI_TITLE: dict[str, Any] = {
    "model": "lively",
    "messages": [{"role": "user", "content": "### Task:\nName the talk as a JSON object."}],
    "stream": False,
    "max_tokens": 16,
}
REQUESTS = {
    "Continue's agent": ("/v1/chat/completions", CONTINUE_AGENT),
    "Continue's title": ("/v1/chat/completions", CONTINUE_TITLE),
    "Continue's chat": ("/api/chat", CONTINUE_CHAT),
    "Continue's chat with tools": ("/api/chat", CONTINUE_CHAT_WITH_TOOLS),
    "Continue's completion": ("/api/generate", CONTINUE_COMPLETION),
    "Open WebUI's chat": ("/api/chat", OPEN_WEBUI_CHAT),
    "Open WebUI's title": ("/api/chat", OPEN_WEBUI_TITLE),
    "Open WebUI's chat by OpenAI's protocol": ("/v1/chat/completions", OPEN_WEBUI_OPENAI_CHAT),
    "Open WebUI's title by OpenAI's protocol": ("/v1/chat/completions", OPEN_WEBUI_OPENAI_TITLE),
}


def said(given: httpx.Response) -> str:
    """The whole answer, of either protocol, streamed or not."""
    assert given.status_code == 200, given.text
    if given.headers["content-type"].startswith("text/event-stream"):
        chunks = [json.loads(line[6:]) for line in given.text.splitlines() if line.startswith("data: {")]
        assert chunks[-1]["usage"]["total_tokens"] > chunks[-1]["usage"]["completion_tokens"] > 0
        return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    lines = [json.loads(line) for line in given.text.splitlines()]
    if "choices" in lines[0]:
        return str(lines[0]["choices"][0]["message"]["content"])
    assert lines[-1]["done"] is True
    return "".join(line["message"]["content"] if "message" in line else line["response"] for line in lines)


@pytest.mark.parametrize("name", REQUESTS)
def test_what_was_recorded_is_answered(server, name):
    path, body = REQUESTS[name]
    # A token or two less, and a seed, than was sent: the context of this model is short.
    options = {"options": {**body["options"], "seed": 1}} if "options" in body else {"seed": 1, "max_tokens": 16}
    given = httpx.post(server.url + path, json={**body, **options}, timeout=60)
    text = said(given)
    assert text
    bare = {key: value for key, value in {**body, **options}.items() if key != "tools"}
    assert said(httpx.post(server.url + path, json=bare, timeout=60)) == text


def test_a_model_that_is_unloaded_answers_as_before(server):
    given = httpx.post(f"{server.url}/api/generate", json=OPEN_WEBUI_UNLOAD, timeout=60).json()
    assert (given["done"], given["done_reason"]) == (True, "unload")
    assert said(httpx.post(f"{server.url}/api/chat", json=OPEN_WEBUI_TITLE, timeout=60))


@pytest.mark.parametrize(
    "choice",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function"}},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}},
        {"function_call": {"name": "Read"}},
    ],
)
def test_a_call_that_is_demanded_is_refused(server, choice):
    given = httpx.post(f"{server.url}/v1/chat/completions", json={**CONTINUE_AGENT, **choice})
    assert given.status_code == 400
    assert given.json()["error"]["param"] == next(iter(choice))


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}


@pytest.mark.parametrize("choice", ["auto", "none", None, ALLOWED])
def test_a_call_that_is_left_to_the_model_is_not_made(server, choice):
    body = {**CONTINUE_AGENT, "tool_choice": choice, "stream": False, "max_tokens": 4}
    given = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    assert given["choices"][0]["message"]["content"]
    assert "tool_calls" not in given["choices"][0]["message"]


def test_an_answer_that_was_stopped_before_its_first_word_is_no_turn(server):
    whole = httpx.post(f"{server.url}/api/chat", json={**CONTINUE_CHAT, "stream": False, "seed": 1}).json()
    asked = [CONTINUE_CHAT["messages"][0], {"role": "user", "content": f"{ASKED}\n\nAnd one more?"}]
    joined = httpx.post(
        f"{server.url}/api/chat", json={**CONTINUE_CHAT, "messages": asked, "stream": False, "seed": 1}
    ).json()
    assert whole["message"] == joined["message"]
    assert whole["prompt_eval_count"] == joined["prompt_eval_count"]
