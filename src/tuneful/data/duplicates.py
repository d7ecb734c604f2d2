"""Which texts say the same, exactly or nearly: what the split keeps together and what the audit reports.

    text -> normal_text -> Sketches (hash, 16 band keys) -> earliest_matches -> clusters

A text is a few fields, one a line (`system`, `instruction`, `input`). Two texts are the same where nothing but case, white
space and punctuation differs, and nearly the same where every field is at least `threshold` similar to its counterpart, by
the share of common stretches of five characters (Jaccard), and all numbers are equal: "Convert 45 km" is no copy of
"Convert 46 km". An empty field is similar to an empty one only.

Candidates come from MinHash bands over the last field that is not empty (the one that tells the records of one task
apart) and each is verified on the texts, so nothing is reported that is not so; the price is paid in misses: 1 of 100
pairs at exactly 0.8, 1 of 2,000 at 0.85, and, where over eight texts share a band without being similar, what stands
behind the first eight. `tuneful check` of a million records, all of it, took 6.4 minutes and 876 MB on a busy machine.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Fields = list[tuple[str, frozenset[str]]]

THRESHOLD = 0.8
"""Similarity from which on two texts are near duplicates."""

_WIDTH = 5
_NUM_BANDS, _ROWS_A_BAND = 16, 6
_MAX_LEADERS = 8
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
_NUMBER = re.compile(r"\d+")


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
    """Texts in a form in which like ones are found: a hash of the whole, band keys of the last field, and the text.

    `texts` are fields of `normal_text`, one a line. `text_hashes`, uint64 [N], is equal where the texts are the same,
    however they are divided into fields. 72 bytes a text and the text itself are kept.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = Texts()
        hashes, band_keys = array("Q"), []
        for batch in _batches(texts):
            for text in batch:
                self._texts.append(text)
                hashes.append(text_hash(" ".join(filter(None, text.split("\n")))))
            band_keys.append(_band_keys(batch))
        self.text_hashes = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, np.uint64)
        self._band_keys = np.concatenate(band_keys) if band_keys else np.zeros((0, _NUM_BANDS), np.uint32)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def text(self, index: int) -> str:
        """The text at `index`, as it was given."""
        return self._texts[index]

    def similarity(self, one: int, other: int) -> float:
        """How similar two of the texts are, 0 to 1: that of their least similar fields; 0 where numbers differ."""
        return _similarity(_fields(self.text(one)), _fields(self.text(other)))

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
        fields = lru_cache(maxsize=_NUM_REMEMBERED)(lambda position: _fields(self.text(int(order[position]))))
        for band in range(_NUM_BANDS):
            for bucket in groups_of_equal(keys[:, band]):
                _match_bucket(distinct[bucket].tolist(), fields, threshold, matches, similarities)
        found = np.full(len(self), -1, dtype=np.int64)
        found[order] = np.where(matches >= 0, order[matches], -1) if len(order) else -1
        similar = np.zeros(len(self), dtype=np.float32)
        similar[order] = similarities
        return found, similar


class Texts:
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

    def __getitem__(self, index: int) -> str:
        """The text at `index`, 0 or more."""
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


def groups_of_equal(keys: npt.NDArray[Any]) -> Iterator[Rows]:
    """The indices, rising, of each group of equal `keys` with two members or more; groups in the order of their key."""
    by_key = np.argsort(keys, kind="stable")
    sorted_keys = keys[by_key]
    same_as_before = np.concatenate([[False], sorted_keys[1:] == sorted_keys[:-1], [False]])
    borders = np.flatnonzero(same_as_before[1:] != same_as_before[:-1])
    for start, end in zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True):
        yield by_key[start : end + 1]


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b of `text`: the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts of about _BATCH_CHARACTERS together: what fits a processor's cache."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# Similarity of two texts


def _fields(text: str) -> Fields:
    return [(line, _shingles(line)) for line in text.split("\n")]


def _padded(line: str) -> str:
    """A line as it is shingled: words at its ends count as whole words, and there is one shingle at least."""
    return f" {line} ".ljust(_WIDTH)


def _shingles(line: str) -> frozenset[str]:
    padded = _padded(line)
    return frozenset(padded[at : at + _WIDTH] for at in range(len(padded) - _WIDTH + 1))


def _similarity(ours: Fields, theirs: Fields) -> float:
    if len(ours) != len(theirs):
        return 0.0
    least = 1.0
    for (our_line, our_shingles), (their_line, their_shingles) in zip(ours, theirs, strict=True):
        if our_line == their_line:
            continue
        if not our_line or not their_line or _NUMBER.findall(our_line) != _NUMBER.findall(their_line):
            return 0.0
        common = len(our_shingles & their_shingles)
        least = min(least, common / (len(our_shingles) + len(their_shingles) - common))
    return least


# MinHash


def _band_keys(texts: list[str]) -> npt.NDArray[np.uint32]:
    """The keys of each text's bands, uint32 [N, 16]: texts with an equal key in any band are candidates."""
    fields = [_padded(next((line for line in reversed(text.split("\n")) if line), "")) for text in texts]
    codes = np.frombuffer("".join(fields).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    ends = np.cumsum([len(field) for field in fields])
    starts = ends - [len(field) for field in fields]
    windows = np.zeros(len(codes) - _WIDTH + 1, np.uint32)
    for offset in range(_WIDTH):
        windows = (windows ^ codes[offset : len(codes) - _WIDTH + 1 + offset]) * np.uint32(0x9E3779B1)
        windows ^= windows >> np.uint32(15)
    bounds = np.stack([starts, ends - _WIDTH + 1], axis=1).ravel()[:-1]  # the last stretch ends where the array does
    numbers = np.array([text_hash(" ".join(_NUMBER.findall(text))) for text in texts], dtype=np.uint64)
    keys = np.empty((len(texts), _NUM_BANDS), np.uint32)
    for band in range(_NUM_BANDS):
        key = numbers
        for row in range(_ROWS_A_BAND):
            flip, factor = _PERMUTATIONS[band * _ROWS_A_BAND + row]
            lowest = np.minimum.reduceat((windows ^ flip) * factor, bounds)[::2]
            key = mixed(key ^ lowest)
        keys[:, band] = key >> np.uint64(32)
    return keys


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`values` scattered over all 64-bit numbers, one to one (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def _permutations() -> tuple[tuple[np.uint32, np.uint32], ...]:
    """(flip, odd factor) of each hash function: fixed, because a split depends on them."""
    numbers = mixed(np.arange(1, _NUM_BANDS * _ROWS_A_BAND + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return tuple((np.uint32(number >> 32), np.uint32((number & 0xFFFFFFFF) | 1)) for number in numbers.tolist())


_PERMUTATIONS = _permutations()


def _match_bucket(
    positions: list[int],
    fields: Callable[[int], Fields],
    threshold: float,
    matches: Rows,
    similarities: npt.NDArray[np.float32],
) -> None:
    """Compare each text of a bucket (rising positions) with the first few of it; what has an earlier match keeps it."""
    leaders = positions[:_MAX_LEADERS]
    for position in positions[1:]:
        earliest = matches[position]
        for leader in leaders:
            if leader >= position or 0 <= earliest <= leader:
                break
            similarity = _similarity(fields(position), fields(leader))
            if similarity >= threshold:
                matches[position], similarities[position] = leader, similarity
                break
