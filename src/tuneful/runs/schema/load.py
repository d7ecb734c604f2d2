"""Files of a run folder are read whole, or named with what is wrong with them.

    load_rows       a JSONL file -> its rows          load_document   a JSON file -> its document
    read_object     a JSON file -> a plain object, for who reads it as far as it goes
    noted_sums      the sha256 that a run noted of its files      check_sum       whether a file is still what was noted

Where there is no file there is None: what a run has not written is no damage.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tuneful import files
from tuneful.errors import DataError
from tuneful.files import read_lines
from tuneful.runs.schema.read import read_strictly

Row = TypeVar("Row")


def load_rows(kind: type[Row], path: Path, needed: Collection[str] | None = None) -> list[Row] | None:
    """The rows of the JSONL file `path`, each as a `kind`; None where there is no file. `needed` as for `read_strictly`.

    DataError names the first line that holds none. A file without a row is damaged: a run writes none.
    """
    rows = []
    _check_link(path)
    try:
        for line in read_lines(path):
            if line.row is None:
                raise DataError(f"{path}:{line.number}: damaged: not a JSON object")
            rows.append(read_strictly(kind, line.row, f"{path}:{line.number}: damaged", needed))
        if not rows and path.exists():
            raise DataError(f"{path}: damaged: it holds no row")
    except OSError as error:
        raise _unreadable(path, error) from None
    return rows or None


def load_document(kind: type[Row], path: Path) -> Row | None:
    """The document in the JSON file `path`; None where there is no file, DataError where it is damaged."""
    document = read_object(path)
    return None if document is None else read_strictly(kind, document, f"{path}: damaged")


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no file; DataError where it holds anything else."""
    _check_link(path)
    try:
        return files.read_object(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from None


def noted_sums(run: Path) -> Mapping[str, str]:
    """The sha256 of each finished file of the run folder `run`, by its place; none where run.json names none."""
    try:
        noted = (read_object(run / "run.json") or {}).get("files")
    except DataError:
        return {}
    return {name: str(sha256) for name, sha256 in noted.items()} if isinstance(noted, dict) else {}


def check_sum(file: Path, noted: str | None) -> None:
    """DataError where `file` has not the sha256 that was `noted`, or is not there; None is that of a file nobody noted."""
    if noted is None:
        return
    try:
        found = files.sha256_of(file)
    except OSError as error:
        raise _unreadable(file, error) from None
    if found != noted:
        raise DataError(f"{file}: damaged: it is not what the run wrote there (its sha256 differs)")


def _check_link(path: Path) -> None:
    for place in (path, path.parent):
        if place.is_symlink() and not os.path.exists(place):
            raise DataError(f"{place}: damaged: is a link to nothing")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror or error}")
