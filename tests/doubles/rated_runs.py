"""Runs with two sets of answers, and the page over them: models that say what a test wants, behind the guard of the server.

`python -m tests.doubles.rated_runs FOLDER PORT` serves a folder of runs in a process of its own, to be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from tests.doubles.listening import Listening

from tuneful.serve.pages import Reports, page_router
from tuneful.serve.safety import Access, Guard

Item = tuple[str, str, str, str]
"""Task, reference, base's answer, tuned's answer."""


def write_run(
    path: Path, items: Sequence[Item], *, sentence: str = "", names: Sequence[str] = ("base", "tuned")
) -> Path:
    """A run folder with the test set `items` and two sets of answers."""
    for folder in ("answers", "data"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text("data: {}\n", encoding="utf-8")
    (path / "comparison.json").write_text(json.dumps({"sentence": sentence}), encoding="utf-8")
    sources = [f"my.json:{number}" for number in range(1, len(items) + 1)]
    test = [
        {"instruction": task, "input": "", "output": reference, "source": source}
        for (task, reference, *_), source in zip(items, sources, strict=True)
    ]
    _write_lines(path / "data" / "test.jsonl", test)
    for place, name in enumerate(names):
        answers = [
            {"source": source, "prompt": "p", "text": item[2 + place], "finish_reason": "stop", "num_tokens": 3}
            for item, source in zip(items, sources, strict=True)
        ]
        _write_lines(path / "answers" / f"{name}.jsonl", answers)
    return path


def plain_items(num_items: int) -> list[Item]:
    """Tasks that are told by their number; `base` and `tuned` stand in their answers, for the eye of a test alone."""
    return [(f"Task {n}.", f"Reference {n}.", f"base {n}", f"tuned {n}") for n in range(1, num_items + 1)]


def page_app(
    folder: Path, say: Callable[[str, str], str] = lambda model, prompt: "", reports: Reports | None = None
) -> Guard:
    """The page over the runs in `folder`; every model says `say(model, prompt)`, word by word.

    `WAIT` among the words is waited at; what begins with `!error ` is no answer but an error.
    """
    app = FastAPI(openapi_url=None)
    app.include_router(page_router(folder, reports))

    @app.get("/v1/models")
    def models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in say("", "models").split("|")]}

    @app.post("/v1/chat/completions")
    async def chat(asked: dict[str, Any]) -> Response:
        text = say(asked["model"], asked["messages"][-1]["content"])
        if text.startswith("!error "):
            return JSONResponse({"error": {"message": text.removeprefix("!error ")}}, 400)
        return StreamingResponse(_streamed(text, asked["max_tokens"]), media_type="text/event-stream")

    return Guard(app, Access(), _refused)


def _refused(path: str, status: int, message: str) -> tuple[bytes, bytes]:
    """In the words of the page alone: those of both protocols would load torch."""
    return b"application/json", json.dumps({"error": {"message": message}}).encode()


async def _streamed(text: str, max_tokens: int) -> AsyncIterator[str]:
    words = [word for word in text.split(" ") if word][:max_tokens]
    for word in words:
        yield _event({"choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]})
        await asyncio.sleep(60 if word == "WAIT" else 0)
    ended = "length" if len(words) == max_tokens else "stop"
    yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": ended}]})
    yield _event({"choices": [], "usage": {"completion_tokens": len(words)}})
    yield "data: [DONE]\n\n"


def _event(chunk: Any) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _write_lines(file: Path, rows: Sequence[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class PageServer:
    """A page over runs, asked as a browser would."""

    def __init__(self, app: Any) -> None:
        self._listening = Listening(app)
        self.url = self._listening.url

    def __enter__(self) -> PageServer:
        self._listening.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._listening.__exit__(*raised)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON, or text, of a GET."""
        return ask(self.url + path)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        return ask(self.url + path, body)


def ask(url: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON, or text, of a request; OSError where there is no whole answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, said, kind = response.status, response.read(), response.headers["content-type"]
    except urllib.error.HTTPError as error:
        status, said, kind = error.code, error.read(), error.headers["content-type"]
    return status, json.loads(said) if kind.startswith("application/json") else said.decode()


if __name__ == "__main__":
    uvicorn.run(page_app(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="error", ws="none")
