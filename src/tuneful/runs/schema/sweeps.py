"""The JSON document of a sweep, sweep.json: which runs there are, how far each is, which was chosen and what that is worth.

It is also the sweep's own state: written anew after every leg of a run, and read where a sweep goes on. What it takes to go on
with a run stands in the run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

SweepState = Literal["waiting", "paused", "stopped", "trained", "failed"]


@dataclass(frozen=True, slots=True)
class RungLoss:
    """How well a run did when it was paused to be compared with the others."""

    share: Annotated[float, "share of its steps after which it was to pause"]
    step: Annotated[int, "optimizer steps that it had taken"]
    validation_loss: Annotated[float | None, "the lowest by then (`train.keep: last`: the last), in nats a token"]


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep: a point of its grid."""

    name: Annotated[str, "its folder in runs/ of the sweep"]
    settings: Annotated[Mapping[str, Any], "the settings that are swept, key to value"]
    state: Annotated[
        SweepState,
        "not begun; trained in part; stopped early, because others did better; trained to the end; or failed",
    ]
    reason: Annotated[str | None, "why it was stopped or failed; null where it was not"]
    rungs: Annotated[tuple[RungLoss, ...], "where it was compared on its way"]
    num_steps: Annotated[int | None, "optimizer steps of the whole training; null where not known yet"]
    num_train: Annotated[int | None, "training records; null where not known yet"]
    validation_loss: Annotated[float | None, "of the weights that it kept, in nats a token; null unless trained"]
    validation_sha256: Annotated[str | None, "over the tokens and weights of its validation records"]
    chosen_share: Annotated[
        float | None, "how often it would be chosen among the trained runs, were the validation records drawn again"
    ] = None


@dataclass(frozen=True, slots=True)
class CurveGain:
    """What more training records would bring, where the power law goes on."""

    factor: Annotated[float, "how many times as many"]
    gain: Annotated[float, "by how much the validation loss would fall, in nats a token"]
    low: Annotated[float, "lower end of its interval; negative where it may rise"]
    high: Annotated[float, "upper end of its interval"]


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Validation loss over training records, at one value of every other setting: offset + scale (n / num_largest)^-exponent."""

    settings: Annotated[Mapping[str, Any], "the other settings that are swept, but for the seed"]
    sizes: Annotated[tuple[int, ...], "training records of each run"]
    losses: Annotated[tuple[float, ...], "validation loss of each run, in nats a token"]
    num_largest: Annotated[int, "the most training records"]
    offset: Annotated[float | None, "of the law; null where no law can be fitted"]
    scale: Annotated[float | None, "of the law"]
    exponent: Annotated[float | None, "of the law"]
    gains: Annotated[tuple[CurveGain, ...], "what twice and four times the records would bring"]
    sentence: Annotated[str, "the same in words"]


@dataclass(frozen=True, slots=True)
class SweepDocument:
    """A sweep: every run of it, the one that was chosen by validation loss, and what the test set says of that one alone."""

    data: Annotated[tuple[str, ...], "the data, as it was named"]
    folder: Annotated[str, "the working directory, from which paths are meant"]
    request_sha256: Annotated[str, "over all that was asked for: another request is another sweep"]
    keys: Annotated[tuple[str, ...], "the settings that are swept"]
    num_points: Annotated[int, "points of the whole grid"]
    rungs: Annotated[tuple[float, ...], "shares of the steps after which the worse half is stopped; empty for never"]
    rungs_reason: Annotated[str | None, "why none is stopped early; null where some are"]
    confidence: Annotated[float, "confidence level of the intervals"]
    started: Annotated[str, "when it was begun, UTC"]
    finished: Annotated[str | None, "when it was finished, UTC; null until then"]
    runs: Annotated[tuple[SweepRun, ...], "every run, in the order of the grid"]
    chosen: Annotated[
        str | None, "the run of the lowest validation loss; null until all are trained, or without one"
    ] = None
    optimism: Annotated[
        float | None,
        "by how much the validation loss of the chosen run is expected to be higher on new records, for having been chosen by "
        "it; null where it cannot be measured",
    ] = None
    curves: Annotated[tuple[LearningCurve, ...], "where `data.train_share` is swept"] = ()
    verdict: Annotated[str | None, "the chosen run on the test set, in a sentence; null without one"] = None
    notes: Annotated[tuple[str, ...], "what else there is to know, in sentences"] = ()
