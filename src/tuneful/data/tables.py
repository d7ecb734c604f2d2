"""Parquet and Arrow files become rows.

Rows leave in small batches, so memory is that of one page of each column, not of a row group. Cells become what JSON
knows: a date is its ISO text, a number that is none is null, a class label of `datasets` the name of its class, bytes are named
by their length. What pyarrow finds wrong with a file is one DataError that names the row group or batch; a row with a cell that
is no text is refused alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneful.data.rows import MAX_RECORD_BYTES, Row, first_line, shown
from tuneful.errors import DataError

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_BATCH_ROWS = 32
Labels = Mapping[str, Sequence[str]]
"""The names of the classes, by the column that holds their numbers."""
_BUFFER_BYTES = 1 << 20


def is_table(head: bytes) -> bool:
    """Whether a file that begins with `head` is Parquet or Arrow."""
    return head.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


def table_rows(head: bytes, path: Path, name: str) -> Iterator[Row]:
    """The rows of the Parquet or Arrow file `path`, which begins with `head`; a source is `name:row 17`, from 1."""
    import pyarrow as pa

    batches = _parquet_batches(path, name) if head.startswith(PARQUET) else _arrow_batches(head, path, name)
    number = 0
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            rows = _rows(*batch)
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{name}: damaged after row {number:,}: {first_line(error)}; fetch or write it again"
            ) from None
        for value, fault in rows:
            number += 1
            yield f"{name}:row {number}", value, fault


def _label_names(schema: Any) -> Labels:
    """The names of the classes of each column of class labels, as `datasets` writes them into a file's schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        of_classes = {column: one for column, one in features.items() if one.get("_type") == "ClassLabel"}
        return {column: [str(name) for name in one["names"]] for column, one in of_classes.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """A class label as the name of its class; none of -1, which is `datasets`' for no label."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _parquet_batches(path: Path, name: str) -> Iterator[tuple[Any, Labels]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A buffer makes Arrow read page by page; without one it loads every column of a row group first.
        file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: not a whole Parquet file: {first_line(error)}; fetch or write it again") from None
    _check_columns(file.schema_arrow.names, name)
    labels = _label_names(file.schema_arrow)
    for group in range(file.metadata.num_row_groups):
        _check_cells(file.metadata.row_group(group), group, name)
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], use_threads=False):
            yield batch, labels


def _check_cells(group: Any, number: int, name: str) -> None:
    """A page that unpacks to gigabytes is told by the footer: its column's bytes divided by its values."""
    for index in range(group.num_columns):
        column = group.column(index)
        if column.total_uncompressed_size > MAX_RECORD_BYTES * max(1, column.num_values):
            raise DataError(
                f"{name}: row group {number + 1}: the values of `{shown(column.path_in_schema)}` take "
                f"{column.total_uncompressed_size:,} bytes, over {MAX_RECORD_BYTES:,} each, which is no record"
            )


def _arrow_batches(head: bytes, path: Path, name: str) -> Iterator[tuple[Any, Labels]]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            if head.startswith(ARROW_FILE):
                reader = pa.ipc.open_file(file)
                whole = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                reader = whole = pa.ipc.open_stream(file)
            _check_columns(reader.schema.names, name)
            labels = _label_names(reader.schema)
            for batch in whole:
                batch.validate(full=True)  # offsets of a damaged file would be followed anywhere
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS), labels
    except EOFError:
        raise DataError(f"{name}: the Arrow file is cut off; fetch or write it again") from None


def _check_columns(names: list[str], name: str) -> None:
    if twice := next((column for column in names if names.count(column) > 1), None):
        raise DataError(f"{name}: the column `{shown(twice)}` stands twice; rename one of them")


def _rows(batch: Any, labels: Labels) -> list[tuple[Any, str | None]]:
    """(row, what is wrong with it) of a batch, whole where that goes, row by row where a cell cannot be read."""
    try:
        rows = [_plain(row) for row in batch.to_pylist()]
        for row in rows if labels else ():
            row.update({column: _named(row[column], names) for column, names in labels.items() if column in row})
        return [(row, None) for row in rows]
    except (UnicodeDecodeError, ValueError, OverflowError):
        return [_row(batch, labels, index) for index in range(batch.num_rows)]


def _row(batch: Any, labels: Labels, index: int) -> tuple[Any, str | None]:
    row = {}
    for column in batch.schema.names:
        try:
            row[column] = _named(_plain(batch.column(column)[index].as_py()), labels.get(column))
        except (UnicodeDecodeError, ValueError, OverflowError) as error:
            return row, f"`{shown(column)}` cannot be read: {first_line(error)}"
    return row, None


def _plain(value: Any) -> Any:
    """`value` in what JSON knows."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value):,} bytes>"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
