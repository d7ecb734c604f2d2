"""`tuneful chat`: a conversation with a model, a line a message, at a terminal and in a pipe.

Answers appear as they are written; Ctrl-C stops one, and what was said of it stays. The model sees the whole conversation
under its own template, as training would render it. What does not fit its context is left out from the front, and said.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import END_OF_INPUT, ConfigFile, Model, configuration, with_model
from tuneful.errors import InputError
from tuneful.types import Turn, answer_text

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.infer.session import LoadedModel

QUOTES = '"""'
"""Stand before and behind a message of several lines."""
HELP = f"""/reset         forget the conversation, keep the system text
/system TEXT   set the system text (no TEXT: none) and begin anew
/save FILE     add what was said and answered to FILE, as a record to train on
/help          this list
/quit          the end, as is {END_OF_INPUT}; Ctrl-C stops an answer
//TEXT         a message that begins with a slash
\"\"\"            begins a message of several lines, and ends it"""


def chat(
    *, model: Any = None, config: Config | None = None, system: str = "", terminal: Terminal | None = None
) -> ChatSession:
    """Begin a conversation with the model of `config`; `ChatSession.stream` and `.answer` take messages.

    `model` is a name, a folder or a run, or (model, tokenizer) of transformers, in place of `config`'s; `system` is the system
    text. Raises InputError where the model cannot be loaded.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.infer.session import LoadedModel

    terminal = terminal or Terminal(quiet=True)
    return ChatSession(LoadedModel.load(with_model(config, model) or Config(), terminal.say), terminal, system)


def chat_command(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings, such as generate.temperature=0.7")
    ] = None,
    model: Model = None,
    system: Annotated[str, typer.Option(help="a system text to begin with")] = "",
    config: ConfigFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print answers and errors only")] = False,
) -> None:
    """Talk with a model: a line is a message; /help lists what else there is."""
    from tuneful.console import Terminal

    settings = configuration(config, overrides, {"model.name_or_path": model})
    terminal = Terminal(quiet=quiet)
    converse(chat(config=settings, system=system, terminal=terminal), terminal)


def converse(session: ChatSession, terminal: Terminal) -> None:
    """Answer every line of standard input until it ends."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):  # where there is none, lines are plain
            import readline  # noqa: F401, which gives `input` its history and its arrow keys
        terminal.say("a line is a message; /help lists what else there is", style="dim")
    for line in _messages(_lines(at_terminal)):
        if not line.strip():
            continue
        if line.startswith("/") and not line.startswith("//"):
            if not session.run_command(line):
                return
        else:
            session.say(line[1:] if line.startswith("//") else line)


def _messages(lines: Iterator[str]) -> Iterator[str]:
    """Lines, and what stands between a line that begins with three quotes and the next three quotes as one of several lines."""
    for line in lines:
        if not line.lstrip().startswith(QUOTES):
            yield line
            continue
        parts = [line.lstrip().removeprefix(QUOTES)]
        while QUOTES not in parts[-1] and (more := next(lines, None)) is not None:
            parts.append(more)
        parts[-1] = parts[-1].partition(QUOTES)[0]
        yield _as_message("\n".join(parts).strip("\n"))


def _as_message(text: str) -> str:
    """A text that is no command, whatever it begins with."""
    return f"/{text}" if text.startswith("/") else text


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
            print(f"  (/quit or {END_OF_INPUT} to end)")


class ChatSession:
    """A conversation with a model: what was said so far, and the next answer."""

    def __init__(self, model: LoadedModel, terminal: Terminal, system: str = "") -> None:
        self._model, self._terminal, self._system = model, terminal, system
        self._turns: list[Turn] = []
        self._stopped: set[int] = set()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was said so far, a turn a message and its answer."""
        return tuple(self._turns)

    def answer(self, message: str) -> str:
        """The answer to `message`, whole; both are remembered."""
        return "".join(self.stream(message))

    def stream(self, message: str) -> Iterator[str]:
        """The answer to `message`, piece by piece; what of it was given is remembered, wherever it is broken off.

        Raises DataError where the message does not fit the model's context.
        """
        from tuneful.infer.session import question

        said: list[str] = []
        is_whole = False
        try:
            for piece in self._model.stream(question(self._system, self._fitting(message), message)):
                said.append(piece)
                yield piece
            is_whole = True
        finally:
            if text := "".join(said).strip():
                if not is_whole:
                    self._stopped.add(len(self._turns))
                self._turns.append(Turn(message, "", text))

    def say(self, message: str) -> None:
        """Print the answer to `message` as it comes. Ctrl-C at a terminal stops it."""
        from tuneful.console import pieces_to_stdout

        try:
            pieces_to_stdout(self.stream(message))
        except InputError as error:
            self._terminal.say(f"error: {error}", style="red")
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            self._terminal.say("stopped", style="yellow")

    def run_command(self, line: str) -> bool:
        """Do what a line with a slash asks for; whether the conversation goes on."""
        verb, _, rest = line.partition(" ")
        rest = rest.strip()
        if verb == "/quit":
            return False
        if verb == "/help":
            self._terminal.say(HELP)
        elif verb == "/reset":
            self._forget()
            self._terminal.say("forgotten")
        elif verb == "/system":
            self._system = rest
            self._forget()
            self._terminal.say(f"system text: {rest}" if rest else "no system text")
        elif verb == "/save":
            self._save(rest)
        else:
            self._terminal.say(f"no command {verb}; there are /reset, /system, /save, /help and /quit", style="yellow")
        return True

    def _forget(self) -> None:
        self._turns.clear()
        self._stopped.clear()

    def _save(self, name: str) -> None:
        from tuneful.files import json_line

        if not name:
            self._terminal.say("/save needs a file: /save chats.jsonl", style="yellow")
            return
        if not self._turns:
            self._terminal.say("nothing was said yet", style="yellow")
            return
        messages = [{"role": "system", "content": self._system}] if self._system else []
        whole = [turn for number, turn in enumerate(self._turns) if number not in self._stopped]
        left_out = f"; {len(self._stopped)} left out, whose answer was stopped" if self._stopped else ""
        if not whole:
            self._terminal.say(
                "nothing to save: the answer was stopped, and half of one is nothing to train on", style="yellow"
            )
            return
        for turn in whole:
            messages.append({"role": "user", "content": turn.instruction})
            messages.append({"role": "assistant", "content": answer_text(turn)})
        try:
            with Path(name).expanduser().open("a", encoding="utf-8", newline="\n") as file:
                file.write(json_line({"messages": messages}))
        except OSError as error:
            self._terminal.say(f"error: {name}: {error.strerror or error}", style="red")
            return
        self._terminal.say(f"{len(whole)} {'turns' if len(whole) > 1 else 'turn'} added to {name}{left_out}")

    def _fitting(self, message: str) -> list[Turn]:
        """The latest turns that leave room for an answer to `message`."""
        from tuneful.infer.session import question
        from tuneful.model.load import context_length

        room = context_length(self._model.model) - self._model.config.generate.max_new_tokens
        for start in range(len(self._turns)):
            asked = question(self._system, self._turns[start:], message)
            if len(self._model.encoder.prompt_ids(asked)) <= room:
                break
        else:
            start = len(self._turns)
        if start:
            self._terminal.say(f"the first {start} of {len(self._turns)} turns no longer fit the context", style="dim")
        return self._turns[start:]
