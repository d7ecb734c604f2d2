"""Files of a run folder are read whole, or named with what is wrong with them.

    load_rows       a JSONL file -> its rows          load_document   a JSON file -> its document
    read_object     a JSON file -> a plain object, for who reads it as far as it goes

Where there is no file there is None: what a run has not written is no damage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from tuneful import files
from tuneful.errors import DataError
from tuneful.files import read_lines
from tuneful.runs.schema.read import read_strictly

Row = TypeVar("Row")


def load_rows(kind: type[Row], path: Path) -> list[Row] | None:
    """The rows of the JSONL file `path`, each as a `kind`; None where there is no file.

    DataError names the first line that holds none. A file without a row is damaged: a run writes none.
    """
    rows = []
    try:
        for line in read_lines(path):
            if line.row is None:
                raise DataError(f"{path}:{line.number}: damaged: not a JSON object")
            rows.append(read_strictly(kind, line.row, f"{path}:{line.number}: damaged"))
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
    try:
        return files.read_object(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror or error}")
