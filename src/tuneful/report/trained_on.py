"""The data section: every row read, every token given, computed and trained, and three records in full.

Feeds `sections.py`. Sums that have to agree (rows read = used + refused) are checked here, and the page warns where they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tuneful.numbers import count, percent, plain, plural, significant
from tuneful.report import charts
from tuneful.report.charts import Frame
from tuneful.report.folder import Json, Run, mapping, number, numbers, rows, text, whole

MAX_REFUSED_ROWS = 200

Cells = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token of a shown record; `css_class` is `context`, `partly` or `trained`, and ` special` for special tokens."""

    text: str
    css_class: str
    weight: str


@dataclass(frozen=True, slots=True)
class ShownRecord:
    """A record as the model saw it."""

    source: str
    tokens: tuple[TokenView, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class DataView:
    """What was trained on."""

    facts: Cells
    rows_sentence: str
    rows_bar: Markup
    rows_parts: tuple[tuple[str, str, str], ...]
    share_bar: Markup
    share_parts: tuple[tuple[str, str, str], ...]
    share_sentence: str
    work: tuple[tuple[str, str, str, Markup], ...]
    work_sentence: str
    lengths: tuple[tuple[str, ...], ...]
    histogram: tuple[Markup, ...]
    histogram_table: Cells
    shown: tuple[ShownRecord, ...]
    has_partly: bool
    refused: Cells
    num_refused: int
    contradictions: tuple[str, ...]


def view_data(run: Run) -> DataView:
    """Account for the rows, the tokens and the work of the run."""
    audit = run.audit
    tokens = mapping(audit, "train_tokens")
    total, trained = whole(tokens, "record"), whole(tokens, "trained")
    refused = rows(audit, "refused")
    share_parts = (("trained", trained or 0, "trained"), ("context", max(0, (total or 0) - (trained or 0)), "context"))
    split_parts = _split_parts(audit)
    shown = tuple(_shown(row) for row in rows(audit, "shown"))
    return DataView(
        facts=_data_facts(audit),
        rows_sentence=_rows_sentence(audit),
        rows_bar=charts.share_bar(split_parts, key="rows", title="Where the rows went"),
        rows_parts=_parts(split_parts),
        share_bar=charts.share_bar(share_parts, key="share", title="Share of the tokens that is trained")
        if total
        else Markup(""),
        share_parts=_parts(share_parts) if total else (),
        share_sentence=_share_sentence(total, trained),
        work=_work(run),
        work_sentence=_work_sentence(run),
        lengths=_lengths(mapping(audit, "lengths")),
        histogram=_histogram(mapping(audit, "length_histogram")),
        histogram_table=_histogram_table(mapping(audit, "length_histogram")),
        shown=shown,
        has_partly=any("partly" in token.css_class for record in shown for token in record.tokens),
        refused=tuple((text(row, "source"), text(row, "reason")) for row in refused[:MAX_REFUSED_ROWS]),
        num_refused=whole(audit, "rows_refused") or len(refused),
        contradictions=_contradictions(audit),
    )


def _data_facts(audit: Json) -> Cells:
    num_cut = whole(audit, "num_cut")
    limit = whole(audit, "max_length")
    weight = number(audit, "prompt_weight")
    cut = "none" if num_cut == 0 else plural(num_cut or 0, "record")
    facts = (
        ("Source", text(audit, "source")),
        ("Template", text(audit, "template")),
        ("Trained on", text(audit, "train_on")),
        ("Weight of the prompt", plain(weight) if weight is not None and 0 < weight < 1 else ""),
        ("Split", text(mapping(audit, "split"), "method")),
        ("Longest allowed", plural(limit, "token") if limit is not None else ""),
        ("Cut to length", cut if num_cut is not None else ""),
    )
    return tuple((name, value) for name, value in facts if value)


def _split_parts(audit: Json) -> tuple[tuple[str, float, str], ...]:
    split = mapping(audit, "split")
    parts = [(name, whole(split, name) or 0, name) for name in ("train", "validation", "test")]
    return (*parts, ("refused", whole(audit, "rows_refused") or 0, "refused")) if split else ()


def _parts(parts: Sequence[tuple[str, float, str]]) -> tuple[tuple[str, str, str], ...]:
    """(CSS class, name, amount with its share) of each part of a bar, for its legend."""
    total = sum(amount for _, amount, _ in parts)
    return tuple(
        (css_class, name, f"{count(amount)} ({percent(amount / total)})" if total and amount else count(amount))
        for name, amount, css_class in parts
    )


def _rows_sentence(audit: Json) -> str:
    read, used, refused = (whole(audit, key) for key in ("rows_read", "rows_used", "rows_refused"))
    if read is None or used is None:
        return ""
    return f"{plural(read, 'row')} read = {count(used)} used + {count(refused or 0)} refused."


def _share_sentence(total: int | None, trained: int | None) -> str:
    if not total or trained is None:
        return ""
    return (
        f"Of the {count(total)} tokens in the training records, {count(trained)} ({percent(trained / total)}) carry "
        "loss; the others are context: the model reads them and is not trained to write them."
    )


def _work(run: Run) -> tuple[tuple[str, str, str, Markup], ...]:
    """(name, amount, share, bar) of the tokens given, computed and trained over all recorded steps."""
    given, computed, trained = _work_sums(run)
    if not given:
        return ()
    largest = max(given, computed, trained)
    return tuple(
        (
            name,
            count(amount),
            percent(amount / given),
            charts.share_bar(
                ((name, amount, css_class), ("rest", largest - amount, "rest")),
                key=f"work-{css_class}",
                title=f"Tokens {name}",
            ),
        )
        for name, amount, css_class in (
            ("given", given, "given"),
            ("computed", computed, "computed"),
            ("trained", trained, "trained"),
        )
    )


def _work_sums(run: Run) -> tuple[int, int, int]:
    return (
        sum(step.record_tokens for step in run.steps),
        sum(step.computed_tokens for step in run.steps),
        sum(step.target_tokens for step in run.steps),
    )


def _work_sentence(run: Run) -> str:
    given, computed, _ = _work_sums(run)
    if not given:
        return ""
    opening = (
        f"Of the {count(given)} tokens in the records of {plural(len(run.steps), 'step')}, the engine computed "
        f"{count(computed)} ({percent(computed / given)})"
    )
    if computed > given:
        return f"{opening}: more than the records hold, because padding is computed too."
    if text(run.environment, "layout") not in ("", "trie"):
        return f"{opening}: nothing was shared between records."
    return f"{opening}: what records have in common at their beginning is computed once, and the result is the same."


def _lengths(lengths: Json) -> tuple[tuple[str, ...], ...]:
    found = []
    for name in ("prompt", "response", "record"):
        row = mapping(lengths, name)
        if row:
            figures = [significant(number(row, "mean")), *(count(number(row, key)) for key in ("p50", "p95", "max"))]
            found.append((name.capitalize() if name != "record" else "Whole record", *figures))
    return tuple(found)


def _histogram(row: Json) -> tuple[Markup, ...]:
    edges, counts = numbers(row, "edges"), numbers(row, "counts")
    return tuple(
        charts.histogram(
            edges,
            counts,
            key=f"lengths-{size}",
            title="How long the records are",
            description=f"Histogram of {count(sum(counts))} records by their number of tokens.",
            x_label="tokens in a record",
            y_label="records",
            frame=frame,
        )
        for size, frame in (("wide", Frame(width=1000, height=240)), ("narrow", Frame(width=360, height=220, left=40)))
    )


def _histogram_table(row: Json) -> Cells:
    edges, counts = numbers(row, "edges"), numbers(row, "counts")
    if len(edges) != len(counts) + 1:
        return ()
    return tuple(
        (f"{count(low)} to {count(high)}", count(amount))
        for low, high, amount in zip(edges[:-1], edges[1:], counts, strict=True)
        if amount
    )


def _shown(row: Json) -> ShownRecord:
    tokens = tuple(_token(token) for token in rows(row, "tokens"))
    num_trained = sum(not token.css_class.startswith("context") for token in tokens)
    return ShownRecord(text(row, "source"), tokens, f"{plural(len(tokens), 'token')}, {count(num_trained)} trained")


def _token(row: Json) -> TokenView:
    weight = number(row, "weight") or 0.0
    css_class = "context" if weight <= 0 else "partly" if weight < 1 else "trained"
    return TokenView(
        text=text(row, "text").replace("\r\n", "\n").replace("\n", "⏎\n"),
        css_class=f"{css_class} special" if row.get("special") is True else css_class,
        weight=plain(weight) if css_class == "partly" or weight > 1 else "",
    )


def _contradictions(audit: Json) -> tuple[str, ...]:
    found = []
    read, used, refused = (whole(audit, key) for key in ("rows_read", "rows_used", "rows_refused"))
    if None not in (read, used, refused) and read != (used or 0) + (refused or 0):
        found.append(
            f"The counts disagree: {count(read)} rows read, but {count(used)} used and {count(refused)} refused."
        )
    split = mapping(audit, "split")
    divided = sum(whole(split, name) or 0 for name in ("train", "validation", "test"))
    if split and used is not None and divided != used:
        found.append(f"The counts disagree: {count(used)} rows used, but {count(divided)} in the split.")
    return tuple(found)
