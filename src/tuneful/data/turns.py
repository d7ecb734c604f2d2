"""Messages in order become turns: systems first, then what was asked and what was answered.

    system* (user+ assistant+)*      neighbours of one role are joined by an empty line
    assistant first                  a greeting: context, and never trained
    ... user                         left out, because nothing answers it; or what is asked, where an answer is wanted

Where nothing is to be trained after some answer, the conversation ends with that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from tuneful.data.notes import Noted
from tuneful.data.values import from_json_text, kind_of, text_of, unfit
from tuneful.types import Turn

Conversed = tuple[str, tuple[Turn, ...]]
"""(system, turns) of a record."""

UNANSWERED = "?"
"""Stands for the response of a turn whose answer is wanted: a prompt is rendered without it."""
_BETWEEN = "\n\n"


@dataclass(frozen=True, slots=True)
class Message:
    """A message: its role (system, user, assistant), its text, its weight in the loss and its number, from 1."""

    role: str
    text: str
    weight: float
    number: int


def conversed(messages: Sequence[Message], system: str, noted: Noted, *, asks: bool) -> Conversed:
    """(system, turns) of `messages` beside the record's own `system` text.

    With `asks` the last turn is the question that is to be answered, else the last turn that is trained. Raises UnfitError where
    there is none, or where the order of the messages has no meaning.
    """
    num_systems = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    system = _whole_system(messages[:num_systems], system)
    said = messages[num_systems:]
    if late := next((message for message in said if message.role == "system"), None):
        unfit(f"message {late.number} is a `system` message; only the first may be")
    if asks and said and said[-1].role == "assistant" and not said[-1].text.strip():
        said = said[:-1]
    _check_texts(said)
    turns = _turns(_joined(said, noted), noted)
    return system, _asked(turns) if asks else _taught(turns, noted)


def _whole_system(messages: Sequence[Message], system: str) -> str:
    """The system text: that of the record, of its first messages, or both where they are the same."""
    own = _BETWEEN.join(message.text for message in messages)
    if system and own and system != own:
        unfit("`system` and the first message are two different system texts")
    return own or system


def _check_texts(messages: Sequence[Message]) -> None:
    for message in messages:
        if not message.text.strip():
            unfit(f"message {message.number}, the {message.role}'s, is empty")


def _joined(messages: Sequence[Message], noted: Noted) -> list[Message]:
    """Neighbours of one role as one message, where their marks agree."""
    joined = []
    for role, neighbours in groupby(messages, key=lambda message: message.role):
        first, *others = neighbours
        for other in others:
            if other.weight != first.weight:
                unfit(
                    f"messages {first.number} and {other.number} are both the {role}'s, and are marked to count "
                    "differently; put a message of the user's between them"
                )
            noted.add("joined")
        joined.append(replace(first, text=_BETWEEN.join([first.text, *(other.text for other in others)])))
    return joined


def _turns(messages: Sequence[Message], noted: Noted) -> list[Turn]:
    """The turns of messages whose roles alternate; the last one may have no response."""
    turns: list[Turn] = []
    asked = None
    for message in messages:
        if message.role == "user":
            asked = message.text
        elif asked is None:
            noted.add("greeting")
            turns.append(Turn("", "", message.text, 0.0))
        else:
            turns.append(Turn(asked, "", message.text, message.weight))
            asked = None
    return turns if asked is None else [*turns, Turn(asked, "", "")]


def _taught(turns: Sequence[Turn], noted: Noted) -> tuple[Turn, ...]:
    """The turns up to the last one whose response is trained."""
    answered = [turn for turn in turns if turn.response and turn.instruction]
    if not answered:
        unfit(
            "the last message is the user's: there is no answer to learn"
            if turns and not turns[-1].response
            else "there is no message of the assistant's that answers one of the user's: nothing to learn"
        )
    trained = [at for at, turn in enumerate(turns) if turn.response and turn.weight > 0]
    if not trained:
        unfit("every answer is marked as not trained: there is nothing to learn")
    rest = turns[trained[-1] + 1 :]
    if rest:
        noted.add("untrained_end" if any(turn.response for turn in rest) else "unanswered_end")
    return tuple(turns[: trained[-1] + 1])


def _asked(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns up to the question that is to be answered."""
    if not turns or not turns[-1].instruction:
        unfit("there is no message of the user's: nothing is asked")
    last = turns[-1]
    return (*turns[:-1], replace(last, response=last.response or UNANSWERED, weight=1.0))


def turns_of_pairs(history: Any, noted: Noted) -> list[Turn]:
    """The earlier turns of an Alpaca record: pairs of what was asked and what was answered."""
    history = from_json_text(history, "`history`", noted)
    if not isinstance(history, list):
        unfit(f"`history` is {kind_of(history)}, expected a list of pairs")
    turns = []
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            unfit(f"`history` {number} is no pair of an instruction and its answer")
        asked, response = (text_of(part, f"`history` {number}", noted, "`history`") for part in pair)
        if not asked.strip() or not response.strip():
            unfit(f"`history` {number} has an empty half")
        turns.append(Turn(asked, "", response))
    return turns
