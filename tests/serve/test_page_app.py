"""The page in the real application: browsers are led to it, it is guarded as everything else, and its chat streams an answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.doubles.rated_runs import ask, plain_items, write_run
from tests.doubles.served import Server

from tuneful.serve.models import Models


def test_a_browser_is_led_to_the_page_and_everybody_else_told_that_ollama_is_running(server: Server) -> None:
    request = urllib.request.Request(server.url, headers={"Accept": "text/html,*/*"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.url == f"{server.url}/page/"
        assert "require-trusted-types-for" in response.headers["content-security-policy"]
    assert ask(server.url) == (200, "Ollama is running")


def test_what_the_page_sends_for_a_chat_is_answered(server: Server) -> None:
    told = {"temperature": 0, "seed": 0, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    asked = {"model": "lively", "messages": [{"role": "user", "content": "Name a river."}], **told}
    status, text = ask(f"{server.url}/v1/chat/completions", asked)
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert status == 200
    assert chunks[-1]["usage"]["completion_tokens"] <= 5
    assert any(chunk["choices"] and chunk["choices"][0]["finish_reason"] for chunk in chunks)


@pytest.mark.parametrize("path", ["/page/", "/page/api/runs", "/page/static/page.js", "/page/report/run"])
def test_a_page_of_another_name_or_site_gets_nothing(models: Models, tmp_path: Path, path: str) -> None:
    write_run(tmp_path / "run", plain_items(1))
    with Server(models, folder=tmp_path) as own:
        for name, value in (("Host", "elsewhere.invalid"), ("Origin", "http://elsewhere.invalid")):
            request = urllib.request.Request(own.url + path, headers={name: value})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(request, timeout=30)
        assert [run["name"] for run in ask(f"{own.url}/page/api/runs")[1]["runs"]] == ["run"]
