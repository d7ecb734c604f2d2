"""What the trained runs of a sweep come to: which is chosen, how much that flatters it, which others it may as well have been,
and what a learning curve says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tuneful.runs.schema import CurveGain, LearningCurve, SweepDocument, SweepRun
from tuneful.sweep.curve import fit_power_law
from tuneful.sweep.folder import SweepDir, validation_losses
from tuneful.sweep.grid import Grid
from tuneful.sweep.optimism import as_arrays, choice_optimism, choice_shares
from tuneful.sweep.words import curve_in_words

SEED, SHARE = "train.seed", "data.train_share"
_MAX_DRAWS = 2_000
_CURVE_RESAMPLES = 500

Losses = dict[str, list[tuple[float, float]]]
"""By run, (loss, weight) of each validation record."""


def with_choice(folder: SweepDir, grid: Grid) -> SweepDocument:
    """The document of `folder`, whose runs are all trained, stopped or failed, with the choice and what there is to know of
    it."""
    document = folder.document
    assert document is not None
    config = grid.points[0].config
    trained = [run for run in document.runs if run.state == "trained"]
    losses = {run.name: rows for run in trained if (rows := validation_losses(folder.run(run.name))) is not None}
    curves = _curves(document, trained, losses) if SHARE in document.keys else ()
    notes = []
    if SHARE in document.keys and any(point.config.train.max_steps for point in grid.points):
        notes.append(
            "train.max_steps gives every share as many steps: where there are fewer records, each comes more often. "
            "train.num_train_epochs lets each record come as often everywhere."
        )
    scored, chosen = [run for run in trained if run.validation_loss is not None], lowest(trained)
    if chosen is None:
        return replace(
            document, curves=curves, notes=(*notes, "There is no validation loss, so no run was chosen or measured.")
        )
    optimism, shares = None, dict[str, float]()
    if len(losses) == len(scored):
        draws = min(config.report.num_resamples, _MAX_DRAWS)
        arrays = as_arrays([losses[run.name] for run in scored])
        optimism = choice_optimism(*arrays, num_draws=draws, seed=config.train.seed)
        own = choice_shares(*arrays, num_draws=draws, seed=config.train.seed)
        shares = dict(zip((run.name for run in scored), own, strict=True))
    runs = tuple(replace(run, chosen_share=shares.get(run.name)) for run in document.runs)
    return replace(document, runs=runs, chosen=chosen.name, optimism=optimism, curves=curves, notes=tuple(notes))


def lowest(trained: Sequence[SweepRun]) -> SweepRun | None:
    """The run of the lowest validation loss, of equal ones the first; None where no run has one."""
    return min((run for run in trained if run.validation_loss is not None), key=_loss, default=None)


def _loss(run: SweepRun) -> float:
    assert run.validation_loss is not None
    return run.validation_loss


def _curves(document: SweepDocument, trained: Sequence[SweepRun], losses: Losses) -> tuple[LearningCurve, ...]:
    """A curve for each value of the settings besides the share and the seed."""
    groups: dict[str, list[SweepRun]] = {}
    for run in trained:
        if run.validation_loss is not None and run.num_train is not None:
            others = {key: value for key, value in run.settings.items() if key not in (SEED, SHARE)}
            groups.setdefault(json.dumps(others), []).append(run)
    return tuple(learning_curve(json.loads(key), runs, losses, document.confidence) for key, runs in groups.items())


def learning_curve(
    settings: Mapping[str, Any], runs: Sequence[SweepRun], losses: Losses, confidence: float
) -> LearningCurve:
    """The curve through the validation losses of `runs`, which have the same `settings` but for the share and the seed; its
    interval allows for the validation set being a sample where the `losses` of all of them are known."""
    sizes, own = [run.num_train or 0 for run in runs], [_loss(run) for run in runs]
    records = as_arrays([losses[run.name] for run in runs]) if all(run.name in losses for run in runs) else None
    law = fit_power_law(
        sizes,
        own,
        confidence=confidence,
        record_losses=records,
        num_resamples=_CURVE_RESAMPLES,
    )
    at_the_most = float(np.mean([loss for size, loss in zip(sizes, own, strict=True) if size == max(sizes)]))
    return LearningCurve(
        settings=settings,
        sizes=tuple(sizes),
        losses=tuple(own),
        num_largest=max(sizes),
        offset=law.offset if law else None,
        scale=law.scale if law else None,
        exponent=law.exponent if law else None,
        gains=tuple(CurveGain(one.factor, one.value, one.low, one.high) for one in law.gains) if law else (),
        sentence=curve_in_words(law, sizes, at_the_most, confidence),
    )
