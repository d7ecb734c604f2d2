"""Answers that are few short labels: a set for classification is told from one for writing, and its labels are counted.

Runs when all rows are known and have their side. A set is one of labels where every answer is a short line, and the answers
repeat: at most a hundred different ones, each five times on average. Nothing is trained otherwise for that; `data.json` carries
the labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from tuneful.audit.findings import FindingCollector
from tuneful.audit.scan import ScannedRows
from tuneful.data.duplicates import normal_text
from tuneful.data.split import TEST, TRAIN, VALIDATION, Sides
from tuneful.runs.schema import LabelCounts

MAX_LABELS = 100
_MIN_ROWS, _ROWS_A_LABEL, _MAX_CHARACTERS = 20, 5, 60
_LOPSIDED = 10


def find_labels(rows: ScannedRows, sides: Sides, findings: FindingCollector) -> tuple[LabelCounts, ...]:
    """The labels, the commonest first; none where the answers are no labels.

    Adds to `findings` the held-out rows whose label is never trained, and labels that are written in several ways.
    """
    if len(rows) < _MIN_ROWS or max(rows.answer_characters) > _MAX_CHARACTERS:
        return ()
    most = min(MAX_LABELS, len(rows) // _ROWS_A_LABEL)
    written: defaultdict[str, Counter[str]] = defaultdict(Counter)
    of_rows: list[str] = []
    for row in range(len(rows)):
        answer = rows.answers[row].strip()
        label = normal_text(answer) or answer
        of_rows.append(label)
        written[label][answer] += 1
        if len(written) > most or "\n" in answer:
            return ()
    if len(written) < 2:
        return ()
    _add_findings(rows, sides, findings, of_rows, written)
    counts = {
        side: Counter(label for label, own in zip(of_rows, sides, strict=True) if own == side) for side in range(3)
    }
    ranked = sorted(written, key=lambda label: (-written[label].total(), label))
    return tuple(
        LabelCounts(
            written[label].most_common(1)[0][0],
            written[label].total(),
            counts[TRAIN][label],
            counts[VALIDATION][label],
            counts[TEST][label],
        )
        for label in ranked
    )


def labels_in_words(labels: Sequence[LabelCounts]) -> str:
    """`12 distinct answers: this is classification. yes 90, no 10; ...`."""
    named = ", ".join(f"{one.label} {one.count:,}" for one in labels[:6])
    more = f", {len(labels) - 6:,} more" if len(labels) > 6 else ""
    most, least = labels[0], labels[-1]
    lopsided = (
        f"; the commonest comes {most.count / least.count:,.0f} times as often as the rarest ({least.label})"
        if most.count >= _LOPSIDED * least.count
        else ""
    )
    return f"{len(labels)} distinct answers: this is classification. {named}{more}{lopsided}"


def _add_findings(
    rows: ScannedRows, sides: Sides, findings: FindingCollector, of_rows: list[str], written: dict[str, Counter[str]]
) -> None:
    trained = {label for label, side in zip(of_rows, sides, strict=True) if side == TRAIN}
    for row, label in enumerate(of_rows):
        if trained and sides[row] > TRAIN and label not in trained:
            findings.add("unseen_labels", rows.number[row], rows.sources[row], rows.answers[row])
        usual = written[label].most_common(1)[0][0]
        if rows.answers[row].strip() != usual:
            shown = f"{rows.answers[row].strip()!r}, elsewhere {usual!r}"
            findings.add("label_spellings", rows.number[row], rows.sources[row], shown)
