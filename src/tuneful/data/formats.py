"""Rows become conversations: the formats in which people write instructions and answers, told by their keys.

    alpaca             instruction, output           input, system, history
    messages           messages: [{role, content}]   (OpenAI)
    sharegpt           conversations: [{from, value}]
    prompt-completion  prompt, completion            texts, or lists of messages
    question-answer    question, answer              context
    dolly              instruction, response         context

Each row is told by itself, so that files of several formats can be put together; `data.format` names one for all, and
`data.columns` reads a field from a column of another name. What cannot be trained on as it was meant (tool calls, images,
a finished `text`) is refused by its name, never read in part. A record of any format may have a `weight` in the loss.

A new format is an entry of FORMATS, and its name one of `data.format` in the configuration: keys, readers, the columns by
which CSV is told, what makes a JSON object a record, and what a report shows of a record all follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from tuneful.data.rows import shown
from tuneful.errors import ConfigError
from tuneful.types import Conversation, Turn

Fields = Mapping[str, Any]
_MAX_KEY_SETS = 1000
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_UNTRAINED = ("tool_calls", "function_call", "tool_call_id", "audio", "images", "reasoning_content", "thinking")
"""Parts of a message that are neither trained nor shown to the model, so that a message with one is refused."""
_MAY_BE_NULL = ("input", "context", "system")
_ASKS = ("instruction", "prompt", "question", "query", "user", "human", "source")
_ANSWERS = ("output", "response", "answer", "completion", "target", "reply", "assistant", "gpt")
WEIGHT = "weight"
"""The field of any format that says how much a record counts in the loss: 2 is a record that stands in the file twice."""
_LEAST_WEIGHT, _MOST_WEIGHT = 1e-3, 1e3
TEXT_REASON = (
    "`text` is a finished text: which part of it is the response, the part to learn, is not written in it. Give "
    "instruction and response fields of their own"
)
"""Why a row of `text` alone is refused."""


Conversed = tuple[str, tuple[Turn, ...]]
"""(system, turns) of a record."""


@dataclass(frozen=True, slots=True)
class RecordTexts:
    """What a raw record says, for a reader: what is `asked`, with its `input`, and the `reference` answer; "" where it has none.

    Of a record that is written as messages `turns` are those before the reference, (role, text) each, and `asked` is the last
    of them. Other records have no turns.
    """

    asked: str
    input: str
    reference: str
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a record: the fields that it needs, those that it may have, and how they are read.

    `read` is strict and raises _UnfitError with the reason; `texts` takes what is there, for a record that is only shown.
    """

    name: str
    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    read: Callable[[Fields], Conversed]
    texts: Callable[[Fields], RecordTexts]


class FormatReader:
    """Reads rows under `data.format` and `data.columns`; ConfigError where the columns suit no format."""

    def __init__(self, format: str, columns: Mapping[str, str] | None) -> None:
        self._columns = dict(columns or {})
        self._mapped = frozenset(self._columns.values())
        named = [one for one in FORMATS if format in ("auto", one.name)]
        fitting = [one for one in named if self._columns.keys() <= {*one.needs, *one.may_have, WEIGHT}]
        if not fitting:
            fields = "; ".join(f"{one.name}: {', '.join((*one.needs, *one.may_have))}" for one in named)
            raise ConfigError(
                f"data.columns: {', '.join(f'`{shown(field)}`' for field in self._columns)} are not fields of one format. "
                f"It maps fields to column names, as in instruction=question,output=answer. Fields are {fields}"
            )
        self._formats = fitting
        self._by_keys: dict[tuple[str, ...], Format | None] = {}

    @property
    def columns(self) -> frozenset[str]:
        """Every name of a column that means something here."""
        own = {field for format in self._formats for field in (*format.needs, *format.may_have, WEIGHT)}
        return frozenset(own - self._columns.keys()) | self._mapped

    def read(self, row: Any, source: str) -> tuple[str, Conversation] | str:
        """(the format's name, the conversation) of a row, or the reason why there is none."""
        if not isinstance(row, dict):
            return f"expected a record such as {{'instruction': ..., 'output': ...}}, found {_kind(row)}"
        try:
            fields = self._renamed(row) if self._columns else row
            format = self._format_of(tuple(fields))
            if format is None:
                return self._why_unknown(fields, row)
            system, turns = format.read(fields)
            weight = _weight(fields)
        except _UnfitError as error:
            return self._in_their_words(str(error))
        return format.name, Conversation(system, turns, source, weight)

    def _renamed(self, row: Fields) -> Fields:
        fields = {key: value for key, value in row.items() if key not in self._mapped}
        for field, column in self._columns.items():
            if column in row:
                fields[field] = row[column]
            else:
                fields.pop(field, None)
        return fields

    def _format_of(self, keys: tuple[str, ...]) -> Format | None:
        try:
            return self._by_keys[keys]
        except KeyError:
            if len(self._by_keys) >= _MAX_KEY_SETS:
                self._by_keys.clear()
            found = _fitting(self._formats, keys)
            self._by_keys[keys] = found
            return found

    def _why_unknown(self, fields: Fields, row: Fields) -> str:
        near = _nearest(self._formats, fields)
        missing = [need for need in near.needs if need not in fields]
        if len(self._formats) > 1 and len(missing) == len(near.needs):
            return _why_no_format(fields)
        if column := self._columns.get(missing[0]):
            return f"no `{shown(column)}`, which data.columns names for `{missing[0]}`; keys are {_names(row)}"
        like = _like(fields, _ANSWERS if missing[0] in _ANSWERS else _ASKS if missing[0] in _ASKS else ())
        hint = f"found `{like}`: data.columns={missing[0]}={like}" if like else f"keys are {_names(fields)}"
        return f"no `{missing[0]}`; {hint}"

    def _in_their_words(self, reason: str) -> str:
        """`reason` with the user's name beside ours, where a column was mapped."""
        for field, column in self._columns.items():
            reason = reason.replace(f"`{field}`", f"`{shown(column)}` (our `{field}`)")
        return reason


def record_texts(raw: Fields) -> RecordTexts:
    """What a raw record says, whatever its format and however much of it is missing; for people, and never raises."""
    return (_fitting(FORMATS, raw) or _nearest(FORMATS, raw)).texts(raw)


def _fitting(formats: Sequence[Format], keys: Collection[str]) -> Format | None:
    """The first format all of whose needs are among `keys`."""
    return next((format for format in formats if all(need in keys for need in format.needs)), None)


def _nearest(formats: Sequence[Format], keys: Collection[str]) -> Format:
    """The first format of which the most needs are among `keys`."""
    return max(formats, key=lambda format: sum(need in keys for need in format.needs))


class _UnfitError(ValueError):
    """A row of a known format that cannot be used; its text is the reason."""


def _unfit(reason: str) -> NoReturn:
    raise _UnfitError(reason)


def _why_no_format(fields: Fields) -> str:
    if not fields:
        return "an empty record"
    if "chosen" in fields and "rejected" in fields:
        return "a preference pair (`chosen`, `rejected`), which is no instruction with its answer"
    if "text" in fields:
        return TEXT_REASON
    ask, answer = _like(fields, _ASKS), _like(fields, _ANSWERS)
    example = f"instruction={ask or 'COLUMN'},output={answer or 'COLUMN'}"
    return f"no instruction and answer known by name; keys are {_names(fields)}. Name yours: data.columns={example}"


def _like(fields: Fields, synonyms: tuple[str, ...]) -> str | None:
    """The key that is, case aside, one of `synonyms`."""
    return next((shown(key) for word in synonyms for key in fields if key.lower() == word), None)


def _names(fields: Fields) -> str:
    names = ", ".join(f"`{shown(key)}`" for key in list(fields)[:6])
    return names + (", ..." if len(fields) > 6 else "") if fields else "none"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


# Fields


def _text(fields: Fields, key: str) -> str:
    """The text under `key`, "" where there is none or null; every text of a flat record comes through here."""
    value = fields.get(key, "")
    if isinstance(value, str) and value.isascii():
        return value
    return "" if value is None and key in _MAY_BE_NULL else _checked(value, f"`{key}`")


def _weight(fields: Fields) -> float:
    """What the record counts beside others: its `weight`, as a number or as a table writes it; 1 where it has none."""
    value = fields.get(WEIGHT)
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if weight == 0:
        _unfit("`weight` is 0: nothing of the record would count")
    if not _LEAST_WEIGHT <= weight <= _MOST_WEIGHT:
        _unfit(f"`weight` is {_shown_value(value)}, expected a number from {_LEAST_WEIGHT:g} to {_MOST_WEIGHT:g}")
    return weight


def _shown_value(value: Any) -> str:
    return shown(str(value)) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else _kind(value)


def _checked(value: Any, where: str) -> str:
    """`value`, which is text that can be written as UTF-8."""
    if not isinstance(value, str):
        _unfit(f"{where} is {_kind(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        _unfit(f"{where} holds a lone surrogate (\\u{ord(value[error.start]):04x}), which is no character")
    return value


def _check_no_tools(fields: Fields) -> None:
    for key in ("tools", "functions"):
        if fields.get(key) not in (None, "", "[]", [], {}):
            _unfit(f"`{key}`: tool calls are not trained; leave such records out, or the key where no call is made")


def _flat(name: str, ask: str, context: str | None, answer: str, *more: str) -> Format:
    """A format of single texts; it may have `more` fields than its `context` and a system text."""

    def read(fields: Fields) -> Conversed:
        asked, response = _text(fields, ask), _text(fields, answer)
        given = _text(fields, context) if context else ""
        if not response or response.isspace():
            _unfit(f"`{answer}` is empty: there is nothing to learn")
        if not asked.strip() and not given.strip():
            _unfit(f"`{ask}` and `{context}` are both empty: nothing is asked" if context else f"`{ask}` is empty")
        turn = Turn(asked, given, response)
        earlier = _history(fields["history"]) if fields.get("history") else ()
        return _text(fields, "system"), (*earlier, turn)

    def texts(fields: Fields) -> RecordTexts:
        given = _as_text(fields.get(context)) if context else ""
        return RecordTexts(_as_text(fields.get(ask)), given, _as_text(fields.get(answer)))

    may_have = (context, "system", *more) if context else ("system", *more)
    return Format(name, (ask, answer), may_have, read, texts)


def _as_text(value: Any) -> str:
    """`value` for a reader: "" for none, and the text of a single part of text."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "text" in value[0]:
        value = value[0]["text"]
    return "" if value is None else str(value)


def _history(history: Any) -> list[Turn]:
    """The earlier turns of an Alpaca record: pairs of what was asked and what was answered."""
    if not isinstance(history, list):
        _unfit(f"`history` is {_kind(history)}, expected a list of pairs")
    turns = []
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            _unfit(f"`history` {number} is no pair of an instruction and its answer")
        asked, response = (_checked(part, f"`history` {number}") for part in pair)
        if not asked.strip() or not response.strip():
            _unfit(f"`history` {number} has an empty half")
        turns.append(Turn(asked, "", response))
    return turns


# Messages


def _chat(name: str, key: str) -> Format:
    """A format of messages under `key`."""

    def read(fields: Fields) -> Conversed:
        entries = _entries(fields[key])
        if not isinstance(entries, list):
            _unfit(f"`{key}` is {_kind(entries)}, expected a list of messages")
        return _conversation(fields, entries)

    def texts(fields: Fields) -> RecordTexts:
        return _message_texts(_entries(fields.get(key)))

    return Format(name, (key,), ("system", "tools"), read, texts)


def _entries(messages: Any) -> Any:
    """`messages`, as a list where a table gives them as a column of roles and one of texts."""
    if isinstance(messages, dict) and all(isinstance(column, list) for column in messages.values()):
        return [dict(zip(messages, values, strict=False)) for values in zip(*messages.values(), strict=False)]
    return messages


def _prompt_completion() -> Format:
    """A prompt and a completion: single texts, or lists of messages."""
    flat = _flat("prompt-completion", "prompt", None, "completion")

    def read(fields: Fields) -> Conversed:
        prompt, completion = fields["prompt"], fields["completion"]
        if not isinstance(prompt, list) and not isinstance(completion, list):
            return flat.read(fields)
        if not isinstance(prompt, list) or not isinstance(completion, list):
            _unfit("`prompt` and `completion` are a text and a list of messages; expected two of a kind")
        return _conversation(fields, [*prompt, *completion])

    def texts(fields: Fields) -> RecordTexts:
        prompt, completion = fields.get("prompt"), fields.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            return _message_texts([*prompt, *completion])
        return flat.texts(fields)

    return replace(flat, read=read, texts=texts)


def _conversation(fields: Fields, entries: list[Any]) -> Conversed:
    """A system text first or none, then the user's and the assistant's messages in turn, the assistant's last."""
    _check_no_tools(fields)
    system = _text(fields, "system")
    turns: list[Turn] = []
    asked: str | None = None
    for number, entry in enumerate(entries, start=1):
        role, text = _message(entry, number)
        if role == "system":
            if number > 1:
                _unfit(f"message {number} is a `system` message; only the first may be")
            if system and system != text:
                _unfit("`system` and the first message are two different system texts")
            system = text
        elif not text.strip():
            _unfit(f"message {number}, the {role}'s, is empty")
        elif role == "user":
            if asked is not None:
                _unfit(f"messages {number - 1} and {number} are both the user's; join them")
            asked = text
        elif asked is None:
            _unfit(f"message {number} is the assistant's and answers nothing; a user's message goes before it")
        else:
            turns.append(Turn(asked, "", text))
            asked = None
    if asked is not None:
        _unfit("the last message is the user's: there is no answer to learn")
    if not turns:
        _unfit("there is no message of the assistant's: nothing to learn")
    return system, tuple(turns)


def _message(entry: Any, number: int) -> tuple[str, str]:
    """(role, text) of a message: `role` and `content`, or ShareGPT's `from` and `value`."""
    if not isinstance(entry, dict):
        _unfit(f"message {number} is {_kind(entry)}, expected {{'role': ..., 'content': ...}}")
    role_key = "role" if "role" in entry else "from"
    text_key = "content" if "content" in entry else "value"
    for key in (role_key, text_key):
        if key not in entry:
            _unfit(f"message {number} has no `{'role' if key == 'from' else 'content'}`; keys are {_names(entry)}")
    if untrained := next((key for key in _UNTRAINED if entry.get(key)), None):
        _unfit(f"message {number} has `{untrained}`, which is not trained; leave such records out")
    if entry.get("weight") == 0 and "weight" in entry:
        _unfit(f"message {number} has `weight` 0: which answers count is not chosen message by message")
    role = entry[role_key]
    meant = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if meant is None:
        name = f"`{shown(role)}`" if isinstance(role, str) else _kind(role)
        _unfit(f"message {number} is by {name}; messages of system, user and assistant are known, tools' are not")
    return meant, _checked(_only_text(entry[text_key], number), f"`{text_key}` of message {number}")


def _only_text(content: Any, number: int) -> Any:
    """The text of a content that is one part of text; anything else in parts is refused by its type."""
    if not isinstance(content, list):
        return content
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
    if kinds == ["text"] and "text" in content[0]:
        return content[0]["text"]
    other = next((kind for kind in kinds if isinstance(kind, str) and kind != "text"), None)
    what = f"a part of type `{shown(other)}`" if other else f"{len(content)} parts"
    return _unfit(f"message {number} has {what}; only one text is trained")


def _message_texts(entries: Any) -> RecordTexts:
    """The texts of messages, those that are none left out."""
    turns = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            role = _as_text(entry.get("role") or entry.get("from"))
            turns.append((_ROLES.get(role.lower(), role), _as_text(entry.get("content") or entry.get("value"))))
    reference = turns.pop()[1] if turns and turns[-1][0] == "assistant" else ""
    return RecordTexts(turns[-1][1] if turns else "", "", reference, tuple(turns))


FORMATS: tuple[Format, ...] = (
    _chat("messages", "messages"),
    _chat("sharegpt", "conversations"),
    _flat("alpaca", "instruction", "input", "output", "history"),
    _flat("dolly", "instruction", "context", "response"),
    _prompt_completion(),
    _flat("question-answer", "question", "context", "answer"),
)
"""Every format, in the order in which a row is tried for them."""

RECORD_KEYS = frozenset(need for format in FORMATS for need in format.needs)
"""Keys by which an object is told to be a record, and no holder of arrays of records."""
