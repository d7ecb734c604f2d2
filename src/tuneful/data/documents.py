"""Files of plain text become rows of one document each: a whole file, a paragraph or a line, in the key `text`.

Stands beside `text_files.py` and reads what is text and no file of records. White space is kept as it stands; ends of lines
become line feeds, as in every text that Python reads.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuneful.data.rows import BYTE_ORDER_MARK, MAX_RECORD_BYTES, TEXT_SUFFIXES, Lines, Row, how_to_convert, suffix_of
from tuneful.data.sources import ByteStream
from tuneful.data.text_files import check_is_text
from tuneful.errors import DataError

MAX_DOCUMENT_BYTES = 1 << 24
"""The most that one document may take: what is longer is divided into paragraphs, or is no document."""

_RECORD_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")


def is_plain_text(stream: ByteStream) -> bool:
    """Whether a file holds text and no records: by its ending, or else by what it begins with."""
    suffix = suffix_of(stream.name)
    if suffix in TEXT_SUFFIXES:
        return True
    return suffix not in _RECORD_SUFFIXES and stream.peek(64).lstrip()[:1] not in (b"{", b"[", b"")


def document_rows(stream: ByteStream, sample_by: str, column: str = "text") -> Iterator[Row]:
    """A row for each `document` (the whole file), `paragraph` (what stands between blank lines) or `line` that is not blank.

    The text stands in `column`, and a source is `file:line` of its first line. DataError where the file is no text, or one
    document is too long to be one.
    """
    check_is_text(stream.peek(64), stream.name)
    if sample_by == "document":
        yield _row(stream, 1, _whole(stream), column)
        return
    start, num_bytes, lines = 1, 0, list[bytes]()
    for number, line in enumerate(Lines(stream.name, stream.blocks()), start=1):
        if line.strip():
            start = start if lines else number
            lines.append(line.removesuffix(b"\r"))
        if lines and (sample_by == "line" or not line.strip()):
            yield _row(stream, start, b"\n".join(lines), column)
            lines = []
        num_bytes = num_bytes + len(line) if lines else 0
        if len(line) > MAX_RECORD_BYTES or num_bytes > MAX_DOCUMENT_BYTES:
            raise _too_long(f"{stream.name}:{start}", "a line or paragraph", "line")
    if lines:
        yield _row(stream, start, b"\n".join(lines), column)


def _whole(stream: ByteStream) -> bytes:
    blocks, num_bytes = list[bytes](), 0
    for block in stream.blocks():
        blocks.append(block)
        num_bytes += len(block)
        if num_bytes > MAX_DOCUMENT_BYTES:
            raise _too_long(stream.name, "a document", "paragraph")
    return b"".join(blocks)


def _too_long(where: str, what: str, smaller: str) -> DataError:
    return DataError(
        f"{where}: {what} of over {MAX_DOCUMENT_BYTES >> 20} MiB; divide it with data.sample_by={smaller}, or into several files"
    )


def _row(stream: ByteStream, line: int, content: bytes, column: str) -> Row:
    """The row of a document that begins with `line`."""
    source = f"{stream.name}:{line}"
    try:
        text = content.removeprefix(BYTE_ORDER_MARK).decode() if line == 1 else content.decode()
    except UnicodeDecodeError as error:
        at = line + content.count(b"\n", 0, error.start)
        damaged = content[: error.start + 64].rpartition(b"\n")[2]
        return source, None, f"line {at} is not UTF-8 ({error.reason}). {how_to_convert(stream.name, damaged)}"
    return source, {column: text.replace("\r\n", "\n").replace("\r", "\n")}, None
