"""Texts as arrays of their windows: stretches of 24 and of 48 characters, each with a hash.

A window begins with a word (with any character, in scripts that write no spaces), and one more ends with each line; so texts that
share a stretch share its windows, wherever it stands. Windows lie in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tuneful.data.hashes import mixed

Positions = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

SHORT, LONG = 24, 48
"""Characters of a window."""

BATCH_CHARACTERS = 1 << 18
_TEXT_BITS = np.uint64(2 * BATCH_CHARACTERS - 1)  # of a hash, given up for the number of a text in its batch
_FACTOR = 0x9E3779B97F4A7C15


class TextList(Protocol):
    """Texts that are fetched one by one, some of them several times."""

    def __len__(self) -> int:
        """Number of texts."""

    def __getitem__(self, index: int, /) -> str:
        """The text at `index`, 0 or more."""


class Batch:
    """A few texts in one array of character codes, each followed by a line feed."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.num_texts = len(texts)
        whole = "".join(f"{text}\n" for text in texts)
        self.codes = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        feeds = self.codes == 10
        self.line_end: Positions = np.flatnonzero(feeds)
        self.line_start: Positions = np.concatenate([np.zeros(1, np.int64), self.line_end[:-1] + 1])
        self.line_of: Positions = np.cumsum(feeds) - feeds
        num_lines = np.array([text.count("\n") + 1 for text in texts], dtype=np.int64)
        self.text_of_line: Positions = np.repeat(np.arange(len(texts), dtype=np.int64), num_lines)
        self.text_start = self.line_start[np.cumsum(num_lines) - num_lines]
        # The hash of a stretch is the difference of two sums, divided by the power that it begins with (modulo 2**64).
        self._sums = np.zeros(len(self.codes) + 1, np.uint64)
        np.cumsum(self.codes * _powers(_FACTOR, len(self.codes)), out=self._sums[1:])
        self._inverses = _powers(pow(_FACTOR, -1, 1 << 64), len(self.codes))
        self._begins_word = _begins_word(self.codes)
        self._words: Positions = np.flatnonzero(self._begins_word)
        self._windows = {width: self._find_windows(width) for width in (SHORT, LONG)}

    def windows(self, width: int) -> Positions:
        """Where windows of `width` characters begin: at words, and where the window ends with its line; rising."""
        return self._windows[width]

    def _find_windows(self, width: int) -> Positions:
        last = self.line_end - width
        begins = self._begins_word.copy()
        begins[last[last >= self.line_start]] = True
        starts = np.flatnonzero(begins)
        return starts[starts + width <= self.line_end[self.line_of[starts]]]

    def hashes(self, starts: Positions, width: int | Positions) -> Hashes:
        """The hash of `width` characters from each start on."""
        sums = (self._sums[starts + width] - self._sums[starts]) * self._inverses[starts]
        return mixed(sums + np.asarray(width, dtype=np.uint64)) & ~_TEXT_BITS

    def with_following(self) -> tuple[Positions, Positions]:
        """Start and width of each short window with as much of what follows, or with what is left of its line."""
        starts = self.windows(SHORT)
        return starts, np.minimum(LONG, self.line_end[self.line_of[starts]] - starts)

    def with_preceding(self) -> tuple[Positions, Positions]:
        """Start and width of each short window with what stands before it: from a word on, or from the start of its line."""
        starts = self.windows(SHORT)
        at = np.searchsorted(self._words, starts - (LONG - SHORT), side="right") - 1
        word = self._words[np.maximum(at, 0)] if len(self._words) else starts
        line = self.line_start[self.line_of[starts]]
        first = np.where((at >= 0) & (word >= line), word, line)
        return first, starts + SHORT - first

    def counted(self) -> tuple[Hashes, Positions]:
        """The hashes of all windows and lines, rising, and in how many of the texts each stands."""
        hashes, of_texts = [self.line_hashes], [self.text_of_line]
        for starts, widths in (
            (self.windows(SHORT), SHORT),
            (self.windows(LONG), LONG),
            self.with_following(),
            self.with_preceding(),
        ):
            hashes.append(self.hashes(starts, widths))
            of_texts.append(self.text_of_line[self.line_of[starts]])
        places = np.sort(np.concatenate(hashes) | np.concatenate(of_texts).astype(np.uint64))
        every = places[is_new(places)] & ~_TEXT_BITS
        new = np.flatnonzero(is_new(every))
        return every[new], np.diff(np.append(new, len(every)))

    @property
    def line_hashes(self) -> Hashes:
        """The hash of each whole line, unlike that of a window of the same text."""
        return mixed(~self.hashes(self.line_start, self.line_end - self.line_start)) & ~_TEXT_BITS


def batches(texts: TextList, wanted: npt.NDArray[np.bool_] | None = None) -> Iterator[Batch]:
    """The texts that are `wanted` (all, where it is None) in batches of about BATCH_CHARACTERS."""
    batch: list[str] = []
    size = 0
    for index in range(len(texts)) if wanted is None else np.flatnonzero(wanted).tolist():
        batch.append(text := texts[index])
        size += len(text) + 1
        if size >= BATCH_CHARACTERS:
            yield Batch(batch)
            batch, size = [], 0
    if batch:
        yield Batch(batch)


def _begins_word(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Whether each character begins a word: after white space, and anywhere in scripts that write none between words."""
    space = (codes == 32) | (codes == 10)
    unspaced = (codes >= 0x2E80) | ((codes >= 0x0E00) & (codes < 0x1100)) | ((codes >= 0x1780) & (codes < 0x1800))
    return np.asarray(~space & (unspaced | np.concatenate([[True], space[:-1]])))


def is_new(values: Hashes | Positions) -> npt.NDArray[np.bool_]:
    """Whether each of rising `values` is another than the one before."""
    return np.concatenate([np.ones(min(len(values), 1), np.bool_), values[1:] != values[:-1]])


def _powers(factor: int, num: int) -> Hashes:
    """The powers of `factor`, 0 to `num` - 1, modulo 2**64."""
    return _powers_up_to(factor, 1 << num.bit_length())[:num]


@lru_cache(maxsize=4)
def _powers_up_to(factor: int, num: int) -> Hashes:
    factors = np.full(num, factor & 0xFFFFFFFFFFFFFFFF, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)
