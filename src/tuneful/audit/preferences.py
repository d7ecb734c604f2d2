"""What is wrong with preferences: pairs that teach nothing, or the contrary, or only that longer is better.

    find_pair_defects   one pair by itself: equal sides, one side the beginning of the other, a rating that says the contrary
    Preferences         all of them beside one another: contradictions, answers on both sides of the split, lengths

Stands beside `defects.py` and `cross_checks.py`, which look at the chosen side as at any other record. What is kept of a pair is
under 80 bytes.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tuneful.data.columns import normal_name
from tuneful.data.duplicates import normal_text
from tuneful.data.hashes import groups_of_equal, text_hash
from tuneful.data.split import TRAIN, Sides
from tuneful.data.values import Fields
from tuneful.numbers import percent
from tuneful.runs.schema import PreferenceSummary
from tuneful.types import Conversation, Example, answer_text, sides_of

_RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
_Z = 1.959963984540054  # of 95 %
_MIN_PAIRS, _BIASED = 30, 0.6
_MIN_WORDS, _MAX_PROMPTS = 9, 2  # an answer that is told again: not shorter, and not a stock phrase of more prompts

Add = Callable[[str, int, str], None]
"""Takes a finding: its kind, the usable row that it is about, and a text that shows it."""


def find_pair_defects(raw: Fields, conversation: Conversation) -> Iterator[tuple[str, str]]:
    """(kind, text) of everything that is wrong with a pair by itself; nothing for a record that is none."""
    if conversation.rejected is None:
        return
    chosen, rejected = map(answer_of, sides_of(conversation))
    if chosen.strip() == rejected.strip():
        yield "identical_sides", chosen
    elif rejected.startswith(chosen) or chosen.startswith(rejected):
        shorter, longer = sorted((chosen, rejected), key=len)
        name = "chosen" if shorter is chosen else "rejected"
        yield "prefix_sides", f"{name} ends at: {shorter[-30:]} | {longer[len(shorter) :][:40]}"
    if (ratings := _ratings(raw)) is not None and ratings[0] <= ratings[1]:
        kind = "equal_ratings" if ratings[0] == ratings[1] else "contradicting_ratings"
        yield kind, f"chosen {ratings[0]:g}, rejected {ratings[1]:g}: {chosen}"


def answer_of(side: Conversation) -> str:
    """What a side of a pair, or a record with a label, says behind its prompt: thoughts, responses and calls of tools."""
    said = [text for turn in side.turns if turn.weight > 0 for text in (turn.thought, answer_text(turn))]
    return "\n".join(filter(None, said))


def _ratings(raw: Fields) -> tuple[float, float] | None:
    """The ratings of the chosen and of the rejected answer, where a row has both."""
    named = {normal_name(key): value for key, value in raw.items()}
    for chosen, rejected in _RATINGS:
        found = (_number(named.get(chosen)), _number(named.get(rejected)))
        if not any(map(math.isnan, found)):
            return found
    return None


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        return math.nan


@dataclass(slots=True)
class Preferences:
    """What is kept of pairs and of records with a label, an entry each; `row` numbers the usable rows.

    `label` is -1 for a pair. Lengths are those of the answers, of the pairs that fit: tokens, or words where nothing was
    encoded.
    """

    row: array[int] = field(default_factory=lambda: array("q"))
    label: array[int] = field(default_factory=lambda: array("b"))
    chosen: array[int] = field(default_factory=lambda: array("Q"))
    rejected: array[int] = field(default_factory=lambda: array("Q"))
    told_row: array[int] = field(default_factory=lambda: array("q"))
    told: array[int] = field(default_factory=lambda: array("Q"))
    unit_row: array[int] = field(default_factory=lambda: array("q"))
    chosen_units: array[int] = field(default_factory=lambda: array("q"))
    rejected_units: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        """Number of pairs and labels."""
        return len(self.row)

    def add(self, row: int, conversation: Conversation, example: Example | str | None) -> None:
        """Keep what it takes of one more usable row; nothing of one that is neither."""
        other = conversation.rejected
        if other is None and conversation.label is None:
            return
        answers = [normal_text(answer_of(side)) for side in sides_of(conversation)]
        self.row.append(row)
        self.label.append(-1 if conversation.label is None else int(conversation.label))
        hashes = list(map(text_hash, answers))
        self.chosen.append(hashes[0])
        self.rejected.append(hashes[-1])
        for answer, hashed in zip(answers, hashes, strict=True):
            if answer.count(" ") + 1 >= _MIN_WORDS:
                self.told_row.append(row)
                self.told.append(hashed)
        if isinstance(example, str) or other is None:
            return
        lengths = [answer.count(" ") + 1 for answer in answers]
        if example is not None and example.rejected is not None:
            lengths = [len(side) - side.num_prompt_tokens for side in sides_of(example)]
        self.unit_row.append(row)
        self.chosen_units.append(lengths[0])
        self.rejected_units.append(lengths[1])

    # Beside one another

    def check_orders(self, prompts: npt.NDArray[np.uint64], sources: Any, add: Add) -> None:
        """Pairs of one prompt in both orders, and answers of one prompt that are wanted and not wanted."""
        own = np.array(self.row, dtype=np.int64)
        for group in groups_of_equal(prompts[own]):
            first: dict[tuple[int, int, int], int] = {}
            for at in group.tolist():
                first.setdefault((self.chosen[at], self.rejected[at], self.label[at]), self.row[at])
            for at in group.tolist():
                is_pair = self.label[at] < 0
                if is_pair and self.chosen[at] == self.rejected[at]:
                    continue
                contrary = (self.rejected[at], self.chosen[at], -1 if is_pair else 1 - self.label[at])
                if contrary in first:
                    add("contradicting_preferences", self.row[at], f"against {sources[first[contrary]]}: ")

    def check_answers(self, prompts: npt.NDArray[np.uint64], sides: Sides, sources: Any, add: Add) -> None:
        """Answers of held-out rows that stand, word for word, in a row that is trained on."""
        rows = np.array(self.told_row, dtype=np.int64)
        for group in groups_of_equal(np.array(self.told, dtype=np.uint64)):
            same = rows[group]
            if len(np.unique(prompts[same])) > _MAX_PROMPTS:
                continue
            trained = same[sides[same] == TRAIN]
            for row in same[sides[same] > TRAIN].tolist() if len(trained) else ():
                add("answer_leakage", row, f"as {sources[int(trained[0])]}: ")

    def check_lengths(self, unit: str, add: Add) -> str:
        """Add the pairs whose answers differ the way most do, where that is a rule by itself; the sentence that says so."""
        found = self.summary(unit)
        num_unlike = sum(one != other for one, other in zip(self.chosen_units, self.rejected_units, strict=True))
        if found is None or num_unlike < _MIN_PAIRS or found.longer_low is None or found.longer_high is None:
            return ""
        prefers_longer = found.longer_low > _BIASED
        if not prefers_longer and found.longer_high >= 1 - _BIASED:
            return ""
        for row, chosen, rejected in zip(self.unit_row, self.chosen_units, self.rejected_units, strict=True):
            if (chosen > rejected) == prefers_longer and chosen != rejected:
                add("length_bias", row, f"{chosen:,} {unit} chosen, {rejected:,} rejected: ")
        return length_sentence(found)

    def summary(self, unit: str) -> PreferenceSummary | None:
        """All of it in numbers; None where there are neither pairs nor labels."""
        if not len(self):
            return None
        chosen, rejected = (np.array(units, dtype=np.int64) for units in (self.chosen_units, self.rejected_units))
        num_longer, num_unlike = int((chosen > rejected).sum()), int((chosen != rejected).sum())
        low, high = _interval(num_longer, num_unlike) if num_unlike else (None, None)
        labels = np.array(self.label)
        return PreferenceSummary(
            num_pairs=int((labels < 0).sum()),
            num_wanted=int((labels == 1).sum()),
            num_unwanted=int((labels == 0).sum()),
            unit=unit,
            chosen_longer=num_longer / num_unlike if num_unlike else None,
            longer_low=low,
            longer_high=high,
            chosen_median=float(np.median(chosen)) if len(chosen) else None,
            rejected_median=float(np.median(rejected)) if len(rejected) else None,
        )


def length_sentence(found: PreferenceSummary) -> str:
    """In how many pairs the chosen answer is the longer one; "" where none differ in length."""
    if found.chosen_longer is None or found.longer_low is None or found.longer_high is None:
        return ""
    return (
        f"the chosen answer is the longer one in {percent(found.chosen_longer)} ({percent(found.longer_low)} to "
        f"{percent(found.longer_high)}) of the pairs whose lengths differ; medians {found.chosen_median:,.0f} and "
        f"{found.rejected_median:,.0f} {found.unit}"
    )


def _interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, shrink = count / total, 1 + _Z * _Z / total
    middle = (share + _Z * _Z / (2 * total)) / shrink
    half = _Z / shrink * math.sqrt(share * (1 - share) / total + _Z * _Z / (4 * total * total))
    return max(0.0, middle - half) if count else 0.0, min(1.0, middle + half)
