"""Decides what the page says: a `Run` becomes a `Page` of finished words, figures and drawings.

Second stage of the report; the template only lays it out. What a run does not have becomes a sentence that says so, and
sums that ought to agree (rows read = used + refused) are checked here and contradicted aloud where they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from markupsafe import Markup

from tuneful.report import charts
from tuneful.report.answers import Answers, main_metric, view_answers
from tuneful.report.charts import NARROW, SMALL, WIDE, Frame, Series, smooth, thin
from tuneful.report.folder import Comparison, Evaluation, Json, Metric, Run, mapping, number, numbers, rows, text, whole
from tuneful.report.numbers import (
    UNKNOWN,
    compact,
    count,
    decimals_for,
    duration,
    fixed,
    percent,
    plain,
    plural,
    signed,
    significant,
    storage,
)

MAX_SAMPLES = 24
MAX_TABLE_ROWS = 40
MAX_REFUSED_ROWS = 200
_CLEARLY_LOWER = 0.01

Cells = tuple[tuple[str, str], ...]
Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Figure:
    """A key figure of the head."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A line of the table of metrics; `tone` is `better`, `worse` or `unclear`."""

    label: str
    unit: str
    aim: str
    base: str
    tuned: str
    difference: str
    interval: str
    wins: str
    losses: str
    ties: str
    verdict: str
    tone: str
    plot: Markup


@dataclass(frozen=True, slots=True)
class Scores:
    """The table of metrics and the sentence on how it was computed."""

    rows: tuple[ScoreRow, ...]
    method: str


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token of a shown record; `css_class` is `context`, `partly` or `trained`, with ` special` for control tokens."""

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


@dataclass(frozen=True, slots=True)
class TrainingView:
    """The curves of the training."""

    sentence: str
    by_step: tuple[Markup, ...]
    by_tokens: tuple[Markup, ...]
    small: tuple[tuple[str, Markup], ...]
    smoothing: str
    has_validation: bool
    evaluations: tuple[tuple[str, str, str], ...]
    steps: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class SampleView:
    """A sample answer written during training."""

    step: str
    validation_loss: str
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Samples:
    """The timeline of samples; `prompt` is set where all of them answer the same one."""

    prompt: str
    shown: tuple[SampleView, ...]
    num_all: int


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that `page.html.j2` lays out."""

    model: str
    data_name: str
    lede: str
    caution: str
    notes: tuple[str, ...]
    when: str
    figures: tuple[Figure, ...]
    scores: Scores | None
    data: DataView | None
    training: TrainingView | None
    answers: Answers | None
    samples: Samples | None
    setup: tuple[tuple[str, Cells], ...]
    version: str


def view_page(run: Run) -> Page:
    """Say everything that the run has to say."""
    answers = view_answers(run) if run.base or run.tuned else None
    return Page(
        model=_model_name(run),
        data_name=text(run.audit, "source") or text(mapping(run.config, "data"), "source") or "unnamed data",
        lede=_lede(run),
        caution=run.comparison.caution if run.comparison else "",
        notes=(*_missing(run), *run.remarks),
        when=_when(run.environment),
        figures=_figures(run),
        scores=_scores(run.comparison) if run.comparison and run.comparison.metrics else None,
        data=_data(run) if run.audit or run.steps else None,
        training=_training(run) if run.steps or run.evaluations else None,
        answers=answers,
        samples=_samples(run.evaluations),
        setup=_setup(run),
        version=text(run.environment, "tuneful"),
    )


# Head ------------------------------------------------------------------------------------------------------------------


def _model_name(run: Run) -> str:
    named = text(mapping(run.environment, "model"), "name")
    return named or text(mapping(run.config, "model"), "name_or_path") or "A model"


def _lede(run: Run) -> str:
    if run.comparison and run.comparison.sentence:
        return run.comparison.sentence
    if not run.steps:
        return "Nothing has been trained in this run yet."
    if _is_unfinished(run):
        return f"This run stopped after step {count(run.steps[-1].step)}; there is no verdict on it yet."
    return "The model was trained; whether it answers better was not measured in this run."


def _is_unfinished(run: Run) -> bool:
    return bool(run.environment) and not text(run.environment, "finished")


def _missing(run: Run) -> list[str]:
    notes = []
    if _is_unfinished(run):
        last = f"the last recorded step is {count(run.steps[-1].step)}" if run.steps else "no training step is recorded"
        notes.append(f"The run has not finished: {last}.")
    if not run.environment:
        notes.append("environment.json is missing: versions, hardware and times are unknown.")
    if not run.audit:
        notes.append("data.json is missing: the page cannot say what was trained on.")
    if not run.steps and not _is_unfinished(run):
        notes.append("metrics.jsonl holds no training step: there are no curves.")
    if not run.base and not run.tuned:
        notes.append("There are no test answers: `tuneful run` asks the model before and after training, `tuneful train` does not.")
    elif not run.base:
        notes.append("The answers before training (answers/base.jsonl) are missing.")
    elif not run.tuned:
        notes.append("The answers after training (answers/tuned.jsonl) are missing.")
    elif not run.comparison:
        notes.append("The answers were not compared: comparison.json is missing.")
    return notes


def _when(environment: Json) -> str:
    started = text(environment, "started")
    try:
        moment = datetime.fromisoformat(started.replace("Z", "+00:00"))
    except ValueError:
        return started
    zone = " UTC" if moment.utcoffset() is not None and not moment.utcoffset() else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


def _figures(run: Run) -> tuple[Figure, ...]:
    figures = (_figure_of_loss(run), _figure_of_score(run), _figure_of_time(run), _figure_of_records(run))
    return tuple(figure for figure in figures if figure)


def _figure_of_loss(run: Run) -> Figure | None:
    measured = _measured(run.evaluations)
    if measured:
        best = min(measured, key=lambda point: point[1])
        first, last = measured[0][1], measured[-1][1]
        value = f"{fixed(first, 2)} → {fixed(last, 2)}" if len(measured) > 1 else fixed(first, 2)
        return Figure("Validation loss", value, f"lowest {fixed(best[1], 2)} at step {count(best[0])}")
    losses = [step.loss for step in run.steps if step.loss is not None]
    if not losses:
        return None
    return Figure("Training loss", f"{fixed(losses[0], 2)} → {fixed(losses[-1], 2)}", "first and last step")


def _figure_of_score(run: Run) -> Figure | None:
    metric = main_metric(run.comparison.metrics) if run.comparison else None
    if metric is None or run.comparison is None:
        return None
    decimals = decimals_for(metric.base, metric.tuned, metric.difference)
    interval = _interval(metric, decimals)
    note = f"{_confidence(run.comparison)} interval {interval}" if interval else f"{fixed(metric.base, decimals)} → {fixed(metric.tuned, decimals)}"
    return Figure(f"{metric.label}, change", signed(metric.difference, decimals), note)


def _figure_of_time(run: Run) -> Figure | None:
    phases = mapping(run.environment, "phase_seconds")
    seconds = number(phases, "training")
    if seconds is None and run.steps:
        seconds = math.fsum(step.step_seconds or 0.0 for step in run.steps)
    if seconds is None:
        return None
    device, dtype = text(run.environment, "device"), text(run.environment, "dtype")
    where = f" on {device}, {dtype}" if device and dtype else ""
    return Figure("Training time", duration(seconds), f"{plural(len(run.steps), 'step')}{where}")


def _figure_of_records(run: Run) -> Figure | None:
    split = mapping(run.audit, "split")
    trained = whole(split, "train")
    if trained is None:
        return None
    return Figure(
        "Records trained on",
        count(trained),
        f"{count(whole(split, 'validation'))} validation · {count(whole(split, 'test'))} test",
    )


# Scores ----------------------------------------------------------------------------------------------------------------


def _scores(comparison: Comparison) -> Scores:
    limits = _limits(comparison.metrics)
    return Scores(
        rows=tuple(_score_row(index, metric, limits, comparison) for index, metric in enumerate(comparison.metrics)),
        method=_method(comparison),
    )


def _limits(metrics: Sequence[Metric]) -> dict[str, float]:
    """Half the width of the interval plots, by unit: rows with one unit share one scale."""
    limits: dict[str, float] = {}
    for metric in metrics:
        reach = max(abs(value or 0.0) for value in (metric.difference, metric.low, metric.high))
        limits[metric.unit] = max(limits.get(metric.unit, 0.0), reach * 1.08)
    return limits


def _score_row(index: int, metric: Metric, limits: dict[str, float], comparison: Comparison) -> ScoreRow:
    decimals = decimals_for(metric.base, metric.tuned, metric.difference)
    verdict = metric.verdict.replace("_", " ") or "not judged"
    tone = verdict if verdict in ("better", "worse") else "unclear"
    return ScoreRow(
        label=metric.label,
        unit=metric.unit,
        aim={True: "higher is better", False: "lower is better", None: ""}[metric.higher_is_better],
        base=fixed(metric.base, decimals),
        tuned=fixed(metric.tuned, decimals),
        difference=signed(metric.difference, decimals),
        interval=_interval(metric, decimals),
        wins=count(metric.wins),
        losses=count(metric.losses),
        ties=count(metric.ties),
        verdict=verdict,
        tone=tone,
        plot=_interval_plot(index, metric, limits[metric.unit], tone, decimals, comparison),
    )


def _interval(metric: Metric, decimals: int) -> str:
    if metric.low is None or metric.high is None:
        return ""
    return f"{signed(metric.low, decimals)} to {signed(metric.high, decimals)}"


def _interval_plot(
    index: int, metric: Metric, limit: float, tone: str, decimals: int, comparison: Comparison
) -> Markup:
    if metric.difference is None or metric.low is None or metric.high is None:
        return Markup("")
    turn = -1.0 if metric.higher_is_better is False else 1.0
    return charts.interval_plot(
        metric.difference * turn,
        metric.low * turn,
        metric.high * turn,
        limit,
        key=f"interval-{index}",
        title=f"{metric.label}: {metric.verdict or 'not judged'}",
        description=f"Difference {signed(metric.difference, decimals)}, {_confidence(comparison)} interval "
        f"{_interval(metric, decimals)}. Right of the line is better.",
        tone=tone,
    )


def _confidence(comparison: Comparison) -> str:
    return percent(comparison.confidence)


def _method(comparison: Comparison) -> str:
    items = f"Means over {plural(comparison.num_items, 'test item')}." if comparison.num_items is not None else ""
    if comparison.confidence is None:
        return items
    draws = f", from {count(comparison.num_resamples)} resamples" if comparison.num_resamples else ""
    seed = f" (seed {comparison.seed})" if comparison.seed is not None else ""
    return (
        f"{items} Intervals are paired, at {_confidence(comparison)}{draws}{seed}: "
        "both models answered the same items. Where an interval reaches across zero, the data cannot tell."
    ).strip()


# Data ------------------------------------------------------------------------------------------------------------------


def _data(run: Run) -> DataView:
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
        share_bar=charts.share_bar(share_parts, key="share", title="Share of the tokens that is trained") if total else Markup(""),
        share_parts=_parts(share_parts) if total else (),
        share_sentence=_share_sentence(audit, total, trained),
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
    cut = "none" if num_cut == 0 else plural(num_cut or 0, "record")
    facts = (
        ("Source", text(audit, "source")),
        ("Template", text(audit, "template")),
        ("Trained on", text(audit, "train_on")),
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


def _share_sentence(audit: Json, total: int | None, trained: int | None) -> str:
    if not total or trained is None:
        return ""
    return (
        f"Of the {count(total)} tokens in the training records, {count(trained)} ({percent(trained / total)}) carry loss; "
        "the others are context: the model reads them and is not trained to write them."
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
                ((name, amount, css_class), ("rest", largest - amount, "rest")), key=f"work-{css_class}", title=f"Tokens {name}"
            ),
        )
        for name, amount, css_class in (("given", given, "given"), ("computed", computed, "computed"), ("trained", trained, "trained"))
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
    opening = f"Of the {count(given)} tokens in the records of {plural(len(run.steps), 'step')}, the engine computed {count(computed)} ({percent(computed / given)})"
    if computed < given:
        return f"{opening}: what records of a batch have in common at their beginning is computed once for all of them, and the result is the same."
    return f"{opening}: nothing was shared between records."


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
        found.append(f"The counts disagree: {count(read)} rows read, but {count(used)} used and {count(refused)} refused.")
    split = mapping(audit, "split")
    divided = sum(whole(split, name) or 0 for name in ("train", "validation", "test"))
    if split and used is not None and divided != used:
        found.append(f"The counts disagree: {count(used)} rows used, but {count(divided)} in the split.")
    return tuple(found)


# Training --------------------------------------------------------------------------------------------------------------


def _training(run: Run) -> TrainingView:
    losses = [(float(step.step), step.loss) for step in run.steps if step.loss is not None]
    window = charts.smoothing_window(len(losses))
    num_without = len(run.steps) - len(losses)
    smoothing = f"mean of {window} steps" if window > 1 else ""
    tokens_at = _tokens_at(run)
    return TrainingView(
        sentence=_training_sentence(run, num_without),
        by_step=_loss_charts(run, losses, None),
        by_tokens=_loss_charts(run, losses, tokens_at) if tokens_at else (),
        small=_small_charts(run),
        smoothing=smoothing,
        has_validation=bool(_measured(run.evaluations)),
        evaluations=tuple(
            (count(one.step), count(tokens_at.get(one.step)) if tokens_at else UNKNOWN, significant(one.validation_loss, 4))
            for one in _evenly(run.evaluations, 200)
        ),
        steps=_step_table(run),
    )


def _measured(evaluations: Sequence[Evaluation]) -> list[tuple[int, float]]:
    return [(one.step, one.validation_loss) for one in evaluations if one.validation_loss is not None]


def _tokens_at(run: Run) -> dict[int, int]:
    """Record tokens trained on up to and including each step; empty where they are not recorded."""
    total, reached = 0, {0: 0}
    for step in run.steps:
        total += step.record_tokens
        reached[step.step] = total
    return reached if total else {}


def _training_sentence(run: Run, num_without: int) -> str:
    said = []
    measured = _measured(run.evaluations)
    if measured:
        best = min(measured, key=lambda point: point[1])
        last = measured[-1]
        said.append(f"Validation loss was lowest at step {count(best[0])} ({significant(best[1])}).")
        if last[0] > best[0] and last[1] > best[1] * (1 + _CLEARLY_LOWER):
            said.append(f"It rose to {significant(last[1])} by step {count(last[0])}: fewer steps may serve as well.")
    else:
        said.append("Validation loss was not measured.")
    if num_without:
        said.append(f"{plural(num_without, 'step')} had no finite loss and {'is' if num_without == 1 else 'are'} not drawn.")
    return " ".join(said)


def _loss_charts(run: Run, losses: Sequence[tuple[float, float]], tokens_at: dict[int, int] | None) -> tuple[Markup, ...]:
    """The loss over steps, or over tokens where `tokens_at` maps one to the other; wide and narrow."""

    def place(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
        if tokens_at is None:
            return tuple(points)
        return tuple((float(tokens_at[int(x)]), y) for x, y in points if int(x) in tokens_at)

    measured = [(float(x), y) for x, y in _measured(run.evaluations)]
    best = place([min(measured, key=lambda point: point[1])]) if measured else ()
    by = "steps" if tokens_at is None else "tokens"
    return tuple(
        charts.line_chart(
            (
                Series("training loss", place(losses), "raw"),
                Series("training loss, smoothed", place(smooth(losses)) if len(losses) > 15 else (), "smooth"),
                Series("validation loss", place(measured), "dots"),
            ),
            key=f"loss-{by}-{size}",
            title=f"Loss over {by}",
            description=_loss_description(losses, measured),
            x_label="optimizer step" if tokens_at is None else "record tokens seen",
            y_label="loss per trained token",
            frame=frame,
            lowest=best[0] if best else None,
            marks=_epoch_marks(run, tokens_at),
        )
        for size, frame in (("wide", WIDE), ("narrow", NARROW))
    )


def _loss_description(losses: Sequence[tuple[float, float]], measured: Sequence[tuple[float, float]]) -> str:
    said = [
        f"{name} goes from {significant(points[0][1])} to {significant(points[-1][1])}"
        for name, points in (("training loss", losses), ("validation loss", measured))
        if points
    ]
    return "; ".join(said).capitalize() + "."


def _epoch_marks(run: Run, tokens_at: dict[int, int] | None) -> tuple[tuple[float, str], ...]:
    """Where each epoch ends, for runs of two to ten epochs."""
    marks = []
    done = 0
    for step in run.steps:
        if step.epoch is not None and math.floor(step.epoch + 1e-6) > done:
            done = math.floor(step.epoch + 1e-6)
            marks.append((float(step.step if tokens_at is None else tokens_at.get(step.step, 0)), f"epoch {done}"))
    return tuple(marks) if len(marks) <= 10 else ()


def _small_charts(run: Run) -> tuple[tuple[str, Markup], ...]:
    rates = [
        (float(step.step), step.record_tokens / step.step_seconds)
        for step in run.steps
        if step.step_seconds and step.record_tokens
    ]
    kinds = (
        ("Learning rate", [(float(s.step), s.learning_rate) for s in run.steps if s.learning_rate is not None], "rate", True),
        ("Gradient norm", [(float(s.step), s.grad_norm) for s in run.steps if s.grad_norm is not None], "norm", True),
        ("Record tokens per second", rates, "speed", True),
    )
    return tuple(
        (
            name,
            charts.line_chart(
                (
                    Series(name, tuple(points), "single" if key == "rate" else "raw"),
                    Series(f"{name}, smoothed", tuple(smooth(points)) if key != "rate" and len(points) > 15 else (), "smooth"),
                ),
                key=f"small-{key}",
                title=name,
                description=f"{name} over steps, between {significant(min(y for _, y in points))} and "
                f"{significant(max(y for _, y in points))}.",
                x_label="step",
                y_label=name.lower(),
                frame=SMALL,
                from_zero=from_zero,
            ),
        )
        for name, points, key, from_zero in kinds
        if points
    )


def _step_table(run: Run) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            count(step.step),
            significant(step.loss, 4),
            plain(step.learning_rate),
            significant(step.grad_norm),
            count(step.record_tokens),
            count(step.computed_tokens),
            count(step.target_tokens),
            duration(step.step_seconds),
        )
        for step in _evenly(run.steps, MAX_TABLE_ROWS)
    )


def _evenly(sequence: Sequence[Entry], most: int) -> list[Entry]:
    """At most `most` entries, evenly spread, the first and the last among them."""
    if len(sequence) <= most:
        return list(sequence)
    return [sequence[round(index * (len(sequence) - 1) / (most - 1))] for index in range(most)]


# Samples and setup -----------------------------------------------------------------------------------------------------


def _samples(evaluations: Sequence[Evaluation]) -> Samples | None:
    found = [one for one in evaluations if one.sample_text is not None]
    if not found:
        return None
    prompts = {one.sample_prompt for one in found}
    common = prompts.pop() if len(prompts) == 1 else ""
    return Samples(
        prompt=common,
        shown=tuple(
            SampleView(
                count(one.step),
                significant(one.validation_loss) if one.validation_loss is not None else "",
                "" if common else one.sample_prompt,
                one.sample_text or "",
            )
            for one in _evenly(found, MAX_SAMPLES)
        ),
        num_all=len(found),
    )


def _setup(run: Run) -> tuple[tuple[str, Cells], ...]:
    """(heading, rows) of each table about how the run was made."""
    sections = [(str(name), _flat(value)) for name, value in run.config.items()]
    tables = [
        ("Machine and command", _machine(run.environment)),
        ("Hashes", _hashes(run)),
        ("Time by phase", _phases(mapping(run.environment, "phase_seconds"))),
        ("Packages", tuple((str(name), str(version)) for name, version in mapping(run.environment, "packages").items())),
        *((f"config.yaml: {name}", cells) for name, cells in sections),
    ]
    return tuple((heading, cells) for heading, cells in tables if cells)


def _machine(environment: Json) -> Cells:
    parameters = number(mapping(environment, "model"), "num_parameters")
    cores, memory = whole(environment, "cores"), number(environment, "memory_bytes")
    cells = (
        ("Command", text(environment, "command")),
        ("Started", text(environment, "started")),
        ("Finished", text(environment, "finished") or ("not finished" if environment else "")),
        ("Parameters", count(parameters) if parameters is not None else ""),
        ("Device", text(environment, "device")),
        ("Precision", text(environment, "dtype")),
        ("Processor", text(environment, "processor")),
        ("Cores", count(cores) if cores is not None else ""),
        ("Memory", storage(memory) if memory is not None else ""),
        ("Platform", text(environment, "platform")),
        ("Python", text(environment, "python")),
        ("Tuneful", text(environment, "tuneful")),
    )
    return tuple((name, value) for name, value in cells if value)


def _hashes(run: Run) -> Cells:
    cells = (
        ("Model, sha256", text(mapping(run.environment, "model"), "sha256")),
        ("Data, sha256", text(run.audit, "sha256")),
    )
    return tuple((name, value) for name, value in cells if value)


def _phases(phases: Json) -> Cells:
    found = [(str(name).replace("_", " ").capitalize(), number(phases, name)) for name in phases]
    return tuple((name, duration(seconds)) for name, seconds in found if seconds is not None)


def _flat(value: object, prefix: str = "") -> Cells:
    """A section of the configuration as (key, value) rows; deeper keys are joined with dots."""
    if isinstance(value, dict) and value:
        return tuple(
            row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        )
    return ((prefix or "value", _setting(value)),)


def _setting(value: object) -> str:
    if value is None or value == {}:
        return UNKNOWN
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_setting(entry) for entry in value) or UNKNOWN
    return str(value)
