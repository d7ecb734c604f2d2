"""The objective of a run: what is descended, for preferences with its reference, which stands in reference.json; and what became
of pairs that were not trained on, in preferences.json."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tuneful.batch.order import num_steps
from tuneful.config import PREFERENCE_OBJECTIVES, Config
from tuneful.encoding.prepare import Subset
from tuneful.errors import DataError, InputError
from tuneful.evaluation.preference import outcome_in_words
from tuneful.evaluation.statistics import wilson_interval
from tuneful.runs.folder import read_record
from tuneful.runs.phases import check_signals, stop_check
from tuneful.runs.schema import (
    Layout,
    PreferenceOutcome,
    ReferenceDocument,
    check_sum,
    load_document,
    noted_sums,
)
from tuneful.runs.setup import Engine, RunState
from tuneful.train.costs import Costs
from tuneful.train.loop import evaluated_in, mean_costs, measure_in
from tuneful.train.memory import fitted
from tuneful.train.objective import RESPONSE_LOSS, Objective
from tuneful.train.preference import KtoObjective, PairObjective, PreferenceObjective, Reference
from tuneful.train.reference import largest_difference, reference_logps
from tuneful.types import Example

REFERENCE, SUMMARY = "reference.json", "preferences.json"
_OF_STEPS = ("batch_size", "seed", "micro_batch_tokens")
"""Settings that say which records are computed together, besides the data."""


def make_objective(config: Config, reference: Reference | None = None) -> Objective:
    """What `train.objective` names, against `reference` where it has one."""
    name = config.train.objective
    if name not in PREFERENCE_OBJECTIVES:
        return RESPONSE_LOSS
    if name == "kto":
        return KtoObjective(config.preference, config.data.max_length, {} if reference is None else reference)
    return PairObjective(name, config.preference, {} if reference is None else reference)


def begin_objective(run: RunState, engine: Engine) -> Objective:
    """The objective of the run. To be called while the model is as training starts from it: it is its own reference.

    The reference is computed where reference.json does not have it, and compared with the model before the first step.
    """
    objective = make_objective(run.config)
    if not objective.uses_reference:
        return objective
    assert isinstance(objective, (PairObjective, KtoObjective))
    with run.phase("reference"):
        objective = replace(objective, reference=_reference(run, engine, objective))
        _check_start(run, engine, objective)
    return objective


def held_out(run: RunState) -> Subset | None:
    """The records of which preferences.json tells: those of the test set, or the validation ones where there are none; None where
    no preferences are learned, or nothing was held out."""
    if run.config.train.objective not in PREFERENCE_OBJECTIVES:
        return None
    return next((side for side in (run.dataset.test, run.dataset.validation) if len(side)), None)


def measure_held_out(run: RunState, engine: Engine, objective: Objective, max_tokens: int | None = None) -> None:
    """Write preferences.json: what the model makes of the records that are `held_out`.

    `max_tokens` is what the training found that a micro-batch may compute, where that is less than the layout says.
    """
    if (subset := held_out(run)) is None:
        return
    stop = stop_check(run.signals, run.group)

    layout, examples = replace(engine.layout, max_tokens=max_tokens or engine.layout.max_tokens), list(subset.examples)
    measure = measure_in(run.model, evaluated_in(layout, run.model), run.group, stop)
    begin = functools.cache(lambda: objective.begin(examples, measure))  # once, if memory runs out too

    def measured(max_tokens: int) -> Costs | None:
        within = replace(layout, max_tokens=max_tokens)
        return mean_costs(
            run.model, examples, within, objective=objective, should_stop=stop, group=run.group, begin=begin
        )

    with run.phase("preference_accuracy"):
        costs, _, said = fitted(measured, layout.max_tokens, sharded=run.group.sharded)
        run.warn(said)
    assert costs is not None
    rows = list(costs.rows.values())
    figures = objective.figures(rows)
    accuracy = figures.get("rewards_accuracies")
    low, high = (None, None)
    if accuracy is not None:
        low, high = wilson_interval(accuracy, len(rows), run.config.report.confidence)
    summary = PreferenceOutcome(
        subset="test" if subset is run.dataset.test else "validation",
        num_records=len(rows),
        loss=costs.loss,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        figures=dict(figures),
        confidence=None if accuracy is None else run.config.report.confidence,
    )
    run.folder.write_document(SUMMARY, summary)
    run.folder.note_finished(SUMMARY)
    run.terminal.say(outcome_in_words(summary))


def _reference(run: RunState, engine: Engine, objective: PreferenceObjective) -> dict[str, float]:
    """The log-probabilities of the reference: those of reference.json, and what it lacks."""
    made_with = _made_with(run, engine)
    known: dict[str, float] = dict(run.group.broadcast(_known(run, made_with) if run.group.is_main else None))
    before, evaluated = len(known), evaluated_in(engine.layout, run.model)
    known = known or dict(run.group.broadcast(_of_siblings(run, made_with) if run.group.is_main else None))
    others = [list(side.examples) for side in (run.dataset.validation, run.dataset.test) if len(side)]
    parts: tuple[tuple[Sequence[Sequence[Example]] | Iterator[Sequence[Example]], Layout], ...] = (
        (_steps(run), engine.layout),
        (others, evaluated),
    )
    train = run.config.train
    total = num_steps(run.epoch_length, train.batch_size, train.num_train_epochs, train.max_steps) + len(others)
    stop = stop_check(run.signals, run.group)
    try:
        with run.terminal.progress("reference", total, "steps") as advance:
            for steps, layout in parts:
                for _ in reference_logps(run.model, objective, steps, layout, known, group=run.group, should_stop=stop):
                    advance(1)
                    check_signals(run.signals, run.group)
    finally:  # what is known so far is right: a run that was interrupted goes on from there
        if len(known) > before:
            run.folder.write_document(REFERENCE, ReferenceDocument(made_with, known))
            run.folder.note_finished(REFERENCE)
    return known


def _check_start(run: RunState, engine: Engine, objective: PreferenceObjective) -> None:
    first = [run.dataset.train.examples[index] for index in next(run.step_indices())]
    worst = largest_difference(run.model, objective, first, engine.layout, run.group)
    said = "exactly 0" if not worst else f"0 to rounding ({worst:.1g} of a log-probability)"
    run.terminal.say(
        f"reference: {len(objective.reference):,} responses under the model as it starts; before the first step every reward is "
        f"{said}"
    )


def _known(run: RunState, made_with: str) -> dict[str, float]:
    """What reference.json holds of this very reference."""
    try:
        document = run.folder.read_document(ReferenceDocument, REFERENCE)
    except DataError as error:
        run.warn([f"{error}; the reference is computed again"])
        return {}
    return dict(document.logps) if document is not None and document.made_with == made_with else {}


def _of_siblings(run: RunState, made_with: str) -> dict[str, float]:
    """What the first sibling that has this very reference holds of it."""
    documents = (_of_sibling(run, path) for path in run.siblings)
    return next((dict(one.logps) for one in documents if one is not None and one.made_with == made_with), {})


def _of_sibling(run: RunState, path: Path) -> ReferenceDocument | None:
    """reference.json of another run whose steps have the same records together, so that it holds the same bits."""
    try:
        record = read_record(path)
        document = load_document(ReferenceDocument, path / REFERENCE)
        check_sum(path / REFERENCE, noted_sums(path).get(REFERENCE))
    except InputError:
        return None
    own = run.folder.begun.config["train"]
    is_alike = record is not None and all(record.config["train"].get(key) == own[key] for key in _OF_STEPS)
    return document if is_alike else None


def _made_with(run: RunState, engine: Engine) -> str:
    training = run.folder.begun.training
    parts = [
        run.model_sha256,
        training.get("tokens"),
        training.get("train.method"),
        str(engine.dtype),
        engine.layout.name,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _steps(run: RunState) -> Iterator[list[Example]]:
    examples = run.dataset.train.examples
    return ([examples[index] for index in indices] for indices in run.step_indices())
