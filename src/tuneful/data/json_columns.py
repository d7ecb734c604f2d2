"""JSON that is written a column at a time becomes rows: what pandas and `datasets` make of a table unless told otherwise.

    {"instruction": ["a", "b"], "output": ["c", "d"]}              to_dict("list")
    {"instruction": {"0": "a", "1": "b"}, "output": {"0": ...}}    DataFrame.to_json()
    {"0": {"instruction": "a", "output": "c"}, "1": {...}}         orient="index"
    {"columns": ["instruction", "output"], "data": [["a", "c"]]}   orient="split"

The last row stands beside the first one only when all is read, so such a file is held whole; JSONL has no such limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tuneful.data.json_rows import unique_keys
from tuneful.data.rows import BLANK, BYTE_ORDER_MARK, MAX_RECORD_BYTES, Row
from tuneful.data.sources import ByteStream
from tuneful.data.values import empty_or_fault
from tuneful.errors import DataError

MAX_BYTES = 256 << 20
"""The most that a file of columns may take."""

_OPENING = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.){0,200}"\s*:\s*(?:\[\s*(?!\{)|\{\s*")')
"""An object whose first value is a list of no objects, or an object."""

Records = list[dict[str, Any]]


def records_in_columns(stream: ByteStream, record_keys: frozenset[str]) -> Records | None:
    """The records of a file of columns; None where it is anything else. Nothing of the stream is taken."""
    head = stream.peek(MAX_RECORD_BYTES).removeprefix(BYTE_ORDER_MARK)
    if not _OPENING.match(head):
        return None
    value = _whole_value(head)
    if value is None and len(head) >= MAX_RECORD_BYTES - len(BYTE_ORDER_MARK) and _is_cut(head):
        content = stream.peek(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{stream.name}: columns of over {MAX_BYTES:,} bytes; write it as JSONL, a record a line")
        value = _whole_value(content.removeprefix(BYTE_ORDER_MARK))
    return _records(value, record_keys) if isinstance(value, dict) else None


def column_rows(stream: ByteStream, records: Records) -> Iterator[Row]:
    """The rows of the `records` that `records_in_columns` found; a source is `name:row 17`, from 1."""
    for _ in stream.blocks():  # for its hash
        pass
    for number, record in enumerate(records, start=1):
        yield f"{stream.name}:row {number}", record, None


def _whole_value(content: bytes) -> Any:
    try:
        return json.loads(content.decode(), parse_constant=empty_or_fault, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return None


def _is_cut(head: bytes) -> bool:
    """Whether the head holds no whole value: the value may end further on."""
    try:
        json.JSONDecoder(strict=False).raw_decode(head.decode(errors="ignore").lstrip(BLANK))
    except (ValueError, RecursionError):
        return True
    return False


def _records(value: dict[str, Any], record_keys: frozenset[str]) -> Records | None:
    names, rows = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(rows, list) and all(isinstance(name, str) for name in names):
        is_table = all(isinstance(row, list) and len(row) == len(names) for row in rows)
        return [dict(zip(names, row, strict=True)) for row in rows] if is_table else None
    columns = list(value.values())
    if all(isinstance(column, list) for column in columns):
        return _of_lists(value, record_keys)
    if all(isinstance(column, dict) for column in columns) and columns:
        return _of_objects(value, record_keys)
    return None


def _of_lists(value: dict[str, Sequence[Any]], record_keys: frozenset[str]) -> Records | None:
    """Columns of the same length, several or of messages each; a list of objects is one record's messages."""
    lengths = {len(column) for column in value.values()}
    known = [value[key] for key in value if key.strip().lower() in record_keys]
    if (
        len(lengths) != 1
        or lengths == {0}
        or not known
        or any(isinstance(one, dict) for column in known for one in column)
    ):
        return None
    if len(value) == 1 and not all(isinstance(one, list) for one in known[0]):
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _of_objects(value: dict[str, dict[str, Any]], record_keys: frozenset[str]) -> Records | None:
    """Columns by row, or rows by number."""
    first = next(iter(value.values()))
    if all(key.isdigit() for key in value) and not record_keys.isdisjoint(first):
        return list(value.values())
    rows = list(first)
    is_table = rows and all(row.isdigit() for row in rows) and all(list(column) == rows for column in value.values())
    if not is_table or record_keys.isdisjoint(key.strip().lower() for key in value):
        return None
    return [{key: column[row] for key, column in value.items()} for row in rows]
