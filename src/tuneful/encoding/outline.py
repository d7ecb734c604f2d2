"""A conversation as the messages that a chat template takes: their outline, and the texts that stand in it.

    conversation -> outline (roles, numbered texts, calls, tools) + texts
    outline, texts, dialect -> messages, as a template takes them

Stands below `frame.py`. Templates differ in how they take a call and a thought: arguments as an object or as JSON text, the
content beside a call as null or as "", ids of nine letters and digits alone, and a thought under one of several names or in the
content. A `Dialect` says which of these a template takes; the record is the same under all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tuneful.encoding.template import THOUGHT_END, THOUGHT_START, Origin
from tuneful.types import Conversation, ToolCall, ToolResult, Turn, has_answer

INPUT_START = "\n\n"
"""What stands between the instruction and the input of a user message."""
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
"""Names under which templates read what was thought before a message."""
IN_CONTENT = "content"
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

Value = tuple[str, Any]
"""A JSON value without its texts: ("object", ((key, value), ...)), ("list", (value, ...)), ("text", number), ("other", JSON)."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a template takes what an ordinary message has not.

    `thought` is the name under which it reads a thought, IN_CONTENT where that is part of the text, "" where it renders none.
    """

    thought: str = IN_CONTENT
    arguments_as_text: bool = False
    null_content: bool = False
    short_ids: bool = False


class CallOutline(NamedTuple):
    """A call without the texts of its arguments."""

    name: str
    arguments: Value
    call_id: str


class MessageOutline(NamedTuple):
    """A message without its texts: a part is the number of a text, or text that is always the same; `thought` is a number."""

    role: str
    parts: tuple[int | str, ...]
    thought: int | None = None
    calls: tuple[CallOutline, ...] = ()
    name: str = ""
    call_id: str = ""

    def numbers(self) -> list[int]:
        """The numbers of its texts."""
        own = [part for part in self.parts if isinstance(part, int)]
        thought = [] if self.thought is None else [self.thought]
        return [*thought, *own, *(number for call in self.calls for number in _numbers(call.arguments))]

    @property
    def thought_number(self) -> int | None:
        """The number of its thought, None where it has none."""
        return self.numbers()[0] if self.thought is not None or self.parts[:1] == (THOUGHT_START,) else None


class Outline(NamedTuple):
    """The messages of a conversation without their texts, and the JSON text of its tools ("" for none)."""

    messages: tuple[MessageOutline, ...]
    tools: str = ""

    def before(self, index: int) -> Outline:
        """The messages before message `index`."""
        return Outline(self.messages[:index], self.tools)

    @property
    def is_plain(self) -> bool:
        """Whether it has roles and texts alone."""
        return not self.tools and not any(
            one.calls or one.role == "tool" or one.thought_number is not None for one in self.messages
        )

    @property
    def roles(self) -> str:
        """The roles in order, for a message."""
        return ", ".join(message.role for message in self.messages)


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the record, and whose it is."""

    origin: Origin
    text: str


class Outlined(NamedTuple):
    """An outline, its texts by number, and the weight in the loss of each message."""

    outline: Outline
    texts: list[Text]
    weights: list[float]


def outline_of(conversation: Conversation, dialect: Dialect, *, answered: bool) -> Outlined:
    """The messages of a conversation up to its last answer (included if `answered`), without and beside their texts."""
    texts: list[Text] = []
    messages: list[MessageOutline] = []
    weights: list[float] = []

    def numbered(origin: Origin, text: str) -> int:
        texts.append(Text(origin, text))
        return len(texts) - 1

    def add(role: str, origin: Origin, *said: str) -> None:
        parts: list[int | str] = []
        for one in filter(None, said):
            parts += [*([INPUT_START] if parts else []), numbered(origin, one)]
        if parts:
            messages.append(MessageOutline(role, tuple(parts)))
            weights.append(0.0)

    add("system", Origin.SYSTEM, conversation.system)
    turns, ids = conversation.answered_turns, list[str]()
    for number, turn in enumerate(turns, start=1):
        for result, call_id in zip(turn.results, _ids_of_results(turn.results, ids), strict=True):
            parts = (numbered(Origin.TOOL, result.text),) if result.text else ()
            messages.append(MessageOutline("tool", parts, name=result.name, call_id=call_id))
            weights.append(0.0)
        add("user", Origin.USER, turn.instruction, turn.input)
        if has_answer(turn) and (answered or number < len(turns)):
            ids = [call.call_id or f"call {number} {at}" for at, call in enumerate(turn.calls)]
            messages.append(_answer(turn, ids, dialect, numbered))
            weights.append(turn.weight)
    return Outlined(Outline(tuple(messages), conversation.tools), texts, weights)


def _answer(turn: Turn, ids: Sequence[str], dialect: Dialect, numbered: Callable[[Origin, str], int]) -> MessageOutline:
    thought: int | None = None
    parts: list[int | str] = []
    if turn.thought and dialect.thought:
        thought = numbered(Origin.THOUGHT, turn.thought)
        parts = [THOUGHT_START, thought, THOUGHT_END] if dialect.thought == IN_CONTENT else []
    if turn.response:
        parts.append(numbered(Origin.RESPONSE, turn.response))
    calls = tuple(_call(call, call_id, numbered) for call, call_id in zip(turn.calls, ids, strict=True))
    return MessageOutline("assistant", tuple(parts), None if dialect.thought == IN_CONTENT else thought, calls)


def _call(call: ToolCall, call_id: str, numbered: Callable[[Origin, str], int]) -> CallOutline:
    return CallOutline(call.name, _value(json.loads(call.arguments), numbered), call_id)


def _ids_of_results(results: Sequence[ToolResult], ids: Sequence[str]) -> list[str]:
    """The id of the call that each result answers: its own, or by its place among the calls."""
    in_order = [*ids] if len(ids) == len(results) else [*ids] * len(results) if len(ids) == 1 else [""] * len(results)
    return [result.call_id or call_id for result, call_id in zip(results, in_order, strict=True)]


def _value(value: Any, numbered: Callable[[Origin, str], int]) -> Value:
    if isinstance(value, dict):
        return "object", tuple((key, _value(one, numbered)) for key, one in value.items())
    if isinstance(value, list):
        return "list", tuple(_value(one, numbered) for one in value)
    if isinstance(value, str):
        return "text", numbered(Origin.ARGUMENT, value)
    return "other", json.dumps(value)


def _numbers(value: Value) -> Iterator[int]:
    kind, held = value
    if kind == "text":
        yield held
    elif kind != "other":
        for one in held:
            yield from _numbers(one[1] if kind == "object" else one)


def fixed_parts(value: Value) -> Iterator[str]:
    """What stands in a JSON value besides its texts: keys, numbers, truth values."""
    kind, held = value
    if kind == "other":
        yield held
    elif kind != "text":
        for one in held:
            if kind == "object":
                yield one[0]
            yield from fixed_parts(one[1] if kind == "object" else one)


def _as_json(value: Value, texts: Sequence[str]) -> Any:
    kind, held = value
    if kind == "object":
        return {key: _as_json(one, texts) for key, one in held}
    if kind == "list":
        return [_as_json(one, texts) for one in held]
    return texts[held] if kind == "text" else json.loads(held)


def messages_of(outline: Outline, texts: Sequence[str], dialect: Dialect) -> list[dict[str, Any]]:
    """The messages with `texts` in them, as a chat template takes them."""
    return [_message(message, texts, dialect) for message in outline.messages]


def _message(message: MessageOutline, texts: Sequence[str], dialect: Dialect) -> dict[str, Any]:
    content = "".join(texts[part] if isinstance(part, int) else part for part in message.parts)
    made: dict[str, Any] = {"role": message.role, "content": content}
    if message.role == "tool":
        made |= {"name": message.name} if message.name else {}
        made |= {"tool_call_id": _id(message.call_id, dialect)} if message.call_id else {}
    if message.thought is not None:
        made[dialect.thought] = texts[message.thought]
    if message.calls:
        made["tool_calls"] = [_called(call, texts, dialect) for call in message.calls]
        made["content"] = content or (None if dialect.null_content else "")
    return made


def _called(call: CallOutline, texts: Sequence[str], dialect: Dialect) -> dict[str, Any]:
    arguments = _as_json(call.arguments, texts)
    if dialect.arguments_as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": _id(call.call_id, dialect), "type": "function", "function": function}


def _id(given: str, dialect: Dialect) -> str:
    """The id of a call: as given, or nine letters and digits that follow from it where none was given or a template takes no
    other."""
    if _SHORT_ID.fullmatch(given) or not (dialect.short_ids or given.startswith("call ")):
        return given
    number = int.from_bytes(hashlib.sha256(given.encode()).digest()[:8], "big")
    return "".join(_DIGITS[number // 62**place % 62] for place in range(9))
