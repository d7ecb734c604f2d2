"""Which texts say the same, exactly or nearly: what the split keeps together and what the audit reports.

    text -> normal_text -> Sketches (hash, shared wording, 20 band keys) -> earliest_matches -> clusters

A text is a few fields, one a line (`system`, `instruction`, `input`). Two texts are the same where nothing but case, white
space and punctuation differs, and nearly the same where they are at least `threshold` similar (`similarity.py`). What many
of the texts share word for word (`wording.py`) is taken off first, so which texts are nearly the same is a matter of the whole
file; the order of its rows plays no part in it, but in which of them leads a cluster.

Candidates come from MinHash bands over what is a text's own in its last field that few others have (the one that tells the
records of one task apart), and each is verified on the texts, so nothing is reported that is not so; the price is paid
in misses: 1 of 100 pairs at exactly 0.8, 1 of 2,000 at 0.85, and, where over eight texts share a band without being similar,
what stands behind the first eight.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np
import numpy.typing as npt

from tuneful.data.hashes import groups_of_equal, mixed, text_hash
from tuneful.data.similarity import NUMBER, WIDTH, Field, Part, fields_of, padded, similarity
from tuneful.data.wording import shared_parts

Rows = npt.NDArray[np.int64]

THRESHOLD = 0.8
"""Similarity from which on two texts are near duplicates."""

_NUM_BANDS, _ROWS_A_BAND = 16, 6
_NUM_WHOLE_BANDS = 4  # over the whole field, what is shared included
_MAX_LEADERS = 8
_MAX_WHOLE_BUCKET = 64  # texts that agree in a band over the whole field: more are those of one long wording
_BATCH_CHARACTERS = 1 << 18
_NUM_REMEMBERED = 2_000

# White space, controls, and punctuation that changes no meaning. Symbols stay (C, C++ and C#; + and *), and so does a
# minus before a number.
_ASCII_NOISE = "".join(map(chr, [*range(0x21), 0x7F])) + "!\"'(),.:;?[]_`{}"
_SPACED = bytes(0x20 if chr(code) in _ASCII_NOISE else code for code in range(0x80))
_NOISE = re.compile(
    f"[{re.escape(_ASCII_NOISE)}\x80-\xa1\xa7\xab\xad\xb6\xb7\xbb\xbf\u2010-\u202f\u2032-\u2043\u2045-\u2051\u2053-\u206f\u200b-\u200f"
    "\u2e00-\u2e7f\u3000-\u3003\u3008-\u3011\u3014-\u301f\u30fb\u060c\u061b\u061f\u066b-\u066d\u0964\u0965\u055a-\u055f\ufeff\ufffd]+"
)
_HYPHEN = re.compile(r"-(?!\s*\d)")


def normal_text(text: str) -> str:
    """`text` on one line without what people vary without meaning to: case, punctuation, white space, character form.

    A text of nothing but punctuation is kept.
    """
    if text.isascii():  # five times as fast, and the same
        folded = text.lower()
        spaced = folded.encode("ascii").translate(_SPACED + bytes(0x80)).decode("ascii")
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        spaced = _NOISE.sub(" ", folded)
    if "-" in spaced:
        spaced = _HYPHEN.sub(" ", spaced)
    return " ".join(spaced.split()) or " ".join(folded.split())


class Sketches:
    """Texts in a form in which like ones are found: a hash of the whole, its parts, band keys of what is its own, and the text.

    `texts` are fields of `normal_text`, one a line. `text_hashes`, uint64 [N], is equal where the texts are the same,
    however they are divided into fields. About 100 bytes a text and the text itself are kept.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = Texts()
        hashes = array("Q")
        for text in texts:
            self._texts.append(text)
            hashes.append(text_hash(" ".join(filter(None, text.split("\n")))))
        self.text_hashes = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, np.uint64)
        self._parts = shared_parts(self._texts, _earlier_same(self.text_hashes) < 0)
        keys = [_band_keys(batch) for batch in _batches(map(self._looked_for, range(len(self))))]
        self._band_keys = np.concatenate([np.zeros((0, _NUM_BANDS + _NUM_WHOLE_BANDS), np.uint32), *keys])

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def text(self, index: int) -> str:
        """The text at `index`, as it was given."""
        return self._texts[index]

    def parts(self, index: int) -> list[Part]:
        """The stretches of a text that are not its own: start, end and kind (`wording.py`)."""
        return self._parts.of(index)

    def similarity(self, one: int, other: int) -> float:
        """How similar two of the texts are, 0 to 1: that of their least similar fields; 0 where numbers differ."""
        return similarity(self._fields(one), self._fields(other))

    def clusters(self, threshold: float = THRESHOLD) -> Rows:
        """The cluster of each text, named by the index of its earliest member; int64 [N].

        A text joins the cluster of the earliest text before it that it is similar to, so what comes later changes no
        cluster. A text that is similar to members of two clusters joins the earlier and does not merge them.
        """
        return clusters_of(self.earliest_matches(threshold)[0])

    def earliest_matches(
        self, threshold: float = THRESHOLD, order: Rows | None = None
    ) -> tuple[Rows, npt.NDArray[np.float32]]:
        """For each text the earliest one before it that is similar, or -1, and how similar; both [N].

        "Before" is in `order`: distinct indices, all (default: as they came) or some; the others have no match and are none.
        """
        order = np.arange(len(self), dtype=np.int64) if order is None else order
        # From here on texts are known by their position in `order`.
        matches = _earlier_same(self.text_hashes[order])
        similarities = (matches >= 0).astype(np.float32)
        distinct = np.flatnonzero(matches < 0)
        keys = self._band_keys[order[distinct]]
        fields = lru_cache(maxsize=_NUM_REMEMBERED)(lambda position: self._fields(int(order[position])))
        unlike: dict[tuple[int, ...], set[int]] = {}
        for band in range(_NUM_BANDS + _NUM_WHOLE_BANDS):
            for bucket in groups_of_equal(keys[:, band]):
                if band >= _NUM_BANDS and len(bucket) > _MAX_WHOLE_BUCKET:
                    continue
                _match_bucket(distinct[bucket].tolist(), fields, threshold, matches, similarities, unlike)
        found = np.full(len(self), -1, dtype=np.int64)
        found[order] = np.where(matches >= 0, order[matches], -1) if len(order) else -1
        similar = np.zeros(len(self), dtype=np.float32)
        similar[order] = similarities
        return found, similar

    def _fields(self, index: int) -> list[Field]:
        return fields_of(self.text(index), self._parts.of(index))

    def _looked_for(self, index: int) -> _LookedFor:
        text, common = self.text(index), self._parts.common_lines(index)
        start, spans = 0, list[tuple[int, int]]()
        for line in text.split("\n"):
            spans.append((start, start + len(line)))
            start += len(line) + 1
        filled = [number for number, (first, last) in enumerate(spans) if first < last]
        if not filled:
            return _LookedFor("", "", "")
        number = next((number for number in reversed(filled) if not common[number]), filled[-1])
        first, last = spans[number]
        whole = text[first:last]
        numbers = " ".join(NUMBER.findall(text))
        return _LookedFor(numbers, whole, _own(text, first, last, self._parts.of(index)) or whole)


@dataclass(frozen=True, slots=True)
class _LookedFor:
    """What of a text like ones are looked for by: its numbers, its last field that few others have, and what of it is its own."""

    numbers: str
    whole: str
    own: str


class Texts(Sequence[str]):
    """A list of texts kept as UTF-8 in one piece of memory: 8 bytes a text and its own."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        """Add `text` at the end."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """The text at `index`, 0 or more, or those of a slice."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if index >= len(self):
            raise IndexError(index)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


def clusters_of(matches: Rows) -> Rows:
    """The earliest member of each text's cluster, from its earliest match (or -1), which must stand before it; int64 [N]."""
    clusters = np.arange(len(matches), dtype=np.int64)
    for index in np.flatnonzero(matches >= 0).tolist():  # a match stands earlier: its cluster is known
        clusters[index] = clusters[matches[index]]
    return clusters


def _earlier_same(hashes: npt.NDArray[np.uint64]) -> Rows:
    """The index of the first of equal `hashes`, or -1 for the first itself; int64 [N]."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first_of_same = first[inverse]
    return np.where(first_of_same < np.arange(len(hashes)), first_of_same, -1)


def _own(text: str, start: int, end: int, parts: Sequence[Part]) -> str:
    """What of a stretch of `text` is its own."""
    own, at = [], start
    for first, last, _ in parts:
        if start <= first < end:
            own.append(text[at:first])
            at = last
    own.append(text[at:end])
    return " ".join(filter(None, (one.strip() for one in own)))


# MinHash


def _batches(texts: Iterable[_LookedFor]) -> Iterator[list[_LookedFor]]:
    """Lists of what is looked for, of about _BATCH_CHARACTERS together: what fits a processor's cache."""
    batch: list[_LookedFor] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.whole)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _band_keys(texts: list[_LookedFor]) -> npt.NDArray[np.uint32]:
    """The keys of each text's bands, uint32 [N, 20]: texts with an equal key in any band are candidates."""
    numbers = np.array([text_hash(text.numbers) for text in texts], dtype=np.uint64)
    own = _keys_of([text.own for text in texts], numbers, range(_NUM_BANDS))
    whole = _keys_of([text.whole for text in texts], numbers, range(_NUM_BANDS, _NUM_BANDS + _NUM_WHOLE_BANDS))
    return np.concatenate([own, whole], axis=1)


def _keys_of(lines: list[str], numbers: npt.NDArray[np.uint64], bands: range) -> npt.NDArray[np.uint32]:
    """The keys of the `bands` of each line, uint32 [N, bands]; none is equal where `numbers` differ."""
    fields = [padded(line) for line in lines]
    codes = np.frombuffer("".join(fields).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    ends = np.cumsum([len(field) for field in fields])
    starts = ends - [len(field) for field in fields]
    windows = np.zeros(len(codes) - WIDTH + 1, np.uint32)
    for offset in range(WIDTH):
        windows = (windows ^ codes[offset : len(codes) - WIDTH + 1 + offset]) * np.uint32(0x9E3779B1)
        windows ^= windows >> np.uint32(15)
    bounds = np.stack([starts, ends - WIDTH + 1], axis=1).ravel()[:-1]  # the last stretch ends where the array does
    keys = np.empty((len(lines), len(bands)), np.uint32)
    for column, band in enumerate(bands):
        key = numbers
        for row in range(_ROWS_A_BAND):
            flip, factor = _PERMUTATIONS[band * _ROWS_A_BAND + row]
            lowest = np.minimum.reduceat((windows ^ flip) * factor, bounds)[::2]
            key = mixed(key ^ lowest)
        keys[:, column] = key >> np.uint64(32)
    return keys


def _permutations() -> tuple[tuple[np.uint32, np.uint32], ...]:
    """(flip, odd factor) of each hash function: fixed, because a split depends on them."""
    num = (_NUM_BANDS + _NUM_WHOLE_BANDS) * _ROWS_A_BAND
    numbers = mixed(np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return tuple((np.uint32(number >> 32), np.uint32((number & 0xFFFFFFFF) | 1)) for number in numbers.tolist())


_PERMUTATIONS = _permutations()


def _match_bucket(
    positions: list[int],
    fields: Callable[[int], list[Field]],
    threshold: float,
    matches: Rows,
    similarities: npt.NDArray[np.float32],
    unlike: dict[tuple[int, ...], set[int]],
) -> None:
    """Compare each text of a bucket (rising positions) with the first few of it; what has an earlier match keeps it.

    `unlike` remembers which texts of large buckets are like none of the first few: many bands may bring the same bucket.
    """
    leaders = tuple(positions[:_MAX_LEADERS])
    known = unlike.setdefault(leaders, set()) if len(positions) > _MAX_LEADERS else set()
    for position in positions[1:]:
        if position in known:
            continue
        earliest = matches[position]
        for leader in leaders:
            if leader >= position or 0 <= earliest <= leader:
                break
            found = similarity(fields(position), fields(leader), threshold)
            if found >= threshold:
                matches[position], similarities[position] = leader, found
                break
        known.add(position)
