"""Is a prompt new? Held against the seeds, a test set and what was made before, one at a time and exactly.

`data/duplicates.py` finds like texts of a whole file and misses a few; here texts come one after the other, each is decided once,
and what was decided never changes, so the rules are those of `data/similarity.py` on whole fields. Nothing is missed: two fields
of which the share `THRESHOLD` of their stretches is common have one of the first few stretches in common, in any fixed order of
stretches (prefix filtering: Chaudhuri, Ganti and Kaushik 2006), so only texts that share one of those are compared.
"""

from __future__ import annotations

from collections import defaultdict

from tuneful.data.duplicates import THRESHOLD
from tuneful.data.hashes import text_hash
from tuneful.data.similarity import Field, fields_of, similarity


class Known:
    """Prompts that are known, each with a name for messages; a prompt is the text that `data.split.normal_prompt` gives."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._fields: list[list[Field]] = []
        self._same: dict[str, int] = {}
        self._with: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._names)

    def find(self, prompt: str) -> str | None:
        """The name of the earliest prompt that says the same or nearly so, None where there is none."""
        if (same := self._same.get(prompt)) is not None:
            return self._names[same]
        fields = fields_of(prompt, [])
        candidates = {number for key in _keys(fields) for number in self._with.get(key, ())}
        for number in sorted(candidates):
            if similarity(fields, self._fields[number], THRESHOLD) >= THRESHOLD:
                return self._names[number]
        return None

    def same(self, prompt: str) -> str | None:
        """The name of the earliest prompt that is the same, None where there is none."""
        number = self._same.get(prompt)
        return None if number is None else self._names[number]

    def add(self, prompt: str, name: str) -> None:
        """`prompt` is known from here on."""
        number, fields = len(self._names), fields_of(prompt, [])
        self._names.append(name)
        self._fields.append(fields)
        self._same.setdefault(prompt, number)
        for key in _keys(fields):
            self._with[key].append(number)


def _keys(fields: list[Field]) -> list[tuple[int, int]]:
    """Of its last field that is not empty, the hashes of as many stretches as a like text must share one of."""
    filled = [number for number, field in enumerate(fields) if field.line]
    if not filled:
        return []
    number = filled[-1]
    hashes = sorted(text_hash(stretch) for stretch in fields[number].stretches)
    num_needed = -(-len(hashes) * round(THRESHOLD * 100) // 100)  # as many would be common at least
    return [(number, one) for one in hashes[: len(hashes) - num_needed + 1]]
