"""Messages become turns: lists of roles and texts, in the shapes in which people write conversations.

    [{role, content}], [{from, value}]      OpenAI's and ShareGPT's, under whatever key they stand
    ["...", "..."]                          texts of the user's and the assistant's in turn (LIMA, UltraChat)
    [{input, output}], [[asked, answered]]  pairs (Capybara, xtuner)

Stands on `turns.py`, which puts messages together; whatever was read in another way than it stands is counted (`notes.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from tuneful.data.marks import MARKS, answer_weight, note_idle_marks
from tuneful.data.notes import Noted, quoted
from tuneful.data.rows import shown
from tuneful.data.tools import CALLS, THOUGHTS, TOOLS, calls_in, calls_of, result_text, thought_of, without_thought
from tuneful.data.turns import Conversed, Message, conversed
from tuneful.data.values import Fields, from_json_text, is_blank, kind_of, names_of, text_of, unfit

ROLES = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_UNTRAINED = ("audio", "images", *TOOLS)
"""Parts of a message that are neither trained nor shown to the model, so that a message with one is refused."""
ROLE_KEYS = ("role", "from", "speaker", "author")
TEXT_KEYS = ("content", "value", "text", "message")
_ASKED_KEYS = ("input", "instruction", "prompt", "question", "human", "user")
_ANSWERED_KEYS = ("output", "response", "completion", "answer", "assistant", "bot")
_KNOWN_KEYS = frozenset(
    (*ROLE_KEYS, *TEXT_KEYS, *_UNTRAINED, *MARKS, *CALLS, *THOUGHTS, "name", "id", "tool_call_id", "tool_name")
)
_TWO_LETTERS = re.compile(r"[^\W\d_]{2}")
_SIGNS_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u2e80-\u9fff\uac00-\ud7af]{8}")
_READ = 4096  # characters


def is_prose(value: Any) -> bool:
    """Whether a value holds text that says something: two words, or eight signs of a script that has no spaces.

    Word by word: one pattern for both words takes the square of the length of a text without spaces, such as base64.
    """
    if isinstance(value, str):
        words = [_TWO_LETTERS.search(word) is not None for word in value[:_READ].split()]
        return any(one and next_one for one, next_one in pairwise(words)) or (
            _SIGNS_WITHOUT_SPACES.search(value, 0, _READ) is not None
        )
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(is_prose(one) for one in list(inner)[:50])


def looks_like_messages(value: Any) -> bool:
    """Whether `value` is a list of messages with roles and texts, as such or as two columns."""
    if isinstance(value, dict):
        keys, columns = value.keys(), all(isinstance(column, list) for column in value.values())
        return columns and _one_of(keys, ROLE_KEYS) is not None and _one_of(keys, TEXT_KEYS) is not None
    return isinstance(value, list) and bool(value) and all(map(_has_role_and_text, value))


def _has_role_and_text(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    role, text = _one_of(entry, ROLE_KEYS), _one_of(entry, (*TEXT_KEYS, *CALLS))
    return role is not None and text is not None and str(entry[role]).lower() in ROLES


def looks_like_a_dialogue(value: Any) -> bool:
    """Whether `value` is a list of texts, or of pairs of what was asked and answered."""
    return isinstance(value, list) and len(value) > 0 and (_are_texts(value) or _are_pairs(value))


def read_messages(value: Any, key: str, system: str, noted: Noted, *, asks: bool) -> Conversed:
    """(system, turns) of the messages `value` of the column `key`; with `asks` those up to the question that is to be answered.

    Raises UnfitError where they are no messages, or nothing in them is trained.
    """
    entries = entries_of(from_json_text(value, f"`{key}`", noted))
    if not isinstance(entries, list):
        unfit(f"`{key}` is {kind_of(entries)}, expected a list of messages")
    if _are_texts(entries):
        noted.add("texts_in_turn", f"`{key}`")
        entries = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(entries)]
    elif _are_pairs(entries):
        entries = list(_from_pairs(entries))
    messages = [_message(entry, number, noted, asks=asks) for number, entry in enumerate(entries, start=1)]
    return conversed(messages, system, noted, asks=asks)


def message_texts(value: Any) -> list[tuple[str, str]]:
    """(role, text) of the messages `value` for a reader, up to the last answer that is trained; what is none is left out."""
    ignored = Noted()
    try:
        entries = entries_of(from_json_text(value, "", ignored))
    except ValueError:
        return []
    if not isinstance(entries, list):
        return []
    if _are_texts(entries):
        return [(("user", "assistant")[at % 2], text) for at, text in enumerate(entries)]
    entries = list(_from_pairs(entries)) if _are_pairs(entries) else entries
    found = [_shown_message(entry) for entry in entries if isinstance(entry, dict)]
    trained = [at for at, (role, _, counts) in enumerate(found) if role == "assistant" and counts]
    return [(role, text) for role, text, _ in found[: trained[-1] + 1 if trained else None]]


def _shown_message(entry: Fields) -> tuple[str, str, bool]:
    role = plain_text(entry.get(_one_of(entry, ROLE_KEYS) or ""))
    said = ROLES.get(role.lower(), role)
    texts = [plain_text(entry.get(key)) for key in (_one_of(entry, TEXT_KEYS) or "", *CALLS)]
    try:
        counts = answer_weight(entry, "", Noted()) > 0
    except ValueError:
        counts = True
    return "assistant" if said == "call" else said, "\n".join(filter(None, texts)), counts


def plain_text(value: Any) -> str:
    """`value` for a reader: "" for none, and the text of a single part of text."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "text" in value[0]:
        value = value[0]["text"]
    return "" if value is None else str(value)


# Shapes


def entries_of(messages: Any) -> Any:
    """`messages`, as a list where a table gives them as a column of roles and one of texts."""
    if isinstance(messages, dict) and all(isinstance(column, list) for column in messages.values()):
        if len({len(column) for column in messages.values()}) > 1:
            unfit(
                "the columns of the messages are of unlike lengths; which role goes with which text is not to be told"
            )
        return [dict(zip(messages, values, strict=False)) for values in zip(*messages.values(), strict=False)]
    return messages


def _are_texts(entries: Sequence[Any]) -> bool:
    return len(entries) > 1 and all(isinstance(entry, str) for entry in entries)


def _are_pairs(entries: Sequence[Any]) -> bool:
    """Whether entries are what was asked and what was answered, as objects or lists of two."""
    return bool(entries) and all(
        (
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], str)
            and isinstance(entry[1], (str, type(None)))
        )
        or (
            isinstance(entry, dict)
            and _one_of(entry, ROLE_KEYS) is None
            and _one_of(entry, _ASKED_KEYS) is not None
            and _one_of(entry, _ANSWERED_KEYS) is not None
        )
        for entry in entries
    )


def _from_pairs(entries: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The messages of pairs; a `system` of the first is the first message."""
    for entry in entries:
        if isinstance(entry, list):
            asked, answered, rest = entry[0], entry[1], {}
        else:
            ask, answer = _one_of(entry, _ASKED_KEYS), _one_of(entry, _ANSWERED_KEYS)
            assert ask is not None
            assert answer is not None
            asked, answered = entry[ask], entry[answer]
            rest = {key: value for key, value in entry.items() if key not in (ask, answer, "system")}
            if not is_blank(entry.get("system")):
                yield {"role": "system", "content": entry["system"]}
        if not is_blank(asked):
            yield {"role": "user", "content": asked}
        yield {"role": "assistant", "content": answered, **rest}


def _one_of(keys: Any, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in keys), None)


# Messages


def _message(entry: Any, number: int, noted: Noted, *, asks: bool) -> Message:
    """The message `entry`; UnfitError for what is none, or for more than one text. With `asks` an answer may be null."""
    where = f"message {number}"
    if not isinstance(entry, dict):
        unfit(f"{where} is {kind_of(entry)}, expected {{'role': ..., 'content': ...}}")
    role_key, text_key = _one_of(entry, ROLE_KEYS), _one_of(entry, TEXT_KEYS)
    calls = any(not is_blank(entry.get(key)) for key in CALLS)
    if role_key is None or (text_key is None and not calls):
        unfit(f"{where} has no `{'role' if role_key is None else 'content'}`; keys are {names_of(entry)}")
    if untrained := next((key for key in _UNTRAINED if entry.get(key)), None):
        hint = "put it beside the messages" if untrained in TOOLS else "which is not trained; leave such records out"
        unfit(f"{where} has `{untrained}`, {hint}")
    role = entry[role_key]
    meant = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if meant is None:
        name = quoted(role) if isinstance(role, str) else kind_of(role)
        unfit(f"{where} is by {name}; messages of system, user, assistant and tool are known")
    for key in entry.keys() - _KNOWN_KEYS:
        if is_prose(entry[key]):
            noted.add("unused_text", f"`{shown(key)}` of messages")
    content = entry.get(text_key or "")
    if meant in ("assistant", "call"):
        return _answer(entry, content, text_key or "content", number, noted, asks=asks, is_call=meant == "call")
    if calls or any(not is_blank(entry.get(key)) for key in THOUGHTS):
        unfit(f"{where} calls a tool or thinks, and is the {meant}'s; the assistant alone does")
    note_idle_marks(entry, where, noted)
    if meant == "tool":
        result = result_text(_text_of_parts(content), where, noted)
        tool, call_id = (entry.get(key) for key in (_one_of(entry, ("name", "tool_name")) or "", "tool_call_id"))
        return Message(meant, result, 0.0, number, name=str(tool or ""), call_id=str(call_id or ""))
    text = text_of(_only_text(content, where), f"`{text_key}` of {where}", noted, f"`{text_key}`")
    return Message(meant, text, 0.0, number)


def _answer(entry: Fields, content: Any, key: str, number: int, noted: Noted, *, asks: bool, is_call: bool) -> Message:
    """A message of the assistant's: a thought, a text, calls; with `is_call` its text is a call, as in ShareGPT's."""
    where = f"message {number}"
    weight = answer_weight(entry, where, noted)
    calls = calls_in(content, where, noted) if is_call else calls_of(entry, where, noted)
    content = "" if is_call or (content is None and (asks or calls)) else _only_text(content, where)
    text = text_of(content, f"`{key}` of {where}", noted, f"`{key}`")
    thought = thought_of(entry, where, noted)
    inner, text = without_thought(text, noted)
    if thought and inner and thought != inner:
        unfit(f"{where} has two different thoughts, one of them in its text")
    if calls:
        noted.add("calls")
    return Message("assistant", text, weight, number, thought or inner, calls)


def _text_of_parts(content: Any) -> Any:
    """The text of a content that is parts of text; any other content as it is."""
    is_parts = isinstance(content, list) and content and all(isinstance(one, dict) and "text" in one for one in content)
    return "".join(str(part["text"]) for part in content) if is_parts else content


def _only_text(content: Any, where: str) -> Any:
    """The text of a content that is one part of text; anything else in parts is refused by its type."""
    if not isinstance(content, list):
        return content
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
    if kinds == ["text"] and "text" in content[0]:
        return content[0]["text"]
    other = next((kind for kind in kinds if isinstance(kind, str) and kind != "text"), None)
    what = f"a part of type `{shown(other)}`" if other else f"{len(content)} parts"
    return unfit(f"{where} has {what}; only one text is trained")
