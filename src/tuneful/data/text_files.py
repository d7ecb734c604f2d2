"""Bytes become rows: JSON arrays, objects that hold one, JSONL and CSV, told by what a file holds before what it is called."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneful.data.csv_rows import csv_rows, delimiter_of, is_header
from tuneful.data.json_columns import column_rows, records_in_columns
from tuneful.data.json_rows import array_rows, is_spread, is_value, jsonl_rows, object_rows
from tuneful.data.rows import BLANK, BYTE_ORDER_MARK, MAX_RECORD_BYTES, Row, all_blank, suffix_of
from tuneful.data.sources import ByteStream
from tuneful.errors import DataError

_FOREIGN = {
    b"\xff\xfe\x00\x00": "UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet; unpack it, or save the sheet as CSV",
    b"BZh": "bzip2 data; unpack it: bunzip2",
    b"\xfd7zXZ\x00": "xz data; unpack it: unxz",
    b"PAR1": "Parquet inside a compressed file; unpack it first",
    b"ARROW1": "Arrow inside a compressed file; unpack it first",
    b"\x1f\x8b": "packed twice; unpack it once",
    b"\x28\xb5\x2f\xfd": "packed twice; unpack it once",
    b"%PDF": "a PDF; take the text out of it first",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; fetch it: git lfs pull",
}
_NAMED_DELIMITER = re.compile(rb'"?sep=(.?)"?', re.S)
"""The first line of Excel's CSV, which says what stands between cells; a tab is gone from its end."""


def text_rows(stream: ByteStream, columns: frozenset[str], record_keys: frozenset[str]) -> Iterator[Row]:
    """The rows of a file of text.

    `columns` are the names by which CSV is told where the file's name says nothing, `record_keys` those by which a JSON
    object is told to be a record itself.
    """
    head = _first_line(stream)
    first = head[:1]
    suffix = suffix_of(stream.name)
    if first == b"[":
        yield from array_rows(stream)
    elif named := _NAMED_DELIMITER.fullmatch(head):
        yield from csv_rows(stream, named[1].decode() or "\t", is_named=True)
    elif first != b"{" and (suffix in (".csv", ".tsv") or is_header(head, columns)):
        yield from csv_rows(stream, "\t" if suffix == ".tsv" else delimiter_of(head))
    elif first == b"{" and (records := records_in_columns(stream, record_keys)) is not None:
        yield from column_rows(stream, records)
    elif is_value(head, record_keys) or (suffix in (".jsonl", ".ndjson") and not is_spread(head, stream)):
        yield from jsonl_rows(stream)
    else:
        yield from object_rows(stream, record_keys)


def _first_line(stream: ByteStream) -> bytes:
    """The first line that is not blank, without its end; DataError where the file holds no text."""
    size = 1 << 16
    while True:
        head = stream.peek(size)
        check_is_text(head, stream.name)
        line, end, _ = head.removeprefix(BYTE_ORDER_MARK).lstrip(BLANK.encode()).partition(b"\n")
        if end or len(head) < size:
            break
        if size > MAX_RECORD_BYTES:
            if not line:
                raise all_blank(stream.name)
            break
        size *= 2
    if not line:
        raise DataError(f"{stream.name}: the file is empty")
    return line.rstrip(BLANK.encode())


def check_is_text(head: bytes, name: str) -> None:
    """DataError where a file begins as one of another kind does."""
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{name}: byte 0: this is {what}")
    if head[:4].count(0) == 2 and not (head[0] and head[1]):
        raise DataError(f"{name}: byte 0: this looks like UTF-16 text; convert it: iconv -f UTF-16LE -t UTF-8")
