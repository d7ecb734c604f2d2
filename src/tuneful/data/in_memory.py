"""Records that a program holds become a file: lists of dicts, data frames, and data sets of `datasets` and pyarrow.

A run reads its data several times, and goes on after a kill: so what has no file gets one, in the cache, named by what it
holds. The same records are the same file, and the messages about them name its lines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from tuneful.errors import DataError
from tuneful.files import as_json, cache_root, write_text

Data: TypeAlias = "str | PathLike[str] | Sequence[str | PathLike[str]] | Iterable[Mapping[str, Any]] | Any"
"""What a function takes as data: names of files, or the records themselves."""

_CONVERSIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("to_dicts", {}),
    ("to_pylist", {}),
    ("to_dict", {"orient": "records"}),
)
"""How data frames of polars, tables of pyarrow and data frames of pandas hand out their rows."""


def as_names(data: Data) -> str | tuple[str, ...]:
    """`data` as the name of a file, or several; records that are in memory are written to one. Raises DataError."""
    if isinstance(data, (str, PathLike)):
        return str(data)
    if isinstance(data, Sequence) and data and all(isinstance(one, (str, PathLike)) for one in data):
        return tuple(map(str, data))
    rows = [_plain_row(number, row) for number, row in enumerate(_rows(data), start=1)]
    if not rows:
        raise DataError("the data holds no record")
    return str(_written([as_json(row) + "\n" for row in rows]))


def _rows(data: Any) -> Iterable[Any]:
    if isinstance(data, Mapping):
        return _transposed(data)
    is_table = hasattr(data, "columns") or hasattr(data, "schema")
    for method, arguments in _CONVERSIONS:
        if is_table and hasattr(data, method):
            rows: Iterable[Any] = getattr(data, method)(**arguments)
            return rows
    if not isinstance(data, Iterable):
        raise DataError(
            f"data is a {type(data).__name__}: give the name of a file, a list of dicts, a data frame, or a data set of "
            "`datasets`"
        )
    return data


def _transposed(columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of columns; a mapping of whole data sets is none."""
    if not all(isinstance(column, (list, tuple)) for column in columns.values()):
        names = ", ".join(map(repr, list(columns)[:4]))
        raise DataError(f"data is a mapping of {names}: give one of its splits, such as data[{next(iter(columns))!r}]")
    if len({len(column) for column in columns.values()}) > 1:
        raise DataError("data is a mapping of columns of different lengths")
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _plain_row(number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"record {number} of the data is a {type(row).__name__}, not a dict")
    return {str(key): _plain(value, f"record {number} of the data, `{key}`") for key, value in row.items()}


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON holds it: a cell without a value is null, as it is in a file of the same table."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one, where) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, where) for one in value]
    if hasattr(value, "tolist"):  # numpy's and torch's values and arrays
        return _plain(value.tolist(), where)
    if (isinstance(value, float) and not math.isfinite(value)) or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise DataError(f"{where} is a {type(value).__name__}: give text, a number, or lists and dicts of them")


def _written(lines: Sequence[str]) -> Path:
    """The file of the cache that holds `lines`."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    file = cache_root() / "data" / f"records-{digest.hexdigest()[:16]}.jsonl"
    try:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, lines)
    except OSError as error:
        raise DataError(
            f"{file}: the records cannot be written ({error.strerror or error}): set TUNEFUL_CACHE to a folder that you may "
            "write, or give a file"
        ) from None
    return file
