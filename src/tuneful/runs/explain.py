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
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tuneful.batch.order import num_steps
from tuneful.config import DataConfig
from tuneful.console import Terminal
from tuneful.encoding.encode import Encoder
from tuneful.errors import ConfigError, DataError, InputError
from tuneful.evaluation.answers import AnsweredRecord, read_answer_rows, task_text
from tuneful.evaluation.metric_specs import item_value
from tuneful.files import as_json, lock_output, unlock_output, write_json
from tuneful.influence.change import counted_by, target_log_probs
from tuneful.influence.curvature import DAMPING, SecondMoment, directions_of
from tuneful.influence.features import Features, Featurizer, kept_features, num_kept
from tuneful.influence.parameters import last_matrices, preconditioner, trainable
from tuneful.influence.ranking import Influence, Sums, strongest
from tuneful.influence.sketch import Sketch
from tuneful.influence.visits import factors
from tuneful.model.load import context_length
from tuneful.numbers import rough_duration
from tuneful.runs.finished import (
    FinishedRun,
    KeptWeights,
    TrainedModel,
    TrainedOn,
    before_training,
    kept_weights,
    load_trained,
    open_finished,
    read_trained_on,
    set_weights,
)
from tuneful.runs.schema import (
    ComparedWeights,
    Comparison,
    ComparisonItem,
    ExplainedItem,
    ExplainedText,
    Explanation,
    InfluentialRecord,
    RaisedToken,
    Ranking,
    as_row,
    load_document,
)
from tuneful.train.optimizer import learning_rate
from tuneful.types import Conversation, Example, answer_text

if TYPE_CHECKING:
    import torch

DOCUMENT, FOLDER = "explain.json", "explain"
NUM_WORST, NUM_SHOWN, NUM_RAISED, PROJECTION_DIM = 20, 10, 3, 4096
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
_LAST_LAYERS = "of full finetuning the matrices of the last layers stand for all"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: the `items` by number or source (none: the worst), how many records a side, and by what they are ranked."""

    items: tuple[str, ...] = ()
    num: int = NUM_SHOWN
    of: ExplainedText = "answer"
    ranked_by: Ranking = "cosine"
    projection_dim: int = PROJECTION_DIM


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A test item that is explained, with its number from 1; its tokens count in `example` as they are compared."""

    number: int
    given: AnsweredRecord
    example: Example
    text: str
    num_tokens: int
    raised: tuple[RaisedToken, ...] = ()


def explain_run(path: Path, request: Request, terminal: Terminal) -> Explanation:
    """Answer `request` about the run in `path`, and write explain.json there; what was found for these items.

    Raises InputError where the request is wrong or the folder has not what it takes, and ModelError where the model is gone.
    """
    run = open_finished(path)
    _check_request(run, request)
    chosen = _chosen_items(run, request)
    lock = lock_output(run.path / DOCUMENT)
    try:
        trained = load_trained(run, terminal)
        trained_on = read_trained_on(run, trained.encoder)
        asked = _asked(run, chosen, request, trained, terminal)
        if _counts_by_change(request, trained):
            asked = _counted_by_change(asked, trained)
        influence, explanation = _compare(run, trained, trained_on, asked, request, terminal)
        items = tuple(_item(one, influence, place, trained_on, request) for place, one in enumerate(asked))
        found = _with_earlier(run, replace(explanation, items=items))
        write_json(run.path / DOCUMENT, as_row(found))
    finally:
        unlock_output(lock)
    return replace(found, items=tuple(one for one in found.items if one.number in {each.number for each in asked}))


# What is explained


def _check_request(run: FinishedRun, request: Request) -> None:
    config = run.config
    if config.train.objective != "sft":
        raise ConfigError(
            f"{run.path}: trained with train.objective={config.train.objective}; explain compares gradients of the loss of "
            "responses, and knows train.objective=sft alone"
        )
    if config.data.interleave_probs is not None:
        raise ConfigError(
            f"{run.path}: mixed its files by data.interleave_probs; explain does not know which record came when"
        )
    if config.data.format == "text" or "text" in (config.data.formats or {}).values():
        raise ConfigError(f"{run.path}: trained on documents, and explain knows records with a response alone")
    for name, value in (("--num", request.num), ("--projection-dim", request.projection_dim)):
        if value < 1:
            raise ConfigError(f"{name}: {value}, expected 1 or more")


def _chosen_items(run: FinishedRun, request: Request) -> list[tuple[int, AnsweredRecord]]:
    """The test items that are asked for, each with its number; the worst where none is named."""
    file = run.path / "answers" / "tuned.jsonl"
    if not file.is_file():
        raise DataError(
            f"{run.path}: has no answers/tuned.jsonl: only what `tuneful run` measured on a test set is explained"
        )
    rows = list(enumerate(read_answer_rows(file, DataConfig()), start=1))
    if not request.items:
        return [rows[place] for place in _worst(run, len(rows))]
    by_name = {str(number): (number, row) for number, row in rows} | {row.source: (number, row) for number, row in rows}
    if lost := [name for name in request.items if name not in by_name]:
        raise InputError(
            f"--item {lost[0]}: no such item; there are 1 to {len(rows):,}, or a source such as {rows[0][1].source}"
        )
    return sorted({by_name[name][0]: by_name[name] for name in request.items}.values(), key=lambda one: one[0])


def _worst(run: FinishedRun, num_rows: int) -> list[int]:
    """The places of the NUM_WORST answers of the tuned model with the lowest headline score, in the order of the test set."""
    comparison = load_document(Comparison, run.path / "comparison.json")
    items = (comparison.items if comparison else None) or ()
    if comparison is None or len(items) != num_rows:
        raise DataError(f"{run.path}: comparison.json says nothing of the answers; name an item: --item N")
    sign = -1 if comparison.main.higher_is_better is False else 1

    def badness(item: ComparisonItem) -> float:
        value = item_value(comparison.headline, item.tuned)
        return float("inf") if value is None else sign * value

    order = sorted(range(num_rows), key=lambda place: (badness(items[place]), items[place].gain or 0.0))
    return sorted(order[:NUM_WORST])


def _asked(
    run: FinishedRun,
    chosen: Sequence[tuple[int, AnsweredRecord]],
    request: Request,
    trained: TrainedModel,
    terminal: Terminal,
) -> list[_Asked]:
    """The items with what is explained of them encoded; those that cannot be are named and left out. DataError where none is
    left."""
    longest = context_length(trained.model)
    own = replace(trained.encoder, prompt_weight=0.0, last_turn=True, on_long="cut_response", max_length=longest)
    found = []
    for number, row in chosen:
        example = explained_example(own, row, request.of)
        if isinstance(example, Example):
            text = row.text if request.of == "answer" else row.reference
            found.append(_Asked(number, row, example, text, int((example.weights > 0).sum())))
        else:
            terminal.say(f"item {number} ({row.source}) is left out: {example}", style="yellow")
    if not found:
        raise DataError(f"{run.path}: none of the items asked for can be explained")
    return found


def _counts_by_change(request: Request, trained: TrainedModel) -> bool:
    """Whether an item's tokens count by what training changed: of an answer, where it is known what it changed."""
    return request.of == "answer" and trained.initial is not None


def _counted_by_change(asked: Sequence[_Asked], trained: TrainedModel) -> list[_Asked]:
    """`asked`, with each token of an answer counted by how much training raised its log-probability."""
    examples = [one.example for one in asked]
    after = target_log_probs(trained.model, examples)
    with before_training(trained):
        before = target_log_probs(trained.model, examples)
    text_of = trained.encoder.text.token_text
    found = []
    for one, now, then in zip(asked, after, before, strict=True):
        gains = now - then
        if (counted := counted_by(gains, one.example)) is one.example:
            found.append(one)
            continue
        targets = one.example.token_ids[one.example.weights > 0]
        most = [place for place in np.argsort(-gains, kind="stable")[:NUM_RAISED] if gains[place] > 0]
        raised = tuple(RaisedToken(text_of([int(targets[place])]), float(gains[place])) for place in most)
        found.append(replace(one, example=counted, raised=raised))
    return found


def explained_example(encoder: Encoder, row: AnsweredRecord, of: ExplainedText) -> Example | str:
    """The answer (or reference) of a test item as an Example whose targets are its tokens, its end token with them where the
    model ended it; or the reason why there is none."""
    conversation = row.record.conversation
    if of == "reference":
        return encoder.example(conversation)
    ended = row.finish_reason != "length"
    if not row.text:
        ids = [*encoder.prompt_ids(conversation), encoder.text.end_token_id]
        weights = np.zeros(len(ids), np.float32)
        weights[-1] = 1.0
        known = Example(np.array(ids, np.int32), weights, len(ids) - 1, row.source)
        return known if ended else "the answer is empty, and was cut off"
    example = encoder.example(_answered(conversation, row.text))
    if isinstance(example, str) or ended or example.cut:
        return example
    weights = example.weights.copy()
    weights[np.flatnonzero(weights)[-1]] = 0.0  # the model was cut off: it did not write its end token
    return replace(example, weights=weights) if weights.any() else "the answer is empty, and was cut off"


def _answered(conversation: Conversation, text: str) -> Conversation:
    *before, last = conversation.answered_turns
    turn = replace(last, response=text, thought="", calls=(), weight=1.0)
    return replace(conversation, turns=(*before, turn), weight=1.0)


# Gradients are compared


def _compare(
    run: FinishedRun,
    trained: TrainedModel,
    trained_on: TrainedOn,
    asked: Sequence[_Asked],
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
        counted_by_change=_counts_by_change(request, trained),
        ranked_by=request.ranked_by,
        num_records=len(examples),
        num_trained=int(is_trained.sum()),
        parameters="all of the adapter" if run.is_adapter else f"the last {len(parameters)} matrices",
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


def _item(asked: _Asked, influence: Influence, place: int, trained_on: TrainedOn, request: Request) -> ExplainedItem:
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
