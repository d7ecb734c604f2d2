"""One thread answers for every model of a server: requests wait, enter, get their tokens one by one, and leave.

Stands between the protocols, which are asynchronous, and `infer/continuous.py`, which knows nothing of threads. One thread and
not one a model: a step takes every core already, and two at once would only wait for one another. Models take turns, a step each,
and so does what is only scored, a prompt at a time. What a model keeps to answer fast, its weights a second time, it gives back
when nobody has asked for a while, or when another needs the memory.

What comes of a request is delivered in batches, by a function that the request brings and that must not block.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tuneful.errors import TunefulError
from tuneful.infer.continuous import ContinuousBatch, LiveRow, prompt_logprobs
from tuneful.infer.row import TokenLogprobs
from tuneful.model.memory import give_back_freed_memory
from tuneful.serve.limits import Limits

RETRY_AFTER_SECONDS = 1
"""When a client that found no room may come again."""
_ENDING = "the server is being shut down"
_REST_SECONDS, _IDLE_SECONDS = 0.5, 300.0
"""After how long without a request freed memory goes back to the system, and after how much longer the weights that are laid out
for answers: about as long as Ollama keeps a model."""


class QueueFullError(TunefulError):
    """There is no room for a request now."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain of answer `index` since the piece before: its text and its tokens' log-probabilities, where wanted.

    `finish_reason` is that of the last piece, which may have no text; None before.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-probabilities of the tokens of prompt `index`, None for its first."""

    index: int
    logprobs: tuple[TokenLogprobs | None, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing more comes, and why."""

    message: str


Event = Piece | Scored | Failed
Deliver = Callable[[Sequence[Event]], None]


@dataclass(eq=False)
class Ticket:
    """A request in work: its rows, and when things happened (nanoseconds of `time.perf_counter_ns`, 0 for not yet)."""

    batch: ContinuousBatch
    rows: Sequence[LiveRow]
    deliver: Deliver
    num_scored: int | None = None
    """With a number, the prompts are scored first, with so many of the likeliest tokens a place."""
    came_at: int = field(default_factory=time.perf_counter_ns)
    entered_at: int = 0
    first_at: int = 0
    ended_at: int = 0
    num_left: int = 0

    def cancel(self) -> None:
        """Nobody waits for it any more: its rows leave before their next token."""
        for row in self.rows:
            row.is_cancelled = True


class Engine:
    """The thread that answers by `batches`, and the requests that wait for it. `close` ends it."""

    def __init__(self, limits: Limits, max_rows: int, batches: Sequence[ContinuousBatch]) -> None:
        self._most = max_rows + limits.max_waiting
        self._lock = threading.Lock()
        self._num_unfinished = 0
        self._came: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._tickets: dict[LiveRow, Ticket] = {}
        self._batches: list[ContinuousBatch] = []
        self._known = list(batches)
        self._to_score: deque[tuple[Ticket, deque[LiveRow]]] = deque()
        self._thread = threading.Thread(target=self._work, name="tuneful-engine", daemon=True)
        self._thread.start()

    @property
    def num_unfinished(self) -> int:
        """How many answers are in work or wait."""
        return self._num_unfinished

    def check_room(self, num_rows: int) -> None:
        """Raise QueueFullError where `submit` would now."""
        if self._num_unfinished + num_rows > self._most:
            raise QueueFullError(f"{self._num_unfinished} answers are in work or wait; try again in a moment")

    def submit(
        self, batch: ContinuousBatch, rows: Sequence[LiveRow], deliver: Deliver, *, num_scored: int | None = None
    ) -> Ticket:
        """Answer `rows` by `batch`; what comes of them is given to `deliver`, in this engine's thread. Raises QueueFullError."""
        ticket = Ticket(batch, rows, deliver, num_scored, num_left=len(rows))
        with self._lock:
            self.check_room(len(rows))
            self._num_unfinished += len(rows)
        self._came.put(ticket)
        return ticket

    def close(self) -> None:
        """Give up on everything and end the thread."""
        self._came.put(None)
        self._thread.join()

    # In the thread

    def _work(self) -> None:
        while self._take():
            if self._to_score:
                self._score()
            for batch in [batch for batch in self._batches if batch]:
                self._step(batch)
            self._batches = [batch for batch in self._batches if batch]
        for ticket, _ in self._to_score:
            self._fail(ticket.rows, TunefulError(_ENDING))
        for batch in self._batches:
            self._fail(batch.clear(), TunefulError(_ENDING))

    def _take(self) -> bool:
        """Take what came, waiting where there is nothing else to do; False at the end."""
        while True:
            try:
                ticket = self._came.get(block=False) if self._batches or self._to_score else self._wait()
            except queue.Empty:
                return True
            if ticket is None:
                return False
            self._begin(ticket)

    def _wait(self) -> Ticket | None:
        """What comes next. While nothing does, freed memory goes back to the system, and later what is kept to answer fast."""
        for seconds, give_back in ((_REST_SECONDS, give_back_freed_memory), (_IDLE_SECONDS, self._give_back)):
            try:
                return self._came.get(timeout=seconds)
            except queue.Empty:
                give_back()
        return self._came.get()

    def _give_back(self, other_than: ContinuousBatch | None = None) -> None:
        """Of every model that nobody asks the weights that were laid out."""
        for batch in self._known:
            if batch is not other_than and batch.holds_weights:
                batch.give_back_weights()
        give_back_freed_memory()

    def _begin(self, ticket: Ticket) -> None:
        for row in ticket.rows:
            self._tickets[row] = ticket
        if ticket.num_scored is None:
            self._enter(ticket)
        else:
            self._to_score.append((ticket, deque(ticket.rows)))

    def _enter(self, ticket: Ticket) -> None:
        batch = ticket.batch
        for row in ticket.rows:
            if row.row.max_new_tokens > 0:
                batch.enter(row)
            else:
                self._deliver(ticket, [Piece(row.row.index, "", (), "length")])
                self._finish(row)
        if not batch or batch in self._batches:
            return
        self._batches.append(batch)
        if batch.lacks_room():
            self._give_back(other_than=batch)

    def _score(self) -> None:
        """Score one prompt of the request whose turn it is; when it was the last one, the answers begin."""
        ticket, left = self._to_score.popleft()
        live = left.popleft()
        try:
            if not live.is_cancelled:
                assert ticket.num_scored is not None
                found = prompt_logprobs(ticket.batch.model, live.row.prompt, ticket.num_scored)
                self._deliver(ticket, [Scored(live.row.index, tuple(found))])
        except Exception as error:
            self._fail(ticket.rows, error)
            return
        if left:
            self._to_score.append((ticket, left))
        else:
            self._enter(ticket)

    def _step(self, batch: ContinuousBatch) -> None:
        began = time.perf_counter_ns()
        try:
            stepped = batch.step()
        except Exception as error:
            self._fail(batch.clear(), error)
            self._forget_cancelled(batch)
            return
        now = time.perf_counter_ns()
        self._forget_cancelled(batch)
        pieces: dict[Ticket, list[Piece]] = {}
        for live in stepped:
            ticket = self._tickets[live]
            if live.failure is not None:
                ticket.cancel()  # its other answers have nobody to hear them
                self._fail([live], live.failure)
                continue
            ticket.entered_at = ticket.entered_at or began
            ticket.first_at = ticket.first_at or now
            text, logprobs = live.row.take_shown(), tuple(live.logprobs)
            live.logprobs.clear()
            if text or logprobs or live.row.finish_reason:
                pieces.setdefault(ticket, []).append(Piece(live.row.index, text, logprobs, live.row.finish_reason))
            if live.row.finish_reason:
                ticket.ended_at = now
                self._finish(live)
        for ticket, own in pieces.items():
            self._deliver(ticket, own)

    def _forget_cancelled(self, batch: ContinuousBatch) -> None:
        """Those that left without a last token."""
        for live in batch.take_dropped():
            self._finish(live)

    def _finish(self, live: LiveRow) -> None:
        if self._tickets.pop(live, None) is not None:
            with self._lock:
                self._num_unfinished -= 1

    def _fail(self, rows: Sequence[LiveRow], error: Exception) -> None:
        message = str(error) if isinstance(error, TunefulError) else f"{type(error).__name__}: {error}"
        tickets = dict.fromkeys(self._tickets[live] for live in rows if live in self._tickets)
        for live in rows:
            self._finish(live)
        for ticket in tickets:
            self._deliver(ticket, [Failed(message)])

    @staticmethod
    def _deliver(ticket: Ticket, events: Sequence[Event]) -> None:
        try:
            ticket.deliver(events)
        except RuntimeError:  # the event loop of the request is closed
            ticket.cancel()
