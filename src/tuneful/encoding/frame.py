"""What a chat template writes around the texts of a conversation, found by rendering sentinels in their place.

    outline (outline.py) -> messages of sentinels, rendered by the template -> Frame

    frame      <|im_start|>user\\n  [0]  <|im_end|>\\n<|im_start|>assistant\\n  [1]  <|im_end|>\\n

Stands below `chat_template.py`. Where a sentinel stands the text is the user's, and all else is the template's, so who wrote
which character is known and never guessed. Sentinels are random: no record can hold one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tuneful.encoding.outline import Text
from tuneful.encoding.template import Origin

_TAGS = "think|thinking|thought|reasoning"
_OPENING = re.compile(rf"\s*<({_TAGS})>(\n?)")
_OPENING_AT_END = re.compile(rf"\s*(<(?:{_TAGS})>\n?)\Z")
CLOSING = re.compile(rf"\s*</(?:{_TAGS})>\s*")
"""What closes a thought in what a template writes after it."""


class Span(NamedTuple):
    """What the model has to write of message number `message`: from character `start` of literal `first` to the end token,
    characters `end` to `stop` of literal `last`."""

    message: int
    first: int
    start: int
    last: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around the texts of a conversation: literals[0], text slots[0], literals[1], ... literals[-1].

    Where the template marks what the assistant says ({% generation %}), `marked[k]` says that slot k is, and
    `marked_tails[k]` how many characters at the end of literals[k] are. `spans` are what the model has to write, in order:
    a message that has none is context. `thought` is what the prompt of the last one has where its span begins, beyond the
    frame: the opening of a thought, which the model has to close; "" where it has none.
    """

    literals: tuple[str, ...]
    slots: tuple[int, ...]
    marked: tuple[bool, ...]
    marked_tails: tuple[int, ...]
    spans: tuple[Span, ...] = ()
    thought: str = ""

    def filled(self, texts: Sequence[str]) -> str:
        """The frame with text `slots[k]` of `texts` in each slot."""
        parts = [self.literals[0]]
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            parts += (texts[slot], literal)
        return "".join(parts)

    def found(self, rendered: str, texts: Sequence[Text]) -> list[str] | None:
        """What stands in each slot of `rendered`: its text, as it is, without outer white space or, where it may be part of JSON,
        as that writes it; None where none of these fits."""
        if not rendered.startswith(self.literals[0]):
            return None
        # After each literal: the positions that it may end at, each with (position before, text in between).
        reached = [{len(self.literals[0]): (0, "")}]
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            reached.append(
                {
                    start + len(text) + len(literal): (start, text)
                    for start in reached[-1]
                    for text in _variants(texts[slot])
                    if rendered.startswith(text + literal, start)
                }
            )
        if (at := len(rendered)) not in reached[-1]:
            return None
        found = []
        for level in reversed(reached[1:]):
            at, text = level[at]
            found.append(text)
        return found[::-1]


def opened_thought(literal: str, prompt: str) -> str:
    """What `prompt` ends in beyond the beginning of `literal`, where that is the opening of a thought (`<think>`, `<thinking>`
    ...); else ""."""
    if literal.startswith(prompt) or (found := _OPENING_AT_END.search(prompt)) is None:
        return ""
    for at in (found.start(1), found.start()):
        if literal.startswith(prompt[:at]) and not _OPENING.match(
            literal, at
        ):  # it has a thought of its own, otherwise spelt
            return prompt[at:]
    return ""


def closing_of(opening: str) -> str:
    """What closes a thought that was opened and has nothing in it, in the form that reasoning models write: an empty line inside
    and one after it."""
    found = _OPENING.fullmatch(opening)
    assert found is not None, opening
    return f"{line_after(opening)}\n</{found[1]}>\n\n"


def line_after(opening: str) -> str:
    """The line feed after the opening of a thought, where that has none of its own."""
    return "" if opening.endswith("\n") else "\n"


class Sentinels:
    """Random texts that stand for a record's, and two `marks` that open and close what the assistant says."""

    def __init__(self) -> None:
        nonce = secrets.token_hex(8)
        self.marks = (f"q{nonce}o", f"q{nonce}c")
        self._nonce = nonce
        self._any = re.compile(f"(q{nonce}(?:[oc]|n[0-9]+q))")

    def texts(self, count: int) -> list[str]:
        """The sentinels of the first `count` texts."""
        return [f"q{self._nonce}n{slot}q" for slot in range(count)]

    def frame(self, rendered: str, count: int) -> Frame:
        """The frame that a rendering of the first `count` sentinels shows, its prefixes aside."""
        opens, closes = self.marks
        slot_of = {sentinel: slot for slot, sentinel in enumerate(self.texts(count))}
        literals, slots, marked, marked_tails = [""], [], [], [0]
        depth = 0
        for part in self._any.split(rendered):
            if part in self.marks:
                depth += {opens: 1, closes: -1}[part]
            elif part in slot_of:
                slots.append(slot_of[part])
                marked.append(depth > 0)
                literals.append("")
                marked_tails.append(0)
            elif part:
                literals[-1] += part
                marked_tails[-1] = marked_tails[-1] + len(part) if depth else 0
        return Frame(tuple(literals), tuple(slots), tuple(marked), tuple(marked_tails))


def _variants(one: Text) -> list[str]:
    """`one` as templates trim or write it; where two reach the same place, the text as it is wins."""
    text = one.text
    plain = [text.strip(), text.rstrip(), text.lstrip(), text]
    if one.origin not in (Origin.ARGUMENT, Origin.TOOL):
        return plain
    return [*plain[:3], *(json for other in dict.fromkeys(plain) for json in json_forms(other)), text]


def json_forms(text: str) -> list[str]:
    """`text` as it stands inside of JSON, and inside of JSON inside of JSON."""
    once = [json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (True, False)]
    return [*(json.dumps(one, ensure_ascii=False)[1:-1] for one in once), *once]
