"""What a chat template writes around the texts of a conversation, found by rendering sentinels in their place.

    conversation -> outline (roles, numbered texts) + texts
    outline      -> messages of sentinels, rendered by the template -> Frame

    frame      <|im_start|>user\\n  [0]  <|im_end|>\\n<|im_start|>assistant\\n  [1]  <|im_end|>\\n

Stands below `chat_template.py`. Where a sentinel stands the text is the user's, and all else is the template's, so who wrote
which character is known and never guessed. Sentinels are random: no record can hold one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from tuneful.encoding.template import Origin
from tuneful.types import Conversation

INPUT_START = "\n\n"
"""What stands between the instruction and the input of a user message."""

_OPENING = re.compile(r"\s*<(think|thinking|thought|reasoning)>(\n?)")

Outline = tuple[tuple[str, tuple[int | str, ...]], ...]
"""Messages without their texts: (role, parts), where a part is the number of a text, or INPUT_START."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the record, whose it is, and the weight of its turn in the loss."""

    origin: Origin
    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around the texts of a conversation: literals[0], text slots[0], literals[1], ... literals[-1].

    Where the template marks what the assistant says ({% generation %}), `marked[k]` says that slot k is, and
    `marked_tails[k]` how many characters at the end of literals[k] are. `prefixes[k]` is None where slot k is not trained,
    else the length of its generation prefix: the characters at the end of literals[k] that come after the prompt, which the
    model has to write. `thought` is what the prompt of the last response has after literals[-2] beyond that: the opening of a
    thought, which the model has to close; "" where it has none.
    """

    literals: tuple[str, ...]
    slots: tuple[int, ...]
    marked: tuple[bool, ...]
    marked_tails: tuple[int, ...]
    prefixes: tuple[int | None, ...] = ()
    thought: str = ""

    def filled(self, texts: Sequence[str]) -> str:
        """The frame with text `slots[k]` of `texts` in each slot."""
        parts = [self.literals[0]]
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            parts += (texts[slot], literal)
        return "".join(parts)

    def trimmed(self, rendered: str, texts: Sequence[str]) -> list[str] | None:
        """What stands in each slot of `rendered`: its text, or that without outer white space; None where neither fits."""
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


def outline_of(conversation: Conversation, *, answered: bool) -> tuple[Outline, list[Text]]:
    """The messages of a conversation up to its last response (included if `answered`), without and beside their texts."""
    texts: list[Text] = []
    messages: list[tuple[str, tuple[int | str, ...]]] = []

    def add(role: str, *said: Text) -> None:
        parts: list[int | str] = []
        for one in said:
            if one.text:
                parts += ([INPUT_START] if parts else []) + [len(texts)]
                texts.append(one)
        if parts:
            messages.append((role, tuple(parts)))

    add("system", Text(Origin.SYSTEM, conversation.system))
    turns = conversation.answered_turns
    for number, turn in enumerate(turns, start=1):
        add("user", Text(Origin.USER, turn.instruction), Text(Origin.USER, turn.input))
        if answered or number < len(turns):
            add("assistant", Text(Origin.RESPONSE, turn.response, turn.weight))
    return tuple(messages), texts


def opened_thought(literal: str, prompt: str) -> str:
    """What `prompt` has after `literal`, where that is the opening of a thought (`<think>`, `<thinking>` ...); else ""."""
    opening = prompt.removeprefix(literal)
    return opening if opening != prompt and _OPENING.fullmatch(opening) else ""


def closing_of(opening: str) -> str:
    """What closes a thought that was opened and has nothing in it, in the form that reasoning models write: an empty line inside
    and one after it."""
    found = _OPENING.fullmatch(opening)
    assert found is not None, opening
    return f"{'' if found[2] else chr(10)}\n</{found[1]}>\n\n"


def messages_of(outline: Outline, texts: Sequence[str]) -> list[dict[str, str]]:
    """The messages with `texts` in them, as a chat template takes them."""
    return [
        {"role": role, "content": "".join(texts[part] if isinstance(part, int) else part for part in parts)}
        for role, parts in outline
    ]


def num_texts(outline: Outline) -> int:
    """How many texts stand in the messages."""
    return sum(isinstance(part, int) for _, parts in outline for part in parts)


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


def _variants(text: str) -> list[str]:
    """`text` as templates trim it; where two reach the same place, the text as it is wins."""
    return [text.strip(), text.rstrip(), text.lstrip(), text]
