"""Every line of Ollama's protocol has its shape, and requests of its clients are taken as they send them."""

from __future__ import annotations

import json
from datetime import datetime

import httpx
import pytest

MESSAGES = [{"role": "user", "content": "Name three rivers."}]
OPTIONS = {"num_predict": 12}
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")

GO_CLIENT = {
    "model": "lively",
    "prompt": "Name three rivers.",
    "suffix": "",
    "system": "",
    "template": "",
    "context": None,
    "stream": None,
    "raw": False,
    "format": None,
    "keep_alive": None,
    "images": None,
    "options": None,
    "num_predict": 12,
}
"""As a Go client without `omitempty` sends everything."""


def post(server, path, **body):
    return httpx.post(server.url + path, json=body, timeout=60)


def lines(given):
    assert given.status_code == 200, given.text
    assert given.headers["content-type"] == "application/x-ndjson"
    assert given.text.endswith("\n")
    found = [json.loads(line) for line in given.text.split("\n")[:-1]]
    assert all("error" not in one and "type" not in one for one in found)  # Continue takes either for something else
    return found


CHAT = {"model": "lively", "messages": MESSAGES, "options": OPTIONS}


@pytest.mark.parametrize("body", [CHAT, GO_CLIENT], ids=["a chat", "a Go client"])
def test_every_line_of_a_stream_has_its_shape(server, body):
    path, key = ("/api/chat", "message") if "messages" in body else ("/api/generate", "response")
    *told, last = lines(post(server, path, **body))
    assert told
    for one in told:
        assert set(one) == {"model", "created_at", key, "done"}
        assert one["done"] is False
    for one in (*told, last):
        assert one["model"] == "lively"
        assert datetime.fromisoformat(one["created_at"]).tzinfo is not None
        said = one[key]["content"] if key == "message" else one[key]
        assert isinstance(said, str)
        assert key == "response" or one[key]["role"] == "assistant"
    assert set(last) == {
        "model", "created_at", key, "done", "done_reason", "prompt_eval_count", "eval_count", *DURATIONS,
    }  # fmt: skip
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 12)
    assert all(isinstance(last[name], int) and last[name] >= 0 for name in DURATIONS)
    assert last["total_duration"] == sum(last[name] for name in DURATIONS[1:])


def test_an_answer_that_is_not_streamed_is_one_object(server):
    given = post(server, "/api/chat", **CHAT, stream=False, format="", think=None)
    assert given.headers["content-type"] == "application/json"
    document = given.json()
    assert document["done"] is True
    assert document["message"]["content"]
    assert document["eval_count"] == 12


def test_a_request_that_asks_nothing_loads_the_model(server):
    for path, key in (("/api/chat", "message"), ("/api/generate", "response")):
        given = post(server, path, model="lively").json()
        assert (given["done"], given["done_reason"]) == (True, "load")
        assert key in given
    assert post(server, "/api/chat", model="lively", messages=[], keep_alive=0).json()["done_reason"] == "unload"


def test_a_system_text_and_the_raw_prompt_do_what_they_say(server, models):
    encoder = models.find("lively").loaded.encoder
    asked = {"model": "lively", "prompt": "Name three rivers.", "stream": False, "options": OPTIONS}
    plain = post(server, "/api/generate", **asked).json()
    told = post(server, "/api/generate", **asked, system="Be brief.").json()
    assert told["response"] != plain["response"]
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    as_chat = post(server, "/api/chat", model="lively", messages=messages, stream=False, options=OPTIONS).json()
    assert as_chat["message"]["content"] == told["response"]
    raw = post(server, "/api/generate", **asked, raw=True).json()
    assert raw["prompt_eval_count"] == len(encoder.text.rendered_ids("Name three rivers."))
    assert raw["prompt_eval_count"] < plain["prompt_eval_count"]


def test_a_context_is_kept_to_the_oldest_turns_go_first(server):
    turns = [
        one
        for _ in range(6)
        for one in ({"role": "user", "content": "river " * 8}, {"role": "assistant", "content": "b"})
    ]
    asked = {"model": "lively", "stream": False, "messages": [*turns, *MESSAGES]}
    long = post(server, "/api/chat", **asked, options={"num_predict": 2}).json()
    short = post(server, "/api/chat", **asked, options={"num_predict": 2, "num_ctx": 200}).json()
    assert short["prompt_eval_count"] < 200 < long["prompt_eval_count"]
    full = post(server, "/api/chat", **asked, options={"num_predict": -1, "num_ctx": 200}).json()
    assert full["prompt_eval_count"] + full["eval_count"] == 200
    assert full["done_reason"] == "length"
    refused = post(server, "/api/chat", model="lively", messages=MESSAGES, options={"num_ctx": 8})
    assert refused.status_code == 400
    assert "context holds 8" in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/chat", {"messages": MESSAGES, "format": "json"}, "format"),
        ("/api/chat", {"messages": MESSAGES, "format": {"type": "object"}}, "format"),
        ("/api/chat", {"messages": MESSAGES, "think": True}, "thinking"),
        ("/api/chat", {"messages": MESSAGES, "think": "high"}, "thinking"),
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, "images"),
        ("/api/chat", {"messages": MESSAGES, "options": {"temperature": -3}}, "temperature"),
        ("/api/chat", {"messages": MESSAGES, "options": 7}, "options"),
        ("/api/generate", {"prompt": "a", "images": ["aGk="]}, "images"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "a", "context": [1, 2]}, "context"),
        ("/api/generate", {"prompt": "a", "raw": True, "system": "b"}, "raw"),
    ],
)
def test_what_is_not_done_is_refused_in_words(server, path, body, words):
    given = post(server, path, model="lively", **body)
    assert given.status_code == 400, given.text
    assert words in given.json()["error"]


def test_the_lists_have_what_their_readers_need(server):
    assert httpx.get(server.url + "/").text == "Ollama is running"
    assert httpx.head(server.url + "/").status_code == 200
    assert len(httpx.get(server.url + "/api/version").json()["version"].split(".")) == 3
    for one in httpx.get(server.url + "/api/tags").json()["models"]:
        assert {"name", "model", "modified_at", "size", "digest", "details"} <= set(one)
        assert len(bytes.fromhex(one["digest"])) == 32
        assert one["size"] > 0
        assert set(one["details"]) == {
            "parent_model", "format", "family", "families", "parameter_size", "quantization_level",
        }  # fmt: skip
    for one in httpx.get(server.url + "/api/ps").json()["models"]:
        assert datetime.fromisoformat(one["expires_at"]) > datetime.fromisoformat("2020-01-01T00:00:00+00:00")
        assert one["context_length"] in (512, 256)


def test_what_is_shown_of_a_model_can_be_parsed(server):
    for body in ({"model": "lively"}, {"name": "lively:latest"}):
        shown = post(server, "/api/show", **body).json()
        assert isinstance(shown["model_info"], dict)
        assert all(value is not None for value in shown["model_info"].values())
        assert shown["capabilities"] == ["completion"]
        assert ".Suffix" not in shown["template"]
        parameters = [line.split(None, 1) for line in shown["parameters"].splitlines()]
        assert ["stop", '"### Instruction:"'] in parameters
        assert all(line[30] == " " for line in shown["parameters"].splitlines())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/embed"), ("POST", "/api/embeddings"), ("POST", "/api/create"), ("DELETE", "/api/delete"),
        ("POST", "/api/copy"), ("POST", "/api/push"), ("POST", "/api/blobs/sha256:0"), ("GET", "/api/nothing"),
    ],
)  # fmt: skip
def test_everything_else_is_not_implemented(server, method, path):
    given = httpx.request(method, server.url + path)
    assert given.status_code == 501
    assert path in given.json()["error"]


def test_a_model_that_is_not_here_is_not_fetched(server):
    for path in ("/api/pull", "/api/show", "/api/chat", "/api/generate"):
        given = post(server, path, model="llama3")
        assert given.status_code == 404
        assert given.json()["error"].startswith("model 'llama3' not found")
    assert post(server, "/api/chat").status_code == 400
