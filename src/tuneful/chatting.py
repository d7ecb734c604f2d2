"""A conversation with a model, a line a message: what `tuneful chat` does, at a terminal and in a pipe.

Answers appear as they are written; Ctrl-C stops one, and what was said of it stays. The model sees the whole conversation
under its own template, as training would render it. What does not fit its context is left out from the front, and said.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tuneful.answers import Speaker, question
from tuneful.console import Terminal, pieces_to_stdout
from tuneful.errors import InputError
from tuneful.infer.generate import context_length
from tuneful.rundir import json_line
from tuneful.types import Turn

HELP = """/reset         forget the conversation, keep the system text
/system TEXT   set the system text (no TEXT: none) and begin anew
/save FILE     add the conversation to FILE, as a record to train on
/help          this list
/quit          the end, as is Ctrl-D; Ctrl-C stops an answer
//TEXT         a message that begins with a slash"""


def converse(speaker: Speaker, terminal: Terminal, *, system: str = "") -> None:
    """Answer every line of standard input until it ends."""
    talk = _Talk(speaker, terminal, system)
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):  # where there is none, lines are plain
            import readline  # noqa: F401, which gives `input` its history and its arrow keys
        terminal.say("a line is a message; /help lists what else there is", style="dim")
    for line in _lines(at_terminal):
        if not line.strip():
            continue
        if line.startswith("/") and not line.startswith("//"):
            if not talk.obey(line):
                return
        else:
            talk.answer(line[1:] if line.startswith("//") else line)


def _lines(at_terminal: bool) -> Iterator[str]:
    if not at_terminal:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("  (/quit or Ctrl-D to end)")


class _Talk:
    """What was said so far."""

    def __init__(self, speaker: Speaker, terminal: Terminal, system: str) -> None:
        self._speaker, self._terminal, self._system = speaker, terminal, system
        self._turns: list[Turn] = []

    def answer(self, message: str) -> None:
        """Say the answer to `message`, as it comes, and remember both."""
        said: list[str] = []

        def pieces() -> Iterator[str]:
            for piece in self._speaker.stream(self._system, self._fitting(message), message):
                said.append(piece)
                yield piece

        try:
            pieces_to_stdout(pieces())
        except InputError as error:
            self._terminal.say(f"error: {error}", style="red")
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            self._terminal.say("stopped", style="yellow")
        if text := "".join(said).strip():
            self._turns.append(Turn(message, "", text))

    def obey(self, line: str) -> bool:
        """Do what a line with a slash asks for; whether the conversation goes on."""
        verb, _, rest = line.partition(" ")
        rest = rest.strip()
        if verb == "/quit":
            return False
        if verb == "/help":
            self._terminal.say(HELP)
        elif verb == "/reset":
            self._turns.clear()
            self._terminal.say("forgotten")
        elif verb == "/system":
            self._system = rest
            self._turns.clear()
            self._terminal.say(f"system text: {rest}" if rest else "no system text")
        elif verb == "/save":
            self._save(rest)
        else:
            self._terminal.say(f"no command {verb}; there are /reset, /system, /save, /help and /quit", style="yellow")
        return True

    def _save(self, name: str) -> None:
        if not name:
            self._terminal.say("/save needs a file: /save chats.jsonl", style="yellow")
            return
        if not self._turns:
            self._terminal.say("nothing was said yet", style="yellow")
            return
        messages = [{"role": "system", "content": self._system}] if self._system else []
        for turn in self._turns:
            messages.append({"role": "user", "content": turn.instruction})
            messages.append({"role": "assistant", "content": turn.response})
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                file.write(json_line({"messages": messages}))
        except OSError as error:
            self._terminal.say(f"error: {name}: {error.strerror or error}", style="red")
            return
        self._terminal.say(f"{len(self._turns)} {'turns' if len(self._turns) > 1 else 'turn'} added to {name}")

    def _fitting(self, message: str) -> list[Turn]:
        """The latest turns that leave room for an answer to `message`."""
        room = context_length(self._speaker.model) - self._speaker.config.generate.max_new_tokens
        for start in range(len(self._turns)):
            asked = question(self._system, self._turns[start:], message)
            if len(self._speaker.encoder.prompt_ids(asked)) <= room:
                break
        else:
            start = len(self._turns)
        if start:
            self._terminal.say(f"the first {start} of {len(self._turns)} turns no longer fit the context", style="dim")
        return self._turns[start:]
