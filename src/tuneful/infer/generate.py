"""Prompts become answers: rows enter as others leave, prompts of like length together, and no answer knows of the others.

A step computes one token for every row in flight. A row that ends leaves at once; when a quarter of
the rows is free the next prompts enter, their prefill computed as one trie. The longest prompts go first, so that rows in
flight are of like length. An answer depends on its own prompt, its number and the seed: the batch changes no token of it
(exactly so in float32 up to ties of rounding; bfloat16 rounds more, see docs/generate.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from tuneful.batch.order import derived_seed
from tuneful.config import GenerateConfig
from tuneful.encoding.encode import Encoder
from tuneful.errors import DataError
from tuneful.infer.decode import Decoder, attending, make_decoder
from tuneful.infer.row import Row
from tuneful.infer.sample import next_tokens
from tuneful.infer.text import AnswerText
from tuneful.model.load import context_length
from tuneful.types import Answer, Conversation

_PREFILL_TOKENS = 4096
"""Most prompt tokens that enter at once: what their layers hold in between stays in bounds."""
LEAST_SHARED = 256
"""From how many common tokens on all rows attend to one copy of them: below, the more operations cost more than the reading."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model appended to one prompt: the ids, the stop token included, and their text, which has no stop in it."""

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    text: str


def answer(
    model: PreTrainedModel,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    config: GenerateConfig,
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda num_answers: None,
) -> list[Answer]:
    """The model's answer to the last turn of each conversation, in order; `advance(1)` is called for each that is finished."""
    answers: dict[int, Answer] = {}
    for index, given in answer_each(model, encoder, conversations, config, seed=seed):
        answers[index] = given
        advance(1)
    return [answers[index] for index in range(len(conversations))]


def answer_each(
    model: PreTrainedModel,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    config: GenerateConfig,
    *,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> Iterator[tuple[int, Answer]]:
    """(index, Answer) for every conversation, as they finish.

    The random numbers of each are those of `seed` and its number in `numbers`, by default its index: to answer a part of a
    file, give the rows' numbers in the file. Raises DataError for a prompt that leaves no room in the model's context.
    """
    prompts = [encoder.prompt_ids(conversation) for conversation in conversations]
    for prompt, conversation in zip(prompts, conversations, strict=True):
        _check_room(prompt, model, conversation.source)
    found = generate(
        model,
        prompts,
        config,
        stop_token_ids(model, encoder),
        seed=seed,
        numbers=numbers,
        new_text=lambda: new_text(encoder, config),
    )
    for index, generated in found:
        conversation = conversations[index]
        yield (
            index,
            Answer(
                encoder.prompt_text(conversation),
                generated.text,
                generated.token_ids,
                generated.finish_reason,
                conversation.source,
            ),
        )


def stream(
    model: PreTrainedModel, encoder: Encoder, conversation: Conversation, config: GenerateConfig, *, seed: int = 0
) -> Iterator[str]:
    """The answer to the last turn of one conversation, piece by piece: put together, the text that `answer` gives."""
    prompt = encoder.prompt_ids(conversation)
    _check_room(prompt, model, conversation.source)
    row = Row(0, prompt, _num_allowed(model, prompt, config), derived_seed(seed, 0), new_text(encoder, config))
    stops = stop_token_ids(model, encoder)
    decoder = make_decoder(model, 1, 0, len(row.prompt) + row.max_new_tokens)
    for _ in _each_aside(model, decoder, _run(decoder, deque([row]), config, stops)):
        if piece := row.take_shown():
            yield piece


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerateConfig,
    stop_token_ids: Collection[int],
    *,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    new_text: Callable[[], AnswerText] = lambda: AnswerText(lambda token_ids: ""),
) -> Iterator[tuple[int, Generated]]:
    """(index, Generated) for every prompt of token ids, as they finish; `new_text` makes the text of an answer.

    An answer depends on its own prompt, `seed` and its number (by default its index), not on the batch it is computed in.
    Raises DataError for a prompt that leaves no room in the model's context.
    """
    for index, prompt in enumerate(prompts):
        _check_room(prompt, model, f"prompt {index}")
    rows = [
        Row(index, list(prompt), _num_allowed(model, prompt, config), derived_seed(seed, number), new_text())
        for index, (prompt, number) in enumerate(zip(prompts, numbers or range(len(prompts)), strict=True))
    ]
    if not rows:
        return
    rows.sort(key=lambda row: len(row.prompt), reverse=True)
    longest = max(len(row.prompt) + row.max_new_tokens for row in rows)
    decoder = make_decoder(model, min(config.batch_size, len(rows)), _num_shared(prompts), longest)
    finished = (row for row in _run(decoder, deque(rows), config, stop_token_ids) if row.finish_reason)
    for row in _each_aside(model, decoder, finished):
        assert row.finish_reason
        yield row.index, Generated(tuple(row.generated), row.finish_reason, row.text.text)


def stop_token_ids(model: PreTrainedModel, encoder: Encoder) -> set[int]:
    """Every token that ends an answer: the template's and the tokenizer's, and those that the model's makers taught it."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    own = set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
    text = encoder.text
    begins_a_turn = {index for index, content in text.control_token_ids.items() if content in text.template.stop}
    return text.stop_token_ids | own | begins_a_turn


def new_text(encoder: Encoder, config: GenerateConfig) -> AnswerText:
    """The text of an answer that has not begun, under the template's stop texts and those of `generate.stop`."""
    template = encoder.text.template
    return AnswerText(encoder.text.decode, (*template.stop, *config.stop), template.generation_prefix)


def _run(
    decoder: Decoder, waiting: deque[Row], config: GenerateConfig, stop_token_ids: Collection[int]
) -> Iterator[Row]:
    """Every row, once for each of its tokens, as soon as it has it; the order of work."""
    rows: list[Row] = []
    max_rows = min(config.batch_size, decoder.max_rows)
    while rows or waiting:
        entering = _entering(decoder, len(rows), waiting, max_rows)
        rows += entering
        stepped = entering or rows
        if entering:
            logits = decoder.admit([row.prompt for row in entering])
        else:
            logits = decoder.step([row.generated[-1] for row in rows])
        contexts = [row.prompt + row.generated for row in stepped] if config.repetition_penalty != 1 else []
        tokens = next_tokens(logits, config, [row.generator for row in stepped], contexts)
        for row, token_id in zip(stepped, tokens.tolist(), strict=True):
            row.accept(token_id, stop_token_ids)
            yield row
        if gone := {at for at, row in enumerate(rows) if row.finish_reason}:
            rows = [rows[at] for at in decoder.release(gone)]


def _entering(decoder: Decoder, num_rows: int, waiting: deque[Row], max_rows: int) -> list[Row]:
    """The rows that enter now, taken from those that wait: none before a quarter of the places is free."""
    room = min(max_rows - num_rows, len(waiting))
    if not room or not decoder.admits() or (num_rows and room < min(len(waiting), -(-max_rows // 4))):
        return []
    entering = [waiting.popleft()]
    num_tokens = len(entering[0].prompt)
    while len(entering) < room and num_tokens + len(waiting[0].prompt) <= _PREFILL_TOKENS:
        entering.append(waiting.popleft())
        num_tokens += len(entering[-1].prompt)
    return entering


def _each_aside(model: PreTrainedModel, decoder: Decoder, rows: Iterator[Row]) -> Iterator[Row]:
    """`rows`, computed in evaluation mode with the decoder's attention and no gradients, both undone while a row is yielded."""
    model.eval()
    while True:
        with attending(model, decoder.attention):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; 0 where they are too few to be kept apart."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    common = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return common if common >= LEAST_SHARED else 0


def _num_allowed(model: PreTrainedModel, prompt: Sequence[int], config: GenerateConfig) -> int:
    return min(config.max_new_tokens, context_length(model) - len(prompt))


def _check_room(prompt: Sequence[int], model: PreTrainedModel, source: str) -> None:
    if len(prompt) >= context_length(model):
        raise DataError(
            f"{source}: the prompt has {len(prompt)} tokens; the model's context holds {context_length(model)}"
        )
