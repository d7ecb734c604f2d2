"""The value of a field becomes text: text as it is, numbers and truth values as JSON writes them, JSON text as what it says.

Lowest of the readers of a row: what cannot be text raises UnfitError, whose text is the reason, and what was read in another way
than it stands is counted under its name (`notes.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from tuneful.data.notes import Noted
from tuneful.data.rows import shown

Fields = Mapping[str, Any]
_MAX_NESTED_TEXTS = 2
"""A JSON text inside a JSON text is read; a third one is no mistake of a converter any more."""
_LEAST_WEIGHT, _MOST_WEIGHT = 1e-3, 1e3


class UnfitError(ValueError):
    """A row of a known format that cannot be used; its text is the reason."""


def unfit(reason: str) -> NoReturn:
    """The row cannot be used."""
    raise UnfitError(reason)


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if is_nan(value) or value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def names_of(fields: Fields) -> str:
    """The first keys of a row, for a message."""
    names = ", ".join(f"`{shown(key)}`" for key in list(fields)[:6])
    return names + (", ..." if len(fields) > 6 else "") if fields else "none"


def is_nan(value: Any) -> bool:
    """Whether a value is NaN, as a table's empty cell is in Python."""
    return isinstance(value, float) and math.isnan(value)


def is_blank(value: Any) -> bool:
    """Whether a cell says nothing: null, NaN, an empty text or white space, an empty list."""
    return (
        value is None
        or is_nan(value)
        or (value.isspace() or not value if isinstance(value, str) else value in ([], {}))
    )


def text_of(value: Any, where: str, noted: Noted, name: str = "") -> str:
    """`value` as text that can be written as UTF-8, a number as JSON writes it; it is counted under `name`, or `where`."""
    if isinstance(value, str):
        return _encodable(value, where)
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        noted.add("numbers", name or where)
        return json.dumps(value)
    return unfit(f"{where} is {kind_of(value)}, expected text")


def empty_or_fault(constant: str) -> None:
    """NaN, which is how pandas writes an empty cell, is null; other constants of JavaScript's are no JSON."""
    if constant != "NaN":
        raise ValueError(f"not valid JSON: {constant} is no JSON number")


def _encodable(value: str, where: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        unfit(f"{where} holds a lone surrogate (\\u{ord(value[error.start]):04x}), which is no character")
    return value


def from_json_text(value: Any, where: str, noted: Noted) -> Any:
    """`value`, or what it says where it is the JSON text of a list or an object, as tables hold such things."""
    for _ in range(_MAX_NESTED_TEXTS):
        if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{", '"'):
            return value
        try:
            value = json.loads(value, parse_constant=empty_or_fault)
        except (ValueError, RecursionError):
            return unfit(_why_no_json(value, where))
        noted.add("json_text", where)
    return value


def _why_no_json(text: str, where: str) -> str:
    if "'" in text[:4] or "array(" in text[:40] or "dtype=" in text[-40:]:
        return (
            f"{where} is the text of a Python object (its repr), not of JSON; write the cells with json.dumps, or the file "
            "as JSONL"
        )
    return f"{where} is a text that begins as JSON and is none; write it with json.dumps"


def weight_of(value: Any) -> float:
    """What the record counts beside others: its `weight`, as a number or as a table writes it; 1 where it has none."""
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if weight == 0:
        unfit("`weight` is 0: nothing of the record would count")
    if not _LEAST_WEIGHT <= weight <= _MOST_WEIGHT:
        unfit(f"`weight` is {_shown_value(value)}, expected a number from {_LEAST_WEIGHT:g} to {_MOST_WEIGHT:g}")
    return weight


def _shown_value(value: Any) -> str:
    return shown(str(value)) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else kind_of(value)
