"""The training section: losses over steps and over tokens, learning rate, gradient norm and speed.

Feeds `sections.py`. The trade: curves hold a few hundred points, however long the run was, and tables a few dozen rows; all of
them are in `metrics.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from tuneful.evaluation.preference import outcome_in_words
from tuneful.numbers import UNKNOWN, count, duration, known, plain, plural, significant
from tuneful.report import charts
from tuneful.report.charts import NARROW, SMALL, WIDE, Series, smooth
from tuneful.report.folder import Run
from tuneful.runs.schema import Evaluation, TrainingSummary

MAX_EVALUATION_ROWS = 200
MAX_TABLE_ROWS = 40
MAX_NOTICES = 3
_CLEARLY_LOWER = 0.01

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class TrainingView:
    """The curves of the training."""

    sentence: str
    by_step: tuple[Markup, ...]
    by_tokens: tuple[Markup, ...]
    small: tuple[tuple[str, Markup], ...]
    smoothing: str
    has_validation: bool
    has_replay: bool
    evaluations: tuple[tuple[str, str, str], ...]
    steps: tuple[tuple[str, ...], ...]


def view_training(run: Run) -> TrainingView:
    """Draw the curves of the run."""
    losses = [(float(step.step), step.loss) for step in run.steps if known(step.loss)]
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
        has_validation=bool(measured_losses(run.evaluations)),
        has_replay=any(known(step.replay_loss) for step in run.steps),
        evaluations=tuple(
            (
                count(one.step),
                count(tokens_at.get(one.step)) if tokens_at else UNKNOWN,
                significant(one.validation_loss, 4),
            )
            for one in evenly(run.evaluations, MAX_EVALUATION_ROWS)
        ),
        steps=_step_table(run),
    )


def measured_losses(evaluations: Sequence[Evaluation]) -> list[tuple[int, float]]:
    """(step, validation loss) of every evaluation with a finite loss."""
    return [(one.step, one.validation_loss) for one in evaluations if known(one.validation_loss)]


def _tokens_at(run: Run) -> dict[int, int]:
    """Record tokens trained on up to and including each step; empty where they are not recorded."""
    total, reached = 0, {0: 0}
    for step in run.steps:
        total += step.record_tokens
        reached[step.step] = total
    return reached if total else {}


def _training_sentence(run: Run, num_without: int) -> str:
    sentences = []
    measured = measured_losses(run.evaluations)
    if measured:
        best = min(measured, key=lambda point: point[1])
        last = measured[-1]
        sentences.append(f"Validation loss was lowest at step {count(best[0])} ({significant(best[1])}).")
        if last[0] > best[0] and last[1] > best[1] * (1 + _CLEARLY_LOWER):
            sentences.append(
                f"It rose to {significant(last[1])} by step {count(last[0])}: fewer steps may serve as well."
            )
    else:
        sentences.append("Validation loss was not measured.")
    sentences.extend(_how_it_ended(run.training))
    if run.preference is not None:
        said = outcome_in_words(run.preference)
        sentences.append(f"{said[0].upper()}{said[1:]}.")
    sentences.extend(f"At step {count(one.step)} {one.sentence}." for one in run.notices[:MAX_NOTICES])
    if len(run.notices) > MAX_NOTICES:
        sentences.append(f"metrics.jsonl tells of {plural(len(run.notices) - MAX_NOTICES, 'more such notice')}.")
    if num_without:
        sentences.append(
            f"{plural(num_without, 'step')} had no finite loss and {'is' if num_without == 1 else 'are'} not drawn."
        )
    return " ".join(sentences)


def _how_it_ended(training: TrainingSummary | None) -> list[str]:
    """Where training stopped early, and which weights it ended with; nothing where both are as expected."""
    sentences: list[str] = []
    if training is None:
        return sentences
    if training.steps < training.planned_steps:
        steps, planned = count(training.steps), count(training.planned_steps)
        sentences.append(f"Training stopped after step {steps} of {planned}, as it got no better.")
    if training.kept_step != training.steps:
        sentences.append(f"The model has the weights of step {count(training.kept_step)}.")
    return sentences


def _loss_charts(
    run: Run, losses: Sequence[tuple[float, float]], tokens_at: dict[int, int] | None
) -> tuple[Markup, ...]:
    """The loss over steps, or over tokens where `tokens_at` maps one to the other; wide and narrow."""

    def place(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
        if tokens_at is None:
            return tuple(points)
        return tuple((float(tokens_at[int(x)]), y) for x, y in points if int(x) in tokens_at)

    measured = [(float(x), y) for x, y in measured_losses(run.evaluations)]
    replayed = [(float(step.step), step.replay_loss) for step in run.steps if known(step.replay_loss)]
    best = place([min(measured, key=lambda point: point[1])]) if measured else ()
    by = "steps" if tokens_at is None else "tokens"
    return tuple(
        charts.line_chart(
            (
                Series("training loss", place(losses), "raw"),
                Series("training loss, smoothed", place(smooth(losses)) if len(losses) > 15 else (), "smooth"),
                Series("loss of replayed records", place(smooth(replayed)), "replay"),
                Series("validation loss", place(measured), "dots"),
            ),
            key=f"loss-{by}-{size}",
            title=f"Loss over {by}",
            description=_loss_description(losses, measured),
            x_label="optimizer step" if tokens_at is None else "record tokens seen",
            y_label="loss" if any(known(step.rewards_chosen) for step in run.steps) else "loss per trained token",
            frame=frame,
            lowest=best[0] if best else None,
            marks=_epoch_marks(run, tokens_at),
        )
        for size, frame in (("wide", WIDE), ("narrow", NARROW))
    )


def _loss_description(losses: Sequence[tuple[float, float]], measured: Sequence[tuple[float, float]]) -> str:
    sentences = [
        f"{name} goes from {significant(points[0][1])} to {significant(points[-1][1])}"
        for name, points in (("training loss", losses), ("validation loss", measured))
        if points
    ]
    return "; ".join(sentences).capitalize() + "."


def _epoch_marks(run: Run, tokens_at: dict[int, int] | None) -> tuple[tuple[float, str], ...]:
    """Where each epoch ends, for runs of two to ten epochs."""
    marks = []
    done = 0
    for step in run.steps:
        if known(step.epoch) and math.floor(step.epoch + 1e-6) > done:
            done = math.floor(step.epoch + 1e-6)
            marks.append((float(step.step if tokens_at is None else tokens_at.get(step.step, 0)), f"epoch {done}"))
    return tuple(marks) if len(marks) <= 10 else ()


def _small_charts(run: Run) -> tuple[tuple[str, Markup], ...]:
    rates = [
        (float(step.step), step.record_tokens / step.step_seconds)
        for step in run.steps
        if known(step.step_seconds) and step.step_seconds and step.record_tokens
    ]
    kinds = (
        (
            "Learning rate",
            [(float(s.step), s.learning_rate) for s in run.steps if known(s.learning_rate)],
            "rate",
            True,
        ),
        ("Gradient norm", [(float(s.step), s.grad_norm) for s in run.steps if known(s.grad_norm)], "norm", True),
        ("Record tokens per second", rates, "speed", True),
        *_preference_charts(run),
    )
    return tuple(
        (
            name,
            charts.line_chart(
                (
                    Series(name, tuple(points), "single" if key == "rate" else "raw"),
                    Series(
                        f"{name}, smoothed",
                        tuple(smooth(points)) if key != "rate" and len(points) > 15 else (),
                        "smooth",
                    ),
                ),
                key=f"small-{key}",
                title=name,
                description=f"{name} over steps, between {significant(min(y for _, y in points))} and "
                f"{significant(max(y for _, y in points))}.",
                x_label="step",
                y_label="",
                frame=SMALL,
                from_zero=from_zero,
            ),
        )
        for name, points, key, from_zero in kinds
        if points
    )


def _preference_charts(run: Run) -> Iterator[tuple[str, list[tuple[float, float]], str, bool]]:
    """Name, points, key and whether the axis begins at 0, of each figure that steps of preferences have."""
    for name, field, from_zero in (
        ("Reward margin, chosen over rejected", "rewards_margins", False),
        ("Share of pairs ranked right", "rewards_accuracies", True),
        ("Chosen responses against the reference, nats a token", "chosen_logratio", False),
        ("KL to the reference", "kl", True),
    ):
        points = [(float(step.step), getattr(step, field)) for step in run.steps]
        yield name, [(x, y) for x, y in points if known(y)], field, from_zero


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
        for step in evenly(run.steps, MAX_TABLE_ROWS)
    )


def evenly(sequence: Sequence[Entry], most: int) -> list[Entry]:
    """At most `most` entries, evenly spread, the first and the last among them."""
    if len(sequence) <= most:
        return list(sequence)
    return [sequence[round(index * (len(sequence) - 1) / (most - 1))] for index in range(most)]
