"""Between the engine's thread and asynchronous handlers: what comes of a request as a stream, and a client that leaves.

A handler reads a `Reply`; a response watches the connection while it is being made, and cancels the reply when nobody listens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response

from tuneful.errors import TunefulError
from tuneful.infer.continuous import LiveRow
from tuneful.serve.engine import Engine, Event, Failed, Piece, Scored
from tuneful.serve.models import ServedModel

Outcome = TypeVar("Outcome")
LEFT = Response(status_code=499)
"""To a client that has left: nobody hears it."""


class Reply:
    """What comes of one request, piece by piece: iterate once. Raises TunefulError where the model fails."""

    def __init__(
        self, engine: Engine, model: ServedModel, rows: Sequence[LiveRow], *, num_scored: int | None = None
    ) -> None:
        self._num_left = len(rows)
        self._came: asyncio.Queue[Sequence[Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.rows = rows

        def deliver(events: Sequence[Event]) -> None:
            loop.call_soon_threadsafe(self._came.put_nowait, events)

        self.ticket = engine.submit(
            model.batch,
            rows,
            deliver,
            num_scored=num_scored,
        )

    async def __aiter__(self) -> AsyncIterator[Piece | Scored]:
        """Every piece, until each answer has its last."""
        while self._num_left:
            for event in await self._came.get():
                if isinstance(event, Failed):
                    raise TunefulError(event.message)
                if isinstance(event, Piece) and event.finish_reason:
                    self._num_left -= 1
                yield event

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.ticket.cancel()

    @property
    def num_prompt_tokens(self) -> int:
        """The tokens of all prompts, each once."""
        return sum({id(row.row.prompt): len(row.row.prompt) for row in self.rows}.values())

    @property
    def num_generated(self) -> int:
        """The tokens of all answers, end tokens included."""
        return sum(len(row.row.generated) for row in self.rows)


class StreamedResponse(Response):
    """Bytes as they come of `reply`, which is cancelled when the client leaves before the end."""

    def __init__(self, reply: Reply, chunks: AsyncIterator[bytes], media_type: str) -> None:
        # A proxy that gathers what it passes on would undo the streaming.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(status_code=200, headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._reply, self._chunks = reply, chunks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send until the chunks end or the client is gone."""
        try:
            await _unless_gone(receive, self._sent(send))
        finally:
            self._reply.cancel()

    async def _sent(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def whole(request: Request, reply: Reply, answer: Awaitable[Outcome]) -> Outcome | None:
    """What `answer` comes to, which reads `reply`; None where the client left before, and the reply was cancelled."""
    try:
        return await _unless_gone(request.receive, answer)
    finally:
        reply.cancel()


async def _unless_gone(receive: Any, work: Awaitable[Outcome]) -> Outcome | None:
    """The outcome of `work`, or None where the client disconnects first; `work` is cancelled then."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        for task in (working, gone):
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
