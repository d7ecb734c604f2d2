"""What every reader of files gives: rows, each with its place and what is wrong with it; and the limits that they share."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from tuneful.errors import DataError
from tuneful.files import BLOCK_BYTES

Row = tuple[str, Any, str | None]
"""Where a row stands, its value, and what is wrong with it, None for nothing; a faulty row's value may be its text."""

MAX_RECORD_BYTES = 4 << 20
"""The most that one record, or the blank space before one, may take: what is longer is no record but a damaged file."""

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst")
"""Endings of files that are text, where documents are read, whatever they begin with."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANK = " \t\r\n"

_MAX_DROPPED = 1 << 28
_IN_RUNS, _ALONE = re.compile(rb"[\x80-\xff]{4,}"), re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x40-\xff])")
"""Text that is not UTF-8 is mostly what Excel writes: in the west an accent now and then, two together in "Größe" but hardly
four, in China two bytes a character."""


def escaped(text: str) -> str:
    """A text from a file, or about one, fit for a message: what no reader would see, or see moved, is written as `\\ufeff`."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def shown(key: str) -> str:
    """A key fit for a message: escaped, and short."""
    text = escaped(key[:41])
    return text if len(text) <= 40 else text[:40] + "..."


def first_line(error: BaseException) -> str:
    """The first line of what an error says, fit for a message."""
    return escaped((str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip("."))


def how_to_convert(name: str, line: bytes) -> str:
    """The advice for a line of text that is not UTF-8: the command, with the encoding that it most likely has."""
    in_pairs = len(_IN_RUNS.sub(b"", line)) < len(line) and _decodes(_cut(line), "GB18030")
    encoding = "GB18030" if in_pairs and not _ALONE.search(line) else "WINDOWS-1252"
    stem, dot, ending = name.rpartition(".")
    target = f"{stem}-utf8.{ending}" if dot else f"{name}-utf8"
    excel = 'In Excel save it as "CSV UTF-8", or convert' if suffix_of(name) == ".csv" else "Convert"
    return f"{excel} the file: {shlex.join(['iconv', '-f', encoding, '-t', 'UTF-8', name])} > {shlex.quote(target)}"


def _cut(line: bytes) -> bytes:
    """`line` without an end that may be half a character."""
    return line.rstrip(bytes(range(128, 256))) if len(line) > BLOCK_BYTES // 2 else line


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def suffix_of(name: str) -> str:
    """The last ending of a name in lower case, that of a compression left out."""
    for packed in (".gz", ".gzip", ".zst", ".zstd"):
        name = name.lower().removesuffix(packed)
    return name[name.rfind(".") :]


def all_blank(name: str) -> DataError:
    """The error for a file of white space."""
    return DataError(f"{name}: over {MAX_RECORD_BYTES:,} bytes of blank space and no record, which is a damaged file")


class Lines:
    """Lines without their ends. Of one over MAX_RECORD_BYTES the head comes, a byte over; `num_dropped` counts the rest."""

    def __init__(self, name: str, blocks: Iterable[bytes]) -> None:
        self._name, self._blocks = name, iter(blocks)
        self.num_dropped = 0

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        for block in self._blocks:
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            yield from lines
            if len(rest) > MAX_RECORD_BYTES:
                yield rest[: MAX_RECORD_BYTES + 1]
                rest = self._after_line(len(rest) - MAX_RECORD_BYTES - 1)
        if rest:
            yield from rest.removesuffix(b"\n").split(b"\n")

    def _after_line(self, num_dropped: int) -> bytes:
        """Let go what is left of a line, and give back what follows it in the block in which it ends."""
        for block in self._blocks:
            head, end, rest = block.partition(b"\n")
            num_dropped += len(head)
            if end:
                self.num_dropped += num_dropped
                return rest
            if num_dropped > _MAX_DROPPED:
                raise DataError(f"{self._name}: a line of over {num_dropped:,} bytes, which is a damaged file")
        return b""
