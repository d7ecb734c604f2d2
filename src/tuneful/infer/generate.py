"""Prompts become answers: batches of prompts of like length, a key/value cache, rows leaving when they finish.

Prompts are padded to the left, so that every row's next token is its last column. Rows that end leave the batch, cache
and all, once a quarter of it is done: an answer that ended costs nothing while the longest one is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from tuneful.config import GenerateConfig
from tuneful.data.encode import Encoder
from tuneful.errors import DataError
from tuneful.infer.sample import next_tokens
from tuneful.types import Answer, Conversation


@dataclass(frozen=True, slots=True)
class Generated:
    """The ids that a model appended to one prompt; the last one is a stop token where it `ended_by` "stop"."""

    token_ids: tuple[int, ...]
    ended_by: Literal["stop", "length"]

    @property
    def said(self) -> tuple[int, ...]:
        """The ids without the stop token, which not every tokenizer knows as a control token."""
        return self.token_ids[:-1] if self.ended_by == "stop" else self.token_ids


def answer(
    model: PreTrainedModel,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    config: GenerateConfig,
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda num_answers: None,
) -> list[Answer]:
    """The model's answer to the last turn of each conversation, in order; `advance` hears of finished answers."""
    prompts = [encoder.prompt_ids(conversation) for conversation in conversations]
    for prompt, conversation in zip(prompts, conversations, strict=True):
        _check_room(prompt, model, conversation.source)
    stop = encoder.text.stop_token_ids | _own_stop_ids(model)
    answers: dict[int, Answer] = {}
    for index, generated in generate(model, prompts, config, stop, seed=seed):
        text = encoder.text.template.parse(encoder.text.decode(generated.said))
        answers[index] = Answer(
            encoder.prompt_text(conversations[index]),
            text,
            generated.token_ids,
            generated.ended_by,
            conversations[index].source,
        )
        advance(1)
    return [answers[index] for index in range(len(prompts))]


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerateConfig,
    stop_token_ids: Collection[int],
    *,
    seed: int = 0,
) -> Iterator[tuple[int, Generated]]:
    """(index, Generated) for every prompt of token ids, as they finish.

    An answer depends on its own prompt, `seed` and its index, not on the batch it is computed in. Raises DataError for a
    prompt that leaves no room in the model's context.
    """
    for index, prompt in enumerate(prompts):
        _check_room(prompt, model, f"prompt {index}")
    context = _context(model)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    model.eval()
    for start in range(0, len(order), config.batch_size):
        rows = [
            _Row(index, list(prompts[index]), min(config.max_new_tokens, context - len(prompts[index])), seed)
            for index in order[start : start + config.batch_size]
        ]
        yield from _aside(model, _generate_batch(model, rows, config, stop_token_ids))


def _aside(model: PreTrainedModel, finished: Iterator[tuple[int, Generated]]) -> Iterator[tuple[int, Generated]]:
    """`finished`, computed without gradients and with cached attention, neither of which whoever iterates gets to see."""
    while True:
        with torch.inference_mode(), _cached_attention(model):
            answer = next(finished, None)
        if answer is None:
            return
        yield answer


class _Row:
    """One prompt in flight, with what was generated so far and its own random numbers."""

    def __init__(self, index: int, prompt: list[int], max_new_tokens: int, seed: int) -> None:
        self.index, self.prompt, self.max_new_tokens = index, prompt, max_new_tokens
        self.generated: list[int] = []
        self.generator = torch.Generator().manual_seed(_seed_of(seed, index))

    def accept(self, token_id: int, stop_token_ids: Collection[int]) -> Generated | None:
        """Take one more token; the finished answer where it is the last."""
        self.generated.append(token_id)
        if token_id in stop_token_ids:
            return Generated(tuple(self.generated), "stop")
        if len(self.generated) >= self.max_new_tokens:
            return Generated(tuple(self.generated), "length")
        return None


def _seed_of(seed: int, index: int) -> int:
    """64 bits of their own for every prompt of every run, however large `seed` is."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def _generate_batch(
    model: PreTrainedModel, rows: list[_Row], config: GenerateConfig, stop_token_ids: Collection[int]
) -> Iterator[tuple[int, Generated]]:
    cache = DynamicCache(config=model.config)
    input_ids, seen = _left_padded([row.prompt for row in rows], model.device)
    num_padding = seen.logical_not().sum(1, keepdim=True)
    finished = [False] * len(rows)
    while not all(finished):
        positions = torch.arange(seen.shape[1] - input_ids.shape[1], seen.shape[1], device=model.device) - num_padding
        logits = model(
            input_ids=input_ids,
            attention_mask=seen.long(),
            position_ids=positions.clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens = next_tokens(logits, config, [row.generator for row in rows])
        for at, (row, token_id) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if not finished[at] and (done := row.accept(token_id, stop_token_ids)):
                finished[at] = True
                yield row.index, done
        input_ids, seen = tokens[:, None], torch.cat([seen, seen.new_ones(len(rows), 1)], 1)
        if 4 * sum(finished) >= len(rows) and not all(finished):
            kept = torch.tensor([at for at, done in enumerate(finished) if not done], device=model.device)
            cache.batch_select_indices(kept)
            input_ids, seen, num_padding = input_ids[kept], seen[kept], num_padding[kept]
            rows = [rows[at] for at in kept.tolist()]
            finished = [False] * len(rows)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 and which of them are real, bool; both [prompts, longest], padded with id 0 to the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths[:, None]


def _context(model: PreTrainedModel) -> int:
    """How many tokens the model can attend to."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def _check_room(prompt: Sequence[int], model: PreTrainedModel, source: str) -> None:
    if len(prompt) >= _context(model):
        raise DataError(f"{source}: the prompt has {len(prompt)} tokens; the model's context holds {_context(model)}")


def _own_stop_ids(model: PreTrainedModel) -> set[int]:
    """End tokens of the model's own generation config, which its makers taught it."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


@contextmanager
def _cached_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model attends as transformers would, with a cache, and as before afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
