"""Files become conversations: the first room, where every row is used or refused by name.

Reads a JSON array (or an object holding one) and JSONL of Alpaca-style records: `instruction`, `input` (may be missing or
empty), `output`, `system` (may be missing). Records are found one by one in the text, so an error carries the line at which
the record begins. A row that cannot be used stops the read, or, on request, goes to the refused with its reason:
read = used + refused, always.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.data import starter
from tuneful.errors import DataError
from tuneful.types import Conversation, Turn

STARTER = "starter"
_MAX_DEPTH = 64
_MAX_DIGITS = 4300  # Python's own limit for what is not worth quadratic time
_ANSWER_KEYS = ("output", "response", "answer", "completion")


@dataclass(frozen=True, slots=True)
class Record:
    """A row that can be used: as it was read (`raw`) and as it is meant (`conversation`)."""

    raw: dict[str, Any]
    conversation: Conversation

    @property
    def source(self) -> str:
        """`file:line` of the row."""
        return self.conversation.source


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that cannot be used: where it stands, why not, and as much of it as could be read."""

    source: str
    reason: str
    raw: Any


@dataclass(frozen=True, slots=True)
class DataFile:
    """A whole file: `len(records) + len(refused)` is the number of rows read. `sha256` is that of its bytes."""

    name: str
    sha256: str
    records: tuple[Record, ...]
    refused: tuple[Refusal, ...]


def read_data(data: str, *, on_error: str = "stop") -> DataFile:
    """Read `data`, a path or `starter`.

    With `on_error` "stop" the first row that cannot be used raises DataError; with "skip" it is refused and counted.
    A file that is missing, empty, not text or not JSON raises DataError either way.
    """
    path = starter.path() if data == STARTER else Path(data)
    content = _read_bytes(path)
    shown = Path(path.name) if data == STARTER else path  # where the package is installed says nothing to anybody
    rows = _split_rows(_decode(content, path), shown)
    records: list[Record] = []
    refused: list[Refusal] = []
    for source, raw in rows:
        row = _parse_row(raw, source)
        if isinstance(row, Record):
            records.append(row)
        elif on_error == "skip":
            refused.append(row)
        else:
            raise DataError(f"{row.source}: {row.reason}. Mend the row, or pass data.on_error=skip to leave it out")
    if not records:
        why = f"; the first refusal: {refused[0].source}: {refused[0].reason}" if refused else ""
        raise DataError(f"{path}: no usable record in {len(refused)} row(s){why}")
    return DataFile(data, hashlib.sha256(content).hexdigest(), tuple(records), tuple(refused))


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; name a file of instructions and answers in it")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file. Give a JSON or JSONL file, or `starter` for the built-in data"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _decode(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}). Convert it: iconv -f ENCODING -t UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    return text


def _split_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(source, value) of each row, in file order; a value that is no JSON raises DataError with its line."""
    start = _skip_space(text, 0)
    if text[start] == "[":
        return _array_rows(text, start, path)
    if path.suffix.lower() in (".jsonl", ".ndjson") or _first_line_is_a_value(text, start):
        return _jsonl_rows(text, path)
    return _object_rows(text, start, path)


def _array_rows(text: str, start: int, path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of the array that begins at `start` and is all there is."""
    rows = _Array(text, start, path)
    yield from rows
    if (rest := _skip_space(text, rows.end)) < len(text):
        raise DataError(f"{path}:{_line(text, rest)}: something follows the array of records; a file holds one")


class _Array:
    """The (source, value) of each row of the array that begins at `start`; `end`, where it ends, is known afterwards.

    A source is `file:line`; further records that begin on the same line are `file:line#2`, `file:line#3` ...
    """

    def __init__(self, text: str, start: int, path: Path) -> None:
        self._text, self._start, self._path = text, start, path
        self.end = start

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        text, path, lines = self._text, self._path, _LineCounter(self._text)
        at = _skip_space(text, self._start + 1)
        if text[at : at + 1] == "]":
            raise DataError(f"{path}:{lines.at(at)}: the array is empty")
        line = count = 0
        while True:
            value, end = _scan(text, at, path)
            line, count = (here, count + 1) if (here := lines.at(at)) == line else (here, 1)
            yield f"{path}:{line}" + (f"#{count}" if count > 1 else ""), value
            at = _skip_space(text, end)
            if text[at : at + 1] == "]":
                self.end = at + 1
                return
            if text[at : at + 1] != ",":
                raise DataError(f"{path}:{lines.at(at)}: expected `,` or `]` after a record")
            at = _skip_space(text, at + 1)


def _jsonl_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value, end = _scan(line, _skip_space(line, 0), path, first_line=number)
            if line[end:].strip():
                raise DataError(f"{path}:{number}: more than one value on a line; JSONL holds one record a line")
            yield f"{path}:{number}", value


def _object_rows(text: str, start: int, path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of the one array of records in the object at `start`; the object itself where it is a record."""
    value, end = _scan(text, start, path)
    if (rest := _skip_space(text, end)) < len(text):
        raise DataError(
            f"{path}:{_line(text, rest)}: something follows the first record; JSONL holds one record a line"
        )
    arrays = _arrays_of_records(value)
    if not arrays:
        yield f"{path}:{_line(text, start)}", value
        return
    if len(arrays) > 1:
        names = ", ".join(f"`{_shown(key)}`" for key in arrays)
        raise DataError(f"{path}: holds more than one array of records ({names}); give each a file of its own")
    yield from _Array(text, _value_position(text, start, arrays[0], path), path)


def _first_line_is_a_value(text: str, start: int) -> bool:
    """Whether the first line that is not blank holds a JSON value of its own, and no object of arrays of records."""
    line = text[start : end if (end := text.find("\n", start)) >= 0 else len(text)]
    try:
        value, end = _DECODER.raw_decode(line)
    except (ValueError, RecursionError):
        return False
    return not line[end:].strip() and not _arrays_of_records(value)


def _arrays_of_records(value: Any) -> list[str]:
    """The keys of an object under which arrays of records stand; none where it looks like a record itself."""
    if not isinstance(value, dict) or "instruction" in value or "output" in value:
        return []
    return [key for key, rows in value.items() if isinstance(rows, list) and any(isinstance(row, dict) for row in rows)]


def _value_position(text: str, start: int, wanted: str, path: Path) -> int:
    """Where the value of the key `wanted` begins in the (valid) object at `start`."""
    at = _skip_space(text, start + 1)
    while True:
        key, at = _scan(text, at, path)
        at = _skip_space(text, _skip_space(text, at) + 1)
        if key == wanted:
            return at
        at = _skip_space(text, _skip_space(text, _scan(text, at, path)[1]) + 1)


def _scan(text: str, at: int, path: Path, first_line: int = 1) -> tuple[Any, int]:
    """One JSON value that begins at `at`, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        place = f"{path}:{_line(text, error.pos, first_line)}"
        raise DataError(
            f"{place}: not valid JSON: {error.msg[0].lower()}{error.msg[1:]} (column {error.colno})"
        ) from None
    except RecursionError:
        raise _too_deep(f"{path}:{_line(text, at, first_line)}") from None
    except ValueError as error:
        raise DataError(f"{path}:{_line(text, at, first_line)}: {error}") from None
    if _is_deep(value):
        raise _too_deep(f"{path}:{_line(text, at, first_line)}")
    return value, end


def _line(text: str, position: int, first_line: int = 1) -> int:
    return first_line + text.count("\n", 0, position)


def _too_deep(place: str) -> DataError:
    return DataError(f"{place}: nested over {_MAX_DEPTH} levels deep, which is no record")


def _is_deep(value: Any) -> bool:
    """Whether `value` is nested over _MAX_DEPTH levels: what json reads at any depth, writing it back may not."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"not valid JSON: {name} is no JSON number")


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits, over {_MAX_DIGITS}; write it as text")
    return int(digits)


def _parse_float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"the number {digits[:40]} is too large; write it as text")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key `{_shown(twice)}` stands twice in one record")
    return record


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float, object_pairs_hook=_unique_keys
)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


class _LineCounter:
    """Line numbers of positions asked for in rising order, in one pass over the text."""

    def __init__(self, text: str) -> None:
        self._text, self._seen, self._line = text, 0, 1

    def at(self, position: int) -> int:
        self._line += self._text.count("\n", self._seen, position)
        self._seen = position
        return self._line


def _parse_row(raw: Any, source: str) -> Record | Refusal:
    def refuse(reason: str) -> Refusal:
        return Refusal(source, reason, raw)

    if not isinstance(raw, dict):
        return refuse(f"expected a record such as {{'instruction': ..., 'output': ...}}, found {type(raw).__name__}")
    if "output" not in raw:
        near = next((key for key in _ANSWER_KEYS if key in raw), None)
        return refuse("no `output`" + (f" (found `{near}`; rename it)" if near else f"; keys are {_names(raw)}"))
    if "instruction" not in raw:
        return refuse(f"no `instruction`; keys are {_names(raw)}")
    texts = {}
    for key in ("system", "instruction", "input", "output"):
        value = raw.get(key)
        if value is None and key in ("system", "input"):
            value = ""
        if not isinstance(value, str):
            return refuse(f"`{key}` is {type(value).__name__}, expected text")
        if problem := _unusable_text(value):
            return refuse(f"`{key}` holds {problem}")
        texts[key] = value
    if not texts["instruction"].strip() and not texts["input"].strip():
        return refuse("`instruction` and `input` are both empty: nothing is asked")
    if not texts["output"].strip():
        return refuse("`output` is empty: there is nothing to learn")
    turn = Turn(texts["instruction"], texts["input"], texts["output"])
    return Record(raw, Conversation(texts["system"], (turn,), source))


def _unusable_text(text: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"a lone surrogate (\\u{ord(text[error.start]):04x}), which is no character"
    return None


def _names(raw: dict[str, Any]) -> str:
    shown = ", ".join(f"`{_shown(key)}`" for key in list(raw)[:6])
    return shown + (", ..." if len(raw) > 6 else "") if raw else "none"


def _shown(key: str) -> str:
    """A key fit for a message: short, and with what is no character escaped."""
    return (key if len(key) <= 40 else key[:40] + "...").encode("utf-8", "backslashreplace").decode()
