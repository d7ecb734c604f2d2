"""JSON becomes rows: JSONL a line at a time, an array through a window on its text, an object by the one array it holds.

Nothing is held whole: a line, or a window on the text of an array, is all that is in memory, and a record may take
MAX_RECORD_BYTES. A fault that leaves no doubt where the next row begins (a broken line, a key that stands twice, Infinity) is
that row's alone; one that does (a missing bracket) ends the read.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from tuneful.data.messages import looks_like_messages
from tuneful.data.rows import BLANK, BYTE_ORDER_MARK, MAX_RECORD_BYTES, Lines, Row, all_blank, how_to_convert, shown
from tuneful.data.sources import ByteStream
from tuneful.data.values import empty_or_fault
from tuneful.errors import DataError

_MAX_DEPTH = 64
_MAX_KEPT = 10_000  # characters of a row that could not be read
_MAX_BLANK_LINES = 1_000_000
_SPACE = re.compile(r"[ \t\r\n]*")


def is_value(line: bytes, record_keys: frozenset[str]) -> bool:
    """Whether a first line holds a JSON value of its own, and no object of arrays of records."""
    if len(line) > MAX_RECORD_BYTES:
        return False
    try:
        text = line.decode()
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return end == len(text) and not _arrays_of_records(value, record_keys)


# JSON values


def _parse_float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"the number {digits[:40]} is too large; write it as text")
    return number


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of `pairs`; ValueError where a key stands twice."""
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key `{shown(twice)}` stands twice in one record")
    return record


_DECODER = json.JSONDecoder(parse_constant=empty_or_fault, parse_float=_parse_float, object_pairs_hook=unique_keys)
_LENIENT = json.JSONDecoder(parse_constant=str, parse_int=str, parse_float=str)
"""Finds where a value ends that the strict decoder will not have."""
_TOO_DEEP = f"nested over {_MAX_DEPTH} levels deep, which is no record"


def _is_deep(value: Any, text: str) -> bool:
    """Whether the `value` of `text` is nested over _MAX_DEPTH levels: what json reads, writing it back may not."""
    if text.count("{") + text.count("[") <= _MAX_DEPTH:
        return False
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _value_fault(error: ValueError) -> str:
    """What is wrong with a value whose syntax is right."""
    message = str(error)
    return (
        "a whole number of over 4300 digits; write it as text" if message.startswith("Exceeds the limit") else message
    )


def _syntax(error: json.JSONDecodeError, column: int) -> str:
    return f"not valid JSON: {error.msg[0].lower()}{error.msg[1:]} (column {column})"


# JSONL


def jsonl_rows(stream: ByteStream) -> Iterator[Row]:
    """The rows of a file that holds a value a line; a source is `file:line`."""
    name, decode, lines = stream.name, _DECODER.raw_decode, Lines(stream.name, stream.blocks())
    blank = offset = 0
    for number, line in enumerate(lines, start=1):
        bare = line.strip(b" \t\r\n") if number > 1 else line.removeprefix(BYTE_ORDER_MARK).strip(b" \t\r\n")
        start, offset = offset, offset + len(line) + 1
        if not bare:
            blank += 1
            if blank > _MAX_BLANK_LINES:
                raise DataError(
                    f"{name}:{number}: over {_MAX_BLANK_LINES:,} blank lines and no record, which is a damaged file"
                )
            continue
        blank = 0
        try:
            text = bare.decode() if len(bare) <= MAX_RECORD_BYTES else ""
            value, end = decode(text)
            whole = end == len(text)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            fault = _line_fault(line, start + lines.num_dropped, name)
            yield f"{name}:{number}", bare[:_MAX_KEPT].decode("utf-8", "backslashreplace"), fault
        elif (text.find("{", 1) > 0 or "[" in text) and _is_deep(value, text):
            yield f"{name}:{number}", text[:_MAX_KEPT], _TOO_DEEP
        else:
            yield f"{name}:{number}", value, None


def _line_fault(line: bytes, offset: int, name: str) -> str:
    """What is wrong with a line that begins at byte `offset` and is not one JSON value."""
    if len(line) > MAX_RECORD_BYTES:
        return f"a line of over {MAX_RECORD_BYTES:,} bytes, which is no record"
    try:
        text = line.decode("utf-8-sig")
        _, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip(BLANK)))
    except UnicodeDecodeError as error:
        return f"byte {offset + error.start} is not UTF-8 ({error.reason}). {how_to_convert(name, line)}"
    except json.JSONDecodeError as error:
        return _syntax(error, error.pos + 1)
    except RecursionError:
        return _TOO_DEEP
    except ValueError as error:
        return _value_fault(error)
    carriage = " (or its lines end in a lone \\r: convert them)" if "\r" in text[:end] + text[end : end + 1] else ""
    return f"more than one value on a line; JSONL holds one record a line{carriage}"


# JSON arrays, and objects that hold one


class _Window:
    """A moving view of a file's text: `text[at:]` is what comes next, `more` reads on and lets go what is behind."""

    def __init__(self, stream: ByteStream) -> None:
        self.name = stream.name
        self.text, self.at = "", 0
        self._blocks = stream.blocks()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._num_bytes = 0
        self._counted, self._line, self._column = 0, 1, 0  # of text[counted]; columns from 0
        self._dropped = self._record_end = 0  # characters of the file
        self.more()
        self.text = self.text.removeprefix("\ufeff")

    def more(self) -> bool:
        """Read another block; False at the end of the file."""
        block = next(self._blocks, None)
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            where = self._num_bytes - pending + error.start
            raise DataError(
                f"{self.name}: byte {where} is not UTF-8 ({error.reason}). {how_to_convert(self.name, block or b'')}"
            ) from None
        if block is None:
            return False
        self._num_bytes += len(block)
        self._count(self.at)
        self._dropped += self.at
        self.text = self.text[self.at :] + text
        self.at = self._counted = 0
        return True

    def _count(self, position: int) -> None:
        newlines = self.text.count("\n", self._counted, position)
        if newlines:
            self._line += newlines
            self._column = position - self.text.rfind("\n", self._counted, position) - 1
        else:
            self._column += position - self._counted
        self._counted = position

    @property
    def line(self) -> int:
        """The line of what comes next, from 1."""
        self._count(self.at)
        return self._line

    def place(self, position: int | None = None) -> str:
        """`file:line` of what comes next, or of `position` in the text."""
        return f"{self.name}:{self.line + self.text.count(chr(10), self.at, position or self.at)}"

    def peek(self) -> str:
        """The next character that is not blank, "" at the end; blanks before it are passed over."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match
            self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if self._dropped + self.at - self._record_end > MAX_RECORD_BYTES:
                raise all_blank(self.place())
            if not self.more():
                return ""

    def take(self) -> tuple[Any, str | None]:
        """The value that begins here, and its fault: with one, the value is its text."""
        value, end, fault = self._decoded()
        text, at, self.at = self.text, self.at, end
        self._record_end = self._dropped + end
        if end - at > MAX_RECORD_BYTES:
            return text[at : at + _MAX_KEPT], f"a record of over {MAX_RECORD_BYTES:,} characters"
        nests = text.find("{", at + 1, end) > 0 or text.find("[", at + 1, end) > 0
        if fault is None and nests and _is_deep(value, text[at:end]):
            fault = _TOO_DEEP
        return (text[at:end][:_MAX_KEPT], fault) if fault else (value, None)

    def _decoded(self) -> tuple[Any, int, str | None]:
        """The value that begins here, where it ends in the text, and its fault; reads on until the value is whole."""
        decoder, fault = _DECODER, None
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self._is_cut(error) and self._more_of_it():
                    continue
                cut = (
                    f"; the file ends in the record that begins at line {self.line}: cut off?"
                    if self._is_cut(error)
                    else ""
                )
                raise DataError(f"{self.place(error.pos)}: {_syntax(error, self._column_of(error.pos))}{cut}") from None
            except RecursionError:
                raise DataError(f"{self.place()}: {_TOO_DEEP}") from None
            except ValueError as error:  # right in its syntax: the lenient decoder finds where it ends
                decoder, fault = _LENIENT, _value_fault(error)
                continue
            if self._may_go_on(value, end) and self._more_of_it():
                continue
            return value, end, fault

    def holds_records(self) -> bool:
        """Whether the array that begins here opens with an object."""
        while True:
            match = _SPACE.match(self.text, self.at + 1)
            assert match
            if match.end() < len(self.text):
                return self.text[match.end()] == "{"
            if not self._more_of_it():
                return False

    def step(self) -> None:
        """Pass over one character."""
        self.at += 1

    def _may_go_on(self, value: Any, end: int) -> bool:
        """Whether `value` is a number that reaches to the end of what was read: more digits may follow."""
        return isinstance(value, (int, float)) and not self.text[end:].strip("0123456789+-.eE")

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the text may only have ended too early: everywhere else the fault is the file's."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - 16

    def _more_of_it(self) -> bool:
        if len(self.text) - self.at > MAX_RECORD_BYTES:
            raise DataError(
                f"{self.place()}: the record that begins here is over {MAX_RECORD_BYTES:,} characters, or never ends"
            )
        had = len(self.text) - self.at
        while self.more():  # to double what there is: a long record is not begun anew at every block
            if len(self.text) - self.at > min(2 * had, MAX_RECORD_BYTES):
                break
        return len(self.text) - self.at > had

    def _column_of(self, position: int) -> int:
        self._count(self.at)
        newline = self.text.rfind("\n", self.at, position)
        return position - newline if newline >= 0 else self._column + position - self.at + 1


def array_rows(stream: ByteStream) -> Iterator[Row]:
    """The rows of a file that is an array."""
    window = _Window(stream)
    window.peek()
    yield from _rows_of_array(window)
    if window.peek():
        raise DataError(f"{window.place()}: something follows the array of records; a file holds one")


def _rows_of_array(window: _Window) -> Iterator[Row]:
    """The rows of the array that begins here.

    A source is `file:line`; further records that begin on the same line are `file:line#2`, `file:line#3` ...
    """
    window.step()
    if window.peek() == "]":
        raise DataError(f"{window.place()}: the array is empty")
    line = count = 0
    while True:
        here = window.line
        line, count = (here, count + 1) if here == line else (here, 1)
        value, fault = window.take()
        yield (f"{window.name}:{line}#{count}" if count > 1 else f"{window.name}:{line}"), value, fault
        follows = window.peek()
        if follows not in (",", "]"):
            raise DataError(f"{window.place()}: expected `,` or `]` after a record")
        window.step()
        if follows == "]":
            return
        window.peek()


def is_spread(line: bytes, stream: ByteStream) -> bool:
    """Whether the first `line` of a file is the beginning of an object that ends on another line."""
    if line[-1:] not in (b"{", b"[", b","):
        return False
    text = stream.peek(MAX_RECORD_BYTES + 1).decode("utf-8-sig", "replace").lstrip(BLANK)
    try:
        _, end = _LENIENT.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end]


def object_rows(stream: ByteStream, record_keys: frozenset[str]) -> Iterator[Row]:
    """The rows of the one array of records in an object; the objects themselves where they are records, by `record_keys`."""
    head = stream.peek(MAX_RECORD_BYTES + 1)
    arrays = _arrays_in(head, record_keys)
    if len(arrays) > 1:
        raise _two_arrays(stream.name, arrays)
    window = _Window(stream)
    window.peek()
    if arrays or len(head) > MAX_RECORD_BYTES:
        yield from _held_rows(window, arrays[0] if arrays else None)
    else:
        yield from _rows_one_by_one(window)
    if window.peek():
        raise DataError(f"{window.place()}: something follows a record that is none; JSONL holds one record a line")


def _rows_one_by_one(window: _Window) -> Iterator[Row]:
    """The rows of objects that follow one another, over as many lines as they like."""
    line = count = 0
    while True:
        here = window.line
        line, count = (here, count + 1) if here == line else (here, 1)
        yield (f"{window.name}:{line}#{count}" if count > 1 else f"{window.name}:{line}"), *window.take()
        if window.peek() != "{":
            return


def _arrays_in(head: bytes, record_keys: frozenset[str]) -> list[str]:
    """The keys under which the object `head` holds arrays of records; none where it is a record, or no JSON."""
    if len(head) > MAX_RECORD_BYTES:
        return []
    try:
        value, _ = _LENIENT.raw_decode(head.decode("utf-8-sig").lstrip(BLANK))
    except (ValueError, RecursionError):
        return []
    return _arrays_of_records(value, record_keys)


def _arrays_of_records(value: Any, record_keys: frozenset[str]) -> list[str]:
    """The keys of an object under which arrays of records stand; none where it looks like a record itself."""
    if not isinstance(value, dict) or not record_keys.isdisjoint(value):
        return []
    return [
        key
        for key, rows in value.items()
        if isinstance(rows, list) and any(isinstance(row, dict) for row in rows) and not looks_like_messages(rows)
    ]


def _held_rows(window: _Window, wanted: str | None) -> Iterator[Row]:
    """The rows of the array `wanted` in the object that begins here; for None, of the one array that opens with `{`."""
    if window.peek() != "{":
        raise DataError(f"{window.place()}: expected a record, or an array of records")
    found: list[str] = []
    window.step()
    while window.peek() != "}":
        key, _ = window.take()
        if not isinstance(key, str) or window.peek() != ":":
            raise DataError(f"{window.place()}: not valid JSON: expected a key and `:`")
        window.step()
        if window.peek() == "[" and (key == wanted or (wanted is None and window.holds_records())):
            found.append(key)
            if len(found) > 1:
                raise _two_arrays(window.name, found)
            yield from _rows_of_array(window)
        else:
            window.take()
        if (follows := window.peek()) not in (",", "}"):
            raise DataError(f"{window.place()}: not valid JSON: expected `,` or `}}`")
        if follows == ",":
            window.step()
    if not found:
        raise DataError(
            f"{window.place()}: the object that ends here is over {MAX_RECORD_BYTES:,} bytes and holds no records"
        )
    window.step()


def _two_arrays(name: str, keys: list[str]) -> DataError:
    names = ", ".join(f"`{shown(key)}`" for key in keys)
    return DataError(f"{name}: holds more than one array of records ({names}); give each a file of its own")
