"""What many prompts of a file share word for word, so that likeness can be counted on what differs.

    texts -> windows (24 and 48 characters, from each word on) -> in how many texts each stands -> parts of each line

Under one long instruction all prompts look alike. A stretch of text is *shared wording* where a window of it stands in many
texts: the longer the window, the fewer it takes, because what people write by themselves seldom agrees over 48 characters.
Beginnings, ends, middles and several wordings in one file are all found the same way, and the order of the texts plays no part.

A stretch that few of the texts around it share is one value of many of a place, and no wording.

What stands between and beside shared stretches is *altered* wording where a quarter or more of the texts that share what
stands before it, and what stands after it, go on alike: somebody has changed it. Where they go on in more ways it is a place to
fill in, and what stands there, like all text that nobody shares, is the text's *own*.

Texts are read four times, each time at some million characters a second. Counting takes a byte for every two characters, up
to 64 MB, and 40 bytes for each window that three texts or more share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from tuneful.data.windows import LONG, SHORT, Batch, Hashes, Positions, TextList, batches, is_new

OWN, SHARED, ALTERED = 0, 1, 2
"""What a character of a text is part of."""

_MIN_TEXTS = 8
"""Texts that share a long window before it is wording; of a short one, as many as the square root of the number of texts."""

_LEAST_TEXTS = 4  # in files of fewer than eleven texts, where three of four are enough
_SEEN = 3  # texts from which on windows are counted by their whole hash

_MARGIN = 4
"""Characters at each end of a window that it does not vouch for: some texts may share the first letters of what is filled in."""

_NEAR = 40
"""A stretch that fewer texts share than what stands around it, within so many characters, is one value of a place."""

_MIN_SHARED = 32
"""A line that shares less than this shares nothing: two fillings of a shorter wording are not taken for one anyway."""

_FEW = 4
"""Where under one of so many of the texts that share a window go on alike, something is filled in."""

_SMALLEST, _LARGEST = 12, 26  # bits of the table of counts
_WINDOWS_A_CHARACTER = 0.5
_MERGED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The stretches of texts that are not their own: those of text `i` are `first[i]` to `first[i + 1]` of the others.

    `start` and `end` count characters of the text, `kind` is SHARED or ALTERED; they rise, and none holds a line feed.
    `common` says of each line, counted through all texts (`first_line`), whether many texts have the whole line.
    """

    first: Positions
    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int8]
    first_line: Positions
    common: npt.NDArray[np.bool_]

    def of(self, text: int) -> list[tuple[int, int, int]]:
        """(start, end, kind) of each stretch of a text, in order."""
        here = slice(int(self.first[text]), int(self.first[text + 1]))
        return list(zip(self.start[here].tolist(), self.end[here].tolist(), self.kind[here].tolist(), strict=True))

    def common_lines(self, text: int) -> list[bool]:
        """Whether many texts have it, of each line of a text."""
        return list(self.common[int(self.first_line[text]) : int(self.first_line[text + 1])].tolist())


def shared_parts(texts: TextList, distinct: npt.NDArray[np.bool_]) -> Parts:
    """The parts of all `texts`, which are lines; only those that are `distinct`, bool [N], count as texts that share."""
    wording = _Counted(texts, distinct)
    found = [wording.parts(batch) for batch in batches(texts)]
    num_parts = np.concatenate([np.zeros(1, np.int64), *(one.num_parts for one in found)])
    num_lines = np.concatenate([np.zeros(1, np.int64), *(one.num_lines for one in found)])
    return Parts(
        np.cumsum(num_parts),
        np.concatenate([np.zeros(0, np.int32), *(one.start for one in found)]),
        np.concatenate([np.zeros(0, np.int32), *(one.end for one in found)]),
        np.concatenate([np.zeros(0, np.int8), *(one.kind for one in found)]),
        np.cumsum(num_lines),
        np.concatenate([np.zeros(0, np.bool_), *(one.common for one in found)]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _BatchParts:
    num_parts: Positions
    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int8]
    num_lines: Positions
    common: npt.NDArray[np.bool_]


class _Counted:
    """In how many distinct texts each frequent window and line stands, and how most of these texts go on.

    A table of small counts by part of a hash says which may be frequent; these are then counted by the whole hash.
    """

    def __init__(self, texts: TextList, distinct: npt.NDArray[np.bool_]) -> None:
        num_texts = int(distinct.sum())
        self._least = max(_LEAST_TEXTS, min(_MIN_TEXTS, -(-3 * num_texts // 4)))
        self._fewest = {SHORT: max(self._least, int(num_texts**0.5)), LONG: self._least}
        num_characters = sum(len(texts[index]) for index in np.flatnonzero(distinct).tolist())
        bits = min(max(int(num_characters * _WINDOWS_A_CHARACTER).bit_length(), _SMALLEST), _LARGEST)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, np.uint8)
        for batch in batches(texts, distinct):
            hashes, count = batch.counted()
            slots = self._slots(hashes)  # rising, and some of them the same
            first = np.flatnonzero(is_new(slots))
            total = self._table[slots[first]] + np.add.reduceat(count, first)
            self._table[slots[first]] = np.minimum(total, np.iinfo(np.uint8).max)
        self._hashes, self._counts = _merged(map(self._candidates, batches(texts, distinct)))
        seen = self._counts >= _SEEN
        self._hashes, self._counts = self._hashes[seen], self._counts[seen]
        self._after, self._before = np.zeros_like(self._counts), np.zeros_like(self._counts)
        for batch in batches(texts, distinct):
            self._follow(batch)

    def _candidates(self, texts: Batch) -> tuple[Hashes, Positions]:
        """The hashes in a batch that may be frequent, and in how many of its texts."""
        hashes, counts = texts.counted()
        maybe = self._table[self._slots(hashes)] >= _SEEN
        return hashes[maybe], counts[maybe]

    def _slots(self, hashes: Hashes) -> Positions:
        return (hashes >> self._shift).astype(np.int64)

    def _ranks(self, hashes: Hashes) -> Positions:
        """The place of each hash among those that were counted, or -1."""
        ranks = np.full(len(hashes), -1, np.int64)
        if not len(self._hashes):
            return ranks
        candidates = np.flatnonzero(self._table[self._slots(hashes)] >= _SEEN)
        at = np.minimum(np.searchsorted(self._hashes, hashes[candidates]), len(self._hashes) - 1)
        found = self._hashes[at] == hashes[candidates]
        ranks[candidates[found]] = at[found]
        return ranks

    def _counts_of(self, ranks: Positions) -> Positions:
        """In how many texts each stands; 1 for what was not counted."""
        return np.where(ranks >= 0, self._counts[ranks], 1) if len(self._counts) else np.ones(len(ranks), np.int64)

    def _follow(self, texts: Batch) -> None:
        """The most texts in which any one text follows, or stands before, each short window."""
        for most, starts, (first, width) in (
            (self._after, texts.windows(SHORT), texts.with_following()),
            (self._before, texts.windows(SHORT), texts.with_preceding()),
        ):
            ranks = self._ranks(texts.hashes(starts, SHORT))
            longer = self._counts_of(self._ranks(texts.hashes(first, width)))
            ours = np.flatnonzero((width > SHORT) & (ranks >= 0))
            np.maximum.at(most, ranks[ours], longer[ours])

    def parts(self, texts: Batch) -> _BatchParts:
        """The parts of the texts of one batch."""
        shared = self._shared(texts)
        start, end = _runs(shared)
        kind = np.full(len(start), SHARED, np.int8)
        gap_start, gap_end = self._altered(texts, start, end)
        start, end = np.concatenate([start, gap_start]), np.concatenate([end, gap_end])
        kind = np.concatenate([kind, np.full(len(gap_start), ALTERED, np.int8)])
        order = np.argsort(start, kind="stable")
        start, end, kind = start[order], end[order], kind[order]
        text = texts.text_of_line[texts.line_of[start]]
        return _BatchParts(
            np.bincount(text, minlength=texts.num_texts),
            (start - texts.text_start[text]).astype(np.int32),
            (end - texts.text_start[text]).astype(np.int32),
            kind,
            np.bincount(texts.text_of_line, minlength=texts.num_texts),
            self._counts_of(self._ranks(texts.line_hashes)) >= self._fewest[SHORT],
        )

    def _wording(self, texts: Batch) -> Iterator[tuple[Positions, int]]:
        """Starts and width of the windows that many texts share, without those around one of many values of a place."""
        starts = texts.windows(SHORT)
        counts = self._counts_of(self._ranks(texts.hashes(starts, SHORT)))
        fewer = counts * _FEW <= self._around(texts, starts, counts)
        yield starts[(counts >= self._fewest[SHORT]) & ~fewer], SHORT
        values = starts[fewer]
        starts = texts.windows(LONG)
        counts = self._counts_of(self._ranks(texts.hashes(starts, LONG)))
        holds_value = np.searchsorted(values, starts) < np.searchsorted(values, starts + (LONG - SHORT), side="right")
        yield starts[(counts >= self._fewest[LONG]) & ~holds_value], LONG

    def _shared(self, texts: Batch) -> npt.NDArray[np.bool_]:
        """Whether each character is shared wording."""
        edges = np.zeros(len(texts.codes) + 1, np.int32)
        for starts, width in self._wording(texts):
            line = texts.line_of[starts]
            first = np.where(starts == texts.line_start[line], starts, starts + _MARGIN)
            ends = starts + width
            last = np.where(ends == texts.line_end[line], ends, ends - _MARGIN)
            np.add.at(edges, first, 1)
            np.add.at(edges, last, -1)
        shared = np.cumsum(edges[:-1]) > 0
        start, end = _runs(shared)
        gaps = (start[1:] - end[:-1] < 2 * _MARGIN) & (texts.line_of[start[1:]] == texts.line_of[end[:-1] - 1])
        for gap in np.flatnonzero(gaps).tolist():  # inside a word longer than a window reaches
            shared[end[gap] : start[gap + 1]] = True
        shared_of_line = np.bincount(texts.line_of, weights=shared, minlength=len(texts.line_start))
        return np.asarray(shared & (shared_of_line >= _MIN_SHARED)[texts.line_of])

    def _around(self, texts: Batch, starts: Positions, counts: Positions) -> Positions:
        """In how many texts stands what is around each window: before it and after it, or where its line is whole, next to it."""
        line = texts.line_of[starts]
        before, after = _largest_near(starts, counts, line)
        first = starts - texts.line_start[line] <= _NEAR
        last = texts.line_end[line] - starts - SHORT <= _NEAR
        both, either = np.minimum(before, after), np.maximum(before, after)
        return np.select([first & last, first, last], [either, after, before], both)

    def _altered(self, texts: Batch, start: Positions, end: Positions) -> tuple[Positions, Positions]:
        """The gaps around shared stretches (`start` to `end`, rising) where many other texts go on alike."""
        line = texts.line_of[start]
        first = np.concatenate([[True], line[1:] != line[:-1]]) if len(line) else np.zeros(0, np.bool_)
        last = np.concatenate([first[1:], [True]]) if len(line) else first
        gap_start = np.concatenate([texts.line_start[line[first]], end])
        gap_end = np.concatenate([start[first], np.where(last, texts.line_end[line], np.roll(start, -1))])
        filled = gap_start < gap_end
        gap_start, gap_end = gap_start[filled], gap_end[filled]
        starts = texts.windows(SHORT)
        ranks = self._ranks(texts.hashes(starts, SHORT))
        frequent = self._counts_of(ranks) >= self._least
        starts, ranks = starts[frequent], ranks[frequent]
        if not len(starts) or not len(gap_start):
            return gap_start[:0], gap_end[:0]
        is_open_after = self._after[ranks] * _FEW < self._counts[ranks]
        is_open_before = self._before[ranks] * _FEW < self._counts[ranks]
        before = np.searchsorted(starts, gap_start - (SHORT - _MARGIN), side="right") - 1
        after = np.searchsorted(starts, gap_end - _MARGIN)
        line = texts.line_of[gap_start]
        known = (before >= 0) & (texts.line_of[starts[before]] == line)
        is_place = known & is_open_after[before]
        after_or_last = np.minimum(after, len(starts) - 1)
        known = (after < len(starts)) & (texts.line_of[starts[after_or_last]] == line)
        is_place |= known & is_open_before[after_or_last]
        return gap_start[~is_place], gap_end[~is_place]


def _runs(marked: npt.NDArray[np.bool_]) -> tuple[Positions, Positions]:
    """Start and end of each unbroken stretch of marked characters."""
    edges = np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _merged(counted: Iterable[tuple[Hashes, Positions]]) -> tuple[Hashes, Positions]:
    """Counts by hash, rising, of many such: the small ones are gathered before they are added to the large."""
    hashes, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    waiting: list[tuple[Hashes, Positions]] = []
    size = 0
    for pair in chain(counted, [None]):
        if pair is not None:
            waiting.append(pair)
            size += len(pair[0])
        if pair is None or size > max(len(hashes), _MERGED_AT_ONCE):
            every = np.concatenate([hashes, *(one for one, _ in waiting)])
            added = np.concatenate([counts, *(one for _, one in waiting)])
            hashes, place = np.unique(every, return_inverse=True)
            counts = np.bincount(place, weights=added, minlength=len(hashes)).astype(np.int64)
            waiting, size = [], 0
    return hashes, counts


def _largest_near(starts: Positions, counts: Positions, line: Positions) -> tuple[Positions, Positions]:
    """The largest count of the windows up to _NEAR characters before each window, and of those after it, in its line."""
    before, after = counts.copy(), counts.copy()
    for step in range(1, len(starts)):
        near = np.flatnonzero((starts[step:] - starts[:-step] <= _NEAR) & (line[step:] == line[:-step]))
        if not len(near):
            break
        before[near + step] = np.maximum(before[near + step], counts[near])
        after[near] = np.maximum(after[near], counts[near + step])
    return before, after
