"""What `tuneful explain` explains: test items of a finished run, by number, by source or the worst, as Examples.

answers/tuned.jsonl -> AnsweredRecord -> Example, whose targets are the answer (or the reference), each as it counts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tuneful.config import DataConfig
from tuneful.console import Terminal
from tuneful.encoding.encode import Encoder
from tuneful.errors import ConfigError, DataError, InputError
from tuneful.evaluation.answers import AnsweredRecord, read_answer_rows
from tuneful.evaluation.metric_specs import item_value
from tuneful.influence.change import counted_by, target_log_probs
from tuneful.model.load import context_length
from tuneful.runs.finished import FinishedRun, TrainedModel, before_training
from tuneful.runs.schema import (
    Comparison,
    ComparisonItem,
    ExplainedText,
    RaisedToken,
    Ranking,
    load_document,
)
from tuneful.types import Conversation, Example

NUM_WORST, NUM_SHOWN, NUM_RAISED, PROJECTION_DIM = 20, 10, 3, 4096


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: the `items` by number or source (none: the worst), how many records a side, and by what they are ranked."""

    items: tuple[str, ...] = ()
    num: int = NUM_SHOWN
    of: ExplainedText = "answer"
    ranked_by: Ranking = "cosine"
    projection_dim: int = PROJECTION_DIM


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A test item that is explained, with its number from 1; its tokens count in `example` as they are compared."""

    number: int
    given: AnsweredRecord
    example: Example
    text: str
    num_tokens: int
    raised: tuple[RaisedToken, ...] = ()


def check_request(run: FinishedRun, request: Request) -> None:
    """ConfigError where `run` was trained in a way that is not explained, or a number of `request` is none."""
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


def chosen_items(run: FinishedRun, request: Request) -> list[tuple[int, AnsweredRecord]]:
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


def encoded_items(
    run: FinishedRun,
    chosen: Sequence[tuple[int, AnsweredRecord]],
    request: Request,
    trained: TrainedModel,
    terminal: Terminal,
) -> list[Asked]:
    """The items with what is explained of them encoded; those that cannot be are named and left out. DataError where none is
    left."""
    longest = context_length(trained.model)
    own = replace(trained.encoder, prompt_weight=0.0, last_turn=True, on_long="cut_response", max_length=longest)
    found = []
    for number, row in chosen:
        example = explained_example(own, row, request.of)
        if isinstance(example, Example):
            text = row.text if request.of == "answer" else row.reference
            found.append(Asked(number, row, example, text, int((example.weights > 0).sum())))
        else:
            terminal.say(f"item {number} ({row.source}) is left out: {example}", style="yellow")
    if not found:
        raise DataError(f"{run.path}: none of the items asked for can be explained")
    return found


def counts_by_change(request: Request, trained: TrainedModel) -> bool:
    """Whether an item's tokens count by what training changed: of an answer, where it is known what it changed."""
    return request.of == "answer" and trained.initial is not None


def counted_by_change(asked: Sequence[Asked], trained: TrainedModel) -> list[Asked]:
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
