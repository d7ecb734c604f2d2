"""What is said on stderr: a sentence fits the terminal, a command can be copied from it."""

from __future__ import annotations

import pytest

from tuneful.console import Terminal

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
