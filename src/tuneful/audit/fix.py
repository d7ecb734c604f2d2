"""The safe part of a check's findings, applied: a new file, and an account of every row.

Safe is what cannot lose anything: rows that cannot be used, rows that answer nothing but `<nooutput>` and later copies of a
record are dropped, and so are rows that stand in a file given with --against; controls and invisible characters go, broken
characters are put right where their bytes say what they were, line feeds that are written out in prose become line feeds,
and an input that is a missing value written out becomes empty. Everything else is for a person to decide.
rows read = kept + changed + dropped, asserted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneful.audit.defects import escaped_texts, fixed_text, is_null_like, unescaped
from tuneful.data.read import Record, SkippedRow
from tuneful.errors import DataError
from tuneful.files import written


@dataclass(frozen=True, slots=True)
class Fixes:
    """What was written: `num_kept` rows as they were, `num_changed` others; `dropped` counts the rest by reason."""

    path: str
    num_read: int
    num_kept: int
    num_changed: int
    dropped: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For `check --json`."""
        return asdict(self)


def write_fixed(rows: Iterable[Record | SkippedRow], dropped: Mapping[int, str], path: Path) -> Fixes:
    """Write `rows` but those of `dropped` (row number: reason) to `path`, fixed, one JSON record a line.

    Raises DataError where `path` exists or cannot be written; then nothing is left of it.
    """
    if path.exists():
        raise DataError(f"{path}: exists already; name a new file for --fix")
    num_read = num_kept = num_changed = 0
    reasons: Counter[str] = Counter()
    try:
        with written(path) as file:
            for number, row in enumerate(rows):
                num_read += 1
                if number in dropped or isinstance(row, SkippedRow):
                    reasons[dropped[number]] += 1
                    continue
                fixed = _fixed(row.raw, escaped_texts(row.conversation))
                num_kept += fixed == row.raw
                num_changed += fixed != row.raw
                file.write(json.dumps(fixed, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    assert num_read == num_kept + num_changed + sum(reasons.values()), (num_read, num_kept, num_changed, reasons)
    return Fixes(str(path), num_read, num_kept, num_changed, dict(reasons))


def _fixed(raw: dict[str, Any], escaped: set[str]) -> dict[str, Any]:
    """A row with what is safe to fix; of the `escaped` texts of its conversation the line feeds too."""
    escaped = {text.strip() for text in escaped}
    fixed = {key: _fixed_value(value, escaped) for key, value in raw.items()}
    if isinstance(given := fixed.get("input"), str) and is_null_like(given):
        fixed["input"] = ""
    return fixed


def _fixed_value(value: Any, escaped: set[str]) -> Any:
    if isinstance(value, str):
        return fixed_text(unescaped(value) if value.strip() in escaped else value)
    if isinstance(value, list):
        return [_fixed_value(one, escaped) for one in value]
    if isinstance(value, dict):
        return {key: _fixed_value(one, escaped) for key, one in value.items()}
    return value
