"""The findings section: what the check of the data found, a panel each, with three places, the harm and the advice.

Feeds `sections.py` from `findings` and `clusters` of data.json. A run made before there was a check has neither, and its page has
no such section.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneful.numbers import count, fixed, plural
from tuneful.report.trained_on import Cells
from tuneful.runs.schema import Cluster, DataDocument, FindingSummary

MAX_CLUSTERS = 20


@dataclass(frozen=True, slots=True)
class FindingView:
    """One kind of finding."""

    severity: str
    title: str
    amount: str
    cases: Cells
    more: str
    why: str
    advice: str


@dataclass(frozen=True, slots=True)
class FindingsView:
    """All findings of the check, in a sentence and one by one; `kinds` counts languages, first words and the like."""

    sentence: str
    findings: tuple[FindingView, ...]
    clusters: Cells
    kinds: Cells


def view_findings(data: DataDocument | None) -> FindingsView | None:
    """What the check found; None where the run was made without one."""
    if data is None or data.findings is None:
        return None
    found = tuple(map(_finding, data.findings))
    num_notes = sum(one.severity == "note" for one in found)
    num_findings = len(found) - num_notes
    if not found:
        sentence = "Nothing was found: every row was looked at for all that the documentation of “tuneful check” lists."
    else:
        named = [plural(amount, noun) for amount, noun in ((num_findings, "finding"), (num_notes, "note")) if amount]
        sentence = f"{' and '.join(named)}. What they mean and what to do about them, with the first places of each:"
    return FindingsView(sentence, found, tuple(map(_cluster, data.clusters[:MAX_CLUSTERS])), _kinds(data))


def _finding(found: FindingSummary) -> FindingView:
    cases = tuple((case.source, case.text) for case in found.cases)
    amount = found.count or len(cases)
    rest = amount - len(cases)
    return FindingView(
        severity="note" if found.severity == "note" else "finding",
        title=found.title or found.name,
        amount=plural(amount, "record"),
        cases=cases,
        more=f"and {count(rest)} more" if rest > 0 else "",
        why=found.why,
        advice=found.advice,
    )


def _cluster(cluster: Cluster) -> tuple[str, str]:
    sources = cluster.sources
    shown = ", ".join(sources[:8]) + (f" and {count(len(sources) - 8)} more" if len(sources) > 8 else "")
    return fixed(cluster.similarity, 2), shown


def _kinds(data: DataDocument) -> Cells:
    counted = {
        "Languages": data.languages,
        "Scripts": data.scripts,
        "First words": data.first_words,
        "Turns": data.turns,
    }
    return tuple(
        (what, ", ".join(f"{name} {count(amount)}" for name, amount in amounts.items()))
        for what, amounts in counted.items()
        if amounts
    )
