"""The work on one item: a generator that asks, reads, and ends with rows or with the reason why there are none.

    results = yield [Ask, Ask]   ->   Reply | NoReply for each   ->   return Made(rows) | Refused(reason)

Stands between the kinds, each of which is such a generator, and the engine, which steps those of many items at once, so that the
requests of all of them are in flight together. What a generator asks follows from its item and the replies alone, never from
the time at which they came: a process that goes on after a kill asks the same.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from tuneful.batch.order import derived_seed
from tuneful.data.split import normal_prompt
from tuneful.judge.client import AskResult
from tuneful.judge.questions import Question
from tuneful.synthesize.asking import Ask, Role
from tuneful.synthesize.prompts import sampled
from tuneful.synthesize.replies import Refused
from tuneful.types import Conversation, Turn

_REQUESTS_AN_ITEM = 1 << 16


@dataclass(frozen=True, slots=True)
class Made:
    """The rows of one item, each with the key of the request that it came of; `prompt` is theirs, where it has to be new."""

    rows: tuple[tuple[str, dict[str, Any]], ...]
    prompt: str = ""


Work = Generator[list[Ask], list[AskResult], Made | Refused]
"""The work on one item."""


@dataclass(slots=True)
class Item:
    """What one item's work has to know and to tell: its `number` from 0, the `source` of its record, and the seed of all.

    `refused` says of single requests why they were not used; the others share the end of the item. `sends_seed` is False where
    the judge's settings have no seed to send. Of requests behind the first ones `later_bytes` is the longest prompt without the
    replies in it, of which it holds `later_replies` at most; both are said before anything is asked, for the budget.
    """

    number: int
    source: str
    seed: int
    temperature: float
    sends_seed: bool = True
    later_bytes: int = 0
    later_replies: int = 1
    asked: dict[str, Ask] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def ask(
        self,
        name: str,
        role: Role,
        question: Question,
        *,
        sample: bool = True,
        continues: bool = False,
        record: Conversation | None = None,
    ) -> Ask:
        """A request called `name` within the item; without `sample` it is asked under the settings of the judge."""
        if sample:
            number = self.number * _REQUESTS_AN_ITEM + len(self.asked)
            seed = derived_seed(self.seed, number) & 0x7FFFFFFF
            question = sampled(question, self.temperature, seed if self.sends_seed else None)
        ask = Ask(f"{self.number}/{name}", role, question, continues, record)
        assert ask.key not in self.asked, ask.key
        self.asked[ask.key] = ask
        return ask

    def refuse(self, ask: Ask, refused: Refused) -> None:
        """This one request was not used."""
        self.refused[ask.key] = refused.reason

    def metadata(self, kind: str, model: str, ask: Ask, **more: Any) -> dict[str, Any]:
        """How a row was made, for its key `data.columns.METADATA`."""
        sampling = {"temperature": ask.question.temperature, "seed": ask.question.seed}
        source = {"source": self.source} if self.source else {}
        made = {"kind": kind, "model": model, "prompt_sha256": ask.prompt_sha256, **sampling, "request": ask.key}
        return {**made, **source, **more}


def task_row(conversation: Conversation, response: str) -> dict[str, Any]:
    """The record of a conversation whose last turn has another response, in Alpaca's form."""
    *before, last = conversation.turns
    row: dict[str, Any] = {"instruction": last.instruction, "input": last.input, "output": response}
    if conversation.system:
        row["system"] = conversation.system
    if before:
        row["history"] = [[asked_text(turn), turn.response] for turn in before]
    return row


def asked_text(turn: Turn) -> str:
    """What a turn asks, as one message."""
    return "\n\n".join(filter(None, (turn.instruction, turn.input)))


def uses_tools(conversation: Conversation) -> bool:
    """Whether tools may be called in it, or are: a model that is asked in plain words can neither see nor call them."""
    return bool(conversation.tools) or any(turn.calls or turn.results for turn in conversation.turns)


def is_whole_dialogue(conversation: Conversation) -> bool:
    """Whether every earlier turn asks something and is answered, so that it can be said again."""
    return all(asked_text(turn) and turn.response for turn in conversation.turns[:-1])


def earlier_of(conversation: Conversation) -> tuple[tuple[str, str], ...]:
    """The turns before the last, as they are said to a model."""
    return tuple((asked_text(turn), turn.response) for turn in conversation.turns[:-1])


def prompt_of_task(instruction: str, input_text: str) -> str:
    """The prompt of a new task, to be held against those that are known."""
    return normal_prompt(Conversation("", (Turn(instruction, input_text, "?"),), "a new task"))
