"""What a person sees while the work runs: lines, tables, and progress with rate and time left.

Everything here goes to stderr, so that stdout carries answers and `--json` documents alone. `--quiet` drops all but
errors; a pipe, and a terminal that cannot move its cursor, get plain lines and no bars; `NO_COLOR` is respected (rich does both).
What a stream's encoding cannot say is said in ASCII (`prepare_streams`).
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_SECONDS_BETWEEN_PLAIN_LINES = 15.0
_PIPE_WIDTH = 4096  # a log line is one line, however long


class Advance:
    """Moves one progress bar: call it with the number of things done, and `show` figures beside it."""

    def __init__(
        self, terminal: Terminal, progress: Progress | None, task: int, label: str, total: int | None, unit: str
    ) -> None:
        self._terminal, self._progress, self._task = terminal, progress, task
        self._label, self._total, self._unit, self._done, self._figures = label, total, unit, 0, ""
        self._said = terminal.console.get_time() if total is None else 0.0

    def __call__(self, num_done: int) -> None:
        """`num_done` more are done."""
        self._done += num_done
        if self._progress is not None:
            self._progress.advance(self._task, num_done)  # type: ignore[arg-type]
        else:
            self._say_now_and_then()

    def show(self, **figures: str) -> None:
        """Figures beside the bar, such as `loss="1.234"`."""
        self._figures = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
        if self._progress is not None:
            self._progress.update(self._task, figures=self._figures)  # type: ignore[arg-type]

    def _say_now_and_then(self) -> None:
        now = self._terminal.console.get_time()
        if self._done != self._total and now - self._said < _SECONDS_BETWEEN_PLAIN_LINES:
            return
        self._said = now
        done = f"{self._done:,}" if self._total is None else f"{self._done}/{self._total}"
        self._terminal.say(f"  {self._label}: {done} {self._unit}  {self._figures}".rstrip())


class Terminal:
    """Where the commands speak. `quiet` says nothing at all; `stderr=False` is for what is itself the result."""

    def __init__(self, *, quiet: bool = False, stderr: bool = True) -> None:
        self.console = Console(stderr=stderr, quiet=quiet, highlight=False, soft_wrap=False, emoji=False)
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = _PIPE_WIDTH
        self.quiet = quiet

    def say(self, line: str | Text = "", style: str | None = None, *, wrap: bool = True) -> None:
        """One line, wrapped to the terminal or, for a command to be copied, whole; never read as markup."""
        self.console.print(escape(line) if isinstance(line, str) else line, style=style, soft_wrap=not wrap)

    def heading(self, text: str) -> None:
        """A new part of the work begins."""
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table; the first column is text, the others are figures."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=bool(index))
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    def facts(self, facts: Mapping[str, str]) -> None:
        """Names and values, one a line, aligned."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for name, value in facts.items():
            table.add_row(escape(name), escape(value))
        self.console.print(table)

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        """A bar while the block runs; in a pipe a plain line every 15 seconds and at the end (where `total` is known)."""
        if self.quiet or not self.console.is_terminal or self.console.is_dumb_terminal:
            yield Advance(self, None, 0, label, total, unit)
            return
        columns: list[str | ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        ]
        with Progress(*columns, console=self.console, transient=False, expand=True) as progress:
            task = progress.add_task(label, total=total, figures="")
            yield Advance(self, progress, task, label, total, unit)


class _Rate(ProgressColumn):
    """Things a second."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        super().__init__()

    def render(self, task: Task) -> Text:
        """The rate of `task`, or nothing before it is known."""
        return Text(_rate(task.speed, self._unit) if task.speed else "", style="dim")


def _rate(speed: float, unit: str) -> str:
    """So many a second; of what takes longer than a second, how long one takes."""
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s a {unit.removesuffix('s')}"


def prepare_streams(on_windows: bool = os.name == "nt") -> None:
    """Have the standard streams say what they can of every text, and never fail at a character.

    What an encoding lacks becomes ASCII: an arrow `->`, an unknown character its escape. On Windows files and pipes are UTF-8,
    as they are elsewhere, unless PYTHONIOENCODING names something else: its own default knows 250 characters of Western Europe.
    """
    codecs.register_error(_PLAIN, _in_ascii)
    chosen = bool(os.environ.get("PYTHONIOENCODING"))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if on_windows and not chosen and not stream.isatty():
            stream.reconfigure(encoding="utf-8")
        if stream is not sys.stdin:
            stream.reconfigure(errors=_PLAIN)


_PLAIN = "tuneful.plain"
_IN_ASCII = {
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\u2013\u2014\u2212\u2500\u2501", "-"),
    **{"\u2192": "->", "\u2026": "...", "\u00d7": "x", "\u00b7": "*"},
    **{"\u2588": "#", "\u258f": "|", "\u2502": "|", "\u27e6": "[[", "\u27e7": "]]", "\u2038": "^"},
}


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """What a codec writes in place of characters that it does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(
        _IN_ASCII.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs
    ), error.end


def reader_is_gone(error: OSError) -> bool:
    """Whether a write failed because nobody reads any more: a broken pipe, which Windows calls an invalid argument."""
    return isinstance(error, BrokenPipeError) or error.errno == errno.EINVAL


def pieces_to_stdout(pieces: Iterable[str]) -> None:
    """A result that comes piece by piece, on stdout as it comes, and a line end; a reader that went away ends it.

    At a terminal no word is cut at the margin. (What is copied from there has the line ends.)
    """
    try:
        for piece in wrapped(pieces, shutil.get_terminal_size().columns) if sys.stdout.isatty() else pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        to_stdout("\n")


def wrapped(pieces: Iterable[str], width: int) -> Iterator[str]:
    """`pieces`, where the blank before a word that would run over `width` is a line end; a word comes once it is whole.

    What is longer than a line, or has no blanks, is left to the terminal.
    """
    column, blank, word = 0, "", ""

    def placed() -> str:
        nonlocal column, blank, word
        needed = cell_len(blank) + cell_len(word)
        if blank and word and column and column + needed > width:
            given, column = "\n" + word, cell_len(word)
        else:
            given, column = blank + word, column + needed
        column = column if column <= width else column % width
        blank = word = ""
        return given

    for sign in chain.from_iterable(pieces):
        if sign == "\n":
            yield placed() + "\n"
            column = 0
        elif sign.isspace():
            if word:
                yield placed()
            blank += sign
        else:
            word += sign
            if cell_len(word) >= width:
                yield placed()
    yield placed()


def json_to_stdout(document: object, indent: int | None = None) -> None:
    """A JSON document on stdout: readable where its encoding can say everything, else with escapes, which say the same."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    to_stdout(json.dumps(document, ensure_ascii=not is_unicode, indent=indent))


def to_stdout(text: str) -> None:
    """A result for a pipe or a person, on stdout; a reader that went away is no error."""
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except OSError as error:
        if not reader_is_gone(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end goes nowhere
