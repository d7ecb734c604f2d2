"""How similar two texts are: the share of common stretches of five characters (Jaccard), of the whole and of what differs.

A text is a few fields, one a line, and as similar to another as its least similar field. All numbers of a field have to agree:
"Convert 45 km" is no copy of "Convert 46 km". An empty field is similar to an empty one only.

What both of two texts share with many others (`wording.py`) says nothing of the two. It is taken off, and they are as similar as
what is left, or as the whole, whichever is less: two reviews under one long instruction are two prompts, and one review
under two instructions is two as well. Where somebody altered shared wording in one text, only the whole counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuneful.data.wording import ALTERED, OWN, SHARED

NUMBER = re.compile(r"\d+")
WIDTH = 5

_ENOUGH_IN_DOUBT = 0.5
"""Similarity of what differs from which on the whole decides, where both texts alter shared wording at one place: it may be
a place to fill in that few texts have.
"""

Part = tuple[int, int, int]
"""Start, end and kind of a stretch of a text."""


@dataclass(frozen=True, slots=True)
class Field:
    """A line with its stretches of five characters, and which of them are shared wording or altered wording."""

    line: str
    stretches: frozenset[str]
    shared: frozenset[str] = frozenset()
    altered: frozenset[str] = frozenset()


def padded(line: str) -> str:
    """A line as it is cut up: words at its ends count as whole words, and there is one stretch at least."""
    return f" {line} ".ljust(WIDTH)


def fields_of(text: str, parts: list[Part]) -> list[Field]:
    """The fields of a text, one a line, of which `parts` are not its own."""
    if not parts:
        return [Field(line, frozenset(_stretches(line))) for line in text.split("\n")]
    fields, start = [], 0
    for line in text.split("\n"):
        end = start + len(line)
        here = [(first - start, last - start, kind) for first, last, kind in parts if start <= first < end]
        fields.append(_field(line, here))
        start = end + 1
    return fields


def similarity(ours: list[Field], theirs: list[Field], threshold: float = 0.0) -> float:
    """How similar two texts are, 0 to 1; where they are less than `threshold`, a number that is less too."""
    if len(ours) != len(theirs):
        return 0.0
    least = 1.0
    for our, their in zip(ours, theirs, strict=True):
        if our.line != their.line:
            least = min(least, _field_similarity(our, their, threshold))
            if least < threshold:
                break
    return least


def _field(line: str, parts: list[Part]) -> Field:
    stretches = _stretches(line)
    kinds = [OWN] * len(stretches)
    for start, end, kind in parts:  # a stretch belongs where its middle stands: one character on, in the line
        for at in range(max(start - 1, 0), min(end - 1, len(kinds))):
            kinds[at] = kind
    shared = frozenset(one for one, kind in zip(stretches, kinds, strict=True) if kind == SHARED)
    altered = frozenset(one for one, kind in zip(stretches, kinds, strict=True) if kind == ALTERED)
    return Field(line, frozenset(stretches), shared, altered)


def _stretches(line: str) -> list[str]:
    whole = padded(line)
    return [whole[at : at + WIDTH] for at in range(len(whole) - WIDTH + 1)]


def _field_similarity(ours: Field, theirs: Field, threshold: float) -> float:
    if not ours.line or not theirs.line or NUMBER.findall(ours.line) != NUMBER.findall(theirs.line):
        return 0.0
    common = ours.stretches & theirs.stretches
    num_different = len(ours.stretches) + len(theirs.stretches) - 2 * len(common)
    whole = len(common) / (len(common) + num_different)
    if whole < threshold or not (ours.shared and theirs.shared):
        return whole
    same_place = bool(ours.altered & theirs.altered)
    if same_place:
        num_common = len(common - (ours.shared & theirs.shared))
    else:
        num_common = len(common - ((ours.shared | ours.altered) & (theirs.shared | theirs.altered)))
    num_different = _num_own(ours, theirs, same_place) + _num_own(theirs, ours, same_place)
    if not num_different:
        return whole
    own = num_common / (num_common + num_different)
    return whole if same_place and own >= _ENOUGH_IN_DOUBT else min(whole, own)


def _num_own(ours: Field, theirs: Field, same_place: bool) -> int:
    """How many stretches only ours has, but for wording that many share and wording that was altered elsewhere."""
    own = ours.stretches - theirs.stretches
    return len(own if same_place else own - ours.altered - ours.shared)
