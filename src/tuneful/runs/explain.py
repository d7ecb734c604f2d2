"""Which training records pushed a finished run towards its answers, and away from them: `tuneful explain`.

    test items -> Examples of what is explained -> features     } at every set of weights that
    training records                            -> features     } was kept -> scores -> explain.json

Features of the training records are kept in RUN/explain, so that the next question costs what its items do, and a kill what one
file of records does. What they are of (weights, parameters, projection) is in the name of their folder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tuneful.batch.order import num_steps
from tuneful.console import Terminal
from tuneful.errors import DataError
from tuneful.evaluation.answers import task_text
from tuneful.files import as_json, lock_output, unlock_output, write_json
from tuneful.influence.curvature import DAMPING, SecondMoment, directions_of
from tuneful.influence.features import Features, Featurizer, kept_features, num_kept
from tuneful.influence.gradients import Parameters
from tuneful.influence.parameters import last_matrices, preconditioner, trainable
from tuneful.influence.ranking import Influence, Sums, strongest
from tuneful.influence.sketch import Sketch
from tuneful.influence.visits import factors
from tuneful.numbers import rough_duration
from tuneful.runs.explained_items import (
    Asked,
    Request,
    check_request,
    chosen_items,
    counted_by_change,
    counts_by_change,
    encoded_items,
)
from tuneful.runs.finished import (
    FinishedRun,
    KeptWeights,
    TrainedModel,
    TrainedOn,
    kept_weights,
    load_trained,
    open_finished,
    read_trained_on,
    set_weights,
)
from tuneful.runs.schema import (
    ComparedWeights,
    ExplainedItem,
    Explanation,
    InfluentialRecord,
    as_row,
    load_document,
)
from tuneful.train.optimizer import learning_rate
from tuneful.types import Example, answer_text

if TYPE_CHECKING:
    import torch

DOCUMENT, FOLDER = "explain.json", "explain"
_VERSION = 1
"""Of what features are: those of another version are not read."""
_TRIED = 3
_BEGINNING = 200  # characters of a text that the document holds

_START_ALONE = (
    "the run kept no checkpoint on its way: gradients before the first step stand for all steps; "
    "train.save_steps keeps some"
)
_END_ALONE = (
    "the run kept no checkpoint on its way, and the model that training began with is not there any more: gradients at the "
    "final weights alone, which say what a further step would do"
)
_NO_START = (
    "the model that training began with is not there any more: the first steps are compared at the first checkpoint"
)
_COUNTED_ALIKE = (
    "without the model that training began with it is not known what it changed of an answer: all tokens count alike"
)
_LAST_LAYERS = "of full finetuning matrices of the last layers stand for all, those that fit in 8 million numbers"


def explain_run(path: Path, request: Request, terminal: Terminal) -> Explanation:
    """Answer `request` about the run in `path`, and write explain.json there; what was found for these items.

    Raises InputError where the request is wrong or the folder has not what it takes, and ModelError where the model is gone.
    """
    run = open_finished(path)
    check_request(run, request)
    chosen = chosen_items(run, request)
    lock = lock_output(run.path / DOCUMENT)
    try:
        trained = load_trained(run, terminal)
        trained_on = read_trained_on(run, trained.encoder)
        asked = encoded_items(run, chosen, request, trained, terminal)
        if counts_by_change(request, trained):
            asked = counted_by_change(asked, trained)
        influence, explanation = _compare(run, trained, trained_on, asked, request, terminal)
        items = tuple(_item(one, influence, place, trained_on, request) for place, one in enumerate(asked))
        found = _with_earlier(run, replace(explanation, items=items))
        write_json(run.path / DOCUMENT, as_row(found))
    finally:
        unlock_output(lock)
    return replace(found, items=tuple(one for one in found.items if one.number in {each.number for each in asked}))


# Gradients are compared


def _compare(
    run: FinishedRun,
    trained: TrainedModel,
    trained_on: TrainedOn,
    asked: Sequence[Asked],
    request: Request,
    terminal: Terminal,
) -> tuple[Influence, Explanation]:
    """The influence of every training record on every item, and how it was come by."""
    examples, model, config = trained_on.examples, trained.model, run.config
    weights = kept_weights(run, with_initial=trained.initial is not None)
    parameters = trainable(model) if run.is_adapter else last_matrices(model)
    sizes = {name: one.numel() for name, one in parameters.items()}
    sketch = Sketch(sizes, request.projection_dim, config.train.seed, model.device)
    record_factors, rates = _factors(run, trained_on, weights)
    is_trained = record_factors.any(0)
    sums = Sums(len(asked), len(examples))
    made_by = Featurizer(model, parameters, sketch, {})
    if reason := made_by.why_alone([*examples[:_TRIED]]):
        made_by = replace(made_by, together=False)
        terminal.say(f"records are computed one after the other: {reason}")
    folders = [run.path / FOLDER / _key(run, one, sizes, request.projection_dim) for one in weights]
    _say_cost(made_by, examples, folders, request.projection_dim, terminal)
    for one, folder, factor, rate in zip(weights, folders, record_factors, rates, strict=True):
        set_weights(trained, one)
        scaled = replace(made_by, scale=_scale(run, one, made_by))
        moments = [SecondMoment(len(examples), request.projection_dim) for _ in range(2)]

        def records(scaled: Featurizer = scaled, folder: Path = folder) -> Iterator[tuple[int, Features]]:
            return kept_features(folder, examples, request.projection_dim, scaled.features)

        with terminal.progress(f"gradients, step {one.step}", len(examples), "records") as advance:
            for _, features in records():
                moments[0].add(features)
                moments[1].add(directions_of(features))
                advance(len(features))
        items = scaled.features([each.example for each in asked])
        directions = moments[0].solve(items), moments[1].solve(items)
        for start, features in records():  # read again, now that what they share is known
            sums.add(directions, start, features, factor[start : start + len(features)], rate)
    influence = sums.influence()
    explanation = Explanation(
        of=request.of,
        counted_by_change=counts_by_change(request, trained),
        ranked_by=request.ranked_by,
        num_records=len(examples),
        num_trained=int(is_trained.sum()),
        parameters="all of the adapter" if run.is_adapter else _of_full_finetuning(parameters),
        num_parameters=sum(sizes.values()),
        projection_dim=request.projection_dim,
        seed=config.train.seed,
        damping=DAMPING,
        weights=tuple(
            ComparedWeights(one.step, rate, one.checkpoint is not None)
            for one, rate in zip(weights, rates, strict=True)
        ),
        notes=_notes(run, weights, request, trained),
        items=(),
    )
    return Influence(influence.scores, influence.cosines * is_trained), explanation


def _notes(
    run: FinishedRun, weights: Sequence[KeptWeights], request: Request, trained: TrainedModel
) -> tuple[str, ...]:
    is_known, at_end = trained.initial is not None, weights[0].step == run.training.kept_step
    said = {
        _START_ALONE: weights[-1].step == 0,
        _END_ALONE: at_end,
        _NO_START: not is_known and not at_end,
        _COUNTED_ALIKE: request.of == "answer" and not is_known,
        _LAST_LAYERS: not run.is_adapter,
    }
    return tuple(note for note, holds in said.items() if holds)


def _of_full_finetuning(parameters: Parameters) -> str:
    """Which matrices, from the last one backwards: of a large model those of the last layers that are small enough."""
    names = [name.removesuffix(".weight") for name in parameters]
    return f"{len(names)} matrices of the last layers: {', '.join(names[:4])}{' ...' * (len(names) > 4)}"


def _scale(run: FinishedRun, kept: KeptWeights, made_by: Featurizer) -> dict[str, torch.Tensor]:
    if kept.checkpoint is None:
        return {}
    train, moments = run.config.train, kept.checkpoint.tensors("optimizer")
    scale = preconditioner(moments, made_by.parameters, kept.step, train.adam_beta2, train.adam_epsilon)
    return {name: one.to(made_by.model.device) for name, one in scale.items()}


def _factors(
    run: FinishedRun, trained_on: TrainedOn, weights: Sequence[KeptWeights]
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], list[float]]:
    """The factor of every record at each set of weights, and the learning rates of the steps that each stands for, summed."""
    train, examples, replay = run.config.train, trained_on.examples, trained_on.replay
    steps = [one.step for one in weights]

    def summed(of: Sequence[Example]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([one.weights.sum(dtype=np.float64) for one in of])

    replayed = None if replay is None else (summed(replay.examples), replay.ratio)
    found = factors(train, summed(examples), steps, run.training.kept_step, run.grad_norms(), replayed)
    total = num_steps(len(examples), train.batch_size, train.num_train_epochs, train.max_steps)
    ends = [0, *steps[1:], run.training.kept_step]
    rates = [
        sum(learning_rate(train, step, total) for step in range(first + 1, last + 1)) for first, last in pairwise(ends)
    ]
    return found, rates


def _key(run: FinishedRun, kept: KeptWeights, sizes: dict[str, int], dim: int) -> str:
    """The name of the folder of features: which weights, and a hash of all else that they follow from."""
    about = as_json({"version": _VERSION, "training": dict(run.record.training), "sizes": sizes, "dim": dim})
    kind = "final" if kept.checkpoint is None and kept.step else "step"
    return f"{kind}-{kept.step:06d}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def _say_cost(
    made_by: Featurizer, examples: Sequence[Example], folders: Sequence[Path], dim: int, terminal: Terminal
) -> None:
    """What is to be computed and how long that takes, from a batch that is timed; what is there already costs nothing."""
    total = len(examples) * len(folders)
    there = sum(num_kept(folder, len(examples)) for folder in folders)
    facts = {
        "records": f"{len(examples):,}, at {len(folders)} set{'s' * (len(folders) > 1)} of weights: {total:,} gradients",
        "on disk": f"{4 * dim * total / 1e6:,.1f} MB in {FOLDER}/",
    }
    if there:
        facts["there already"] = f"{there:,}"
    if there < total:
        batch = list(examples[:_TRIED])
        begun = time.perf_counter()
        made_by.of_batch(batch, together=made_by.together)
        a_token = (time.perf_counter() - begun) / sum(map(len, batch))
        tokens = sum(map(len, examples)) * len(folders) * (1 - there / total)
        facts["takes about"] = rough_duration(a_token * tokens)
    terminal.facts(facts)


# What is said


def _item(asked: Asked, influence: Influence, place: int, trained_on: TrainedOn, request: Request) -> ExplainedItem:
    scores, cosines = influence.scores[place], influence.cosines[place]
    towards, away = strongest(scores if request.ranked_by == "score" else cosines, request.num)

    def record(index: int) -> InfluentialRecord:
        conversation = trained_on.conversations[index]
        response = answer_text(conversation.answered_turns[-1])
        return InfluentialRecord(
            trained_on.sources[index],
            task_text(conversation)[:_BEGINNING],
            response[:_BEGINNING],
            float(scores[index]),
            float(cosines[index]),
        )

    return ExplainedItem(
        number=asked.number,
        source=asked.given.source,
        asked=task_text(asked.given.record.conversation),
        text=asked.text,
        num_tokens=asked.num_tokens,
        raised=asked.raised,
        towards=tuple(map(record, towards)),
        away=tuple(map(record, away)),
    )


def _with_earlier(run: FinishedRun, found: Explanation) -> Explanation:
    """`found`, with the items that explain.json holds already where all else in it is the same."""
    try:
        earlier = load_document(Explanation, run.path / DOCUMENT)
    except DataError:
        return found
    if earlier is None or replace(earlier, items=()) != replace(found, items=()):
        return found
    items = {one.number: one for one in (*earlier.items, *found.items)}
    return replace(found, items=tuple(items[number] for number in sorted(items)))
