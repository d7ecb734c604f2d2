"""Ratings of a run on disk: a SQLite database beside its answers, and `ratings.jsonl` made from it.

    RUN/ratings.sqlite3   one transaction a rating, on disk before it is acknowledged; one row a rater and item
    RUN/ratings.jsonl     the same rows for everybody else (`RatingRow`), made again after each rating

Stands under `pages.py`. Several raters and several processes may write at once: SQLite's write-ahead log lets one wait for the
other. The trade: a connection is opened for every operation, which costs under a millisecond and leaves no state to be lost.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path

from tuneful.evaluation.ratings import RATINGS, load_ratings
from tuneful.files import write_rows
from tuneful.runs.schema import RatingRow, as_row

DATABASE = "ratings.sqlite3"

_BUSY_SECONDS = 30.0
_COLUMNS = tuple(field.name for field in fields(RatingRow))
_TEXT = "CAST(? AS TEXT)"
"""Texts go in as bytes: SQLite takes any, Python's `str` only what UTF-8 knows, and a record's source may hold half a pair."""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS ratings (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    {", ".join(f"{name} TEXT NOT NULL" for name in _COLUMNS)},
    UNIQUE (a, b, source, rater)
)
"""
_INSERT = f"""
INSERT OR REPLACE INTO ratings ({", ".join(_COLUMNS)}) VALUES ({", ".join([_TEXT] * len(_COLUMNS))})
"""


class RatingStore:
    """The ratings of the run folder `run`.

    A rating that `add` returned from survives a kill of this process and a power cut. Raises sqlite3.Error where the disk
    refuses or the database is damaged, DataError where there is no database yet and ratings.jsonl is damaged.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._open_lock, self._export_lock = threading.Lock(), threading.Lock()
        self._num_changes = 0
        self._num_exported = -1

    def add(self, row: RatingRow) -> None:
        """Keep a rating; an earlier one of the same rater, item and answers gives way to it."""
        with self._connected() as connection, connection:
            connection.execute(_INSERT, _bytes(astuple(row)))
        self._num_changes += 1

    def undo(self, rater: str, a: str, b: str) -> RatingRow | None:
        """Take back the last rating of `rater` between the answers `a` and `b`; None where there is none."""
        with self._connected() as connection, connection:
            found = connection.execute(
                f"DELETE FROM ratings WHERE position = (SELECT max(position) FROM ratings "
                f"WHERE rater = {_TEXT} AND a = {_TEXT} AND b = {_TEXT}) RETURNING {', '.join(_COLUMNS)}",
                _bytes((rater, a, b)),
            ).fetchall()
        self._num_changes += 1
        return RatingRow(*found[0]) if found else None

    def rows(self, rater: str | None = None) -> list[RatingRow]:
        """Every rating, or those of one rater, each rater's in the order in which they were given."""
        if not self._is_there():
            return []
        with self._connected() as connection:
            return self._read(connection, rater)

    def export(self) -> None:
        """Make ratings.jsonl what the database holds; nothing is done where it is that already."""
        with self._export_lock:
            num_changes = self._num_changes
            if num_changes == self._num_exported:
                return
            if self._is_there():
                # Under the lock of a writer: of two processes that export, the later one has seen more.
                with self._connected() as connection, connection:
                    connection.execute("BEGIN IMMEDIATE")
                    if rows := self._read(connection):
                        write_rows(self.run / RATINGS, map(as_row, rows))
                    else:
                        (self.run / RATINGS).unlink(missing_ok=True)
            self._num_exported = num_changes

    def _is_there(self) -> bool:
        return (self.run / DATABASE).is_file() or (self.run / RATINGS).is_file()

    @staticmethod
    def _read(connection: sqlite3.Connection, rater: str | None = None) -> list[RatingRow]:
        where, values = (f"WHERE rater = {_TEXT}", _bytes((rater,))) if rater is not None else ("", [])
        found = connection.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM ratings {where} ORDER BY a, b, rater, position", values
        )
        return [RatingRow(*row) for row in found.fetchall()]

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._open_lock:
            connection = self._opened()
        with closing(connection):
            yield connection

    def _opened(self) -> sqlite3.Connection:
        before = [] if (self.run / DATABASE).is_file() else load_ratings(self.run)
        connection = sqlite3.connect(self.run / DATABASE, timeout=_BUSY_SECONDS)
        connection.text_factory = lambda stored: stored.decode("utf-8", "surrogatepass")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_SCHEMA)
            self._take_over(connection, before)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_over(self, connection: sqlite3.Connection, before: Sequence[RatingRow]) -> None:
        """The rows of a ratings.jsonl whose database was left behind, where the folder was copied, say."""
        if before:
            with connection:
                connection.executemany(
                    _INSERT.replace("OR REPLACE", "OR IGNORE"), (_bytes(astuple(row)) for row in before)
                )


def _bytes(texts: Sequence[str]) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in texts]
