"""Who is asked, and how: a server of the judge's client, or a model in this process, behind one method.

    Ask -> Asker.ask_all -> Reply | NoReply, in groups that are kept together

Stands over `judge/client.py`. A server's replies come one by one, in any order. A model in this process answers a fixed
group of requests at a time, and the journal keeps a group as one line: what a killed process has left is then a whole number of
groups, so those that follow are the same as without the kill, and so is every rounding.

A server that gives nothing to `_GIVE_UP_AFTER` requests in a row is taken for gone: the run stops and can go on later. A
request that has no reply among others that have is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tuneful.errors import JudgeError
from tuneful.judge.client import AskResult, HttpJudge, Judge, NoReply
from tuneful.judge.questions import Question

if TYPE_CHECKING:
    from tuneful.types import Conversation

Role = Literal["teacher", "judge", "model"]
"""Who is asked: who makes the texts, who grades them, and the user's own model, whose answers become pairs."""

OnResults = Callable[[Sequence[tuple[int, AskResult]]], None]
"""Called with the indices and results of requests that ended together."""

_GIVE_UP_AFTER = 8


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its `key` among all (`12/task`), who is asked, and what.

    With `continues` the question's user text is no message but the beginning of a text that is to be continued. A model in this
    process renders the `record`, where there is one, by its own template: instruction and input stand apart there.
    """

    key: str
    role: Role
    question: Question
    continues: bool = False
    record: Conversation | None = None

    @property
    def prompt_sha256(self) -> str:
        """Over all that is said to the model, and the form of the reply."""
        one = self.question
        said = [one.system, one.earlier, one.user, one.schema, self.continues]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Of all texts that are sent."""
        texts = [self.question.system, self.question.user, *(text for pair in self.question.earlier for text in pair)]
        return sum(len(text.encode("utf-8", "replace")) for text in texts)


class Asker(Protocol):
    """Whoever answers requests. `identity` is all about it that could change a reply; it holds no secret."""

    @property
    def name(self) -> str:
        """As the user wrote it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What it is."""

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of a reply; None for no limit of ours."""

    def ask_all(self, asks: Sequence[Ask], on_results: OnResults) -> None:
        """Ask everything. Raises JudgeError where nobody answers any more."""


@dataclass(frozen=True, slots=True)
class ServerAsker:
    """A server of the judge's client; `completions` is the same server asked to continue a text, None where it cannot.

    `failures` are counted across calls: a call may have fewer requests than it takes to give up.
    """

    judge: Judge
    max_tokens: int | None
    completions: HttpJudge | None = None
    failures: _InARow = field(default_factory=lambda: _InARow())

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return self.judge.name

    @property
    def identity(self) -> Mapping[str, Any]:
        """The judge's."""
        return self.judge.identity

    def ask_all(self, asks: Sequence[Ask], on_results: OnResults) -> None:
        """Ask everything, `judge.concurrency` at a time."""
        for judge, continues in ((self.judge, False), (self.completions, True)):
            numbers = [number for number, ask in enumerate(asks) if ask.continues is continues]
            if numbers:
                assert judge is not None, "this server continues no texts"
                results = _HeldBack(self.name, numbers, on_results, self.failures)
                judge.ask_all([asks[number].question for number in numbers], results.take)
                results.end()


@dataclass(slots=True)
class _InARow:
    """How many of the last requests had no reply: one that did not fail, or failed for a reason of its own, begins anew."""

    number: int = 0

    def count(self, result: AskResult) -> bool:
        """Count the result of one request; whether it is such a failure."""
        failed = isinstance(result, NoReply) and not result.final
        self.number = self.number + 1 if failed else 0
        return failed


class _HeldBack:
    """Holds failures back until a reply says that the server works; raises JudgeError after too many in a row."""

    def __init__(self, name: str, numbers: Sequence[int], on_results: OnResults, failures: _InARow) -> None:
        self._name, self._numbers, self._on_results, self._failures = name, numbers, on_results, failures
        self._failed: list[tuple[int, AskResult]] = []

    def take(self, index: int, result: AskResult) -> None:
        """The result of one request."""
        if not self._failures.count(result):
            self.end()
            self._on_results([(self._numbers[index], result)])
            return
        self._failed.append((self._numbers[index], result))
        if self._failures.number >= _GIVE_UP_AFTER:
            assert isinstance(result, NoReply)
            raise JudgeError(f"{self._name} gave no reply to {_GIVE_UP_AFTER} requests in a row: {result.reason}")

    def end(self) -> None:
        """Hand over the failures that were held back."""
        for one in self._failed:
            self._on_results([one])
        self._failed.clear()
