"""Rows become conversations: the formats in which people write instructions and answers, told by their keys.

    alpaca             instruction, output           input, system, history
    messages           messages: [{role, content}]   (OpenAI)
    sharegpt           conversations: [{from, value}]
    prompt-completion  prompt, completion            input; texts, or lists of messages
    question-answer    question, answer              context
    dolly              instruction, response         context
    text               text                          a document, all of which is learned; only where it is asked for

Each row is told by itself, so that files of several formats can be put together; `data.format` names one for all, and
`data.columns` reads a field from a column of another name. What cannot be trained on as it was meant (images, a finished `text`;
pairs, which `pairs.py` reads) is refused by its name, never read in part. Stands on `columns.py` (which column is which field)
and `messages.py` (conversations).

A new format is an entry of FORMATS, and its name one of `data.format` in the configuration: keys, readers, the columns by
which CSV is told, what makes a JSON object a record, and what a report shows of a record all follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneful.data.columns import (
    ANSWERS,
    ASKS,
    MESSAGES,
    SAME,
    WEIGHT,
    Plan,
    check_plain,
    fields_of,
    is_pair,
    message_columns,
    no_format_fits,
    note_placeholders,
    note_unused,
    plan_of,
)
from tuneful.data.messages import message_texts, plain_text, read_messages
from tuneful.data.notes import Noted, NoteKey, quoted
from tuneful.data.rows import shown
from tuneful.data.tools import tools_of
from tuneful.data.turns import UNANSWERED, Conversed, turn_of_texts, turns_of_pairs
from tuneful.data.values import (
    Fields,
    UnfitError,
    from_json_text,
    is_blank,
    is_nan,
    kind_of,
    names_of,
    text_of,
    unfit,
    weight_of,
)
from tuneful.errors import ConfigError
from tuneful.types import Conversation, Turn, texts_of

_MAX_KEY_SETS = 1000
_MAY_BE_NULL = ("input", "context", "system")
_LIKE_ASKS = (*ASKS, "query", "user", "human", "source", "input")
_LIKE_ANSWERS = (*ANSWERS, "target", "reply", "assistant", "gpt")
_LIKE_LABELS = ("label", "labels", "class", "category", "sentiment", "intent", "topic")
_MESSAGES_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]""")
TEXT_REASON = (
    "`text` is a finished text: which part of it is the response, the part to learn, is not written in it. Give "
    "instruction and response fields of their own; or learn it whole: train.objective=text, or, beside records, "
    "data.formats=FILE=text"
)
"""Why a row of `text` alone is refused."""
_MAX_SHOWN_CHARACTERS = 2000


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

    `read(fields, noted, asks)` is strict and raises UnfitError with the reason; with `asks` an answer is wanted and none is
    needed. `texts` takes what is there, for a record that is only shown. `answer` is the field of the answer, and `unused` how
    a column that is not used gets into the prompt.
    """

    name: str
    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    read: Callable[[Fields, Noted, bool], Conversed]
    texts: Callable[[Fields], RecordTexts]
    answer: str
    unused: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field."""
        return (*self.needs, *self.may_have)

    def asking(self) -> tuple[str, ...]:
        """The fields that a record needs whose answer is wanted."""
        return tuple(need for need in self.needs if need not in ANSWERS)


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row that can be used: the name of its format, what it means, and what there is to say of how it was read."""

    format: str
    conversation: Conversation
    noted: Noted


class FormatReader:
    """Reads rows under `data.format` and `data.columns`; ConfigError where the columns suit no format.

    With `asks` rows are questions, and need no answer. The columns that are set `aside` hold no answer of the record's own.
    """

    def __init__(
        self, format: str, columns: Mapping[str, str] | None, *, asks: bool = False, aside: Collection[str] = ()
    ) -> None:
        self._columns = dict(columns or {})
        self._asks, self._aside = asks, frozenset(aside)
        named = [_TEXT] if format == _TEXT.name else [one for one in FORMATS if format in ("auto", one.name)]
        fitting = [one for one in named if self._columns.keys() <= {*one.fields, WEIGHT}]
        if not fitting:
            raise ConfigError(no_format_fits(self._columns, {one.name: one.fields for one in named}))
        self._formats = fitting
        self._plans: dict[tuple[str, ...], tuple[Format, Plan] | None] = {}

    @property
    def columns(self) -> frozenset[str]:
        """Every name of a column that means something here."""
        own = {name for format in self._formats for field in format.fields for name in SAME.get(field, (field,))}
        return frozenset(own - self._columns.keys()) | frozenset(self._columns.values())

    def read(self, row: Any, source: str) -> ReadRow | str:
        """What a row means, or the reason why it cannot be used."""
        if not isinstance(row, dict):
            return f"expected a record such as {{'instruction': ..., 'output': ...}}, found {kind_of(row)}"
        noted, names = Noted(), self._columns
        try:
            found = self._found(row)
            if isinstance(found, str):
                return found
            format, plan = found
            names = {field: columns[0] for field, columns in plan.columns.items() if columns[0] != field}
            if plan.suspect:
                check_plain(row, format.answer, self._columns, noted, asks=self._asks or format is _TEXT)
            fields = fields_of(row, plan, self._columns.values(), noted)
            system, turns = format.read(fields, noted, self._asks)
            weight = weight_of(row.get(self._columns[WEIGHT])) if WEIGHT in self._columns else 1.0
            tools, is_document = _tools(format, fields, noted), format is _TEXT
            conversation = Conversation(system, turns, source, weight, tools=tools, is_document=is_document)
            if plan.unused:
                note_unused(row, plan.unused, _texts_of(conversation), format.unused, noted)
            note_placeholders((text for turn in turns for text in (turn.instruction, turn.input)), noted)
        except UnfitError as error:
            return _in_their_words(str(error), names)
        return ReadRow(format.name, conversation, _noted_in_their_words(noted, names))

    def plan(self, row: Fields) -> tuple[Format, Plan] | None:
        """The format and the plan of a row, by the keys under which it says something, or else by all of them."""
        speaking = tuple(key for key, value in row.items() if value is not None and value != "")
        return self._plan(speaking, tuple(row)) or self._plan(tuple(row), tuple(row))

    def _found(self, row: Fields) -> tuple[Format, Plan] | str:
        """The format and the plan of a row, or why there is none."""
        found = self.plan(row)
        if found is not None:
            return found
        if not self._asks and is_pair(row):
            return _why_pair(row)
        may_hold = any(one.answer in MESSAGES for one in self._formats) and MESSAGES[0] not in self._columns
        holding = message_columns(row) if may_hold else []
        if len(holding) > 1:
            names = " and ".join(map(quoted, holding))
            return f"{names} both hold messages; name those that are meant: data.columns=messages={shown(holding[0])}"
        if not holding:
            return self._why_unknown(row)
        columns = {**self._columns, MESSAGES[0]: holding[0]}
        format = next(one for one in FORMATS if one.name == "messages")
        return format, plan_of(format.fields, tuple(row), columns, self._aside)

    def _plan(self, keys: tuple[str, ...], all_keys: tuple[str, ...]) -> tuple[Format, Plan] | None:
        """The format that suits rows that say something under `keys`, and the plan of all their keys."""
        known = (*keys, "\0", *all_keys) if len(keys) < len(all_keys) else keys
        try:
            return self._plans[known]
        except KeyError:
            if len(self._plans) >= _MAX_KEY_SETS:
                self._plans.clear()
            found = self._made_plan(keys, all_keys)
            self._plans[known] = found
            return found

    def _made_plan(self, keys: tuple[str, ...], all_keys: tuple[str, ...]) -> tuple[Format, Plan] | None:
        """By the names of the fields themselves, or else by those that mean the same."""
        own = [key for key in keys if key not in self._columns.values()]
        own += [field for field, column in self._columns.items() if column in keys and field not in own]
        own = [key for key in own if key not in self._columns or self._columns[key] in keys]
        format = _fitting(self._formats, own, asks=self._asks)
        if format is not None:
            return format, plan_of(format.fields, all_keys, self._columns, self._aside)
        for format in sorted(self._formats, key=lambda format: [need not in own for need in format.needs]):
            plan = plan_of(format.fields, keys, self._columns, self._aside)
            if all(need in plan.columns for need in (format.asking() if self._asks else format.needs)):
                return format, plan_of(format.fields, all_keys, self._columns, self._aside)
        return None

    def _why_unknown(self, row: Fields) -> str:
        fields = {key: None for key in row if key not in self._columns.values()}
        fields |= {field: None for field, column in self._columns.items() if column in row}
        near = _nearest(self._formats, fields)
        missing = [need for need in near.needs if need not in fields or self._columns.get(need, need) not in row]
        if len(self._formats) > 1 and len(missing) == len(near.needs):
            return _why_no_format(row, asks=self._asks)
        if column := self._columns.get(missing[0]):
            return f"no {quoted(column)}, which data.columns names for `{missing[0]}`; keys are {names_of(row)}"
        if near is _TEXT:
            return f"no `text`, which is a document's; keys are {names_of(fields)}: data.columns=text=COLUMN"
        like = _like(fields, _LIKE_ANSWERS if missing[0] in ANSWERS else _LIKE_ASKS if missing[0] in ASKS else ())
        hint = f"found `{like}`: data.columns={missing[0]}={like}" if like else f"keys are {names_of(fields)}"
        return f"no `{missing[0]}`; {hint}"


def _in_their_words(reason: str, names: Mapping[str, str]) -> str:
    """`reason` with the user's name beside ours, where a field stands under another one."""
    for field, column in names.items():
        reason = reason.replace(f"`{field}`", f"{quoted(column)} (our `{field}`)")
    return reason


def _noted_in_their_words(noted: Noted, names: Mapping[str, str]) -> Noted:
    """`noted` with the user's names of the fields that stand under others."""
    if names and noted.counts:
        theirs = {f"`{field}`": quoted(column) for field, column in names.items()}
        for key in [key for key in noted.counts if key.name in theirs]:
            noted.counts[NoteKey(key.kind, theirs[key.name], key.hint)] += noted.counts.pop(key)
    return noted


def record_texts(raw: Fields) -> RecordTexts:
    """What a raw record says, whatever its format and however much of it is missing; for people, and never raises."""
    found = FormatReader("auto", None).plan(raw)
    if found is None:
        holding = message_columns(raw)
        if not holding and isinstance(raw.get("text"), str):
            return _TEXT.texts(raw)
        return _message_texts(raw[holding[0]]) if holding else _nearest(FORMATS, raw).texts(raw)
    format, plan = found
    speaking = {field: _speaking(raw, columns) for field, columns in plan.columns.items()}
    return format.texts(speaking)


def _speaking(raw: Fields, columns: Sequence[str]) -> Any:
    return next((raw[column] for column in columns if not is_blank(raw[column])), raw[columns[0]])


def _fitting(formats: Sequence[Format], keys: Collection[str], *, asks: bool = False) -> Format | None:
    """The first format all of whose needs are among `keys`; with `asks` the first of which what is asked is."""
    whole = next((format for format in formats if all(need in keys for need in format.needs)), None)
    if whole is not None or not asks:
        return whole
    return next((format for format in formats if all(need in keys for need in format.asking())), None)


def _nearest(formats: Sequence[Format], keys: Collection[str]) -> Format:
    """The first format of which the most needs are among `keys`."""
    return max(formats, key=lambda format: sum(need in keys for need in format.needs))


def _texts_of(conversation: Conversation) -> list[str]:
    """Every text of a record."""
    more = [conversation.system] * bool(conversation.system) + [conversation.tools] * bool(conversation.tools)
    return more + [text for turn in conversation.turns for text in texts_of(turn)]


def _why_no_format(fields: Fields, *, asks: bool) -> str:
    if not fields:
        return "an empty record"
    if "text" in fields and not asks:
        label = _like(fields, _LIKE_LABELS)
        return TEXT_REASON + (f". To learn the label: data.columns=instruction=text,output={label}" if label else "")
    ask, answer = _like(fields, (*_LIKE_ASKS, "text")), _like(fields, _LIKE_ANSWERS)
    if asks:
        setting = f"data.columns=instruction={ask or 'COLUMN'}"
        return f"nothing is asked under a known name; keys are {names_of(fields)}. Name yours: {setting}"
    if not ask and not answer and len(fields) == 2:
        ask, answer = fields  # a spreadsheet of two columns: questions, then answers
    example = f"instruction={ask or 'COLUMN'},output={answer or 'COLUMN'}"
    return f"no instruction and answer known by name; keys are {names_of(fields)}. Name yours: data.columns={example}"


def _why_pair(fields: Fields) -> str:
    """Why a preference pair is refused; the setting that reads its chosen answer: beside the prompt, or a whole conversation."""
    is_whole = isinstance(fields.get("chosen"), list) and not isinstance(fields.get("prompt"), list)
    asks = {"prompt": "completion", "question": "answer"}
    field = MESSAGES[0] if is_whole else next((answer for ask, answer in asks.items() if ask in fields), "output")
    return (
        "a preference pair (`chosen`, `rejected`), which is no instruction with its answer: train.objective=dpo trains on pairs, "
        f"and data.columns={field}=chosen trains the chosen answers as plain ones"
    )


def _like(fields: Fields, synonyms: tuple[str, ...]) -> str | None:
    """The key that is, case aside, one of `synonyms`."""
    return next((shown(key) for word in synonyms for key in fields if key.lower() == word), None)


# Fields


def _text(fields: Fields, key: str, noted: Noted) -> str:
    """The text under `key`, "" where there is none or null; every text of a flat record comes through here."""
    value = fields.get(key, "")
    if isinstance(value, str) and value.isascii():
        return value
    return "" if (value is None or is_nan(value)) and key in _MAY_BE_NULL else text_of(value, f"`{key}`", noted)


def _tools(format: Format, fields: Fields, noted: Noted) -> str:
    return tools_of(fields, noted) if "tools" in format.fields else ""


def _flat(name: str, ask: str, context: str, answer: str, *more: str) -> Format:
    """A format of single texts; it may have `more` fields than its `context` and a system text."""

    def read(fields: Fields, noted: Noted, asks: bool) -> Conversed:
        asked, given = _text(fields, ask, noted), _text(fields, context, noted)
        response = "" if asks and is_blank(fields.get(answer)) else _text(fields, answer, noted)
        if not response or response.isspace():
            if not asks:
                unfit(f"`{answer}` is empty: there is nothing to learn")
            response = UNANSWERED
        if not asked.strip() and not given.strip():
            unfit(f"`{ask}` and `{context}` are both empty: nothing is asked")
        turn = turn_of_texts(asked, given, response, noted)
        earlier = turns_of_pairs(fields["history"], noted) if fields.get("history") else ()
        return _text(fields, "system", noted), (*earlier, turn)

    def texts(fields: Fields) -> RecordTexts:
        asked, given, reference = (plain_text(fields.get(key)) for key in (ask, context, answer))
        return RecordTexts(asked, given, reference)

    unused = f"; data.columns={context}={{column}} puts it into the prompt"
    return Format(name, (ask, answer), (context, "system", *more), read, texts, answer, unused)


# Messages


def _chat(name: str, key: str) -> Format:
    """A format of messages under `key`."""

    def read(fields: Fields, noted: Noted, asks: bool) -> Conversed:
        return read_messages(fields[key], key, _text(fields, "system", noted), noted, asks=asks)

    def texts(fields: Fields) -> RecordTexts:
        return _message_texts(fields.get(key))

    unused = "; data.columns=system={column} makes it the system text"
    return Format(name, (key,), ("system", "tools"), read, texts, key, unused)


def _prompt_completion() -> Format:
    """A prompt and a completion: single texts, or lists of messages."""
    flat = _flat("prompt-completion", "prompt", "input", "completion", "tools")

    def read(fields: Fields, noted: Noted, asks: bool) -> Conversed:
        prompt, completion = (_listed(fields.get(key), key, noted) for key in ("prompt", "completion"))
        if asks and is_blank(completion):
            completion = [] if isinstance(prompt, list) else ""
        if not isinstance(prompt, list) and not isinstance(completion, list):
            return flat.read({**fields, "completion": completion}, noted, asks)
        if not isinstance(prompt, list) or not isinstance(completion, list):
            unfit("`prompt` and `completion` are a text and a list of messages; expected two of a kind")
        return read_messages([*prompt, *completion], "prompt", _text(fields, "system", noted), noted, asks=asks)

    def texts(fields: Fields) -> RecordTexts:
        prompt, completion = fields.get("prompt"), fields.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            return _message_texts([*prompt, *completion])
        return flat.texts(fields)

    return replace(flat, read=read, texts=texts)


def _listed(value: Any, key: str, noted: Noted) -> Any:
    """`value`, or the messages whose JSON text it is; any other text that begins with a bracket is a prompt like others."""
    return from_json_text(value, f"`{key}`", noted) if isinstance(value, str) and _MESSAGES_TEXT.match(value) else value


def _message_texts(messages: Any) -> RecordTexts:
    """The texts of messages, those that are none left out."""
    turns = message_texts(messages)
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


def _text_format() -> Format:
    """A document: one text, all of which is learned."""

    def read(fields: Fields, noted: Noted, asks: bool) -> Conversed:
        text = _text(fields, "text", noted)
        if not text.strip():
            unfit("`text` is empty: there is nothing to learn")
        return "", (Turn("", "", text),)

    def texts(fields: Fields) -> RecordTexts:
        text = plain_text(fields.get("text"))
        is_long = len(text) > _MAX_SHOWN_CHARACTERS
        return RecordTexts("", "", text[:_MAX_SHOWN_CHARACTERS] + "..." * is_long)

    return Format("text", ("text",), (), read, texts, "text", "; data.columns=text={column} makes it the document")


_TEXT = _text_format()

RECORD_KEYS = frozenset(need for format in FORMATS for need in format.needs)
"""Keys by which an object is told to be a record, and no holder of arrays of records."""
