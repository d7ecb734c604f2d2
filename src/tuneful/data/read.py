"""Files become conversations: the first room, where every row is used or refused by name.

Reads a JSON array (or an object holding one) and JSONL of Alpaca-style records: `instruction`, `input` (may be missing or
empty), `output`, `system` (may be missing). Records are found one by one in the text, so an error carries the line at which
the record begins. A row that cannot be used stops the read, or, on request, goes to the refused with its reason:
read = used + refused, always.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.data import starter
from tuneful.errors import DataError
from tuneful.types import Conversation, Turn

STARTER = "starter"
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
    rows = _split_rows(_decode(content, path), path)
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
        text = content.decode("utf-8-sig")
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
    try:
        end = _scan(text, start, path)[1]
    except DataError:
        end = -1
    whole = end >= 0 and _skip_space(text, end) == len(text)
    if whole and (array := _array_in_object(text, start, path)) is not None:
        return _array_rows(text, array, path)
    return _jsonl_rows(text, path)


def _array_rows(text: str, start: int, path: Path) -> Iterator[tuple[str, Any]]:
    at = _skip_space(text, start + 1)
    line = _LineCounter(text)
    if at < len(text) and text[at] == "]":
        raise DataError(f"{path}:{line.at(at)}: the array is empty")
    while True:
        value, end = _scan(text, at, path)
        yield f"{path}:{line.at(at)}", value
        at = _skip_space(text, end)
        if at < len(text) and text[at] == "]":
            return
        if at >= len(text) or text[at] != ",":
            raise DataError(f"{path}:{line.at(min(at, len(text)))}: expected `,` or `]` after a record")
        at = _skip_space(text, at + 1)


def _jsonl_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value, end = _scan(line, _skip_space(line, 0), path, first_line=number)
            if line[end:].strip():
                raise DataError(f"{path}:{number}: more than one value on a line; JSONL holds one record a line")
            yield f"{path}:{number}", value


def _array_in_object(text: str, start: int, path: Path) -> int | None:
    """Where the one array of records inside a top-level object begins; None where the object is itself a record."""
    at = _skip_space(text, start + 1)
    while text[at] == '"':
        _, at = _scan(text, at, path)
        at = _skip_space(text, _skip_space(text, at) + 1)
        value, end = _scan(text, at, path)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return at
        at = _skip_space(text, end)
        if text[at] != ",":
            return None
        at = _skip_space(text, at + 1)
    return None


def _scan(text: str, at: int, path: Path, first_line: int = 1) -> tuple[Any, int]:
    """One JSON value that begins at `at`, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        line = first_line + text.count("\n", 0, error.pos)
        raise DataError(
            f"{path}:{line}: not valid JSON: {error.msg[0].lower()}{error.msg[1:]} (column {error.colno})"
        ) from None
    except RecursionError:
        raise DataError(f"{path}:{first_line + text.count(chr(10), 0, at)}: nested too deeply to be a record") from None
    except ValueError as error:
        raise DataError(f"{path}:{first_line + text.count(chr(10), 0, at)}: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"not valid JSON: {name} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one record")
    return record


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)


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
    shown = ", ".join(f"`{key}`" for key in list(raw)[:6])
    return shown + (", ..." if len(raw) > 6 else "") if raw else "none"
