"""The regular expressions of a tokenizer.json as trees: Oniguruma's syntax, as far as tokenizers use it.

Read for `regex_limits.py`, which counts how many ways there are to match. One character (a class, an escape) is kept as it is
written: Oniguruma itself is asked which characters it stands for. What can take another way than character by character
(references back, recursion, conditions, absent operators, callouts) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LENGTH = 20_000
_MAX_DEPTH = 40
_ANCHORS = frozenset("AZzbBGyY")
_REFUSED_ESCAPES = frozenset("123456789kgXKcCM")
_CODE = re.compile(
    r"\\(?:x\{[0-9A-Fa-f]{1,8}\}|x[0-9A-Fa-f]{0,2}|u[0-9A-Fa-f]{4}|o\{[0-7]{1,11}\}|0[0-7]{0,2}|[pP]\{[^}]*\})"
)
_POSIX = re.compile(r"\[:\^?\w+:\]")
_COUNTS = re.compile(r"\{(\d*)(,?)(\d*)\}")
_FLAGS = re.compile(r"\(\?([im]*)(?:-([im]*))?([:)])")
_NAMED = re.compile(r"\(\?(?:<\w+>|'\w+')")
_GROUPS = ("(?:", "(?>")
_AROUND = ("(?=", "(?!", "(?<=", "(?<!")


class UnreadError(ValueError):
    """The pattern is not read here: why."""


@dataclass(frozen=True, slots=True)
class Character:
    """One character of those that `pattern` stands for, itself a regular expression."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One part after the other; none: the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`body` at least `least` and at most `most` times; None for any number."""

    body: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Condition:
    """What takes no text and may fail: an anchor, or a look at what `body` matches around the place."""

    body: Node | None


Node = Character | Sequence | Choice | Repeat | Condition


def parse(pattern: str) -> Node:
    """The tree of `pattern`. UnreadError where it is too long, or holds what is not read."""
    if len(pattern) > MAX_LENGTH:
        raise UnreadError(f"it has {len(pattern):,} characters")
    reader = _Reader(pattern)
    found = reader.choice(0)
    if reader.at < len(pattern):
        raise UnreadError("a bracket closes nothing")
    return found


class _Reader:
    """Goes through `text` once; `flags` are those in force: i (letters of either case), m (the dot is a line's end too)."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.flags = text, 0, ""

    def choice(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise UnreadError("it is nested too deeply")
        flags, parts = self.flags, [self._sequence(depth)]
        while self._takes("|"):
            parts.append(self._sequence(depth))
        self.flags = flags
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _takes(self, start: str) -> bool:
        if not self.text.startswith(start, self.at):
            return False
        self.at += len(start)
        return True

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated(self._one(depth)))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self, body: Node) -> Node:
        while (counts := self._counts()) is not None:
            body = Repeat(body, *counts)
        return body

    def _counts(self) -> tuple[int, int | None] | None:
        sign = self.text[self.at : self.at + 1]
        if sign and sign in "*+?":
            self.at += 1
            if self.text[self.at : self.at + 1] in ("?", "+"):  # as few as it can, or without another try
                self.at += 1
            return (1 if sign == "+" else 0), (1 if sign == "?" else None)
        found = _COUNTS.match(self.text, self.at)
        if found is None or not (found[1] or found[3]):
            return None  # a bracket that is a character
        self.at = found.end()
        self._takes("?")
        if len(found[1] + found[3]) > 12:
            raise UnreadError("it repeats too often")
        least = int(found[1] or 0)
        most = (int(found[3]) if found[3] else None) if found[2] else least
        return (least, most) if most is None or least <= most else (most, least)

    def _one(self, depth: int) -> Node:
        sign = self.text[self.at]
        if sign == "(":
            return self._group(depth)
        if sign in "^$":
            self.at += 1
            return Condition(None)
        begin = self.at
        if sign == "[":
            self._pass_class()
        elif sign == "\\":
            if self._pass_escape():
                return Condition(None)
        else:
            self.at += 1
        written = self.text[begin : self.at]
        if len(written) == 1 and written in "*+?{}])":
            written = "\\" + written
        return Character(f"(?{self.flags}:{written})" if self.flags else written)

    def _group(self, depth: int) -> Node:
        if self._takes("(?#"):
            self.at = self.text.find(")", self.at) + 1 or len(self.text)
            return Sequence(())
        if (found := _FLAGS.match(self.text, self.at)) is not None:
            return self._under_flags(found, depth)
        looks = any(map(self._takes, _AROUND))
        if not looks and not any(map(self._takes, _GROUPS)):
            named = _NAMED.match(self.text, self.at)
            self.at = named.end() if named else self.at + 1
            if not named and self.text[self.at : self.at + 1] in ("?", "*"):
                raise UnreadError(f"it holds {self.text[self.at - 1 : self.at + 3]}")
        body = self._closed(depth)
        return Condition(body) if looks else body

    def _under_flags(self, found: re.Match[str], depth: int) -> Node:
        before = self.flags
        self.at = found.end()
        self.flags = "".join(sorted(set(before + found[1]) - set(found[2] or "")))
        if found[3] == ":":
            body = self._closed(depth)
            self.flags = before
            return body
        return self.choice(depth + 1)  # for all that follows in this group, its other choices too

    def _closed(self, depth: int) -> Node:
        body = self.choice(depth + 1)
        if not self._takes(")"):
            raise UnreadError("a bracket is not closed")
        return body

    def _pass_escape(self) -> bool:
        """Go past an escape; whether it takes no character."""
        letter = self.text[self.at + 1 : self.at + 2]
        if not letter or letter in _REFUSED_ESCAPES:
            raise UnreadError(f"it holds \\{letter}")
        found = _CODE.match(self.text, self.at)
        self.at = found.end() if found else self.at + 2
        return letter in _ANCHORS

    def _pass_class(self) -> None:
        depth = 0
        while self.at < len(self.text):
            if self.text[self.at] == "\\":
                self.at += 2
                continue
            if depth and (found := _POSIX.match(self.text, self.at)):
                self.at = found.end()
                continue
            sign = self.text[self.at]
            self.at += 1
            if sign == "[":
                depth += 1
                self._takes("^")
                self._takes("]")
            elif sign == "]":
                depth -= 1
                if not depth:
                    return
        raise UnreadError("a class of characters is not closed")
