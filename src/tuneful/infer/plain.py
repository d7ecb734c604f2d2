"""Answers through transformers' own forward and caches, for models that `cached.py` is not for, in three ways.

`PaddedDecoder` computes a batch, padded. `SingleDecoder` computes a row at a time, with whatever the family keeps between two
tokens. `RecomputingDecoder` keeps nothing and computes all tokens of its row for each new one: right by definition, and slow.
Which of them is taken, a few tokens decide (`decode.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from tuneful.model.forward import cache_argument, compute_logits, own_attention
from tuneful.model.load import UNLIMITED

_STATES = ("cache", "past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""What families call that which they keep between two tokens, in what their forward gives."""
_TAKEN_AS_CACHE = ("mems", "past_buckets_states")
"""What of it `prepare_inputs_for_generation` takes under the name of a cache."""


class PaddedDecoder:
    """Rows of a batch in transformers' cache, padded to the left so that every row's next token is its last column.

    With `holding`, for caches from which no row can be taken: rows that have left are computed on, unseen, until all have left.
    """

    def __init__(self, model: PreTrainedModel, *, holding: bool = False) -> None:
        self.attention: str | None = own_attention(model)
        self.max_rows = UNLIMITED
        self._model, self._holding = model, holding
        self._cache: Any = None
        self._seen = torch.zeros(0, 0, dtype=torch.bool)  # [rows, columns]: which are no padding
        self._rows: list[int] = []  # those in flight, by their place in the cache

    def admits(self) -> bool:
        """Only while no row is in flight: all rows of a batch enter together."""
        return not self._rows

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """A new batch: the logits [prompts, vocabulary] of the next tokens."""
        assert self.admits()
        self._cache = DynamicCache(config=self._model.config)
        self._rows = list(range(len(prompts)))
        longest, device = max(map(len, prompts)), self._model.device
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._seen = torch.arange(longest, device=device) >= longest - lengths[:, None]
        return self._call(ids)

    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        """One more token for each row in flight: the logits [rows, vocabulary] of the ones after."""
        ids = torch.zeros(len(self._seen), 1, dtype=torch.int64)
        ids[self._rows, 0] = torch.tensor(token_ids)
        self._seen = torch.cat([self._seen, self._seen.new_ones(len(ids), 1)], 1)
        return self._call(ids.to(self._model.device))[self._rows]

    def release(self, gone: Collection[int]) -> list[int]:
        """Rows leave, cache and all; the old numbers of those that stay."""
        stay = [row for row in range(len(self._rows)) if row not in gone]
        self._rows = [self._rows[row] for row in stay]
        if self._rows and not self._holding:
            self._cache.batch_select_indices(torch.tensor(self._rows, device=self._model.device))
            self._seen = self._seen[self._rows]
            self._rows = list(range(len(stay)))
        return stay

    def _call(self, ids: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(self._seen.shape[1] - ids.shape[1], self._seen.shape[1], device=ids.device)
        num_padding = self._seen.logical_not().sum(1, keepdim=True)
        return compute_logits(
            self._model,
            1,
            input_ids=ids,
            attention_mask=self._seen.long(),
            position_ids=(columns - num_padding).clamp(min=0),
            use_cache=True,
            **{cache_argument(self._model): self._cache},
        )[:, -1]


class RecomputingDecoder:
    """A row at a time, all of its tokens anew for each that is generated."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.attention: str | None = own_attention(model)
        self.max_rows = 1
        self._model = model
        self._token_ids: list[int] = []  # of the row in flight

    def admits(self) -> bool:
        """Only while no row is in flight."""
        return not self._token_ids

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """One new row: the logits [1, vocabulary] of its next token."""
        assert self.admits()
        [self._token_ids] = map(list, prompts)
        return self._call()

    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        """One more token for it: the logits [1, vocabulary] of the one after."""
        self._token_ids += token_ids
        return self._call()

    def release(self, gone: Collection[int]) -> list[int]:
        """The row leaves."""
        self._token_ids = self._token_ids if 0 not in gone else []
        return [0] if self._token_ids else []

    def _call(self) -> torch.Tensor:
        ids = torch.tensor([self._token_ids], device=self._model.device)
        return compute_logits(self._model, 1, input_ids=ids, use_cache=False)[:, -1]


class SingleDecoder(RecomputingDecoder):
    """A row at a time, prepared for its next token as transformers' `generate` does."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._state: dict[str, Any] = {}

    def release(self, gone: Collection[int]) -> list[int]:
        """The row leaves, with what was kept for it."""
        stay = super().release(gone)
        self._state = self._state if stay else {}
        return stay

    def _call(self) -> torch.Tensor:
        ids = torch.tensor([self._token_ids], device=self._model.device)
        inputs = self._model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=1 if self._state else None,
            is_first_iteration=not self._state,
            attention_mask=torch.ones_like(ids),
            use_cache=True,
            **self._state,
        )
        given = self._model(**inputs, return_dict=True)
        kept = {name: value for name, value in given.items() if name in _STATES and value is not None}
        cache = cache_argument(self._model)
        self._state = {cache if name in _TAKEN_AS_CACHE else name: value for name, value in kept.items()}
        logits: torch.Tensor = given.logits[:, -1]
        return logits
