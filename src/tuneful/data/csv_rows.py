"""CSV and TSV become rows: a header of unique names, then a record a row, quoted cells over several lines included.

The delimiter is the one that makes the most columns of the header. What is wrong with one row alone (too few cells, bytes that
are no UTF-8) is that row's fault; a stray quote leaves no doubt only that the rest cannot be told apart, and ends the read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from tuneful.data.columns import normal_name
from tuneful.data.rows import BYTE_ORDER_MARK, MAX_RECORD_BYTES, Lines, Row, escaped, how_to_convert, shown
from tuneful.data.sources import ByteStream
from tuneful.errors import DataError

_DELIMITERS = (",", "\t", ";", "|")
_MAX_HEADER_BYTES = 1 << 16
_MAX_ROW_LINES = 100_000


def _csv_cells(line: bytes, delimiter: str) -> list[str]:
    if len(line) > _MAX_HEADER_BYTES:
        return []
    try:
        return next(csv.reader([line.decode()], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def delimiter_of(header: bytes) -> str:
    """The delimiter that makes the most columns of a header, the comma where there is only one."""
    return max(_DELIMITERS, key=lambda delimiter: len(_csv_cells(header, delimiter)))


def is_header(line: bytes, known: frozenset[str]) -> bool:
    """Whether a first line names at least two columns that we know."""
    cells = [cell.strip() for cell in _csv_cells(line, delimiter_of(line))]
    return sum(cell in known or normal_name(cell) in known for cell in cells) >= 2


def csv_rows(stream: ByteStream, delimiter: str, *, is_named: bool = False) -> Iterator[Row]:
    """The rows of a file of cells under a header; a source is `file:line` of the row's first line.

    With `is_named` a first line, `sep=;`, names the delimiter.
    """
    if csv.field_size_limit() < MAX_RECORD_BYTES:
        csv.field_size_limit(MAX_RECORD_BYTES)
    lines = _CsvLines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        start = lines.begin_row()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{stream.name}:{start}: {_csv_fault(str(error), lines.number)}") from None
        if cells is None:
            return
        if not cells and not lines.fault:  # a line of NUL alone is no blank one
            continue
        if header and len(cells) > 1 and not lines.fault and not any(map(str.strip, cells)):
            continue  # what Excel writes for a blank line
        if is_named:
            is_named = False
            continue
        if header:
            fault = lines.fault
            if fault is None and len(cells) != len(header):
                fault = f"{len(cells)} cell(s), where the header names {len(header)} column(s)"
            yield f"{stream.name}:{start}", cells if fault else dict(zip(header, cells, strict=True)), fault
        else:
            header = _header(cells, f"{stream.name}:{start}", lines.fault)


def _header(cells: list[str], place: str, fault: str | None) -> list[str]:
    """The names of the columns; one without a name is called by its number."""
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None) if len(names) < 1000 else None
    if fault or len(names) >= 1000:
        raise DataError(f"{place}: the header cannot be read: {fault or f'{len(names):,} columns'}")
    if twice:
        raise DataError(f"{place}: the column `{shown(twice)}` stands twice; rename one of them")
    return names


def _csv_fault(message: str, last_line: int) -> str:
    if "unexpected end of data" in message:
        return f"a quote of this row is never closed (the file ends at line {last_line})"
    if "new-line character" in message:
        return "a lone carriage return outside quotes; convert the line ends: tr '\\r' '\\n'"
    why = f"a quote that neither opens nor closes a cell ({escaped(message)})"
    return f"{why}; write it twice, as CSV does, before line {last_line + 1}"


class _CsvLines:
    """Lines of text for the csv module: `fault` says what is wrong with those of the row at hand."""

    def __init__(self, stream: ByteStream) -> None:
        self._name, self._lines = stream.name, Lines(stream.name, stream.blocks())
        self.number = self._row_bytes = 0
        self.fault: str | None = None
        self._start = 1

    def begin_row(self) -> int:
        """Forget the last row; the line on which the next begins."""
        self.fault, self._row_bytes, self._start = None, 0, self.number + 1
        return self._start

    def __iter__(self) -> Iterator[str]:
        offset = 0
        for line in self._lines:
            self.number += 1
            self._row_bytes += len(line) + 1
            if self._row_bytes > MAX_RECORD_BYTES or self.number - self._start >= _MAX_ROW_LINES:
                raise DataError(
                    f"{self._name}:{self._start}: the row that begins here is over {MAX_RECORD_BYTES:,} bytes or "
                    f"{_MAX_ROW_LINES:,} lines: a quote that is never closed, or no CSV"
                )
            try:
                text = (line.removeprefix(BYTE_ORDER_MARK) if self.number == 1 else line).decode()
            except UnicodeDecodeError as error:
                self.fault = (
                    f"byte {offset + error.start} is not UTF-8 ({error.reason}). {how_to_convert(self._name, line)}"
                )
                text = line.decode("utf-8", "backslashreplace")
            if "\0" in text:
                self.fault = f"byte {offset + line.index(0)} is NUL, which is no text"
                text = text.replace("\0", "")
            offset += len(line) + 1
            yield text + "\n"
