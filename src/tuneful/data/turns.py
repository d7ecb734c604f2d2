"""Messages in order become turns: systems first, then what was asked and what was answered.

    system* (tool* user* assistant+)*  neighbours of one role are joined by an empty line
    assistant first                    a greeting: context, and never trained
    assistant (calls), tool+           what tools answered asks for what the assistant says next
    ... user                           left out, because nothing answers it; or what is asked, where an answer is wanted

Where nothing is to be trained after some answer, the conversation ends with that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tuneful.data.notes import Noted
from tuneful.data.values import unfit
from tuneful.types import ToolCall, ToolResult, Turn, has_answer, has_question

Conversed = tuple[str, tuple[Turn, ...]]
"""(system, turns) of a record."""

UNANSWERED = "?"
"""Stands for the response of a turn whose answer is wanted: a prompt is rendered without it."""
_BETWEEN = "\n\n"
_NOTHING = Turn("", "", "")


@dataclass(frozen=True, slots=True)
class Message:
    """A message: its role (system, user, assistant, tool), its text, its weight in the loss and its number, from 1.

    The assistant's may have a `thought` and `calls`; of a tool's, `name` is the tool's and `call_id` that of the call.
    """

    role: str
    text: str
    weight: float
    number: int
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""


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
    if asks and said and said[-1].role == "assistant" and not said[-1].text.strip() and not said[-1].calls:
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
        if not message.text.strip() and not message.calls and message.role != "tool":
            unfit(f"message {message.number}, the {message.role}'s, is empty")


def _joined(messages: Sequence[Message], noted: Noted) -> list[Message]:
    """Neighbours of one role as one message, where their marks agree; what tools answered stays apart."""
    joined: list[Message] = []
    for role, neighbours in groupby(messages, key=lambda message: message.role):
        if role == "tool":
            joined += neighbours
            continue
        first, *others = neighbours
        for other in others:
            first = _with(first, other)
            noted.add("joined")
        joined.append(first)
    return joined


def _with(first: Message, other: Message) -> Message:
    """Two neighbours of one role as one message: what is said stands before what is called."""
    if other.weight != first.weight:
        unfit(
            f"messages {first.number} and {other.number} are both the {first.role}'s, and are marked to count "
            "differently; put a message of the user's between them"
        )
    if first.calls and (other.text or other.thought):
        unfit(f"message {other.number} speaks after the call of message {first.number}, which no tool has answered")
    if first.text and other.thought:
        unfit(f"message {other.number} thinks after message {first.number} has answered, and both are the assistant's")
    text = _BETWEEN.join(filter(None, (first.text, other.text)))
    return replace(first, text=text, thought=first.thought or other.thought, calls=(*first.calls, *other.calls))


def _turns(messages: Sequence[Message], noted: Noted) -> list[Turn]:
    """The turns of messages whose roles alternate; the last one may have no response."""
    turns: list[Turn] = []
    asked = _NOTHING
    for message in messages:
        if message.role == "tool":
            if asked.instruction or not turns:
                unfit(
                    f"message {message.number} is what a tool answered, and nothing of the assistant's stands before it"
                )
            result = ToolResult(message.text, message.name, message.call_id)
            asked = replace(asked, results=(*asked.results, result))
        elif message.role == "user":
            asked = replace(asked, instruction=message.text)
        else:
            greets = not has_question(asked)
            if greets:
                noted.add("greeting")
            said = replace(asked, response=message.text, thought=message.thought, calls=message.calls)
            turns.append(replace(said, weight=0.0 if greets else message.weight))
            asked = _NOTHING
    turns += [] if asked is _NOTHING else [asked]
    return [_named_results(turns[at - 1 : at], turn) for at, turn in enumerate(turns)]


def _named_results(before: Sequence[Turn], turn: Turn) -> Turn:
    """`turn`, each of whose results has the name and the id of the call in the turn `before` that it answers."""
    calls = before[0].calls if before else ()
    if not turn.results or not calls:
        return turn
    by_id = {call.call_id: call for call in calls if call.call_id}
    in_order: dict[int, ToolCall] = dict(enumerate(calls)) if len(calls) == len(turn.results) else {}
    if len(calls) == 1:
        in_order = dict.fromkeys(range(len(turn.results)), calls[0])
    results = []
    for at, result in enumerate(turn.results):
        call = by_id.get(result.call_id) or (None if result.call_id and by_id else in_order.get(at))
        if call is not None:
            result = replace(result, name=result.name or call.name, call_id=result.call_id or call.call_id)
        results.append(result)
    return replace(turn, results=tuple(results))


def _taught(turns: Sequence[Turn], noted: Noted) -> tuple[Turn, ...]:
    """The turns up to the last one whose response is trained."""
    answered = [turn for turn in turns if has_answer(turn) and has_question(turn)]
    if not answered:
        unfit(
            "the last message is the user's: there is no answer to learn"
            if turns and not has_answer(turns[-1])
            else "there is no message of the assistant's that answers one of the user's: nothing to learn"
        )
    trained = [at for at, turn in enumerate(turns) if has_answer(turn) and turn.weight > 0]
    if not trained:
        unfit("every answer is marked as not trained: there is nothing to learn")
    rest = turns[trained[-1] + 1 :]
    if rest:
        noted.add("untrained_end" if any(map(has_answer, rest)) else "unanswered_end")
    return tuple(turns[: trained[-1] + 1])


def _asked(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns up to the question that is to be answered."""
    if not turns or not has_question(turns[-1]):
        unfit("there is no message of the user's: nothing is asked")
    last = turns[-1]
    return (*turns[:-1], replace(last, response=last.response if has_answer(last) else UNANSWERED, weight=1.0))
