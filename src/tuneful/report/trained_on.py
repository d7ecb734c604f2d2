"""The data section: every row read, every token given, computed and trained, and three records in full.

Feeds `sections.py`. Sums that have to agree (rows read = used + refused) are checked here, and the page warns where they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tuneful.audit.labels import labels_in_words
from tuneful.encoding.by_file import files_in_words
from tuneful.numbers import count, known, percent, plain, plural, significant
from tuneful.report import charts
from tuneful.report.charts import PlotArea
from tuneful.report.folder import Run
from tuneful.report.paths import without_folders
from tuneful.runs.schema import DataDocument, Histogram, LengthSummary, ShownExample, Split, Token, read_loosely

MAX_REFUSED_ROWS = 200

Cells = tuple[tuple[str, str], ...]
_LENGTHS = {
    "prompt": "Prompt",
    "response": "Response",
    "chosen": "Chosen answer",
    "rejected": "Rejected answer",
    "record": "Whole record",
}


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token of a shown record; `css_class` is `context`, `partly` or `trained`, and ` special` for special tokens."""

    text: str
    css_class: str
    weight: str


@dataclass(frozen=True, slots=True)
class ExampleView:
    """A record as the model saw it."""

    source: str
    tokens: tuple[TokenView, ...]
    summary: str
    rejected: tuple[TokenView, ...] = ()


@dataclass(frozen=True, slots=True)
class DataView:
    """What was trained on."""

    facts: Cells
    rows_sentence: str
    reading: tuple[str, ...]
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
    shown: tuple[ExampleView, ...]
    has_partly: bool
    refused: Cells
    num_refused: int
    contradictions: tuple[str, ...]


def view_data(run: Run) -> DataView:
    """Account for the rows, the tokens and the work of the run."""
    data = run.data or read_loosely(DataDocument, {})
    total, trained = data.train_tokens.record, data.train_tokens.trained
    share_parts = (("trained", trained, "trained"), ("context", max(0, total - trained), "context"))
    split_parts = _split_parts(data)
    shown = tuple(map(_shown, data.shown))
    return DataView(
        facts=_data_facts(data),
        rows_sentence=_rows_sentence(data),
        reading=tuple(note.text for note in data.reading),
        rows_bar=charts.share_bar(split_parts, key="rows", title="Where the rows went"),
        rows_parts=_parts(split_parts),
        share_bar=charts.share_bar(share_parts, key="share", title="Share of the tokens that is trained")
        if total
        else Markup(""),
        share_parts=_parts(share_parts) if total else (),
        share_sentence=_share_sentence(total, trained),
        work=_work(run),
        work_sentence=_work_sentence(run),
        lengths=_lengths(data.lengths),
        histogram=_histogram(data.length_histogram),
        histogram_table=_histogram_table(data.length_histogram),
        shown=shown,
        has_partly=any("partly" in token.css_class for record in shown for token in record.tokens),
        refused=tuple((skipped.source, skipped.reason) for skipped in data.refused[:MAX_REFUSED_ROWS]),
        num_refused=data.rows_refused or len(data.refused),
        contradictions=_contradictions(data),
    )


def _data_facts(data: DataDocument) -> Cells:
    weight, limit = data.prompt_weight, data.max_length
    cut = plural(data.num_cut, "record") if data.num_cut else "none"
    facts = (
        ("Source", data.source),
        ("Template", data.template),
        ("Trained on", data.train_on),
        ("Weight of the prompt", plain(weight) if 0 < weight < 1 else ""),
        ("Split", data.split.method),
        ("Longest allowed", plural(limit, "token") if limit else ""),
        ("Cut to length", cut if limit else ""),
        ("Chunks", "" if data.num_chunks is None else f"{count(data.num_chunks)} of the training records"),
        ("Labels", labels_in_words(data.labels) if data.labels else ""),
        *((f"File {number}", line) for number, line in enumerate(files_in_words(data.files), start=1)),
    )
    return tuple((name, without_folders(value)) for name, value in facts if value)


def _split_parts(data: DataDocument) -> tuple[tuple[str, float, str], ...]:
    if not _num_divided(data.split):
        return ()
    sides = {"train": data.split.train, "validation": data.split.validation, "test": data.split.test}
    return tuple((name, amount, name) for name, amount in {**sides, "refused": data.rows_refused}.items())


def _num_divided(split: Split) -> int:
    return split.train + split.validation + split.test


def _parts(parts: Sequence[tuple[str, float, str]]) -> tuple[tuple[str, str, str], ...]:
    """(CSS class, name, amount with its share) of each part of a bar, for its legend."""
    total = sum(amount for _, amount, _ in parts)
    return tuple(
        (css_class, name, f"{count(amount)} ({percent(amount / total)})" if total and amount else count(amount))
        for name, amount, css_class in parts
    )


def _rows_sentence(data: DataDocument) -> str:
    if not data.rows_read:
        return ""
    left_out = f" + {count(data.rows_left_out)} left out by data.train_share" if data.rows_left_out else ""
    return f"{plural(data.rows_read, 'row')} read = {count(data.rows_used)} used{left_out} + {count(data.rows_refused)} refused."


def _share_sentence(total: int, trained: int) -> str:
    if not total:
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
    if run.environment is not None and run.environment.layout not in ("", "trie"):
        return f"{opening}: nothing was shared between records."
    return f"{opening}: what records have in common at their beginning is computed once, and the result is the same."


def _lengths(lengths: Mapping[str, LengthSummary]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (what, significant(found.mean), count(found.p50), count(found.p95), count(found.max))
        for name, what in _LENGTHS.items()
        if (found := lengths.get(name)) is not None
    )


def _histogram(row: Histogram) -> tuple[Markup, ...]:
    return tuple(
        charts.histogram(
            row.edges,
            row.counts,
            key=f"lengths-{size}",
            title="How long the records are",
            description=f"Histogram of {count(sum(row.counts))} records by their number of tokens.",
            x_label="tokens in a record",
            y_label="records",
            frame=frame,
        )
        for size, frame in (
            ("wide", PlotArea(width=1000, height=240)),
            ("narrow", PlotArea(width=360, height=220, left=40)),
        )
    )


def _histogram_table(row: Histogram) -> Cells:
    if len(row.edges) != len(row.counts) + 1:
        return ()
    return tuple(
        (f"{count(low)} to {count(high)}", count(amount))
        for low, high, amount in zip(row.edges[:-1], row.edges[1:], row.counts, strict=True)
        if amount
    )


def _shown(example: ShownExample) -> ExampleView:
    tokens, rejected = (tuple(map(_token, side)) for side in (example.tokens, example.rejected or ()))
    summary = _summary(tokens)
    if rejected:
        summary = f"chosen: {summary}; rejected: {_summary(rejected)}"
    if example.label is not None:
        summary += ", wanted" if example.label else ", not wanted"
    pairs = zip(example.tokens, example.rejected or (), strict=False)
    same = next((at for at, (one, other) in enumerate(pairs) if one.id != other.id or one.weight > 0), 0)
    return ExampleView(example.source, tokens, summary, rejected[same:])


def _summary(tokens: Sequence[TokenView]) -> str:
    num_trained = sum(not token.css_class.startswith("context") for token in tokens)
    return f"{plural(len(tokens), 'token')}, {count(num_trained)} trained"


def _token(token: Token) -> TokenView:
    weight = token.weight if known(token.weight) else 0.0
    css_class = "context" if weight <= 0 else "partly" if weight < 1 else "trained"
    return TokenView(
        text=token.text.replace("\r\n", "\n").replace("\n", "⏎\n"),
        css_class=f"{css_class} special" if token.special else css_class,
        weight=plain(weight) if css_class == "partly" or weight > 1 else "",
    )


def _contradictions(data: DataDocument) -> tuple[str, ...]:
    found = []
    read, used, refused, divided = data.rows_read, data.rows_used, data.rows_refused, _num_divided(data.split)
    if read != used + data.rows_left_out + refused:
        found.append(
            f"The counts disagree: {count(read)} rows read, but {count(used)} used and {count(refused)} refused."
        )
    if used and divided and divided != used:
        found.append(f"The counts disagree: {count(used)} rows used, but {count(divided)} in the split.")
    return tuple(found)
