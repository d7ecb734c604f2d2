"""A judge's server on loopback whose every reply the test writes: Ollama's and OpenAI's protocol, byte by byte."""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

Backend = Literal["ollama", "openai"]
MODEL = "judge-8b"


@dataclass(frozen=True)
class Request:
    """What came in: the JSON body, and the path it was posted to."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def wire(self) -> Backend:
        return "ollama" if self.path.startswith("/api/") else "openai"

    @property
    def prompt(self) -> str:
        return "\n".join(message["content"] for message in self.body["messages"])

    @property
    def item(self) -> int:
        found = re.search(r"Item number (\d+)\.", self.prompt)
        assert found, self.prompt[:200]
        return int(found[1])

    @property
    def nonce(self) -> str:
        found = re.search(r"<task ([0-9a-f]+)>", self.prompt)
        assert found, self.prompt[:200]
        return found[1]


Behave = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def serving(behave: Behave) -> Iterator[str]:
    """The origin of a server on loopback, in a thread of its own, whose every connection is one request to `behave`."""
    started: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.SimpleQueue()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await _until_hung_up(behave(await _read_request(reader), writer), reader)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # a reset is what is being tested
        stop = asyncio.Event()
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
        started.put((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
        await stop.wait()
        server.close()
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0.01)  # sockets close a turn of the loop after their transports

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    loop, stop, port = started.get()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _until_hung_up(played: Awaitable[None], reader: asyncio.StreamReader) -> None:
    """Play until done, or until the client leaves: it has no more to say, so reading ends when it does."""
    playing, hung_up = asyncio.ensure_future(played), asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({playing, hung_up}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        playing.cancel()
        hung_up.cancel()
        ended, _ = await asyncio.gather(playing, hung_up, return_exceptions=True)
        if isinstance(ended, Exception) and not isinstance(ended, ConnectionError):
            print(f"the double itself failed: {ended!r}", file=sys.stderr)


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, json.loads(body) if body else {})


def head(status: int, *lines: str, length: int | None = None) -> bytes:
    """An HTTP head; without `length` the body ends where the connection does."""
    sized = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"HTTP/1.1 {status} Whatever", "Connection: close", *lines, *sized, "", ""]).encode("latin-1")


def honest_body(wire: Backend, text: str, *, model: str = MODEL, prompt_tokens: int = 900, **changed: Any) -> bytes:
    """A whole reply saying `text`, streamed piece by piece where the wire does; `changed` keys of the last object."""
    if wire == "openai":
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 9}
        return json.dumps({"model": model, "choices": [choice], "usage": usage, **changed}).encode()
    created = "2026-11-22T10:00:00.000000Z"
    lines = [
        {"model": model, "created_at": created, "message": {"role": "assistant", "content": piece}, "done": False}
        for piece in re.findall(r"(?s).{1,4}", text)
    ]
    end = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    counts = {"prompt_eval_count": prompt_tokens, "eval_count": 9, "total_duration": 5_000_000, "load_duration": 1}
    lines.append({"model": model, "created_at": created, **end, **counts, **changed})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def tags() -> bytes:
    """What Ollama holds."""
    kind = {"format": "gguf", "family": "llama", "families": ["llama"]}
    details = {**kind, "parameter_size": "8.0B", "quantization_level": "Q4_0"}
    one = {"name": f"{MODEL}:latest", "model": f"{MODEL}:latest", "size": 4_661_224_676, "digest": "365c0bd3c000"}
    return json.dumps({"models": [{**one, "modified_at": "2026-11-22T10:00:00Z", "details": details}]}).encode()


def true_score(item: int) -> int:
    """What an honest judge says of an item."""
    return hashlib.sha256(f"item {item}".encode()).digest()[0] % 101


def said(request: Request, score: Any) -> str:
    """The reply that gives `score`, in the form that was asked for."""
    if request.body.get("format") or request.body.get("response_format"):
        return json.dumps({"id": request.nonce, "score": score})
    return str(score)
