"""What is said on stderr: a sentence fits the terminal, a command can be copied from it."""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tuneful.console import Terminal, _rate, json_to_stdout, prepare_streams, reader_is_gone, to_stdout, wrapped

SENTENCE = "These words are more than the forty columns that this terminal has to show."
COMMAND = "go on with: tuneful train --resume '/a folder/of some length/below another'"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "40")
    return Terminal()


def test_a_sentence_is_wrapped_to_the_terminal(narrow: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    narrow.say(SENTENCE)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert " ".join(line.strip() for line in lines) == SENTENCE


def test_a_command_stands_on_one_line(narrow: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    narrow.say(COMMAND, style="yellow", wrap=False)
    assert capsys.readouterr().err == f"{COMMAND}\n"


def test_a_pipe_has_lines_as_long_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    Terminal().say(f"{SENTENCE} {SENTENCE}")
    assert capsys.readouterr().err == f"{SENTENCE} {SENTENCE}\n"


def test_what_takes_longer_than_a_second_has_seconds_a_piece() -> None:
    assert _rate(2.0, "steps") == "2.0 steps/s"
    assert _rate(0.3, "steps") == "3.3 s a step"


@given(words=st.lists(st.text("abcd", min_size=1, max_size=12), max_size=30), cuts=st.integers(1, 7))
def test_an_answer_is_wrapped_between_its_words_and_nothing_of_it_is_lost(words: list[str], cuts: int) -> None:
    text = " ".join(words)
    pieces = [text[start : start + cuts] for start in range(0, len(text), cuts)]
    shown = "".join(wrapped(pieces, 20))
    assert shown.split() == words
    assert all(cell_len(line) <= 20 for line in shown.split("\n"))


def test_line_ends_and_indents_of_an_answer_stay_and_what_has_no_blanks_is_left_whole() -> None:
    assert "".join(wrapped(["a\n  b\n\n", "c "], 20)) == "a\n  b\n\nc "
    assert "".join(wrapped(["x" * 50], 20)) == "x" * 50
    assert "".join(wrapped(["\u4e16" * 25], 20)) == "\u4e16" * 25


# Streams that cannot say everything

DRAWN = "a \u2192 b \u2588\u258f \u27e6x\u27e7 \u65e5"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.BytesIO]:
    """Make stdout, and stdin of some bytes, of an encoding as a console or a pipe of it."""
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)

    def made(encoding: str, given: bytes = b"") -> io.BytesIO:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding=encoding))
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        return written

    return made


def test_what_an_encoding_lacks_is_drawn_in_ascii(stream: Callable[..., io.BytesIO]) -> None:
    written = stream("cp1252")
    prepare_streams(on_windows=False)
    to_stdout(DRAWN)
    Terminal(stderr=False).table(["\u2192"], [["\u201cg\u201d"]])
    assert written.getvalue().split() == [*rb"a -> b #| [[x]] \u65e5 ->".split(), b"\x93g\x94"]


def test_a_document_says_the_same_in_every_encoding(stream: Callable[..., io.BytesIO]) -> None:
    for encoding in ("cp1252", "utf-8"):
        written = stream(encoding)
        prepare_streams(on_windows=False)
        json_to_stdout({"text": DRAWN + " \u201cgr\u00fcn\u201d \U0001f642"})
        assert json.loads(written.getvalue().decode(encoding))["text"] == DRAWN + " \u201cgr\u00fcn\u201d \U0001f642"


def test_pipes_of_windows_are_utf_8_unless_another_encoding_was_chosen(
    stream: Callable[..., io.BytesIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = stream("cp1252", DRAWN.encode())
    prepare_streams(on_windows=True)
    assert sys.stdin.read() == DRAWN
    to_stdout(DRAWN)
    assert written.getvalue().decode() == f"{DRAWN}\n"
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    stream("cp1252")
    prepare_streams(on_windows=True)
    assert sys.stdout.encoding == "cp1252"


def test_a_reader_that_went_away_is_no_error_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reader_is_gone(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert reader_is_gone(OSError(errno.EINVAL, "Invalid argument"))
    assert not reader_is_gone(OSError(errno.ENOSPC, "No space left on device"))


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal, said = Terminal(), io.StringIO()
    terminal.console = Console(file=said, force_terminal=True)
    with terminal.progress("training", 2, "steps") as advance:
        advance(1)
        advance(1)
    assert said.getvalue().splitlines()[-1].split() == ["training:", "2/2", "steps"]
