"""What is said on stderr: a sentence fits the terminal, a command can be copied from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tuneful.console import Terminal, _rate, wrapped

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
