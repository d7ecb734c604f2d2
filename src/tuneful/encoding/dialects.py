"""Which dialect a chat template takes, found by trying; and whether it renders all that a record has, found by looking.

Stands between `frame.py` and `chat_template.py`. What is tried is a conversation of sentinels: the first dialect in which all of
them come out is the template's. What is looked at is the frame of a record: a text that has no place in it, or a tool or call of
which a name, a key or a number is missing, was dropped by the template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from tuneful.encoding.frame import Frame, Span, json_forms
from tuneful.encoding.outline import (
    IN_CONTENT,
    THOUGHT_KEYS,
    CallOutline,
    Dialect,
    MessageOutline,
    Outline,
    fixed_parts,
)
from tuneful.encoding.template import THOUGHT_END, THOUGHT_START
from tuneful.errors import TemplateError

Framed = Callable[[Outline, Dialect], Frame]
"""Makes the frame of a conversation's sentinels in a dialect; TemplateError where the template takes no such messages."""

_ASK = MessageOutline("user", (0,))
_ARGUMENTS = ("object", (("k", ("text", 1)), ("n", ("list", (("text", 2), ("other", "true"))))))
_CALL = CallOutline("f", _ARGUMENTS, "call_0123456789abcdef")
_CALLED = MessageOutline("assistant", (), calls=(_CALL,))
_RESULT = MessageOutline("tool", (3,), name="f", call_id="call_0123456789abcdef")
PROBE_CALL = Outline((_ASK, _CALLED))
"""A question and a call that answers it: texts 0 to 2."""
_PROBE_RESULT = Outline((_ASK, _CALLED, _RESULT, MessageOutline("assistant", (4,))))


def find_dialect(source: str, framed: Framed) -> Dialect:
    """The dialect of the template `source`."""
    thought = _thought_key(source, framed)
    for probe, slots in ((_PROBE_RESULT, {0, 1, 2, 3, 4}), (PROBE_CALL, {0, 1, 2})):
        for short, null, as_text in product((False, True), repeat=3):
            dialect = Dialect(thought, as_text, null, short)
            frame = _tried(framed, probe, dialect)
            if frame is not None and slots <= set(frame.slots) and "{'" not in "".join(frame.literals):
                return dialect
    return Dialect(thought)


def _thought_key(source: str, framed: Framed) -> str:
    """The name under which a template reads the thought of the last answer, IN_CONTENT, or "" where it renders none."""
    for key in (*(key for key in THOUGHT_KEYS if key in source), IN_CONTENT):
        if key == IN_CONTENT:
            answer = MessageOutline("assistant", (THOUGHT_START, 1, THOUGHT_END, 2))
        else:
            answer = MessageOutline("assistant", (2,), 1)
        frame = _tried(framed, Outline((_ASK, answer)), Dialect(key))
        if frame is not None and frame.slots[-2:] == (1, 2):
            return key
    return ""


def _tried(framed: Framed, outline: Outline, dialect: Dialect) -> Frame | None:
    try:
        return framed(outline, dialect)
    except TemplateError:
        return None


def fields_left_out(outline: Outline, frame: Frame, without_tools: Frame | None, spans: Sequence[Span]) -> list[str]:
    """The fields of a record that its frame lacks, in words; `without_tools` is the frame of the same without tools."""
    found = []
    if outline.tools and (without_tools is None or not _has_tools(outline.tools, frame, without_tools)):
        found.append("tools")
    slots = set(frame.slots)
    if any(not _has_calls(message, frame, slots, index, spans) for index, message in enumerate(outline.messages)):
        found.append("tool_calls")
    if any(message.role == "tool" and not slots.issuperset(message.numbers()) for message in outline.messages):
        found.append("tool results")
    return found


def _has_tools(tools: str, frame: Frame, without: Frame) -> bool:
    if frame.literals == without.literals:
        return False
    text = "".join(frame.literals)
    return all(any(form in text for form in _forms(said)) for said in _said_of(json.loads(tools)))


def _said_of(value: Any, key: str = "") -> Iterator[str]:
    """What the tools of a record say to a reader: names, descriptions, the names of parameters and what they may be."""
    if isinstance(value, dict):
        for name, one in value.items():
            if key == "properties":
                yield name
            if isinstance(one, str) and name in ("name", "description"):
                yield one
            yield from _said_of(one, name)
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, str) and key == "enum":
                yield one
            yield from _said_of(one)


def _has_calls(message: MessageOutline, frame: Frame, slots: set[int], index: int, spans: Sequence[Span]) -> bool:
    if not message.calls:
        return True
    span = next((span for span in spans if span.message == index), None)
    text = "".join(frame.literals) if span is None else written(frame, span)
    fixed = [part for call in message.calls for part in (call.name, *fixed_parts(call.arguments))]
    names = [call.name for call in message.calls]
    numbers = {number for call in message.calls for number in _own(call)}
    return (
        numbers <= slots
        and all(any(form in text for form in _forms(part)) for part in fixed)
        and all(text.count(name) >= names.count(name) for name in names)
    )


def _own(call: CallOutline) -> list[int]:
    return MessageOutline("", (), calls=(call,)).numbers()


def _forms(said: str) -> list[str]:
    """A name or a number as templates write it: as it is, as JSON, trimmed, and true as Python's True."""
    return [said.strip(), *json_forms(said.strip()), said.capitalize()]


def written(frame: Frame, span: Span) -> str:
    """What the template writes of a message, its texts left out."""
    if span.first == span.last:
        return frame.literals[span.first][span.start : span.end]
    between = frame.literals[span.first + 1 : span.last]
    return "\0".join((frame.literals[span.first][span.start :], *between, frame.literals[span.last][: span.end]))


def control_in_names(outline: Outline, finds: Callable[[str], Any]) -> str:
    """The first name, key or other part of tools and calls in which `finds` finds a control token; "" where none does."""
    said = [outline.tools]
    for message in outline.messages:
        said += [message.name, message.call_id]
        said += [part for call in message.calls for part in (call.name, call.call_id, *fixed_parts(call.arguments))]
    return next((one for one in said if one and finds(one)), "")
