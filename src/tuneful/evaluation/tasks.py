"""A model takes a test: choices are scored by their log-likelihood, instructions by its answers.

Stands over `task_files.py` and `constraints.py`; `task_comparison.py` compares two models. Every choice becomes an Example whose
targets are the tokens of the choice alone, and all of them are computed as the references of a test set are (`record_nll`): in
packed tries, where a prompt is computed once for its choices, and examples that stand before every question once for all.

    template   the question is what is asked, the choice what is answered, without the token that ends an answer; items that
               stand before it (few-shot) are earlier turns. A `_` is asked as it stands
    raw        question, a space, choice, as lm-evaluation-harness puts them; few-shot items before it, divided by empty lines.
               A `_` holds the choice, and what is scored is the rest of the sentence. The token that begins a text stands first
               where the tokenizer writes one

`acc` takes the likeliest choice, `acc_norm` the likeliest by the character, `acc_bytes` by the byte; of equals the first
(lm-evaluation-harness 0.4). An item of which any choice does not fit the model's context is not scored, nor is a prompt that
leaves no room for an answer.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tuneful.config import EvaluationConfig, GenerateConfig
from tuneful.encoding.encode import Encoder
from tuneful.encoding.template import PromptFormat
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import ConfigError
from tuneful.evaluation.constraints import followed
from tuneful.evaluation.task_files import ChoiceItem, InstructionItem, Task, read_tasks
from tuneful.model.load import context_length
from tuneful.runs.schema import AnswerRow, ChoiceScore, InstructionScore
from tuneful.types import Conversation, Example, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tuneful.runs.schema import Layout

_BETWEEN, _BEFORE_CHOICE = "\n\n", " "

_RAW = PromptFormat("raw", "", "", "", "", "", "", "", "", "", "", stop=())
"""No template: a prompt is the text that stands there."""


def encoder_of(encoder: Encoder, tokenizer: PreTrainedTokenizerBase, config: EvaluationConfig) -> Encoder:
    """The encoder that tests are asked with: `encoder`, or one without a template where they are asked raw."""
    return encoder if config.tests_prompt == "template" else replace(encoder, text=TextEncoder(tokenizer, _RAW))


def asked_of(task: Task, encoder: Encoder, config: EvaluationConfig, generate: GenerateConfig, seed: int) -> str:
    """sha256 over what a test asks and how: scores of one are none of another."""
    own: list[object] = [config.num_fewshot, config.fewshot_sampler]
    if task.kind == "instructions":
        own = [generate.model_dump(exclude={"batch_size"})]
    asked = [task.sha256, config.tests_prompt, encoder.text.fingerprint, seed, *own]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def tasks_of(config: EvaluationConfig, seed: int) -> list[Task]:
    """The tests of `config`; DataError for damaged files, ConfigError where a setting does not fit them."""
    tasks = read_tasks(config.tests)
    choices = [task for task in tasks if task.kind == "choices"]
    if tasks and config.num_fewshot and not choices:
        raise ConfigError("`evaluation.num_fewshot` is for multiple choice, and evaluation.tests names none; drop it")
    for task in choices:
        fewshot(task, config, seed)
    return tasks


# Multiple choice


def fewshot(task: Task, config: EvaluationConfig, seed: int) -> tuple[list[ChoiceItem], list[ChoiceItem]]:
    """The items that stand before every question, and those that are scored; ConfigError where none would be."""
    items = [item for item in task.items if isinstance(item, ChoiceItem)]
    if config.num_fewshot >= len(items):
        raise ConfigError(
            f"`evaluation.num_fewshot` is {config.num_fewshot} and {task.file} has {len(items)} items: none is left to score"
        )
    shown = list(range(config.num_fewshot))
    if config.fewshot_sampler == "random":
        shown = random.Random(seed).sample(range(len(items)), config.num_fewshot)
    return [items[place] for place in shown], [item for place, item in enumerate(items) if place not in set(shown)]


def choice_examples(
    shown: Sequence[ChoiceItem], items: Sequence[ChoiceItem], encoder: Encoder
) -> list[list[Example] | str]:
    """For each item the Examples of its choices, or the reason why it has none; `encoder` is that of `encoder_of`."""
    if encoder.text.template is _RAW:
        return [_raw_examples("".join(map(_raw_shot, shown)), item, encoder.text) for item in items]
    asked = tuple(Turn(item.question, "", item.choices[item.gold[0]]) for item in shown)
    choices = [
        Conversation("", (*asked, Turn(item.question, "", choice)), item.source)
        for item in items
        for choice in item.choices
    ]
    whole = iter(encoder.answers(choices))
    found = [[next(whole) for _ in item.choices] for item in items]
    return [next((one for one in own if isinstance(one, str)), own) for own in found]  # type: ignore[misc]


def score_choices(
    model: PreTrainedModel, items: Sequence[ChoiceItem], examples: Sequence[list[Example] | str], layout: Layout
) -> list[ChoiceScore]:
    """The scores of `items` under `model`, whose choices are `examples`."""
    from tuneful.train.loop import record_nll  # here, so that files can be read without loading torch

    room = context_length(model) + 1  # nothing is computed of the last token
    fitting = [_why_too_long(own, room) or own for own in examples]
    scored = [example for own in fitting if not isinstance(own, str) for example in own]
    nll = iter(record_nll(model, scored, layout))
    return [
        _unscored(item, own) if isinstance(own, str) else _scored(item, own, [-next(nll) for _ in own])
        for item, own in zip(items, fitting, strict=True)
    ]


def _why_too_long(examples: list[Example] | str, room: int) -> str | None:
    if isinstance(examples, str) or (longest := max(map(len, examples))) <= room:
        return None
    return f"{longest} tokens, and the model's context holds {room - 1}"


def _unscored(item: ChoiceItem, reason: str) -> ChoiceScore:
    return ChoiceScore(item.source, item.gold, (), (), (), (), None, None, None, reason)


def _scored(item: ChoiceItem, examples: Sequence[Example], loglikelihoods: Sequence[float]) -> ChoiceScore:
    characters, num_bytes = (
        map(len, item.choices),
        (len(choice.encode("utf-8", "surrogatepass")) for choice in item.choices),
    )
    sizes = (tuple(characters), tuple(num_bytes))
    likely = np.array(loglikelihoods)
    best = [int(np.argmax(likely / by)) for by in (1.0, *map(np.array, sizes))]
    num_tokens = tuple(int((example.weights > 0).sum()) for example in examples)
    acc, acc_norm, acc_bytes = (place in item.gold for place in best)
    return ChoiceScore(item.source, item.gold, tuple(loglikelihoods), num_tokens, *sizes, acc, acc_norm, acc_bytes)


def _raw_shot(item: ChoiceItem) -> str:
    """An item that stands before a question, with its right choice."""
    context, choice = _raw_texts(item, item.choices[item.gold[0]])
    return context + choice + _BETWEEN


def _raw_texts(item: ChoiceItem, choice: str) -> tuple[str, str]:
    """What stands before the scored text of a choice, and that text."""
    if not item.has_blank:
        return item.question, _BEFORE_CHOICE + choice
    before, _, after = item.question.partition("_")
    return before + choice, _BEFORE_CHOICE + after.strip()


def _raw_examples(before: str, item: ChoiceItem, text: TextEncoder) -> list[Example] | str:
    """As lm-evaluation-harness encodes a context and what follows it: white space at the end of the context belongs to what
    follows, and what follows are the tokens of both together beyond as many as the context has."""
    found = []
    begin = text.begin_token_ids
    for number, choice in enumerate(item.choices, start=1):
        context, scored = _raw_texts(item, choice)
        whole = before + context + scored
        ids, num_before = text.text_ids(whole), len(text.text_ids((before + context).rstrip()))
        if len(ids) <= num_before:
            return f"the tokenizer writes no token of choice {number} after the question"
        found.append(_targets_from([*begin, *ids], len(begin) + num_before, item.source))
    return found


def _targets_from(token_ids: Sequence[int], start: int, source: str) -> Example:
    weights = np.zeros(len(token_ids), dtype=np.float32)
    weights[start:] = 1.0
    return Example(np.asarray(token_ids, dtype=np.int32), weights, start, source)


# Instructions


@dataclass(frozen=True, slots=True)
class Instructions:
    """The items of a test of instructions: the `conversations` that are put to a model, by the number of their item, and the
    reasons why others are not."""

    items: tuple[InstructionItem, ...]
    conversations: dict[int, Conversation]
    unscored: dict[int, str]


def ask_instructions(task: Task, encoder: Encoder, context: int) -> Instructions:
    """What is asked of a model whose context holds `context` tokens."""
    items = tuple(item for item in task.items if isinstance(item, InstructionItem))
    conversations, unscored = {}, {}
    for number, item in enumerate(items):
        conversation = Conversation("", (Turn(item.prompt, "", "?"),), item.source)
        if item.unscored_reason is not None:
            unscored[number] = item.unscored_reason
        elif (num_tokens := len(encoder.prompt_ids(conversation))) >= context:
            unscored[number] = f"the prompt has {num_tokens} tokens, and the model's context holds {context}"
        else:
            conversations[number] = conversation
    return Instructions(items, conversations, unscored)


def score_instructions(asked: Instructions, answers: Sequence[AnswerRow]) -> list[InstructionScore]:
    """The scores of all items, where `answers` are those to the conversations, in order."""
    given = dict(zip(asked.conversations, answers, strict=True))
    return [
        _instruction_score(item, given[number])
        if number in given
        else InstructionScore(item.source, "", "", "", None, _names(item), (), (), asked.unscored[number])
        for number, item in enumerate(asked.items)
    ]


def _instruction_score(item: InstructionItem, answer: AnswerRow) -> InstructionScore:
    """What the model thought before (up to </think>) is no part of the answer."""
    strict, loose = followed(item.constraints, answer.text.rpartition("</think>")[2].strip())
    return InstructionScore(
        item.source, answer.prompt, answer.text, answer.finish_reason, answer.num_tokens, _names(item), strict, loose
    )


def _names(item: InstructionItem) -> tuple[str, ...]:
    return tuple(one.name for one in item.constraints)
