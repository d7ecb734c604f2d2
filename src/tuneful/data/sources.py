"""Names become files, and files become bytes: the door at which everything that is no file of records is turned away.

A name is a path, a folder that holds a data set, a pattern (`more/*.jsonl`), `starter`, `-` for standard input, or a Hub id.
Bytes come in blocks of 1 MiB, unpacked where they are gzip or zstd (told by their first bytes, not by the name), hashed as they
are stored and counted, so that a file that changes while it is read is noticed and no file is ever held whole.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from tuneful.data import hub
from tuneful.data.compression import compression_of, unpacked
from tuneful.data.encodings import as_utf8
from tuneful.data.folders import files_of_folder
from tuneful.errors import DataError
from tuneful.files import BLOCK_BYTES, hash_into

STARTER = "starter"
STARTER_FILE = Path(__file__).with_name("starter.json")
"""The built-in data: Alpaca-shaped records for a first run, dedicated to the public domain. `tools/starter` makes it."""
STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class Place:
    """One file to read: the name that messages carry, its path (None is standard input), and the name of DATA that it was `given`
    by."""

    name: str
    path: Path | None
    given: str = ""


def find_files(data: str | Sequence[str], holds_text: Callable[[str], bool] = lambda name: False) -> list[Place]:
    """Every file that `data`, a name or several, means, in order; DataError where one is missing or given twice.

    Of a folder that `holds_text` its files of text are meant too.
    """
    names = [data] if isinstance(data, str) else list(data)
    if not names:
        raise DataError("no data was named: give a file, or `starter` for the built-in data")
    places = [replace(place, given=name) for name in names for place in _find(name, holds_text(name))]
    seen: dict[Path | None, str] = {}
    for place in places:
        real = place.path and Path(os.path.realpath(place.path))
        if real in seen:
            raise DataError(f"{place.name}: given twice (also as {seen[real]}): its records would count double")
        seen[real] = place.name
    return places


def _find(name: str, holds_text: bool = False) -> list[Place]:
    if name == STARTER:
        return [Place(STARTER_FILE.name, STARTER_FILE)]  # where the package is installed is of no use in a message
    if name == STANDARD_INPUT:
        return [Place("stdin", None)]
    path = Path(name).expanduser()
    if path.is_dir():
        return [Place(file.as_posix(), file) for file in files_of_folder(path, holds_text=holds_text)]
    if os.path.lexists(path):
        return [Place(path.as_posix(), path)]
    if glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise DataError(f"{name}: no file matches this pattern")
        folders = [(match, Path(match).is_dir()) for match in matches]
        return [
            place for match, is_dir in folders for place in (_find(match, holds_text) if is_dir else [_place(match)])
        ]
    if dataset_id(name) is not None:
        return [Place(shown, path) for shown, path in hub.fetch(name)]
    raise DataError(
        f"{path}: no such file. Give a file of records (JSON, JSONL, CSV, Parquet, Arrow), a pattern, `-` for standard "
        "input, a Hub id (owner/name), or `starter` for the built-in data"
    )


def _place(name: str) -> Place:
    return Place(name.replace(os.sep, "/"), Path(name))


def dataset_id(name: str) -> str | None:
    """The id of the Hub data set that `name` means, without its split; None where it means something else."""
    is_local = name in (STARTER, STANDARD_INPUT) or os.path.lexists(Path(name).expanduser()) or glob.has_magic(name)
    return None if is_local or not hub.looks_like_an_id(name) else name.partition(":")[0]


def sha256_of(places: Sequence[Place]) -> str | None:
    """sha256 of the bytes of one file as they are stored, or of the digests of several; None where they are no plain files."""
    digests = []
    for place in places:
        if place.path is None or not place.path.is_file():
            return None
        digest = hashlib.sha256()
        with _open(place) as file:
            hash_into(digest, file)
        digests.append(digest.hexdigest())
    return joint_sha256(digests)


def joint_sha256(digests: Sequence[str]) -> str:
    """The sha256 of one file as it is; of several, that of the sha256 of each, one a line."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


class ByteStream:
    """The bytes of one file, unpacked, in order, once; `sha256` is that of the stored bytes when they are through.

    A context manager. Raises DataError, on opening or later, for what is no readable file.
    """

    def __init__(self, place: Place) -> None:
        self.name, self.path = place.name, place.path
        self.compression: str | None = None
        self._file = _open(place)
        self._status = os.fstat(self._file.fileno()) if place.path else None
        self._digest = hashlib.sha256()
        self._num_stored = 0
        self._ahead = b""
        self._plain = self._unpacked()

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path:
            self._file.close()

    @property
    def sha256(self) -> str:
        """Of the bytes as they are stored, as far as they were read."""
        return self._digest.hexdigest()

    def peek(self, size: int) -> bytes:
        """The first `size` unpacked bytes not taken yet, or all that are left; a later read meets them again."""
        parts, length = [self._ahead], len(self._ahead)
        while length < size and (block := next(self._plain, None)) is not None:
            parts.append(block)
            length += len(block)
        self._ahead = b"".join(parts)
        return self._ahead[:size]

    def blocks(self) -> Iterator[bytes]:
        """The unpacked bytes, to the end."""
        while self._ahead:
            block, self._ahead = self._ahead[:BLOCK_BYTES], self._ahead[BLOCK_BYTES:]
            yield block
        yield from self._plain

    def _unpacked(self) -> Iterator[bytes]:
        stored = self._stored()
        first = next(stored, b"")
        self.compression = compression_of(first)
        yield from as_utf8(unpacked(self.compression, first, stored, self.name), self.name)

    def _stored(self) -> Iterator[bytes]:
        while True:
            try:
                block = self._file.read(BLOCK_BYTES)
            except OSError as error:
                raise DataError(f"{self.name}: cannot be read: {error.strerror or error}") from None
            if not block:
                break
            self._digest.update(block)
            self._num_stored += len(block)
            yield block

    def check_unchanged(self) -> None:
        """To be called when the rows are through: a file that is still being written is not the one that was asked for."""
        if self._status is None:
            return
        now = os.fstat(self._file.fileno())
        if (self._num_stored, now.st_size, now.st_mtime_ns) != (
            self._status.st_size,
            self._status.st_size,
            self._status.st_mtime_ns,
        ):
            raise DataError(
                f"{self.name}: changed while it was read ({self._status.st_size:,} bytes before, {now.st_size:,} after); "
                "wait until it is written, or read a copy"
            )


def _open(place: Place) -> BinaryIO:
    if place.path is None:
        if sys.stdin.isatty():
            raise DataError("stdin: standard input is a terminal; pipe records into it: cat data.jsonl | tuneful ... -")
        return sys.stdin.buffer
    try:
        mode = place.path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{place.name}: is a pipe or a device, not a file; feed it to standard input and name `-`")
        return place.path.open("rb", buffering=0)
    except FileNotFoundError:
        raise DataError(f"{place.name}: is a link to a file that does not exist") from None
    except OSError as error:
        raise DataError(f"{place.name}: cannot be read: {error.strerror or error}") from None
