"""Files: what is written is whole or not there, and what grows survives a kill.

    written, write_text, write_json, write_rows      a whole file: written aside, flushed to disk, renamed
    written_aside                                    a whole folder, likewise
    remove, rename                                   a file, a link, or a folder with all that is in it
    ByteRanges                                       the bytes of a large file, where they are asked for
    AppendLog                                        JSONL that grows a line at a time
    read_lines                                       JSONL back, line by line
    read_object                                      a JSON document back
    held, lock_output, unlock_output                 one process at a time
    sha256_of, free_bytes, cache_root

Stands on the ground: anybody may import it, and nothing else in the package renames, flushes or hashes a file on its own
(`train/checkpoint.py` puts its folders in place itself, and says why). The trade: a flush costs milliseconds on an SSD
and tens of them on a disk that turns, so a log flushes each line only where a line costs money.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from filelock import FileLock, Timeout

from tuneful.errors import ConfigError, NotFiniteError

BLOCK_BYTES = 1 << 20
"""How much of a file is read at once."""

PART = ".part"
"""The ending, or the beginning of a folder's name, of what is being written: a killed process may leave it behind."""


# Whole files


@contextlib.contextmanager
def written(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A new file beside `path`; once the block is done it is flushed to disk and renamed to `path`, else removed.

    Text is UTF-8 with line feeds as they are. What killed writers of `path` left behind goes too. Raises OSError where the
    disk refuses.
    """
    _remove_abandoned(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        with open(aside, "wb") if binary else open(aside, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    flush_entry(path.parent)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that are gone left beside `path`; one that still writes there is left alone."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        import psutil

        writer = aside.name.removeprefix(f".{path.name}.").partition("-")[0]
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            remove(aside)


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write `text`, or its parts one after the other, whole or not at all."""
    with written(path) as file:
        file.writelines([text] if isinstance(text, str) else text)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document, indented, whole or not at all."""
    write_text(path, as_json(document, indent=1) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file, a line a row, whole or not at all."""
    write_text(path, map(json_line, rows))


def as_json(document: Mapping[str, Any], indent: int | None = None) -> str:
    """`document` as JSON: readable text, or escapes where it holds a lone surrogate, which no file in UTF-8 can.

    NotFiniteError names a number that is not finite, which JSON does not know.
    """
    try:
        text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        if (found := _not_finite(document)) is None:
            raise
        raise NotFiniteError(
            f"Out of range for JSON: `{found[0]}` is {found[1]}. Where it was measured the model has diverged: lower "
            "train.learning_rate; where it stands in the data leave the cell empty"
        ) from None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, ensure_ascii=True, indent=indent, allow_nan=False)
    return text


def _not_finite(value: Any, place: str = "") -> tuple[str, float] | None:
    """Where in `value` the first number stands that is not finite, and which it is."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, value)
    inside: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        inside = ((f"{place}.{key}" if place else str(key), one) for key, one in value.items())
    elif isinstance(value, (list, tuple)):
        inside = ((f"{place}[{index}]", one) for index, one in enumerate(value))
    return next((found for name, one in inside if (found := _not_finite(one, name))), None)


def json_line(row: Mapping[str, Any]) -> str:
    """One row of a JSONL file, its line end included."""
    return as_json(row) + "\n"


# Whole folders


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; once the block is done, flush it to disk and put it in `folder`'s place.

    What a killed attempt left behind is cleared, or put back where it was the only copy. For one writer at a time: who
    may race holds a lock.
    """
    folder = Path(folder).absolute()
    aside, old = folder.with_name(f"{PART}-{folder.name}"), folder.with_name(f".old-{folder.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if old.is_dir() and not os.path.lexists(folder):
        rename(old, folder)
    remove(aside, old)
    aside.mkdir()
    try:
        yield aside
        _flush_folder(aside)
        if os.path.lexists(folder):
            rename(folder, old)
        rename(aside, folder)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(aside)
        raise
    flush_entry(folder.parent)
    with contextlib.suppress(OSError):
        remove(old)


def flush_entry(path: Path) -> None:
    """Put a file, or the list of a folder's entries, on the disk. Where folders cannot be opened they need no flushing."""
    is_dir = path.is_dir()
    if is_dir and not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    descriptor = os.open(path, (os.O_RDONLY if is_dir else os.O_RDWR) | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    mode = folder.stat().st_mode & 0o666  # the user's umask; safetensors writes files that only their owner may read
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        flush_entry(path)
    flush_entry(folder)


def rename(source: Path, target: Path) -> None:
    """Put the file `source` in the place of `target`, or the folder `source` where none is; an OSError where the system refuses.

    Windows refuses it while another program, often a virus scanner or an indexer, has one of the files open: then it is asked
    again for two seconds.
    """
    move = os.rename if source.is_dir() else os.replace
    for seconds in _REFUSED_SECONDS:
        try:
            move(source, target)
        except OSError as error:
            if getattr(error, "winerror", None) not in _OPEN_ELSEWHERE:
                raise
            time.sleep(seconds)
        else:
            return
    move(source, target)


_OPEN_ELSEWHERE = (5, 32)
"""What Windows says then: access denied, sharing violation."""
_REFUSED_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.5, 0.75)


def remove(*places: Path) -> None:
    """Remove what lies at each of `places`, if anything: a folder with all that is in it, or a link and not what it names."""
    for place in places:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


# JSONL


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a JSONL file: its `number` from 1, where it `end`s in bytes, and its object; None where it holds none.

    A last line without its line feed is half written, whatever it holds: `whole` is False.
    """

    number: int
    end: int
    row: dict[str, Any] | None
    whole: bool


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a JSONL file that are not blank, in order; none where there is no file. Raises OSError."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        end = 0
        for number, line in enumerate(file, start=1):
            end += len(line)
            if line.strip():
                yield Line(number, end, _object(line), line.endswith(b"\n"))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError, and ValueError where it holds anything else."""
    try:
        document = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, found {type(document).__name__}")
    return document


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class AppendLog:
    """A JSONL file that grows by a line at a time. A line is with the system when `add` returns, on disk with `flushed`.

    `rows` are what it holds when it is opened, without the line that a kill cut short, which goes with the first `add`.
    `damaged` is the number of the first other line that holds no object, with all behind it left alone until `replace`; None
    where there is none.
    """

    def __init__(self, path: Path, *, flushed: bool = False) -> None:
        self.path, self._flushed = path, flushed
        self.rows: list[dict[str, Any]] = []
        self.damaged: int | None = None
        self._whole_bytes = 0
        for line in read_lines(path):
            if line.row is None or not line.whole:
                self.damaged = line.number if line.whole else None
                break
            self.rows.append(line.row)
            self._whole_bytes = line.end
        self._file: IO[bytes] | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """One more line, in one write, so that no two are ever mixed."""
        if self._file is None:
            assert self.damaged is None, f"{self.path}:{self.damaged} is damaged"
            if self.path.exists() and self.path.stat().st_size > self._whole_bytes:
                os.truncate(self.path, self._whole_bytes)
            self._file = self.path.open("ab", buffering=0)
        self._file.write(json_line(row).encode())
        if self._flushed:
            os.fsync(self._file.fileno())

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The file holds `rows` and nothing else, whole or as before."""
        self.close()
        write_rows(self.path, rows)
        self.damaged, self._whole_bytes = None, self.path.stat().st_size

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


# One at a time


@contextlib.contextmanager
def held(lock: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `lock` within the block; the system lets go of it however the process ends.

    Where another process holds it, `waiting` is called and then waited for it; without `waiting` filelock.Timeout is raised.
    """
    own = FileLock(lock)
    try:
        own.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise
        waiting()
        own.acquire()
    try:
        yield
    finally:
        own.release()


def lock_output(output: Path) -> FileLock:
    """The lock of a file that one process at a time may write, held from here on; it stands beside the file.

    Raises ConfigError where another process holds it, or where nothing can be written there.
    """
    lock = FileLock(output.with_name(f".{output.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"{output}: another process is writing it; wait for it, or give another --output") from None
    except OSError as error:
        raise ConfigError(f"{error.filename or output}: cannot be written: {error.strerror or error}") from None
    return lock


def unlock_output(lock: FileLock) -> None:
    """Let go of a lock of `lock_output`, whose file goes too; one that was let go of stays so."""
    if lock.is_locked:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


# What lies on the disk


class ByteRanges:
    """The bytes of an open file, where they are asked for, by several threads at once. It is closed with the last reference."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`, or to the end of the file. Raises OSError."""
        parts = []
        while start < stop and (part := self._part(start, stop - start)):
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def _part(self, start: int, num_bytes: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), num_bytes, start)
        with self._lock:  # Windows
            self._file.seek(start)
            return self._file.read(num_bytes)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal; OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        hash_into(digest, file)
    return digest.hexdigest()


def hash_into(digest: hashlib._Hash, file: BinaryIO) -> None:
    """Take the rest of an open file into `digest`, a block at a time."""
    while block := file.read(BLOCK_BYTES):
        digest.update(block)


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of `folder`, or of the nearest folder above it that exists."""
    folder = folder.absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def cache_root() -> Path:
    """Tuneful's cache: `$TUNEFUL_CACHE`, else `$XDG_CACHE_HOME/tuneful`, else `~/.cache/tuneful`."""
    if chosen := os.environ.get("TUNEFUL_CACHE"):
        return Path(chosen).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "tuneful"
