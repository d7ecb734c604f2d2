"""A teacher's reply becomes texts, or the reason why it is refused: read strictly, in bounded size, with nothing guessed.

Stands between the askers, which give whole replies, and the kinds, which make rows of texts. Whatever a reply says is taken for
hostile until it has passed: control tokens would be read as structure by other trainers, a copied prompt teaches nothing, and a
refusal teaches to refuse. The trade: a text about `<|im_end|>` or about being a language model is refused too.

A reason is a few fixed words, then after a colon what is particular: `not JSON: Expecting value ...`. Reasons are counted by
the words before the colon.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tuneful.audit.defects import find_defects
from tuneful.data.duplicates import normal_text
from tuneful.judge.backends import shortened
from tuneful.judge.client import AskResult, NoReply
from tuneful.judge.grammar import Unreadable, json_object_in, unwrapped, without_thought
from tuneful.judge.questions import Question
from tuneful.types import Conversation, Turn

MAX_CHARACTERS = 32_768
"""Longest reply that is read at all."""

_CONTROL_TOKEN = re.compile(
    r"<[|｜][^\s<>]{1,60}[|｜]>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?think>",
    re.I,
)
_CONTROL_CHARACTER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffd\ufffe\uffff]")
_DEFECTS: Mapping[str, str] = MappingProxyType(
    {
        "null_answers": "a missing value",
        "placeholder_answers": "a placeholder",
        "declined_answers": "a refusal",
        "copied_instructions": "repeats the prompt",
    }
)
"""Defects of `check` for which an answer is not used, and the reason given."""

_MIN_COPIED_WORDS = 8
_MIN_LINES, _MIN_SAME_LINES = 8, 4
_HEAD = re.compile(r"\s*(?:assistant|user|system)\s*:?\s*\n", re.I)


@dataclass(frozen=True, slots=True)
class Refused:
    """A reply, a request or a record that is not used, and the reason."""

    reason: str


def text_of(result: AskResult, question: Question) -> str | Refused:
    """The text of a plain reply, without a thought in front of it, or why it is not used."""
    whole = _whole(result)
    if isinstance(whole, Refused):
        return whole
    text = without_thought(whole)
    if isinstance(text, Unreadable):
        return Refused(f"no text: {text.reason}")
    return refusal_of(text, question) or text


def fields_of(
    result: AskResult, question: Question, needed: Sequence[str], optional: Sequence[str]
) -> dict[str, str] | Refused:
    """The texts of a reply that has to be one JSON object of such fields, alone or in one code fence, or why it is not used.

    A field that is `optional` is "" where it is left out.
    """
    whole = _whole(result)
    if isinstance(whole, Refused):
        return whole
    text = unwrapped(whole)
    found = text if isinstance(text, Unreadable) else json_object_in(text, None)
    if isinstance(found, Unreadable):
        return Refused(f"not JSON: {found.reason}")
    if unknown := [key for key in found if key not in (*needed, *optional)]:
        return Refused(f"unknown fields: {shortened(unknown[0], 40)}")
    if missing := [name for name in needed if name not in found]:
        return Refused(f"fields are missing: {', '.join(missing)}")
    for name, value in found.items():
        if not isinstance(value, str):
            return Refused(f"a field is no text: `{name}` is of the type {type(value).__name__}")
    texts = {name: str(found.get(name, "")).strip() for name in (*needed, *optional)}
    for name, one in texts.items():
        if (refused := refusal_of(one, question)) and (one or name in needed):
            return Refused(f"{refused.reason} (`{name}`)" if ": " in refused.reason else f"{refused.reason}: `{name}`")
    return texts


def refusal_of(text: str, question: Question) -> Refused | None:
    """Why `text`, a part of a reply to `question`, cannot be used, whatever it is part of; None where it can."""
    if not text:
        return Refused("empty")
    if found := _CONTROL_TOKEN.search(text):
        return Refused(f"control tokens: {shortened(found[0], 40)}")
    if found := _CONTROL_CHARACTER.search(text):
        return Refused(f"control characters: U+{ord(found[0]):04X}")
    if question.nonce and question.nonce in text:
        return Refused("repeats the prompt: it carries the code of its request")
    said = normal_text(text)
    if said.count(" ") + 1 >= _MIN_COPIED_WORDS:
        prompts = [normal_text(one) for one in (question.system, question.user)]
        whole = any(prompt.count(" ") + 1 >= _MIN_COPIED_WORDS and prompt in said for prompt in prompts)
        # Of a prompt of ours the system text is our own, and the user's text is data, of which a reply may hold parts.
        if whole or said in prompts or (question.nonce and said in prompts[0]):
            return Refused("repeats the prompt")
    if _HEAD.match(text):
        return Refused("a role's name stands before it")
    return Refused("repeats itself") if _repeats_itself(text) else None


def response_refusal(turn: Turn) -> Refused | None:
    """Why the response of `turn` cannot be learnt from, by the rules of `check`; None where it can."""
    for name, text, at in find_defects(Conversation("", (turn,), "a reply")):
        if name in _DEFECTS:
            return Refused(f"{_DEFECTS[name]}: {shortened(text[at : at + 60], 60)}")
    return None


def task_refusal(instruction: str) -> Refused | None:
    """Why a text is no instruction: it declines to give one, or holds the place of one."""
    refused = response_refusal(Turn("Write one task.", "", instruction))
    return refused if refused is not None and not refused.reason.startswith("repeats") else None


def _whole(result: AskResult) -> str | Refused:
    """The text of a reply that is small enough to be read."""
    if isinstance(result, NoReply):
        return Refused(f"no whole reply: {result.reason}")
    if len(result.text) > MAX_CHARACTERS:
        return Refused(f"too long: {len(result.text):,} characters, over {MAX_CHARACTERS:,}")
    return result.text if result.text.strip() else Refused("empty")


def _repeats_itself(text: str) -> bool:
    """Whether one line comes again and again, and makes half of the text or more: a model that did not find its end."""
    lines = [line.strip() for line in text.split("\n") if len(line.strip()) > 2]
    if len(lines) < _MIN_LINES:
        return False
    _, count = Counter(lines).most_common(1)[0]
    return count >= _MIN_SAME_LINES and count * 2 >= len(lines)
