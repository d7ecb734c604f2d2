"""Rows of a long work are on disk as soon as they are known, and become the whole file at the end.

    answers.jsonl.partial     {"request": "9f2c..."}        what was asked for: the same request goes on, another is refused
                              {"index": 7, "row": {...}}    in the order in which they were finished
    answers.jsonl             the rows in their own order, written aside and renamed when the last one is known

A process that is killed leaves whole lines and perhaps half a line, which is dropped. One process at a time may write.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tuneful.errors import ConfigError
from tuneful.rundir import json_line, write_text


class Journal:
    """The rows of `output` that are known so far: `rows`, by their place in the file.

    `request` names what was asked for. What another request left is dropped with `replace`, else ConfigError says so; it
    also says where another process is at it. Use it as a context manager.
    """

    def __init__(self, output: Path, request: str, *, replace: bool = False) -> None:
        self._output, self._request = output, request
        self._path = output.with_name(f"{output.name}.partial")
        self._lock = FileLock(output.with_name(f".{output.name}.lock"), blocking=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"{output}: another process is writing it; wait for it, or give another --output"
            ) from None
        except OSError as error:
            raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from None
        try:
            self.rows = self._read(replace)
            self._file = self._path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def add(self, index: int, row: Mapping[str, Any]) -> None:
        """Row `index` of the file is known; it is on disk when this returns."""
        assert index not in self.rows, f"row {index} was known already"
        self.rows[index] = dict(row)
        self._file.write(json_line({"index": index, "row": row}))
        self._file.flush()

    def finish(self, num_rows: int) -> list[dict[str, Any]]:
        """All `num_rows` rows are known: write the whole file, and forget the journal."""
        assert sorted(self.rows) == list(range(num_rows)), "rows are missing"
        rows = [self.rows[index] for index in range(num_rows)]
        write_text(self._output, "".join(map(json_line, rows)))
        self.forget()
        return rows

    def forget(self) -> None:
        """The rows are safe elsewhere."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what is known stays for the next process."""
        self._file.close()
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                Path(self._lock.lock_file).unlink()
            self._lock.release()

    def _read(self, replace: bool) -> dict[int, dict[str, Any]]:
        """The rows of the same request, the file cut back to its whole lines; a new file where there are none."""
        lines = self._whole_lines()
        if lines and lines[0][1].get("request") != self._request and not replace:
            raise ConfigError(
                f"{self._path}: holds answers to another request (its model, data or settings differ); "
                "give another --output, or remove it"
            )
        if not lines or lines[0][1].get("request") != self._request:
            write_text(self._path, json_line({"request": self._request}))
            return {}
        os.truncate(self._path, lines[-1][0])
        return {entry["index"]: entry["row"] for _, entry in lines[1:]}

    def _whole_lines(self) -> list[tuple[int, dict[str, Any]]]:
        """(where it ends, what it holds) of every line up to the first that is not whole."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        lines: list[tuple[int, dict[str, Any]]] = []
        end = 0
        for line in data.splitlines(keepends=True):
            end += len(line)
            entry = _entry(line)
            if entry is None or (lines and not ("index" in entry and "row" in entry)):
                break
            lines.append((end, entry))
        return lines


def _entry(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
