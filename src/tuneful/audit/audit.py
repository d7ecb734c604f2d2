"""A whole data set in numbers and findings, in one pass, before a step is taken.

    rows (record, example) -> Scan (each by itself) -> CrossChecks (beside one another) -> Audit

Every row is read once: the scan yields the prompts from which the sketches for the second stage are made. Without an encoder
lengths are words, and the checks of `preflight.py` are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np

from tuneful.audit.cross_checks import UNDIVIDED, CrossChecks, PromptSketches
from tuneful.audit.findings import Finding
from tuneful.audit.labels import find_labels
from tuneful.audit.lengths import length_histogram, summarize_lengths
from tuneful.audit.scan import AuditedRow, Scan
from tuneful.audit.traits import summarize_first_words
from tuneful.config import Config
from tuneful.data.duplicates import Sketches
from tuneful.data.read import Record, SkippedRow
from tuneful.data.split import SIDE_NAMES, Sides, normal_prompt
from tuneful.encoding.encode import Encoder
from tuneful.runs.schema import (
    Cluster,
    DataDocument,
    Histogram,
    LabelCounts,
    LengthSummary,
    PreferenceSummary,
    as_row,
)
from tuneful.types import Conversation, Example

__all__ = ["Audit", "AuditedRow", "audit", "audit_sides"]


@dataclass(frozen=True, slots=True)
class Audit:
    """What a data set holds and what is wrong with it; `num_read = num_used + num_refused`.

    Lengths are in `unit`, tokens or words; `num_trained` and `num_ended` (records whose end token is trained) are None
    where nothing was encoded. `sides` counts records by side, empty where there are too few to divide. `prompt` is the
    first record's prompt as inference sends it. `labels` are the answers where they are few short ones. `dropped` are the numbers
    of rows, as read, that `--fix` leaves out, with the reason.
    """

    num_read: int
    num_used: int
    num_refused: int
    unit: str
    lengths: Mapping[str, LengthSummary]
    histogram: Histogram
    num_units: int
    num_trained: int | None
    num_ended: int | None
    turns: Mapping[str, int]
    languages: Mapping[str, int]
    scripts: Mapping[str, int]
    first_words: Mapping[str, int]
    sides: Mapping[str, int]
    prompt_source: str
    prompt: str
    findings: tuple[Finding, ...]
    clusters: tuple[Cluster, ...]
    labels: tuple[LabelCounts, ...]
    dropped: Mapping[int, str]
    preferences: PreferenceSummary | None = None

    @property
    def num_findings(self) -> int:
        """Findings that are no mere notes."""
        return sum(finding.kind.severity == "finding" for finding in self.findings)

    def added_to(self, document: DataDocument) -> DataDocument:
        """The data.json of a run, with what was found."""
        return replace(
            document,
            lengths=self.lengths,
            length_histogram=self.histogram,
            findings=tuple(finding.summary() for finding in self.findings),
            num_findings=self.num_findings,
            preferences=self.preferences,
            clusters=self.clusters,
            labels=self.labels,
            turns=self.turns,
            languages=self.languages,
            scripts=self.scripts,
            first_words=self.first_words,
        )

    def as_dict(self, max_sources: int = 1000) -> dict[str, Any]:
        """For `check --json`; each finding lists the first `max_sources` of its places."""
        return {
            "rows_read": self.num_read,
            "rows_used": self.num_used,
            "rows_refused": self.num_refused,
            "unit": self.unit,
            "lengths": {name: as_row(summary) for name, summary in self.lengths.items()},
            "length_histogram": as_row(self.histogram),
            f"num_{self.unit}": self.num_units,
            "num_trained": self.num_trained,
            "num_ended": self.num_ended,
            "turns": dict(self.turns),
            "languages": dict(self.languages),
            "scripts": dict(self.scripts),
            "first_words": dict(self.first_words),
            "split": dict(self.sides),
            "preferences": as_row(self.preferences) if self.preferences else None,
            "prompt": {"source": self.prompt_source, "text": self.prompt},
            "num_findings": self.num_findings,
            "findings": [finding.as_dict(max_sources) for finding in self.findings],
            "clusters": [as_row(cluster) for cluster in self.clusters],
            "labels": [as_row(label) for label in self.labels],
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
    scan = Scan(config, encoder, advance)
    others = [normal_prompt(conversation) for conversation in against]
    sided = chain(_with_side(UNDIVIDED, rows), *(_with_side(side, its_rows) for side, its_rows in given.items()))
    sketches = Sketches(chain(others, scan.prompts(sided)))  # the scan of all rows happens here
    sides, clusters = CrossChecks(scan, PromptSketches(sketches, len(others)), config).run()
    labels = find_labels(scan.rows, sides, scan.findings) if config.train.objective == "sft" else ()
    return _summary(scan, sides, clusters, labels, is_grouped=config.data.split == "grouped")


def audit_sides(
    sides: Sequence[tuple[Sequence[Record], Sequence[Example]]],
    skipped: Iterable[SkippedRow],
    config: Config,
    encoder: Encoder,
) -> Audit:
    """Look at a data set that is divided already: (records, examples) of train, validation and test, and what was skipped."""
    given = {side: zip(*pair, strict=True) for side, pair in enumerate(sides)}
    return audit(((row, None) for row in skipped), config, encoder, given=given)


def _with_side(side: int, rows: Iterable[AuditedRow]) -> Iterator[tuple[int, AuditedRow]]:
    return ((side, row) for row in rows)


def _summary(
    scan: Scan, sides: Sides, clusters: tuple[Cluster, ...], labels: tuple[LabelCounts, ...], *, is_grouped: bool
) -> Audit:
    """Everything that both stages found, put together."""
    prompts = np.array(scan.rows.prompt_units, dtype=np.int64)
    records = np.array(scan.rows.units, dtype=np.int64)
    unit = "tokens" if scan.preflight else "words"
    answers = {"response": records - prompts}
    if len(pairs := scan.preferences.unit_row) == len(records):
        answers = {
            name: np.array(getattr(scan.preferences, f"{name}_units")) for name in ("chosen", "rejected") if pairs
        }
    lengths = {"prompt": prompts, **answers, "record": records}
    counts = {name: int((sides == side).sum()) for side, name in enumerate(SIDE_NAMES)}
    return Audit(
        num_read=scan.num_read,
        num_used=len(records),
        num_refused=scan.num_read - len(records),
        unit=unit,
        lengths={name: summarize_lengths(values) for name, values in lengths.items()} if len(records) else {},
        histogram=length_histogram(records),
        num_units=int(records.sum()),
        num_trained=scan.num_trained if scan.preflight else None,
        num_ended=scan.preflight.num_ended if scan.preflight else None,
        turns=_ranked(scan.traits.turns),
        languages=_ranked(scan.traits.languages),
        scripts=_ranked(scan.traits.scripts),
        first_words=summarize_first_words(scan.traits.first_words),
        sides=counts if any(counts.values()) else {},
        prompt_source=scan.prompt_source,
        prompt=scan.prompt,
        findings=scan.findings.findings(is_grouped),
        clusters=clusters,
        labels=labels,
        dropped=dict(sorted(scan.dropped.items())),
        preferences=scan.preferences.summary(unit),
    )


def _ranked(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())
