"""Items are worked on a wave at a time, within a budget, and every request of theirs ends used or refused.

    items -> wave -> step: the requests of all items of the wave, asked together -> ... -> ends, in the order of the items

Stands over `work.py` (a generator an item), the journal and the askers. Which items make a wave, what is asked and which rows
are new follow from the items' order and from replies, never from the time at which replies came: the files of a run that was
killed are those of one that was not. The trade: a wave waits for its slowest reply before the next begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneful.errors import JudgeError
from tuneful.judge.client import AskResult, NoReply, Reply
from tuneful.synthesize.asking import Ask, Asker, Role
from tuneful.synthesize.journal import Journal
from tuneful.synthesize.novelty import Known
from tuneful.synthesize.replies import MAX_CHARACTERS, Refused
from tuneful.synthesize.work import Item, Made, Work

_WAVE = 64
"""Items whose requests are in flight together: of a fixed number, so that a setting of speed changes no row."""

_BYTES_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """Most requests and most tokens, None for as many as it takes; how many rows are wanted, None for all that the items make."""

    max_requests: int | None
    max_tokens: int | None
    num_rows: int | None


@dataclass(slots=True)
class Spent:
    """What all requests took. Tokens are as a server counted them, or where it did not (`estimated`) a quarter of the bytes."""

    requests: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Of prompts and replies together."""
        return self.prompt_tokens + self.reply_tokens

    def add(self, ask: Ask, result: AskResult, max_tokens: int | None) -> None:
        """One more request; one without a whole reply counts as the longest that it could have had."""
        self.requests += 1
        prompt, reply = num_tokens(ask, result)
        self.estimated |= prompt is None or reply is None
        self.prompt_tokens += _estimate(ask.num_bytes) if prompt is None else prompt
        if reply is None:
            reply = (
                (max_tokens or 0)
                if isinstance(result, NoReply)
                else _estimate(len(result.text.encode("utf-8", "replace")))
            )
        self.reply_tokens += reply


@dataclass(frozen=True, slots=True)
class Ended:
    """An item whose work is done: the results of its requests by key, its rows, or why it has none."""

    item: Item
    results: Mapping[str, AskResult]
    rows: tuple[tuple[str, dict[str, Any]], ...]
    reason: str | None


@dataclass(slots=True)
class Engine:
    """Works on items. `known` are the prompts that new ones are held against; `num_requests` is the most that an item takes."""

    askers: Mapping[Role, Asker]
    journal: Journal
    budget: Budget
    known: Known
    num_requests: int
    advance: Callable[[int], None]
    spent: Spent = field(default_factory=Spent)
    ended: list[Ended] = field(default_factory=list)
    num_rows: int = 0
    stopped: str | None = None

    def run(self, items: Iterator[tuple[Item, Work]]) -> None:
        """Work on `items` until there are no more, enough rows are made, or the budget is spent (`stopped` says so).

        Raises JudgeError where nobody answers any more; what was answered is in the journal.
        """
        waiting: list[_Begun] = []
        while self.stopped is None and not self._is_enough():
            wave = self._wave(items, waiting)
            if not wave:
                return
            self._play(wave)
            for begun in wave:
                self._end(begun)

    def _is_enough(self) -> bool:
        return self.budget.num_rows is not None and self.num_rows >= self.budget.num_rows

    def _wave(self, items: Iterator[tuple[Item, Work]], waiting: list[_Begun]) -> list[_Begun]:
        """The next items, each with its first requests: as many as are needed at most, and as the budget has room for."""
        wanted = self.budget.num_rows
        most = _WAVE if wanted is None else min(_WAVE, wanted - self.num_rows)
        wave: list[_Begun] = []
        reserved_requests = reserved_tokens = 0
        while len(wave) < most:
            begun = waiting.pop() if waiting else _begin(next(items, None))
            if begun is None:
                break
            if begun.asks:
                requests, tokens = self.num_requests, self._most_tokens(begun)
                if reason := self._over(reserved_requests + requests, reserved_tokens + tokens):
                    waiting.append(begun)
                    if not reserved_requests:
                        self.stopped = reason
                    break
                reserved_requests, reserved_tokens = reserved_requests + requests, reserved_tokens + tokens
            wave.append(begun)
        return wave

    def _over(self, requests: int, tokens: int) -> str | None:
        """Why so many more requests and tokens do not fit into the budget; None where they do."""
        budget = self.budget
        for most, spent, more, unit in (
            (budget.max_requests, self.spent.requests, requests, "requests"),
            (budget.max_tokens, self.spent.tokens, tokens, "tokens"),
        ):
            if most is not None and spent + more > most:
                left = f", and the next item may take {more:,}" if spent < most else ""
                return f"{spent:,} of {most:,} {unit} were spent (--max-{unit}){left}"
        return None

    def _most_tokens(self, begun: _Begun) -> int:
        """The most tokens that an item could take: each request its prompt, the replies that this may hold, and its own reply."""
        item = begun.item
        longest = max(item.later_bytes, *(ask.num_bytes for ask in begun.asks)) // 2
        reply = max(self.askers[role].max_tokens or 0 for role in self.askers)
        return self.num_requests * (longest + (item.later_replies + 1) * reply)

    def _play(self, wave: Sequence[_Begun]) -> None:
        """Step the work of all items until each has ended."""
        while active := [begun for begun in wave if begun.end is None]:
            asks = [ask for begun in active for ask in begun.asks]
            results = self._answered(asks)
            for ask in asks:
                self.spent.add(ask, results[ask.key], self.askers[ask.role].max_tokens)
            for begun in active:
                own = {ask.key: results[ask.key] for ask in begun.asks}
                begun.results |= own
                begun.step(list(own.values()))

    def _answered(self, asks: Sequence[Ask]) -> dict[str, AskResult]:
        """The result of each request, by key: of the journal, or asked and then in the journal."""
        for role, asker in self.askers.items():
            missing = [ask for ask in asks if ask.role == role and self.journal.get(ask) is None]

            def on_results(results: Sequence[tuple[int, AskResult]], missing: Sequence[Ask] = missing) -> None:
                self.journal.add([(missing[index], result) for index, result in results])

            if missing:
                try:
                    asker.ask_all(missing, on_results)
                except JudgeError as error:
                    raise JudgeError(
                        f"{error}. What was answered is kept; run the same command to go on from there"
                    ) from None
        found = {ask.key: self.journal.get(ask) for ask in asks}
        return {key: result for key, result in found.items() if result is not None}

    def _end(self, begun: _Begun) -> None:
        """What came of an item: its rows where its prompt is new and they are needed, or the reason why not."""
        item, end = begun.item, begun.end
        assert end is not None, item.number
        if isinstance(end, Made) and end.prompt:
            if (name := self.known.find(end.prompt)) is not None:
                end = Refused(f"near-duplicate of {name}")
            else:
                self.known.add(end.prompt, f"an earlier row: {item.number}")
        rows = end.rows if isinstance(end, Made) else ()
        if self.budget.num_rows is not None:
            for key, _ in rows[self.budget.num_rows - self.num_rows :]:
                item.refused[key] = "not needed: there were enough rows"
            rows = rows[: self.budget.num_rows - self.num_rows]
        reason = end.reason if isinstance(end, Refused) else None if rows else "not needed: there were enough rows"
        self.ended.append(Ended(item, begun.results, rows, reason))
        self.num_rows += len(rows)
        self.advance(len(rows) if self.budget.num_rows is not None else 1)

    # What came of it

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that were made, in the order of the items."""
        return (row for ended in self.ended for _, row in ended.rows)

    def requests(self) -> Iterator[dict[str, Any]]:
        """A row for each request and for each item that asked nothing, in the order of the items, with what came of it."""
        for ended in self.ended:
            about = {"item": ended.item.number, "source": ended.item.source}
            if not ended.item.asked:
                yield {"request": None, **about, "outcome": "left out", "reason": ended.reason}
            for key, ask in ended.item.asked.items():
                reason = outcome(ended, key)
                result = ended.results[key]
                prompt, reply = num_tokens(ask, result)
                said = {"reply": result.text[:MAX_CHARACTERS]} if isinstance(result, Reply) else {"reply": None}
                yield {
                    "request": key,
                    **about,
                    "asked": ask.role,
                    "outcome": "refused" if reason else "used",
                    "reason": reason,
                    "prompt_sha256": ask.prompt_sha256,
                    "temperature": ask.question.temperature,
                    "seed": ask.question.seed,
                    "num_prompt_tokens": prompt,
                    "num_reply_tokens": reply,
                    **said,
                }

    def counts(self) -> tuple[int, Counter[str], Counter[str]]:
        """How many requests were used; why others were refused, and records left out, each with how often."""
        used, refused, left_out = 0, Counter[str](), Counter[str]()
        for ended in self.ended:
            if not ended.item.asked:
                left_out[_kind_of(ended.reason or "")] += 1
            for key in ended.item.asked:
                if (reason := outcome(ended, key)) is None:
                    used += 1
                else:
                    refused[_kind_of(reason)] += 1
        assert used + refused.total() == self.spent.requests, "a request was lost"
        return used, refused, left_out


def outcome(ended: Ended, key: str) -> str | None:
    """Why a request was refused: for a reason of its own, or for its item's; None where it was used."""
    return ended.item.refused.get(key, ended.reason)


def num_tokens(ask: Ask, result: AskResult) -> tuple[int | None, int | None]:
    """Tokens of a prompt and its reply as whoever answered counted them; None where nobody did."""
    return (result.num_prompt_tokens, result.num_reply_tokens) if isinstance(result, Reply) else (None, None)


def left_out(reason: str) -> Work:
    """The work on an item that is not asked about."""
    yield from ()  # what makes it a generator
    return Refused(reason)


class _Begun:
    """An item whose work has begun: the requests that it waits for, or its end."""

    def __init__(self, item: Item, work: Work) -> None:
        self.item, self._work = item, work
        self.asks: list[Ask] = []
        self.results: dict[str, AskResult] = {}
        self.end: Made | Refused | None = None
        self.step(None)

    def step(self, results: list[AskResult] | None) -> None:
        """Go on with the results of what was asked; a step that asks nothing is taken at once."""
        while True:
            try:
                self.asks = self._work.send(results) if results is not None else next(self._work)
            except StopIteration as done:
                self.asks, self.end = [], done.value
                return
            if self.asks:
                return
            results = []


def _begin(found: tuple[Item, Work] | None) -> _Begun | None:
    return None if found is None else _Begun(*found)


def _estimate(num_bytes: int) -> int:
    return -(-num_bytes // _BYTES_A_TOKEN)


def _kind_of(reason: str) -> str:
    return reason.partition(": ")[0]
