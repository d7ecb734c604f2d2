"""Rows and documents become plain JSON, and plain JSON becomes rows and documents.

    as_row          a row or document -> what stands in the file
    read_strictly   what stands in the file -> a row; DataError names the place and the field      for who needs it whole
    read_rows       the same for all rows of a file, naming file and line
    check_sources   whether rows are those of the records that they belong to, in order
    read_loosely    what stands in the file -> a row, as far as it can be read                     for a report

Loosely, a figure that cannot be read is NaN, a count is 0, a text is empty, and what may be None is None. What has no place in
the class is passed over, and names of earlier versions are translated (`names.py`).

Written out, where pydantic could read dataclasses too: it takes no text with a lone surrogate, which records may hold.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tuneful.errors import DataError
from tuneful.runs.schema.names import translated
from tuneful.runs.schema.rows import ABSENT

Row = TypeVar("Row")

_MAX_SHOWN = 60  # characters of a value that a message shows
_MAX_INT = 2**62  # no count is larger, and arrays hold none that is


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a row: its `type`, its `meaning` in words, and whether a file leaves it out where it is None."""

    name: str
    type: Any
    meaning: str
    may_be_absent: bool
    has_default: bool


@cache
def fields_of(kind: Any) -> tuple[Field, ...]:
    """The fields of a class of rows or documents, in the order in which a file holds them."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for one in dataclasses.fields(kind):
        type_, meaning, *marks = get_args(hints[one.name])
        has_default = one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
        found.append(Field(one.name, type_, meaning, ABSENT in marks, has_default))
    return tuple(found)


def as_row(row: object) -> dict[str, Any]:
    """A row or document as plain dicts, lists and values, as its file holds it."""
    return {
        field.name: _plain(value)
        for field in fields_of(type(row))  # type: ignore[arg-type]  # mypy: a class is no Hashable
        if (value := getattr(row, field.name)) is not None or not field.may_be_absent
    }


def read_strictly(kind: type[Row], value: object, where: str, needed: Collection[str] | None = None) -> Row:
    """The `kind` that a plain `value` holds; DataError where it holds none, naming `where` and the field.

    Where only some fields are `needed`, another one may be missing, as in a file that was written by hand.
    """
    try:
        found: Row = _read(kind, value if needed is None else _filled(kind, value, needed), loose=False)
    except _MismatchError as mismatch:
        field = f"`{mismatch.field}`: " if mismatch.field else ""
        raise DataError(f"{where}: {field}{mismatch}") from None
    except AssertionError:  # what a row promises between its fields
        raise DataError(f"{where}: holds figures that cannot be together") from None
    return found


def read_rows(kind: type[Row], rows: Iterable[object], path: Path) -> list[Row]:
    """The rows of the JSONL file `path`, each as a `kind`; DataError names the first line that holds none."""
    return [read_strictly(kind, row, f"{path}:{number}") for number, row in enumerate(rows, start=1)]


def check_sources(rows: Sequence[Any], sources: Sequence[str], path: Path, records: str = "the test set") -> None:
    """DataError where the rows of the file `path` are not one of each of `sources`, which are those of `records`, in order."""
    for number, (row, source) in enumerate(zip(rows, sources, strict=False), start=1):
        if row.source != source:
            raise DataError(
                f"{path}:{number}: damaged: is of {row.source[:_MAX_SHOWN]!r}, where {source!r} of {records} comes next"
            )
    if len(rows) != len(sources):
        raise DataError(f"{path}: damaged: holds {len(rows):,} rows, where {records} has {len(sources):,}")


def read_loosely(kind: type[Row], row: Mapping[str, Any]) -> Row:
    """The `kind` that `row` holds, as far as it can be read."""
    found: Row = _read(kind, row, loose=True)
    return found


# Values


class _MismatchError(Exception):
    """A value is not what its field holds: the message says what was expected, `field` where, such as `items[3].base`."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field

    def inside(self, name: str) -> _MismatchError:
        """The same, seen from the object whose field `name` it is."""
        joint = "" if not self.field or self.field.startswith("[") else "."
        return _MismatchError(str(self), f"{name}{joint}{self.field}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_row(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _read(kind: Any, value: Any, *, loose: bool) -> Any:
    """`value` as what the type `kind` says; _MismatchError where it is not that."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, loose)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _read(_inner(kind), value, loose=loose)
    if origin in (tuple, list):
        return origin(_read_list(arguments[0], value, loose))
    if origin is Mapping or kind is Mapping:
        return _read_mapping(arguments[1], value, loose)
    return _read_loose_leaf(kind, value) if loose else _read_leaf(kind, value)


def _filled(kind: Any, value: object, needed: Collection[str]) -> object:
    """`value` with what stands for nothing in the fields that are missing and not `needed`."""
    if not isinstance(value, Mapping):
        return value
    row = translated(kind, value)
    return {field.name: _unknown(field.type) for field in fields_of(kind) if field.name not in needed} | dict(row)


def _read_fields(kind: Any, value: Any, loose: bool) -> Any:
    if not isinstance(value, Mapping):
        raise _mismatch("an object", value)
    row, found = translated(kind, value), {}
    for field in fields_of(kind):
        try:
            if field.name in row:
                found[field.name] = _read(field.type, row[field.name], loose=loose)
            elif not field.has_default:
                raise _MismatchError("is missing")
        except _MismatchError as mismatch:
            if not loose:
                raise mismatch.inside(field.name) from None
            found[field.name] = _unknown(field.type)
    return kind(**found)


def _read_list(kind: Any, value: Any, loose: bool) -> list[Any]:
    """Loosely, objects that are none are passed over; of figures all can be read, or none are."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _mismatch("a list", value)
    found = []
    for index, one in enumerate(value):
        if loose and dataclasses.is_dataclass(kind) and not isinstance(one, Mapping):
            continue
        try:
            found.append(_read(kind, one, loose=loose))
        except _MismatchError as mismatch:
            raise mismatch.inside(f"[{index}]") from None
    return found


def _read_mapping(kind: Any, value: Any, loose: bool) -> dict[str, Any]:
    """Loosely, entries that cannot be read are passed over."""
    if not isinstance(value, Mapping):
        raise _mismatch("an object", value)
    found = {}
    for key, one in value.items():
        try:
            found[str(key)] = _read(kind, one, loose=loose)
        except _MismatchError as mismatch:
            if not loose:
                raise mismatch.inside(str(key)) from None
    return found


def _read_leaf(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise _mismatch(f"one of {', '.join(map(repr, get_args(kind)))}", value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value) is not None:
        return value
    if type(value) is kind and kind is not float and not (kind is int and abs(value) > _MAX_INT):
        return value
    raise _mismatch({int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind], value)


def _read_loose_leaf(kind: Any, value: Any) -> Any:
    """Any value as text, where text is wanted; a whole number from a number near it; nothing from a number that is none."""
    if kind is bool:
        if value in (True, False):  # 1 and 0 are the same
            return bool(value)
    elif kind in (int, float):
        number = _finite(value) if isinstance(value, (int, float)) else None
        if number is not None and (kind is float or abs(number) <= _MAX_INT):
            return round(number) if kind is int else number
    elif value is not None:
        return str(value)
    raise _MismatchError("cannot be read")


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _unknown(kind: Any) -> Any:
    """What stands for a value that cannot be read, where reading is loose."""
    if kind is Any or get_origin(kind) in (Union, UnionType):
        return None
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, {}, loose=True)
    empty: Mapping[Any, Any] = {bool: False, int: 0, float: math.nan, tuple: (), list: [], Mapping: {}}
    return empty.get(get_origin(kind) or kind, "")


def _inner(optional: Any) -> Any:
    """The type of a value that may be None."""
    (kind,) = (one for one in get_args(optional) if one is not NoneType)
    return kind


def _mismatch(expected: str, value: Any) -> _MismatchError:
    shown = repr(value)
    return _MismatchError(
        f"expected {expected}, found {shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + '...'}"
    )
