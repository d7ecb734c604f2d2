"""What can only be said once all rows are known: which are copies, which contradict each other, which leak.

    ScannedRows, sketches of all prompts -> copies, contradictions, odd lengths -> sides -> leakage, overlap

Second of the two stages of an audit (`scan.py` is the first). Rows are numbered among the usable ones, from 0. A match is
a row's earliest like one; rows that match are clusters, and `data/duplicates.py` says what that costs and misses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuneful.audit.scan import Scan
from tuneful.config import Config
from tuneful.data.duplicates import Rows, Sketches, clusters_of
from tuneful.data.hashes import groups_of_equal
from tuneful.data.split import SIDE_NAMES, TRAIN, Sides, grouped_sides, split_sides
from tuneful.data.wording import SHARED
from tuneful.errors import DataError
from tuneful.runs.schema import Cluster

NUM_CLUSTERS = 100
"""Clusters of near duplicates that are listed."""

UNDIVIDED = -1
"""The side of a row that has none."""

_SHORT_ANSWER_WORDS = 8
_HEAD, _BEFORE, _SIDE = 72, 10, 32  # characters of an excerpt: in all, before what it shows, and of each of two
_RATIO = 40.0
_MIN_RATIOS = 30


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """For each row the `earliest` one before it with a like prompt, int64 [N], or -1, and the `similarity`, float32 [N]."""

    earliest: Rows
    similarity: npt.NDArray[np.float32]


class PromptSketches:
    """The prompts of the files given with --against, `num_against` of them, and then those of the usable rows."""

    def __init__(self, sketches: Sketches, num_against: int) -> None:
        self._sketches, self.num_against = sketches, num_against
        self.hashes = sketches.text_hashes[num_against:]

    def matches(self, order: Rows | None = None) -> Matches:
        """The matches among the rows themselves, or among those of `order`, where "before" is in this order."""
        order = np.arange(len(self.hashes), dtype=np.int64) if order is None else order
        earliest, similarity = self._sketches.earliest_matches(order=order + self.num_against)
        own = earliest[self.num_against :]
        return Matches(np.where(own >= 0, own - self.num_against, -1), similarity[self.num_against :])

    def prompts(self, rows: Rows) -> Iterator[str]:
        """The normal prompts of `rows`."""
        return (self._sketches.text(self.num_against + row) for row in rows.tolist())

    def behind_wording(self, row: int) -> str:
        """The prompt of a row behind the wording that it begins with and many share, if that is long; else nothing."""
        index = self.num_against + row
        text, parts = self._sketches.text(index), self._sketches.parts(index)
        shared = next((end for start, end, kind in parts if kind == SHARED and not text[:start].strip()), 0)
        return _from(text, shared) if shared > _HEAD else ""

    def difference(self, row: int, other: int) -> str:
        """What differs first between the prompts of two rows; nothing where they agree, or where any excerpt shows it.

        `other` is a row, or, counted from -1 down, one of the files given with --against, the last first.
        """
        ours, theirs = (self._sketches.text(self.num_against + index) for index in (row, other))
        length = min(len(ours), len(theirs))
        at = next((at for at in range(length) if ours[at] != theirs[at]), length)
        if at == max(len(ours), len(theirs)) or max(at, len(ours)) <= _HEAD:
            return ""
        return f"{_from(ours, at)[:_SIDE]} ≠ {_from(theirs, at)[:_SIDE]}"

    def against(self) -> Iterator[tuple[int, int, float]]:
        """(row, other, similarity) of the rows whose prompt stands, or nearly stands, in a file given with --against."""
        if not self.num_against:
            return
        earliest, similarity = self._sketches.earliest_matches()
        own, alike = earliest[self.num_against :], similarity[self.num_against :]
        for row in np.flatnonzero((own >= 0) & (own < self.num_against)).tolist():
            yield row, int(own[row]) - self.num_against, float(alike[row])


class CrossChecks:
    """The second stage: adds to the findings of `scan`, and to the rows that it drops."""

    def __init__(self, scan: Scan, prompts: PromptSketches, config: Config) -> None:
        self._rows, self._findings, self._dropped = scan.rows, scan.findings, scan.dropped
        self._preferences, self._unit = scan.preferences, "tokens" if scan.preflight else "words"
        self._prompts, self._config = prompts, config
        self._fits = np.array(scan.rows.fits, dtype=np.int8).astype(bool)

    def run(self) -> tuple[Sides, tuple[Cluster, ...]]:
        """Make all checks; the side of each row, int8 [N] (UNDIVIDED for none), and the clusters of near duplicates."""
        if not len(self._rows):
            return np.zeros(0, dtype=np.int8), ()
        matches = self._prompts.matches()
        for group in sorted(group.tolist() for group in groups_of_equal(self._prompts.hashes)):
            self._check_same_prompt(group)
        near = self._check_near_prompts(matches)
        self._check_length_ratios()
        sides = self._sides(matches)
        self._check_leakage(sides)
        self._check_preferences(sides)
        self._check_overlap()
        return sides, self._clusters(near, matches)

    # Copies and contradictions

    def _check_same_prompt(self, group: list[int]) -> None:
        """Rows with one prompt: copies where the answers agree too, else contradictions or variety."""
        rows = self._rows
        first_with: dict[tuple[int, int], int] = {}
        for row in group:
            first = first_with.setdefault((rows.normal_answer_hash[row], rows.beside_hash[row]), row)
            if first == row:
                continue
            if rows.answer_hash[first] == rows.answer_hash[row]:
                self._add("exact_duplicates", row, self._asked(row), f"as {rows.sources[first]}: ")
                self._dropped[rows.number[row]] = "exact_duplicates"
            else:
                self._add("near_duplicates", row, self._asked(row), f"1.00 {rows.sources[first]}: ")
        plain = not len(self._preferences)  # of pairs and labels several answers are what is wanted
        if len({answer for answer, _ in first_with}) > 1 and plain and self._config.data.format != "text":
            is_short = all(rows.answer_words[row] <= _SHORT_ANSWER_WORDS for row in group)
            kind = "contradictions" if is_short else "several_answers"
            for row in group:
                self._add(kind, row, f"{self._asked(row)[:44]} → {rows.answers[row][:30]}")

    def _check_near_prompts(self, matches: Matches) -> Rows:
        """The rows whose prompt nearly, and not exactly, stood there before."""
        hashes = self._prompts.hashes
        near = np.flatnonzero((matches.earliest >= 0) & (hashes != hashes[matches.earliest]))
        for row in near.tolist():
            self._add_match("near_duplicates", row, matches)
        return near

    def _clusters(self, near: Rows, matches: Matches) -> tuple[Cluster, ...]:
        """The first clusters that hold a near duplicate, each with all its rows, exact copies too."""
        cluster_of = clusters_of(matches.earliest)
        listed = np.unique(cluster_of[near])[:NUM_CLUSTERS].tolist()
        members: dict[int, list[int]] = {cluster: [] for cluster in listed}
        for row in np.flatnonzero(np.isin(cluster_of, listed)).tolist():
            members[int(cluster_of[row])].append(row)
        return tuple(
            Cluster(
                tuple(self._rows.sources[row] for row in rows),
                round(min(float(matches.similarity[row]) for row in rows if row != first), 3),
            )
            for first, rows in members.items()
        )

    # Lengths

    def _check_length_ratios(self) -> None:
        """Answers whose length, to that of the question, is 40 times off the median, where the others agree better."""
        asked = np.array(self._rows.asked_characters, dtype=np.int64)
        answered = np.array(self._rows.answer_characters, dtype=np.int64)
        if len(asked) < _MIN_RATIOS:
            return
        ratios = np.log((answered + 10) / (asked + 10))
        distances = np.abs(ratios - np.median(ratios))
        limit = max(np.log(_RATIO), 6 * 1.4826 * float(np.median(distances)))
        for row in np.flatnonzero(distances > limit).tolist():
            sizes = f"{answered[row]:,} characters of answer to {asked[row]:,}"
            self._add("length_ratios", row, f"{sizes}: {self._rows.asked[row]}")

    # Sides

    def _sides(self, matches: Matches) -> Sides:
        """The side that each row has or that a run would give it; none to rows that do not fit or where a run would refuse."""
        sides = np.array(self._rows.side, dtype=np.int8)
        sides[~self._fits] = UNDIVIDED
        divided = self._fits & (sides == UNDIVIDED)
        with contextlib.suppress(DataError):  # too few rows for the sides that are wanted
            sides[divided] = self._divide(divided, matches)
        return sides

    def _divide(self, divided: npt.NDArray[np.bool_], matches: Matches) -> Sides:
        """The sides of the rows that are `divided`, bool [N], as a run would divide them; DataError where it would not."""
        data, rows = self._config.data, np.flatnonzero(divided)
        shares = {"test_share": data.test_share, "validation_share": data.validation_share}
        seed = self._config.split_seed
        if data.split != "grouped":
            return split_sides(("" for _ in rows), data.split, **shares, seed=seed)
        if (
            len(rows) < len(divided) or self._prompts.num_against
        ):  # what is shared wording is a matter of these rows alone
            return split_sides(self._prompts.prompts(rows), data.split, **shares, seed=seed)
        return grouped_sides(clusters_of(matches.earliest), self._prompts.hashes, **shares, seed=seed)

    def _check_leakage(self, sides: Sides) -> None:
        """Held-out rows whose prompt is trained on."""
        trained, held_out = np.flatnonzero(sides == TRAIN), np.flatnonzero(sides > TRAIN)
        matches = self._prompts.matches(np.concatenate([trained, held_out]))
        earliest = matches.earliest[held_out]
        for row in held_out[(earliest >= 0) & (sides[earliest] == TRAIN)].tolist():
            self._add_match("leakage", row, matches, f"{SIDE_NAMES[sides[row]]}, ")

    def _check_preferences(self, sides: Sides) -> None:
        """What pairs and labels say beside one another."""
        found, prompts, sources = self._preferences, self._prompts.hashes, self._rows.sources

        def add(kind: str, row: int, label: str) -> None:
            self._add(kind, row, self._asked(row), label)

        if len(found):
            found.check_orders(prompts, sources, add)
            found.check_answers(prompts, sides, sources, add)
            self._findings.details["length_bias"] = found.check_lengths(self._unit, add)

    def _check_overlap(self) -> None:
        for row, other, similarity in self._prompts.against():
            shown = self._prompts.difference(row, other) or self._asked(row)
            self._add("overlap", row, shown, f"{similarity:.2f}: ")
            self._dropped[self._rows.number[row]] = "overlap"

    # Findings

    def _add(self, kind: str, row: int, text: str, label: str = "") -> None:
        self._findings.add(kind, self._rows.number[row], self._rows.sources[row], text, label)

    def _add_match(self, kind: str, row: int, matches: Matches, label: str = "") -> None:
        """Add a row with how similar its match is, where that stands, and what differs."""
        earliest = int(matches.earliest[row])
        shown = self._prompts.difference(row, earliest) or self._asked(row)
        self._add(kind, row, shown, f"{label}{matches.similarity[row]:.2f} {self._rows.sources[earliest]}: ")

    def _asked(self, row: int) -> str:
        """What a row asks, from its beginning, or behind the wording that many rows begin with."""
        return self._prompts.behind_wording(row) or self._rows.asked[row]


def _from(text: str, at: int) -> str:
    """A normal text from the word on before `at`, on one line."""
    start = text.rfind(" ", 0, max(0, at - _BEFORE)) + 1 if at > _BEFORE else 0
    return ("..." if start else "") + " ".join(text[start : at + _HEAD].split())
