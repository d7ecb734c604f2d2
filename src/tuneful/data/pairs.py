"""Rows become preference pairs, or records with a label: what dpo, orpo, simpo, cpo and kto are trained on.

    prompt, chosen, rejected                     texts, or lists of messages, in any mixture; `question`, `instruction` + `input`
    chosen, rejected                             whole conversations with a common opening: messages, or Anthropic's transcripts
    messages | conversations, chosen, rejected   the answers beside what was said before (LLaMA-Factory, OpenAI, ms-swift)
    instruction, output, rejected                the record's own answer is the chosen one
    prompt, completion, label                    KTO: any format, and whether its answer is wanted

A pair is written again as two plain rows, one for each answer, and `formats.py` reads both: what the chosen side means is what
the same record means without its rejected one. The two have to agree in all that stands before they part, which is the prompt,
and the answers in it are context. Under `kto` a pair is two records.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from tuneful.data import formats
from tuneful.data.columns import ANSWERS, ASKS, CHOSEN, LABELS, MESSAGES, REJECTED, message_columns, normal_name
from tuneful.data.columns import note_unused as note_unused_text
from tuneful.data.formats import FormatReader, ReadRow, RecordTexts
from tuneful.data.messages import ROLE_KEYS, ROLES, TEXT_KEYS, entries_of, looks_like_messages, message_texts
from tuneful.data.notes import Noted, quoted
from tuneful.data.rows import Row
from tuneful.data.tools import CALLS
from tuneful.data.values import Fields, UnfitError, from_json_text, is_blank, kind_of, names_of, unfit
from tuneful.errors import ConfigError
from tuneful.types import Conversation, Turn, reply_texts, sides_of

PAIR_OBJECTIVES = frozenset(("dpo", "orpo", "simpo", "cpo"))
"""The values of train.objective that take pairs."""
LABEL_OBJECTIVE = "kto"
"""The value of train.objective that takes records with a label, and pairs as two of them."""
PREFERENCE_KEYS = frozenset(("chosen", "rejected"))
"""Keys by which an object is told to be a pair."""

_FIELDS = {"chosen": CHOSEN, "rejected": REJECTED, "label": LABELS}
_ANSWER_BESIDE = {"instruction": "output", "prompt": "completion", "question": "answer"}
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_WANTED = frozenset(("true", "yes", "1", "1.0", "desirable", "wanted", "chosen", "good"))
_UNWANTED = frozenset(("false", "no", "0", "0.0", "undesirable", "unwanted", "rejected", "bad"))

Side = str | list[Any]
"""An answer: its text; or messages, of the whole conversation or from the answer on."""


def open_reader(
    format: str, columns: Mapping[str, str] | None, objective: str, *, asks: bool = False, aside: Collection[str] = ()
) -> FormatReader | PreferenceReader:
    """The reader of rows under `data.format` and `data.columns` for `train.objective`; ConfigError where they do not suit.

    With `asks` rows are questions, whatever the objective. The columns that are set `aside` hold no answer of the record's own.
    """
    named = [field for field in _FIELDS if field in (columns or {})]
    if objective in PAIR_OBJECTIVES or objective == LABEL_OBJECTIVE:
        if not asks:
            return PreferenceReader(format, columns, objective)
        answers = {column for field, column in (columns or {}).items() if field in named}
        return FormatReader(format, plain_columns(columns), asks=True, aside={*aside, *answers})
    if named:
        fields = " and ".join(map(quoted, named))
        raise ConfigError(f"data.columns: {fields} are fields of preferences: train.objective=dpo, or kto for labels")
    return FormatReader(format, columns, asks=asks, aside=aside)


def plain_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """What of `data.columns` speaks of records that are no preferences."""
    return {field: column for field, column in (columns or {}).items() if field not in _FIELDS}


@dataclass(frozen=True, slots=True)
class _PlainRows:
    """A pair as two rows of a plain format; `answer` is the key of the answer, and `names` those of the user's for it."""

    chosen: Fields
    rejected: Fields
    answer: str
    names: tuple[str, str]
    beside: tuple[str, ...]


class PreferenceReader:
    """Reads rows as pairs, or, under `kto`, as records with a label; other rows are refused with the reason."""

    def __init__(self, format: str, columns: Mapping[str, str] | None, objective: str) -> None:
        given = dict(columns or {})
        self._named = {field: given.pop(field) for field in _FIELDS if field in given}
        self._format, self._columns, self._objective = format, given, objective
        self._reader = FormatReader(format, given)

    @property
    def columns(self) -> frozenset[str]:
        """Every name of a column that means something here."""
        own = {name for field, names in _FIELDS.items() if field not in self._named for name in names}
        return self._reader.columns | own | frozenset(self._named.values())

    def rows(self, rows: Iterator[Row]) -> Iterator[Row]:
        """`rows`, of which each pair is two under `kto`, as TRL takes it apart: the wanted answer, then the unwanted one."""
        return self._taken_apart(rows) if self._objective == LABEL_OBJECTIVE else rows

    def _taken_apart(self, rows: Iterator[Row]) -> Iterator[Row]:
        label = self._named.get("label", "label")
        for source, value, fault in rows:
            try:
                plain = self.plain_rows(value) if fault is None and isinstance(value, dict) else None
            except UnfitError as error:
                yield source, value, str(error)
                continue
            if plain is None:
                yield source, value, fault
            else:
                yield f"{source} (chosen)", {**plain.chosen, label: True}, None
                yield f"{source} (rejected)", {**plain.rejected, label: False}, None

    def read(self, row: Any, source: str) -> ReadRow | str:
        """What a row means, or the reason why it cannot be used."""
        if not isinstance(row, dict):
            return f"expected a record such as {{'prompt': ..., 'chosen': ..., 'rejected': ...}}, found {kind_of(row)}"
        try:
            return self._labelled(row, source) if self._objective == LABEL_OBJECTIVE else self._pair(row, source)
        except UnfitError as error:
            return str(error)

    # Pairs

    def _pair(self, row: Fields, source: str) -> ReadRow:
        plain = self.plain_rows(row)
        if plain is None:
            self._refuse_other(row)
        chosen = self._side(plain, plain.chosen, plain.names[0], source)
        rejected = self._side(plain, plain.rejected, plain.names[1], source)
        both = _paired(chosen.conversation, rejected.conversation, plain.names)
        noted = Noted()
        noted.counts = chosen.noted.counts | rejected.noted.counts
        said = [text for side in sides_of(both) for turn in side.turns for text in reply_texts(turn)]
        note_unused_text(row, plain.beside, said, "", noted)
        return ReadRow(f"{chosen.format} pairs", both, noted)

    def _side(self, plain: _PlainRows, row: Fields, name: str, source: str) -> ReadRow:
        """One answer as a plain record; UnfitError in words of the pair."""
        found = self._reader.read(dict(row), source)
        if not isinstance(found, str):
            return found
        own = quoted(name)
        if f"`{plain.answer}`" in found and plain.answer not in MESSAGES:
            return unfit(found.replace(f"`{plain.answer}`", own))
        return unfit(f"{own}: {found}" if plain.answer in row else found)

    def _refuse_other(self, row: Fields) -> NoReturn:
        """UnfitError: what the row lacks of a pair."""
        if self._key("label", row) is not None:
            unfit(
                f"a record with a label and no pair of answers: train.objective=kto trains on it, {self._objective} does not"
            )
        unfit(
            f"no pair of `chosen` and `rejected`, which train.objective={self._objective} trains on; keys are {names_of(row)}. "
            "Name yours: data.columns=chosen=COLUMN,rejected=COLUMN"
        )

    # Labels

    def _labelled(self, row: Fields, source: str) -> ReadRow:
        key = self._key("label", row)
        if key is None:
            unfit(
                "no `label` that says whether the answer is wanted, and no pair of `chosen` and `rejected`; keys are "
                f"{names_of(row)}. Name yours: data.columns=label=COLUMN"
            )
        label = _label(row[key], key)
        found = self._reader.read({name: value for name, value in row.items() if name != key}, source)
        if isinstance(found, str):
            unfit(found)
        last = len(found.conversation.turns) - 1
        conversation = replace(found.conversation, turns=_trained_from(found.conversation.turns, last), label=label)
        return ReadRow(f"{found.format} with labels", conversation, found.noted)

    # Plain rows

    def plain_rows(self, row: Fields) -> _PlainRows | None:
        """The two rows that say what a pair says; None where `row` is none. UnfitError where it is half of one."""
        chosen, rejected = self._key("chosen", row), self._key("rejected", row)
        if rejected is None:
            if chosen is None:
                return None
            unfit(f"no `rejected` beside {quoted(chosen)}: a pair needs two answers; keys are {names_of(row)}")
        taken = {key for field in ("chosen", "rejected") for key in row if normal_name(key) in _FIELDS[field]}
        rest = {key: value for key, value in row.items() if key not in taken | {chosen, rejected}}
        if isinstance(given := rest.get("input"), dict) and "messages" in given:  # OpenAI's
            del rest["input"]
            rest |= given
        if chosen is None:
            chosen = self._own_answer(rest, rejected)
            preferred = rest.pop(chosen)
        else:
            preferred = row[chosen]
        names = (chosen, rejected)
        sides = [_said(value, key) for value, key in ((preferred, chosen), (row[rejected], rejected))]
        for side, key in zip(sides, names, strict=True):
            if _is_empty(side):
                unfit(f"{quoted(key)} is empty: a pair needs two answers")
        return self._rows(rest, sides, names)

    def _key(self, field: str, row: Fields) -> str | None:
        """The key of `row` under which `field` stands, with a value or, if there is none, without."""
        if field in self._named:
            return self._named[field] if self._named[field] in row else None
        found = [key for name in _FIELDS[field] for key in row if normal_name(key) == name]
        return next((key for key in found if not is_blank(row[key])), found[0] if found else None)

    def _own_answer(self, rest: Fields, rejected: str) -> str:
        """The key of the answer of a record that has a rejected one besides."""
        mapped = [self._columns[field] for field in (*ANSWERS, *MESSAGES) if field in self._columns]
        keys = [key for key in mapped if key in rest]
        keys = keys or [key for key in rest if normal_name(key) in ANSWERS and not is_blank(rest[key])]
        keys = keys or [key for key in message_columns(rest) if key not in ASKS]
        if len(keys) != 1:
            what = f"{' and '.join(map(quoted, keys))} may be meant" if keys else f"keys are {names_of(rest)}"
            unfit(f"no `chosen` beside {quoted(rejected)}: {what}; name it: data.columns=chosen=COLUMN")
        return keys[0]

    def _rows(self, rest: dict[str, Any], sides: list[Side], names: tuple[str, str]) -> _PlainRows:
        """`rest` with each of the `sides` where its format has the answer, or the messages."""
        whole = [_is_whole(side) for side in sides]
        if not any(whole):
            before = self._before(rest, sides)
            if before is None and all(isinstance(side, str) for side in sides):
                return self._flat_rows(rest, sides, names)
            base = before if before is not None else self._asked(rest)
            sides = [[*base, *_messages(side)] for side in sides]
        elif not all(whole):
            base = _opening(sides[whole.index(True)])
            sides = [
                side if is_whole else [*base, *_messages(side)] for side, is_whole in zip(sides, whole, strict=True)
            ]
        for key in message_columns(rest):
            said = message_texts(rest[key])
            if not any(said == message_texts(side)[: len(said)] for side in sides):
                unfit(f"{quoted(key)} and {quoted(names[0])} are two conversations; one has to begin as the other")
            del rest[key]
        if self._format == "prompt-completion":
            rows = [{**rest, "prompt": side[:-1], "completion": side[-1:]} for side in sides]
            return _PlainRows(rows[0], rows[1], "completion", names, ())
        key = self._columns.get(MESSAGES[0], MESSAGES[1] if self._format == "sharegpt" else MESSAGES[0])
        return _PlainRows({**rest, key: sides[0]}, {**rest, key: sides[1]}, key, names, ())

    def _flat_rows(self, rest: dict[str, Any], sides: list[Side], names: tuple[str, str]) -> _PlainRows:
        """Two rows of single texts; other answers of the record are set beside."""
        mapped = next((field for field in ANSWERS if field in self._columns), None)
        asks = [field for field in ASKS if field in self._columns] or [normal_name(key) for key in rest]
        answer = mapped or next((_ANSWER_BESIDE[ask] for ask in asks if ask in _ANSWER_BESIDE), None)
        if answer is None and not self._columns:
            unfit(
                f"{quoted(names[0])} and {quoted(names[1])} are texts, and nothing says what is asked; keys are "
                f"{names_of(rest)}. Name it: data.columns=prompt=COLUMN"
            )
        answer = self._columns.get(answer, answer) if answer else ANSWERS[0]
        beside = tuple(key for key in rest if normal_name(key) in ANSWERS or key == answer)
        rest = {key: value for key, value in rest.items() if key not in beside}
        return _PlainRows({**rest, answer: sides[0]}, {**rest, answer: sides[1]}, answer, names, beside)

    def _before(self, rest: dict[str, Any], sides: list[Side]) -> list[Any] | None:
        """The messages before the answers, taken out of `rest`; None where what is asked is a text."""
        for key in rest:
            if normal_name(key) in ASKS and isinstance(rest[key], str) and (said := _transcript(rest[key])):
                del rest[key]
                return said[:-1] if said[-1]["role"] == "assistant" and not said[-1]["content"] else said
        holding = message_columns(rest)
        if not holding:
            return None
        key = self._columns.get(MESSAGES[0]) or min(holding, key=lambda key: normal_name(key) not in ASKS)
        messages = _as_list(rest.pop(key), key)
        if messages and _is_answer(messages[-1]):
            if not any(side in (_text(messages[-1]), messages[-1:]) for side in sides):
                unfit(
                    f"{quoted(key)} ends with an answer of its own beside the pair's; leave it out, or name what is meant"
                )
            messages = messages[:-1]
        return messages

    def _asked(self, rest: dict[str, Any]) -> list[Any]:
        """What is asked as a message, taken out of `rest`."""
        keys = [self._columns[field] for field in ASKS if field in self._columns]
        keys = [key for key in rest if key in keys or normal_name(key) in ASKS]
        if not keys:
            unfit(f"the answers are messages, and nothing says what is asked; keys are {names_of(rest)}")
        return [{"role": "user", "content": rest.pop(keys[0])}]


def record_texts(raw: Fields) -> RecordTexts:
    """What a raw record says, whatever its format; of a pair what its chosen side does. For people, and never raises."""
    try:
        plain = PreferenceReader("auto", None, "dpo").plain_rows(raw)
    except UnfitError:
        plain = None
    return formats.record_texts(raw if plain is None else plain.chosen)


# Sides


def _paired(chosen: Conversation, rejected: Conversation, names: tuple[str, str]) -> Conversation:
    """The pair of two conversations; UnfitError where they differ before one answers what the other answers otherwise."""
    both = " and ".join(map(quoted, names))
    if chosen.system != rejected.system:
        unfit(f"{both} differ in their system text: no pair of answers to one prompt")
    turns, others = chosen.turns, rejected.turns
    shortest = min(len(turns), len(others)) - 1
    common = next((at for at in range(shortest) if turns[at] != others[at]), shortest)
    if (turns[common].instruction, turns[common].input) != (others[common].instruction, others[common].input):
        unfit(f"{both} differ in what is asked, at question {common + 1}: no pair of answers to one prompt")
    other = replace(rejected, turns=_trained_from(others, common))
    return replace(chosen, turns=_trained_from(turns, common), rejected=other)


def _trained_from(turns: tuple[Turn, ...], first: int) -> tuple[Turn, ...]:
    """`turns` of which those before number `first` are context."""
    return (*(replace(turn, weight=0.0) for turn in turns[:first]), *turns[first:])


def _said(value: Any, key: str) -> Side:
    """An answer as its text or its messages; a single message of the assistant's is its text."""
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{"):
            value = _from_json(value)
        elif said := _transcript(value):
            return said
    if isinstance(value, dict):
        value = [value] if _role(value) else _as_list(value, key)
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        return (
            str(value)
            if isinstance(value, (int, float))
            else unfit(f"{quoted(key)} is {kind_of(value)}, expected an answer")
        )
    if len(value) == 1 and _role(value[0]) == "assistant" and isinstance(_text(value[0]), str) and len(value[0]) == 2:
        return str(_text(value[0]))
    return value


def _from_json(value: str) -> Any:
    """The messages, or the message, whose JSON text `value` is; an answer in JSON is a text like others."""
    try:
        found = from_json_text(value, "", Noted())
    except UnfitError:
        return value
    return found if looks_like_messages(found) or looks_like_messages([found]) else value


def _transcript(text: str) -> list[dict[str, str]]:
    """The messages of a transcript as Anthropic's files hold it, which begins with `Human:`; none where it is another text."""
    if not text.lstrip().startswith("Human:") or "\n\nAssistant:" not in text:
        return []
    _, *parts = _SPEAKER.split("\n\n" + text.lstrip())
    return [
        {"role": _SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _as_list(messages: Any, key: str) -> list[Any]:
    """`messages` as a list, where they are JSON text, or columns of a table."""
    messages = entries_of(from_json_text(messages, quoted(key), Noted()))
    return messages if isinstance(messages, list) else unfit(f"{quoted(key)} is {kind_of(messages)}, expected messages")


def _messages(side: Side) -> list[Any]:
    return [{"role": "assistant", "content": side}] if isinstance(side, str) else side


def _is_whole(side: Side) -> bool:
    """Whether messages begin with what is asked, and not with the answer."""
    return isinstance(side, list) and not _is_answer(side[0])


def _opening(side: Side) -> list[Any]:
    """The messages of a whole conversation up to the last that is not the assistant's."""
    last = max(at for at, message in enumerate(side) if not _is_answer(message))
    return list(side[: last + 1])


def _is_empty(side: Side) -> bool:
    if is_blank(side) or isinstance(side, str) or _role(side[-1]) != "assistant":
        return is_blank(side)
    return is_blank(_text(side[-1])) and all(is_blank(side[-1].get(key)) for key in CALLS)


def _is_answer(message: Any) -> bool:
    """Whether a message is the assistant's: a text, or, as ShareGPT writes them, calls of tools."""
    return _role(message) in ("assistant", "call")


def _role(message: Any) -> str:
    """system, user or assistant; "" for what is no message."""
    if not isinstance(message, dict):
        return ""
    return next((ROLES.get(str(message[key]).strip().lower(), "") for key in ROLE_KEYS if key in message), "")


def _text(message: Fields) -> Any:
    return next((message[key] for key in TEXT_KEYS if key in message), None)


def _label(value: Any, key: str) -> bool:
    """Whether the answer is wanted: true, 1, or a word for it, as tables write them."""
    word = str(value).strip().lower() if isinstance(value, (bool, int, float, str)) else ""
    if word not in _WANTED | _UNWANTED:
        found = quoted(word) if word else kind_of(value)
        unfit(f"{quoted(key)} is {found}, expected true or false, 1 or 0: whether the answer is wanted")
    return word in _WANTED
