"""The safe part of a check's findings, applied: a new file, and an account of every row.

Safe is what cannot lose anything: rows that cannot be used and later copies of a record are dropped, and so are rows that
stand in a file given with --against; controls and invisible characters go, broken characters are put right where their
bytes say what they were, and an input that is a missing value written out becomes empty. Everything else is for a person
to decide. rows read = kept + changed + dropped, asserted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneful.audit.defects import is_null_like, mended_text
from tuneful.data.read import Record, Refusal
from tuneful.errors import DataError
from tuneful.files import written


@dataclass(frozen=True, slots=True)
class Mending:
    """What was written: `num_kept` rows as they were, `num_changed` others; `dropped` counts the rest by reason."""

    path: str
    num_read: int
    num_kept: int
    num_changed: int
    dropped: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For `check --json`."""
        return asdict(self)


def write_mended(rows: Iterable[Record | Refusal], dropped: Mapping[int, str], path: Path) -> Mending:
    """Write `rows` but those of `dropped` (row number: reason) to `path`, mended, one JSON record a line.

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
                if number in dropped or isinstance(row, Refusal):
                    reasons[dropped[number]] += 1
                    continue
                mended = _mended(row.raw)
                num_kept += mended == row.raw
                num_changed += mended != row.raw
                file.write(json.dumps(mended, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    assert num_read == num_kept + num_changed + sum(reasons.values()), (num_read, num_kept, num_changed, reasons)
    return Mending(str(path), num_read, num_kept, num_changed, dict(reasons))


def _mended(raw: dict[str, Any]) -> dict[str, Any]:
    mended = {key: _mended_value(value) for key, value in raw.items()}
    if isinstance(given := mended.get("input"), str) and is_null_like(given):
        mended["input"] = ""
    return mended


def _mended_value(value: Any) -> Any:
    if isinstance(value, str):
        return mended_text(value)
    if isinstance(value, list):
        return [_mended_value(one) for one in value]
    if isinstance(value, dict):
        return {key: _mended_value(one) for key, one in value.items()}
    return value
