"""A whole data set in numbers and findings, in one pass, before a step is taken.

    rows (record, example) -> defects of each -> sketches of all prompts -> duplicates, contradictions, sides, leakage -> Audit

Rows are looked at once and forgotten; what is kept of each is its place, the heads of its texts, two hashes, its lengths and
the sketch of its prompt: under 900 bytes, so a million rows fit a laptop. Without an encoder lengths are words, and the
checks of `preflight.py` are left out.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tuneful.audit.defects import find_defects
from tuneful.audit.findings import Finding, Ledger
from tuneful.audit.preflight import Markers, Preflight
from tuneful.audit.traits import conversation_text, language_of, script_of, task_of
from tuneful.config import Config
from tuneful.data.duplicates import Rows, Sketches, Texts, clusters_of, normal_text, text_hash
from tuneful.data.read import Record, SkippedRow
from tuneful.data.split import SIDE_NAMES, TRAIN, Sides, grouped_sides, normal_prompt, split_sides
from tuneful.encoding.encode import Encoder
from tuneful.encoding.template import Piece, find_template
from tuneful.errors import DataError
from tuneful.runs.schema import Cluster, DataDocument, as_row
from tuneful.types import Conversation, Example

AuditedRow = tuple[Record | SkippedRow, Example | str | None]
"""A row as it was read, and its example; the reason why it has none; or None where nothing was encoded."""

NUM_CLUSTERS = 100
"""Clusters of near duplicates that are listed."""

UNDIVIDED = -1
"""The side of a row that has none."""

_NUM_BINS = 12
_HEAD = 72
_SHORT_ANSWER_WORDS = 8
_RATIO = 40.0
_MIN_RATIOS = 30


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of a length over all records."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What a data set holds and what is wrong with it; `num_read = num_used + num_refused`.

    Lengths are in `unit`, tokens or words; `num_trained` and `num_ended` (records whose end token is trained) are None
    where nothing was encoded. `sides` counts records by side, empty where there are too few to divide. `prompt` is the
    first record's prompt as inference sends it. `dropped` are the numbers of rows, as read, that `--fix` leaves out, with
    the reason.
    """

    num_read: int
    num_used: int
    num_refused: int
    unit: str
    lengths: Mapping[str, Spread]
    histogram: tuple[tuple[float, ...], tuple[int, ...]]
    num_units: int
    num_trained: int | None
    num_ended: int | None
    turns: Mapping[str, int]
    languages: Mapping[str, int]
    scripts: Mapping[str, int]
    tasks: Mapping[str, int]
    sides: Mapping[str, int]
    prompt_source: str
    prompt: str
    findings: tuple[Finding, ...]
    clusters: tuple[Cluster, ...]
    dropped: Mapping[int, str]

    @property
    def num_findings(self) -> int:
        """Findings that are no mere notes."""
        return sum(finding.kind.severity == "finding" for finding in self.findings)

    def added_to(self, document: DataDocument) -> DataDocument:
        """The data.json of a run, with what was found."""
        return replace(
            document,
            findings=tuple(finding.summary() for finding in self.findings),
            num_findings=self.num_findings,
            clusters=self.clusters,
            turns=self.turns,
            languages=self.languages,
            scripts=self.scripts,
            tasks=self.tasks,
        )

    def as_dict(self, max_sources: int = 1000) -> dict[str, Any]:
        """For `check --json`; each finding lists the first `max_sources` of its places."""
        edges, counts = self.histogram
        return {
            "rows_read": self.num_read,
            "rows_used": self.num_used,
            "rows_refused": self.num_refused,
            "unit": self.unit,
            "lengths": {name: asdict(spread) for name, spread in self.lengths.items()},
            "length_histogram": {"edges": list(edges), "counts": list(counts)},
            f"num_{self.unit}": self.num_units,
            "num_trained": self.num_trained,
            "num_ended": self.num_ended,
            "turns": dict(self.turns),
            "languages": dict(self.languages),
            "scripts": dict(self.scripts),
            "tasks": dict(self.tasks),
            "split": dict(self.sides),
            "prompt": {"source": self.prompt_source, "text": self.prompt},
            "num_findings": self.num_findings,
            "findings": [finding.as_dict(max_sources) for finding in self.findings],
            "clusters": [as_row(cluster) for cluster in self.clusters],
        }


def audit(
    rows: Iterable[AuditedRow],
    config: Config,
    encoder: Encoder | None,
    *,
    given: Mapping[int, Iterable[AuditedRow]] = MappingProxyType({}),
    against: Iterable[Conversation] = (),
    advance: Callable[[int], None] = lambda _: None,
) -> Audit:
    """Look at every row.

    `rows` are divided as a run under `config` would divide them; `given` are the rows, after them, that have their side
    (TRAIN, VALIDATION or TEST) already. `against` are records that should not be in the data. `advance` is told of each row.
    """
    glance = _Pass(config, encoder, advance)
    others = [normal_prompt(conversation) for conversation in against]
    sided = chain(_with_side(UNDIVIDED, rows), *(_with_side(side, its_rows) for side, its_rows in given.items()))
    sketches = Sketches(chain(others, glance.prompts(sided)))
    return _Judgement(glance, sketches, len(others), config).audit()


def audit_sides(
    sides: Sequence[tuple[Sequence[Record], Sequence[Example]]],
    refused: Iterable[SkippedRow],
    config: Config,
    encoder: Encoder,
) -> Audit:
    """Look at a data set that is divided already: (records, examples) of train, validation and test, and what was refused."""
    given = {side: zip(*pair, strict=True) for side, pair in enumerate(sides)}
    return audit(((refusal, None) for refusal in refused), config, encoder, given=given)


def _with_side(side: int, rows: Iterable[AuditedRow]) -> Iterator[tuple[int, AuditedRow]]:
    return ((side, row) for row in rows)


@dataclass(slots=True)
class _Kept:
    """What is remembered of the usable rows, an entry a row."""

    number: array[int] = field(default_factory=lambda: array("q"))  # among all rows read
    fits: array[int] = field(default_factory=lambda: array("b"))
    side: array[int] = field(default_factory=lambda: array("b"))
    prompt_units: array[int] = field(default_factory=lambda: array("q"))
    units: array[int] = field(default_factory=lambda: array("q"))
    asked_characters: array[int] = field(default_factory=lambda: array("q"))
    answer_characters: array[int] = field(default_factory=lambda: array("q"))
    answer_words: array[int] = field(default_factory=lambda: array("q"))
    answer_hash: array[int] = field(default_factory=lambda: array("Q"))
    normal_answer_hash: array[int] = field(default_factory=lambda: array("Q"))
    sources: Texts = field(default_factory=Texts)
    asked: Texts = field(default_factory=Texts)
    answers: Texts = field(default_factory=Texts)


class _Pass:
    """The one look at each row."""

    def __init__(self, config: Config, encoder: Encoder | None, advance: Callable[[int], None]) -> None:
        self.ledger, self.kept = Ledger(), _Kept()
        self.turns, self.languages, self.scripts, self.tasks = (Counter[str]() for _ in range(4))
        self.num_read = self.num_trained = 0
        self.dropped: dict[int, str] = {}
        self.prompt = self.prompt_source = ""
        self.encoder, self._advance = encoder, advance
        self._template = encoder.text.template if encoder else find_template(config.template.name)
        self._markers = Markers(self._template, encoder.text if encoder else None)
        self.preflight = Preflight(encoder) if encoder else None

    def prompts(self, rows: Iterable[tuple[int, AuditedRow]]) -> Iterator[str]:
        """Look at `rows`, each with its side; yields the normal prompt of each usable one."""
        for number, (side, (row, example)) in enumerate(rows):
            self.num_read += 1
            self._advance(1)
            if isinstance(row, SkippedRow):
                kind = _kind_of(row)
                self.ledger.add(kind, number, row.source, row.reason)
                self.dropped[number] = kind
            else:
                self._look(number, row.conversation, example)
                self.kept.side.append(side)
                yield normal_prompt(row.conversation)

    def _look(self, number: int, conversation: Conversation, example: Example | str | None) -> None:
        source = conversation.source
        for kind, text, at in find_defects(conversation):
            self.ledger.add(kind, number, source, _around(text, at))
        if marked := self._markers.find(conversation):
            self.ledger.add("special_token_texts", number, source, _around(*marked))
        if isinstance(example, str):
            self.ledger.add("too_long", number, source, example)
        elif example is not None and self.preflight:
            self.num_trained += int((example.weights > 0).sum())
            for kind, text in self.preflight.look(conversation, example):
                self.ledger.add(kind, number, source, text)
        if not self.prompt_source:
            self.prompt, self.prompt_source = _rendered(self._template.prompt(conversation)), source
        head = conversation_text(conversation)
        script = script_of(head)
        self.scripts[script] += 1
        self.languages[language_of(head, script)] += 1
        self.tasks[task_of(conversation)] += 1
        self.turns[str(len(conversation.turns))] += 1
        self._keep(number, conversation, example)

    def _keep(self, number: int, conversation: Conversation, example: Example | str | None) -> None:
        kept, turns = self.kept, conversation.turns
        asked = "\n".join(filter(None, [text for turn in turns for text in (turn.instruction, turn.input)]))
        answer = "\n".join(turn.response for turn in turns)
        normal = normal_text(answer)
        kept.number.append(number)
        kept.fits.append(not isinstance(example, str))
        if isinstance(example, Example):
            kept.prompt_units.append(example.num_prompt_tokens)
            kept.units.append(len(example))
        elif example is None:
            kept.prompt_units.append(num_asked := asked.count(" ") + 1)
            kept.units.append(num_asked + answer.count(" ") + 1)
        kept.asked_characters.append(len(asked))
        kept.answer_characters.append(len(answer))
        kept.answer_words.append(normal.count(" ") + 1)
        kept.answer_hash.append(text_hash(answer.strip()))
        kept.normal_answer_hash.append(text_hash(normal))
        kept.sources.append(conversation.source)
        kept.asked.append(asked[:_HEAD])
        kept.answers.append(answer[:_HEAD])


class _Judgement:
    """What can only be said once all rows are known: how they stand to one another."""

    def __init__(self, glance: _Pass, sketches: Sketches, num_others: int, config: Config) -> None:
        self._glance, self._kept, self._ledger, self._config = glance, glance.kept, glance.ledger, config
        self._sketches, self._num_others = sketches, num_others
        self._num_rows = len(sketches) - num_others
        self._own = np.arange(num_others, len(sketches), dtype=np.int64)
        self._fits = (
            np.frombuffer(glance.kept.fits, dtype=np.int8).astype(bool) if self._num_rows else np.zeros(0, bool)
        )
        self._hashes = sketches.text_hashes[num_others:]
        self._clusters: tuple[Cluster, ...] = ()
        self._sides: Sides = np.array(glance.kept.side, dtype=np.int8)
        self._sides[~self._fits] = UNDIVIDED

    def audit(self) -> Audit:
        """Everything, put together."""
        if self._num_rows:
            matches, similarities = self._own_matches(self._own)
            self._find_copies(matches, similarities)
            self._find_ratios()
            self._divide(matches)
            self._find_leaks()
            self._find_overlap()
        return self._summary()

    def _own_matches(self, order: Rows) -> tuple[Rows, npt.NDArray[np.float32]]:
        """Earliest matches among the rows themselves, by row, those of `order` (indices into the sketches)."""
        matches, similarities = self._sketches.earliest_matches(order=order)
        own = matches[self._num_others :]
        return np.where(own >= 0, own - self._num_others, -1), similarities[self._num_others :]

    # Copies and contradictions

    def _find_copies(self, matches: Rows, similarities: npt.NDArray[np.float32]) -> None:
        for group in _groups(self._hashes):
            self._judge_same_prompt(group)
        near = np.flatnonzero((matches >= 0) & (self._hashes != self._hashes[matches]))
        clusters = clusters_of(matches)
        for row in near.tolist():
            self._add(
                "near_duplicates", row, f"{similarities[row]:.2f} {self._place(matches[row])}: {self._kept.asked[row]}"
            )
        self._clusters = self._list_clusters(clusters, near, similarities)

    def _judge_same_prompt(self, group: list[int]) -> None:
        """Rows with one prompt: copies where the answers agree too, else contradictions or variety."""
        kept = self._kept
        first_with: dict[int, int] = {}
        for row in group:
            first = first_with.setdefault(kept.normal_answer_hash[row], row)
            if first == row:
                continue
            if kept.answer_hash[first] == kept.answer_hash[row]:
                self._add("exact_duplicates", row, f"as {self._place(first)}: {kept.asked[row]}")
                self._glance.dropped[kept.number[row]] = "exact_duplicates"
            else:
                self._add("near_duplicates", row, f"1.00 {self._place(first)}: {kept.asked[row]}")
        if len({kept.normal_answer_hash[row] for row in group}) > 1:
            is_short = all(kept.answer_words[row] <= _SHORT_ANSWER_WORDS for row in group)
            for row in group:
                kind = "contradictions" if is_short else "several_answers"
                self._add(kind, row, f"{kept.asked[row][:44]} → {kept.answers[row][:30]}")

    def _list_clusters(self, clusters: Rows, near: Rows, similarities: npt.NDArray[np.float32]) -> tuple[Cluster, ...]:
        members: dict[int, list[int]] = {cluster: [] for cluster in np.unique(clusters[near])[:NUM_CLUSTERS].tolist()}
        for row in np.flatnonzero(np.isin(clusters, list(members))).tolist():
            members[int(clusters[row])].append(row)
        return tuple(
            Cluster(
                tuple(self._kept.sources[row] for row in rows),
                round(float(min(similarities[row] for row in rows if row != cluster)), 3),
            )
            for cluster, rows in members.items()
        )

    # Lengths

    def _find_ratios(self) -> None:
        """Answers whose length, to that of the question, is 40 times off the median, where the others agree better."""
        kept = self._kept
        asked = np.frombuffer(kept.asked_characters, dtype=np.int64)
        answered = np.frombuffer(kept.answer_characters, dtype=np.int64)
        if len(asked) < _MIN_RATIOS:
            return
        ratios = np.log((answered + 10) / (asked + 10))
        distances = np.abs(ratios - np.median(ratios))
        limit = max(np.log(_RATIO), 6 * 1.4826 * float(np.median(distances)))
        for row in np.flatnonzero(distances > limit).tolist():
            sizes = f"{answered[row]:,} characters of answer to {asked[row]:,}"
            self._add("length_ratios", row, f"{sizes}: {kept.asked[row]}")

    # Sides

    def _divide(self, matches: Rows) -> None:
        """Give the rows that fit and have no side the one that a run would; none where a run would refuse to."""
        data = self._config.data
        divided = self._fits & (self._sides == UNDIVIDED)
        rows = np.flatnonzero(divided)
        divide = partial(
            grouped_sides if data.split == "grouped" else split_sides,
            test_share=data.test_share,
            validation_share=data.validation_share,
            seed=self._config.train.seed,
        )
        try:
            if data.split == "grouped":
                if len(rows) < self._num_rows:
                    matches, _ = self._own_matches(self._own[rows])
                renumbered = np.cumsum(divided) - 1
                self._sides[rows] = divide(renumbered[clusters_of(matches)[rows]], self._hashes[rows])
            else:
                self._sides[rows] = divide(("" for _ in rows), data.split)
        except DataError:
            pass

    def _find_leaks(self) -> None:
        trained, held_out = np.flatnonzero(self._sides == TRAIN), np.flatnonzero(self._sides > TRAIN)
        matches, similarities = self._own_matches(self._own[np.concatenate([trained, held_out])])
        for row in held_out[(matches[held_out] >= 0) & (self._sides[matches[held_out]] == TRAIN)].tolist():
            side = SIDE_NAMES[self._sides[row]]
            similar = f"{similarities[row]:.2f} {self._place(matches[row])}"
            self._add("leakage", row, f"{side}, {similar}: {self._kept.asked[row]}")

    def _find_overlap(self) -> None:
        """Rows that stand, or nearly stand, in the files given with --against, which come first in the sketches."""
        if not self._num_others:
            return
        matches, similarities = self._sketches.earliest_matches()
        for row in np.flatnonzero(
            (matches[self._num_others :] >= 0) & (matches[self._num_others :] < self._num_others)
        ).tolist():
            self._add("overlap", row, f"{similarities[self._num_others + row]:.2f}: {self._kept.asked[row]}")
            self._glance.dropped[self._kept.number[row]] = "overlap"

    # Summary

    def _add(self, kind: str, row: int, text: str) -> None:
        self._ledger.add(kind, self._kept.number[row], self._kept.sources[row], text)

    def _place(self, row: int) -> str:
        return self._kept.sources[int(row)]

    def _summary(self) -> Audit:
        glance, kept = self._glance, self._kept
        prompts = np.array(kept.prompt_units, dtype=np.int64)
        units = np.array(kept.units, dtype=np.int64)
        num_used = int(self._fits.sum())
        sides = {name: int((self._sides == side).sum()) for side, name in enumerate(SIDE_NAMES)}
        return Audit(
            num_read=glance.num_read,
            num_used=num_used,
            num_refused=glance.num_read - num_used,
            unit="tokens" if glance.encoder else "words",
            lengths={
                name: _spread(values)
                for name, values in (("prompt", prompts), ("response", units - prompts), ("record", units))
                if len(values)
            },
            histogram=_histogram(units),
            num_units=int(units.sum()),
            num_trained=glance.num_trained if glance.preflight else None,
            num_ended=glance.preflight.num_ended if glance.preflight else None,
            turns=_ranked(glance.turns),
            languages=_ranked(glance.languages),
            scripts=_ranked(glance.scripts),
            tasks=_ranked(glance.tasks),
            sides=sides if any(sides.values()) else {},
            prompt_source=glance.prompt_source,
            prompt=glance.prompt,
            findings=self._ledger.findings(),
            clusters=self._clusters,
            dropped=dict(sorted(glance.dropped.items())),
        )


_NO_ANSWER = re.compile(r"nothing to learn|no answer to learn|the assistant's, is empty|`output`.* is null")


def _kind_of(refusal: SkippedRow) -> str:
    """What a refused row is a finding of: too long, without an answer, or of no use for what else is wrong with it."""
    if "data.max_length" in refusal.reason:
        return "too_long"
    return "empty_answers" if _NO_ANSWER.search(refusal.reason) else "unusable_rows"


def _around(text: str, at: int) -> str:
    """The neighbourhood of a place in a text: what an excerpt is made of."""
    start = max(0, at - 30)
    return ("..." if start else "") + text[start : start + 200]


def _rendered(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _groups(hashes: npt.NDArray[np.uint64]) -> Iterator[list[int]]:
    """The indices, rising, of each group of equal hashes with two members or more, in order of the first."""
    by_hash = np.argsort(hashes, kind="stable")
    ordered = hashes[by_hash]
    same = np.concatenate([[False], ordered[1:] == ordered[:-1], [False]])
    borders = np.flatnonzero(same[1:] != same[:-1])
    groups = [by_hash[start : end + 1].tolist() for start, end in zip(borders[::2], borders[1::2], strict=True)]
    yield from sorted(groups)


def _spread(values: npt.NDArray[np.int64]) -> Spread:
    p50, p95, p99 = (float(value) for value in np.percentile(values, [50, 95, 99]))
    return Spread(round(float(values.mean()), 1), p50, p95, p99, float(values.max()))


def _histogram(values: npt.NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Edges and counts of a dozen bins of a round width; the last takes all that is longer than the longest of 99 %."""
    if not len(values):
        return (), ()
    width = _round_up(max(1.0, float(np.percentile(values, 99)) / (_NUM_BINS - 1)))
    edges = [width * step for step in range(_NUM_BINS)]
    edges = [edge for edge in edges if edge <= values.max()]
    counts, _ = np.histogram(values, bins=[*edges, np.inf])
    return (*map(float, edges), float(max(values.max() + 1, edges[-1] + width))), tuple(counts.tolist())


def _round_up(width: float) -> int:
    """The next of 1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 80, 100, 200 ..."""
    scale = 1
    while True:
        for step in (1, 2, 2.5, 4, 5, 8):
            if step * scale >= width and step * scale == int(step * scale):
                return int(step * scale)
        scale *= 10


def _ranked(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())
