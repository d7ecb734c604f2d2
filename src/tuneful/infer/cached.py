"""Answers from our own cache: prompts share their prefill as a trie, rows enter and leave at any time, slots alone are padded.

The fastest of the decoders (`decode.py`), for models whose attention is the plain one. What calls the model, and keeps its keys
and values, is an engine: the compiled kernels' (`compiled.py`), or torch's (`cache.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from tuneful.batch.trie import TrieBatch, build_trie
from tuneful.infer.cache import Tokens, TorchEngine, register_cached_attention
from tuneful.infer.compiled import CompiledEngine, CompiledModel
from tuneful.types import Example

Weights = CompiledModel | AbstractContextManager[Any]
"""Laid out for the compiled kernels, or a context in which torch multiplies by them."""
NOT_PACKED: AbstractContextManager[Any] = nullcontext()


class Engine(Protocol):
    """What calls the model and keeps the keys and values of the rows in flight, in slots from 0 on."""

    def make_room(self, num_tokens: int, num_kept: int, num_rows: int) -> None:
        """Let `num_rows` slots hold `num_tokens` each; what the first `num_kept` slots hold is kept."""

    def move(self, sources: Sequence[int], targets: Sequence[int], num_tokens: int) -> None:
        """Copy the first `num_tokens` tokens of some slots to others."""

    def logits(self, tokens: Tokens) -> torch.Tensor:
        """The logits [B, vocabulary] of the predictors, as they are until the next call."""


class CachedDecoder:
    """Rows in slots of our own key/value cache; the model multiplies by its `weights` as they were laid out."""

    def __init__(self, model: PreTrainedModel, num_slots: int, num_shared: int, weights: Weights = NOT_PACKED) -> None:
        self.attention: str | None = None if isinstance(weights, CompiledModel) else register_cached_attention()
        self.max_rows, self._num_shared = num_slots, num_shared
        self._engine: Engine = (
            CompiledEngine(weights, num_slots, num_shared)
            if isinstance(weights, CompiledModel)
            else TorchEngine(model, num_slots, num_shared, weights)
        )
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
        own_nodes = [_path(batch, node)[self._num_shared :] for node in last]
        first_slot = len(self._num_held)
        held, self._num_held = self._num_held, [*self._num_held, *map(len, own_nodes)]
        self._engine.make_room(max(self._num_held), len(held), len(self._num_held))
        slots = np.repeat(np.arange(first_slot, len(self._num_held)), [len(nodes) for nodes in own_nodes])
        return self._call(
            Tokens(
                token_ids=_ids(batch.input_ids),
                positions=_ids(batch.positions),
                predictors=_ids(last),
                written=_ids(np.concatenate(own_nodes)),
                slots=_ids(slots),
                places=_ids(np.concatenate([np.arange(len(nodes)) for nodes in own_nodes])),
                prompts=batch,
            )
        )

    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        """One more token for each row in flight: the logits [rows, vocabulary] of the ones after."""
        assert len(token_ids) == len(self._num_held) > 0
        places = _ids(self._num_held)
        self._num_held = [held + 1 for held in self._num_held]
        self._engine.make_room(max(self._num_held), len(self._num_held), len(self._num_held))
        rows = torch.arange(len(token_ids))
        return self._call(
            Tokens(
                token_ids=_ids(token_ids),
                positions=places + self._num_shared,
                predictors=rows,
                written=rows,
                slots=rows,
                places=places,
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
            self._engine.move(movers, holes, max(self._num_held))
        return order

    def _call(self, tokens: Tokens) -> torch.Tensor:
        return self._engine.logits(tokens)


def _path(batch: TrieBatch, node: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The nodes from the root to `node`: those whose subtree it is in, which depth-first order sorts by depth."""
    nodes = np.arange(node + 1)
    return nodes[batch.subtree_end[: node + 1] > node]


def _ids(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.int64)
