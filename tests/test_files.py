"""Files are whole or not there, logs survive what cuts them short, and nothing stays behind."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from tests.doubles.processes import Process
from tests.machine import needs

from tuneful.errors import ConfigError, DataError
from tuneful.files import (
    AppendLog,
    ByteRanges,
    flush_entry,
    lock_output,
    read_lines,
    rename,
    unlock_output,
    write_json,
    write_rows,
    write_text,
    written,
)
from tuneful.runs.schema import load_rows


@dataclass(frozen=True)
class Anything:
    """A row that any object is."""

    text: Annotated[str, "a text"] = ""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_while_writing(path: Path) -> None:
    with written(path) as file:
        file.write("half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_block_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def fail() -> None:
        with written(path) as file:
            file.write("after")
            raise ValueError("by hand")

    with pytest.raises(ValueError, match="by hand"):
        fail()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


@needs("posix")
def test_what_a_killed_writer_left_goes_with_the_next_one_and_what_is_being_written_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "a[1].txt", tmp_path / "a1.txt"
    for killed in (path, other):
        assert Process(killed_while_writing, killed).wait(60) == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    with written(path) as file:
        file.write("slow")
        assert len(names(tmp_path)) == 2, "the other file's, and this one's own"
        write_text(path, "quick")
        assert path.read_text() == "quick"
    assert path.read_text() == "slow"
    write_text(other, "done")
    assert names(tmp_path) == ["a1.txt", "a[1].txt"]


def test_text_is_utf8_with_its_own_line_ends_and_json_holds_what_no_utf8_can(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", ["é\r\n", "b\n"])
    assert (tmp_path / "a.txt").read_bytes() == "é\r\nb\n".encode()
    write_json(tmp_path / "a.json", {"é": "\ud800"})
    assert b"\\ud800" in (tmp_path / "a.json").read_bytes()
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == ["a.json", "a.txt"]


def test_rows_come_back_and_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"text": "a\u2028b"}, {"number": 1}]
    write_rows(path, rows)
    assert [line.row for line in read_lines(path)] == rows
    path.write_bytes(path.read_bytes() + b"\n[1]\n")
    assert [(line.number, line.row, line.whole) for line in read_lines(path)] == [
        (1, rows[0], True),
        (2, rows[1], True),
        (4, None, True),
    ]
    with pytest.raises(DataError, match=r"rows\.jsonl:4: damaged: not a JSON object"):
        load_rows(Anything, path)


def test_a_log_cut_at_any_byte_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = AppendLog(path)
    for number in range(3):
        log.add({"number": number, "text": "é"})
    log.close()
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        log = AppendLog(path)
        kept = sum(end <= cut for end in ends)
        assert [row["number"] for row in log.rows] == list(range(kept))
        assert log.damaged is None
        for number in range(kept, 3):
            log.add({"number": number, "text": "é"})
        log.close()
        assert path.read_bytes() == whole


def test_a_line_damaged_in_the_middle_is_told_and_nothing_behind_it_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"number": 0}\n{"numb\n{"number": 2}\n')
    log = AppendLog(path)
    assert (log.rows, log.damaged) == ([{"number": 0}], 2)
    with pytest.raises(AssertionError, match="2 is damaged"):
        log.add({"number": 1})
    log.replace([{"number": 0}])
    log.add({"number": 1})
    log.close()
    assert [line.row for line in read_lines(path)] == [{"number": 0}, {"number": 1}]


def test_a_file_is_locked_once_and_the_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    lock = lock_output(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match=r"rows\.jsonl: another process is writing it"):
        lock_output(tmp_path / "rows.jsonl")
    unlock_output(lock)
    assert names(tmp_path) == []
    other = lock_output(tmp_path / "rows.jsonl")
    unlock_output(lock)  # it was let go of already: the other one stays
    assert names(tmp_path) == [".rows.jsonl.lock"]
    unlock_output(other)


@pytest.mark.parametrize("has_pread", [True, False])
def test_bytes_are_read_where_they_stand_whatever_the_system_has(
    has_pread: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With line feeds and the end of file of DOS in them, by four threads at once."""
    content = bytes(range(256)) * 64 + b"\r\n\x1a\n" * 100
    (tmp_path / "bytes").write_bytes(content)
    if not has_pread:
        monkeypatch.delattr(os, "pread", raising=False)
    ranges = ByteRanges(tmp_path / "bytes")
    places = [(start, min(start + 700, len(content))) for start in range(0, len(content), 311)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda place: ranges.read(*place), places * 5)) == [
            content[start:stop] for start, stop in places * 5
        ]
    assert ranges.read(len(content) - 1, len(content) + 5) == content[-1:]
    assert ranges.read(3, 3) == b""


def refused(winerror: int | None) -> OSError:
    error = PermissionError(13, "by hand")
    error.winerror = winerror  # type: ignore[attr-defined]
    return error


def test_a_file_that_another_program_looks_into_is_put_in_its_place_when_it_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, replace = [refused(32), refused(5)], os.replace

    def busy(source: Path, target: Path) -> None:
        if answers:
            raise answers.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr("tuneful.files._REFUSED_SECONDS", (0.0,) * 3)
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    answers += [refused(32)] * 4
    with pytest.raises(PermissionError):
        rename(tmp_path / "a.txt", tmp_path / "b.txt")
    answers[:] = [refused(None)]
    with pytest.raises(PermissionError):
        rename(tmp_path / "a.txt", tmp_path / "b.txt")
    assert not answers, "a refusal of another kind is final"
    assert names(tmp_path) == ["a.txt"]


def test_where_folders_cannot_be_opened_the_files_in_them_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_file = list[tuple[str, int]](), os.open

    def only_files(path: Path, flags: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        opened.append((os.path.basename(path), flags))
        return open_file(path, flags & ~0x8000)

    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    monkeypatch.setattr(os, "open", only_files)
    (tmp_path / "a.bin").write_bytes(b"\n")
    flush_entry(tmp_path)
    flush_entry(tmp_path / "a.bin")
    assert opened == [("a.bin", os.O_RDWR | 0x8000)]
