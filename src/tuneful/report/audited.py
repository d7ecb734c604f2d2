"""The findings section: what the check of the data found, a panel each, with three places, the harm and the advice.

Feeds `sections.py` from `findings` and `clusters` of data.json. A run made before there was a check has neither, and its page has
no such section.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneful.numbers import count, fixed, plural
from tuneful.report.folder import Json, mapping, number, rows, text, whole
from tuneful.report.trained_on import Cells

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
    """All findings of the check, in a sentence and one by one; `kinds` counts languages, tasks and the like."""

    sentence: str
    findings: tuple[FindingView, ...]
    clusters: Cells
    kinds: Cells


def view_findings(audit: Json) -> FindingsView | None:
    """What the check found; None where the run was made without one."""
    if "findings" not in audit:
        return None
    found = tuple(_finding(row) for row in rows(audit, "findings"))
    num_notes = sum(one.severity == "note" for one in found)
    num_findings = len(found) - num_notes
    if not found:
        sentence = "Nothing was found: every row was looked at for all that the documentation of “tuneful check” lists."
    else:
        named = [plural(amount, noun) for amount, noun in ((num_findings, "finding"), (num_notes, "note")) if amount]
        sentence = f"{' and '.join(named)}. What they mean and what to do about them, with the first places of each:"
    return FindingsView(sentence, found, _clusters(audit), _kinds(audit))


def _finding(row: Json) -> FindingView:
    cases = tuple((text(case, "source"), text(case, "text")) for case in rows(row, "cases"))
    amount = whole(row, "count") or len(cases)
    rest = amount - len(cases)
    return FindingView(
        severity="note" if text(row, "severity") == "note" else "finding",
        title=text(row, "title") or text(row, "name"),
        amount=plural(amount, "record"),
        cases=cases,
        more=f"and {count(rest)} more" if rest > 0 else "",
        why=text(row, "why"),
        advice=text(row, "advice"),
    )


def _clusters(audit: Json) -> Cells:
    found = []
    for row in rows(audit, "clusters")[:MAX_CLUSTERS]:
        sources = [str(source) for source in row.get("sources") or ()]
        shown = ", ".join(sources[:8]) + (f" and {count(len(sources) - 8)} more" if len(sources) > 8 else "")
        found.append((fixed(number(row, "similarity") or 0.0, 2), shown))
    return tuple(found)


def _kinds(audit: Json) -> Cells:
    found = []
    for key in ("languages", "scripts", "tasks", "turns"):
        amounts = [(str(name), whole(mapping(audit, key), name) or 0) for name in mapping(audit, key)]
        if amounts:
            found.append((key.capitalize(), ", ".join(f"{name} {count(amount)}" for name, amount in amounts)))
    return tuple(found)
