"""Calls of the model: prompts in, logits out, then a token a row in and logits out, until rows leave.

`CachedDecoder` is ours: prompts share their prefill as a trie, rows enter and leave at any time, nothing is padded but the
slots. `PaddedDecoder` is transformers' own cache over prompts padded to the left, for models whose attention is not the
plain one, and for GPUs; its rows enter together. `make_decoder` chooses: it computes a few tokens both ways first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from tuneful.batch.trie import TrieBatch, build_trie
from tuneful.infer.cache import DecodeStep, KeyValues, register_cached_attention
from tuneful.infer.packed import packed_weights
from tuneful.model.attention import plan_attention, why_no_trie
from tuneful.types import Example

SELF_CHECK_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest relative difference of the logits of a few tokens, ours against transformers' own attention."""
_CHECK_PROMPT, _CHECK_SHARED = 7, 3
_NOT_PACKED: AbstractContextManager[Any] = nullcontext()


class Decoder(Protocol):
    """What the order of work needs of a model. Rows are numbered from 0 in the order in which they entered.

    `attention` is the name of the attention that the model must use while `admit` and `step` run.
    """

    attention: str

    def admits(self) -> bool:
        """Whether rows may enter now."""

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """New rows, numbered after those in flight: the logits [prompts, vocabulary] of their next tokens."""

    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        """One more token for each row in flight: the logits [rows, vocabulary] of the ones after."""

    def release(self, gone: Collection[int]) -> list[int]:
        """Rows leave; the old numbers of those that stay, in their new order."""


def make_decoder(model: PreTrainedModel, num_rows: int, num_shared: int) -> Decoder:
    """The decoder for `model`, with room for `num_rows` rows whose prompts all begin with the same `num_shared` tokens."""
    packed = packed_weights(model)
    if why_not_cached(model, packed) is None:
        return CachedDecoder(model, num_rows, num_shared, packed)
    return PaddedDecoder(model)


def why_not_cached(model: PreTrainedModel, packed: AbstractContextManager[Any] = _NOT_PACKED) -> str | None:
    """Why `model` must generate with transformers' own cache; None where ours gives the same logits inside `packed`."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    return why_no_trie(model) or _self_check(model, packed)


@contextmanager
def attending(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """The model attends through `attention` without gradients, and as before afterwards.

    Not in torch's inference mode: what a model that is spread over ranks gathers in it, no later training may use.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(before)


class CachedDecoder:
    """Rows in slots of our own key/value cache; the model is called inside `packed`, which may hold its weights packed."""

    def __init__(
        self,
        model: PreTrainedModel,
        num_slots: int,
        num_shared: int,
        packed: AbstractContextManager[Any] = _NOT_PACKED,
    ) -> None:
        self.attention = register_cached_attention()
        self._model, self._packed = model, packed
        self._key_values = KeyValues(num_slots, num_shared)
        self._num_held: list[int] = []  # tokens of each row in its slot

    def admits(self) -> bool:
        """Always: a row's slot is its own."""
        return True

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """New rows, numbered after those in flight: the logits [prompts, vocabulary] of their next tokens."""
        # A token to come makes a prompt an example: the trie holds what stands before it.
        batch = build_trie(
            [
                Example(
                    np.array([*prompt, 0], np.int32),
                    np.array([0] * len(prompt) + [1], np.float32),
                    len(prompt),
                    "prompt",
                )
                for prompt in prompts
            ]
        )
        last = [int(batch.target_rows[own[0]]) for own in batch.record_targets]
        own_nodes = [_path(batch, node)[self._key_values.num_shared :] for node in last]
        first_slot = len(self._num_held)
        held, self._num_held = self._num_held, [*self._num_held, *map(len, own_nodes)]
        self._key_values.make_room(max(self._num_held), len(held))
        slots = np.repeat(np.arange(first_slot, len(self._num_held)), [len(nodes) for nodes in own_nodes])
        return self._call(
            DecodeStep(
                key_values=self._key_values,
                token_ids=_ids(batch.input_ids)[None],
                positions=_ids(batch.positions)[None],
                predictors=_ids(last),
                written=_ids(np.concatenate(own_nodes)),
                slots=_ids(slots),
                places=_ids(np.concatenate([np.arange(len(nodes)) for nodes in own_nodes])),
                plan=plan_attention(batch, self._model),
            )
        )

    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        """One more token for each row in flight: the logits [rows, vocabulary] of the ones after."""
        assert len(token_ids) == len(self._num_held) > 0
        places = _ids(self._num_held)
        self._num_held = [held + 1 for held in self._num_held]
        self._key_values.make_room(max(self._num_held), len(self._num_held))
        config = self._model.config.get_text_config()
        num_key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        beyond = torch.arange(max(self._num_held)) > places[:, None]
        hidden = torch.zeros(beyond.shape, dtype=self._model.dtype).masked_fill_(beyond, -torch.inf)
        rows = torch.arange(len(token_ids))
        return self._call(
            DecodeStep(
                key_values=self._key_values,
                token_ids=_ids(token_ids)[None],
                positions=(places + self._key_values.num_shared)[None],
                predictors=rows,
                written=rows,
                slots=rows,
                places=places,
                hidden=hidden.repeat_interleave(num_key_heads, 0)[:, None],
            )
        )

    def release(self, gone: Collection[int]) -> list[int]:
        """Rows leave; the last ones move into the slots that become free. The old numbers in the new order."""
        stay = [row for row in range(len(self._num_held)) if row not in gone]
        holes = [row for row in sorted(gone) if row < len(stay)]
        movers = [row for row in stay if row >= len(stay)]
        order = list(range(len(stay)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self._num_held = [self._num_held[row] for row in order]
        if movers:
            self._key_values.move(movers, holes, max(self._num_held))
        return order

    def _call(self, step: DecodeStep) -> torch.Tensor:
        with self._packed:
            logits: torch.Tensor = self._model(
                input_ids=step.token_ids,
                position_ids=step.positions,
                use_cache=False,
                logits_to_keep=step.predictors,
                step=step,
            ).logits[0]
        return logits


class PaddedDecoder:
    """Rows of a batch in transformers' cache, padded to the left so that every row's next token is its last column."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.attention = "sdpa" if model._supports_sdpa else "eager"
        self._model = model
        self._cache: Any = None
        self._seen = torch.zeros(0, 0, dtype=torch.bool)  # [rows, columns]: which are no padding

    def admits(self) -> bool:
        """Only while no row is in flight: all rows of a batch enter together."""
        return not len(self._seen)

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """A new batch: the logits [prompts, vocabulary] of the next tokens."""
        assert self.admits()
        self._cache = DynamicCache(config=self._model.config)
        longest, device = max(map(len, prompts)), self._model.device
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._seen = torch.arange(longest, device=device) >= longest - lengths[:, None]
        return self._call(ids)

    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        """One more token for each row in flight: the logits [rows, vocabulary] of the ones after."""
        ids = torch.tensor(token_ids, device=self._model.device)[:, None]
        self._seen = torch.cat([self._seen, self._seen.new_ones(len(ids), 1)], 1)
        return self._call(ids)

    def release(self, gone: Collection[int]) -> list[int]:
        """Rows leave, cache and all; the old numbers of those that stay."""
        stay = [row for row in range(len(self._seen)) if row not in gone]
        if stay:
            self._cache.batch_select_indices(torch.tensor(stay, device=self._model.device))
        self._seen = self._seen[stay]
        return stay

    def _call(self, ids: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(self._seen.shape[1] - ids.shape[1], self._seen.shape[1], device=ids.device)
        num_padding = self._seen.logical_not().sum(1, keepdim=True)
        logits: torch.Tensor = self._model(
            input_ids=ids,
            attention_mask=self._seen.long(),
            position_ids=(columns - num_padding).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits


def _self_check(model: PreTrainedModel, packed: AbstractContextManager[Any]) -> str | None:
    """Two short prompts and a token each, through our cache and in one plain forward: how the logits differ, if they do."""
    num_tokens = model.get_input_embeddings().weight.shape[0]
    ids = np.random.default_rng(0).integers(0, num_tokens, (2, _CHECK_PROMPT + 1))
    ids[:, :_CHECK_SHARED] = ids[0, :_CHECK_SHARED]
    decoder = CachedDecoder(model, len(ids), _CHECK_SHARED, packed)
    with attending(model, decoder.attention):
        decoder.admit(ids[:, :-1].tolist())
        ours = decoder.step(ids[:, -1].tolist())
    with attending(model, PaddedDecoder(model).attention):
        plain = model(input_ids=torch.from_numpy(ids), use_cache=False, logits_to_keep=1).logits[:, -1]
    difference = ((ours.double() - plain.double()).norm() / plain.double().norm()).item()
    if difference <= SELF_CHECK_TOLERANCE[model.dtype]:
        return None
    return f"the logits of a few tokens differ by {difference:.2g} from those of transformers' own attention"


def _path(batch: TrieBatch, node: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The nodes from the root to `node`: those whose subtree it is in, which depth-first order sorts by depth."""
    nodes = np.arange(node + 1)
    return nodes[batch.subtree_end[: node + 1] > node]


def _ids(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.int64)
