"""Answers from our own cache: prompts share their prefill as a trie, rows enter and leave at any time, slots alone are padded.

The fastest of the decoders (`decode.py`), for models whose attention is the plain one. Keys and values are kept by `cache.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tuneful.batch.trie import TrieBatch, build_trie
from tuneful.infer.cache import DecodeStep, KeyValues, register_cached_attention
from tuneful.model.attention import plan_attention
from tuneful.model.forward import compute_logits
from tuneful.types import Example

NOT_PACKED: AbstractContextManager[Any] = nullcontext()


class CachedDecoder:
    """Rows in slots of our own key/value cache; the model is called inside `packed`, which may hold its weights packed."""

    def __init__(
        self,
        model: PreTrainedModel,
        num_slots: int,
        num_shared: int,
        packed: AbstractContextManager[Any] = NOT_PACKED,
    ) -> None:
        self.attention, self.max_rows = register_cached_attention(), num_slots
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
            return compute_logits(
                self._model,
                step.predictors,
                input_ids=step.token_ids,
                position_ids=step.positions,
                use_cache=False,
                step=step,
            )[0]


def _path(batch: TrieBatch, node: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The nodes from the root to `node`: those whose subtree it is in, which depth-first order sorts by depth."""
    nodes = np.arange(node + 1)
    return nodes[batch.subtree_end[: node + 1] > node]


def _ids(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.int64)
