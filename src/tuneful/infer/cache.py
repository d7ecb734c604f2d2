"""Keys and values of the rows in flight, and the attention that reads them: what makes a step cost one token a row.

This is the way of torch's operations, for whatever `compiled.py` does not serve.

Every row in flight has a slot; slots 0 to B - 1 are in use. What all prompts begin with, where it is long, is kept once and
attended to by all rows in one matrix product (a cascade: Hydragen, Juravsky et al. 2024); what is a row's own is in its slot:

    prompts              P P P a b      P P P c              prefix   P P P
                                                             slot 0   a b x y .     x, y, z: generated
                                                             slot 1   c z . . .

The model is called with a flat stream of tokens [1, N] of all rows, and its attention layers call `cached_attention` with the
`DecodeStep` that says which row each belongs to. Prompts are computed as a trie (`model/attention.py`), so what some of them
share is computed once. No cache object of transformers' is involved, and no model is patched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, PreTrainedModel

from tuneful.batch.trie import TrieBatch
from tuneful.model.attention import AttentionPlan, check_plain, plan_attention, trie_attention
from tuneful.model.forward import compute_logits

# Legend of shapes: N tokens of a step, B rows in flight, S slots, T tokens that a slot has room for, P tokens of the prefix,
#                   H query heads, K key/value heads, R = H / K query heads a key head, D head size
NAME = "tuneful_cached"
_GROWTH, _MORE_SLOTS = 64, 3
"""Slots grow by this many tokens, and become so many more, or by half, whichever is more."""
_TOO_MUCH = 4
"""How many times what is needed there may be before a part of it is given back."""


def register_cached_attention() -> str:
    """Make `cached_attention` known to transformers; the name to give to `set_attn_implementation`."""
    AttentionInterface.register(NAME, cached_attention)
    return NAME


class Room(NamedTuple):
    """So many slots, each of so many tokens: all of it is memory, in use or not."""

    num_slots: int = 0
    num_tokens: int = 0

    def fitted(self, num_rows: int, num_tokens: int, most_slots: int, *, enters: bool) -> Room:
        """The room for `num_rows` rows of at most `num_tokens` tokens: itself where that is enough and, where a row `enters`,
        not far too much."""
        enough = (num_rows + _MORE_SLOTS) * (num_tokens + _GROWTH)
        is_much = enters and self.num_slots * self.num_tokens > _TOO_MUCH * enough
        if num_rows <= self.num_slots and num_tokens <= self.num_tokens and not is_much:
            return self
        held = 0 if is_much else self.num_tokens
        grown = held if num_tokens <= held else max(num_tokens, held + max(_GROWTH, held // 2))
        return Room(min(most_slots, num_rows + max(_MORE_SLOTS, num_rows // 2)), grown)


class KeyValues:
    """The keys and values of every layer: at most `most_slots` slots, and a prefix of `num_shared` tokens.

    Layers tell their own shapes when they first write. Slots begin empty, become as many as there are rows and grow with the
    longest. Keys are kept transposed: matrix products of one query a row with them take a third less time in bfloat16, and as
    long in float32.
    """

    def __init__(self, most_slots: int, num_shared: int) -> None:
        self._most_slots, self.num_shared = most_slots, num_shared
        self.room = Room()
        self._slots: dict[
            int, tuple[torch.Tensor, torch.Tensor]
        ] = {}  # layer -> keys [S, K, D, T], values [S, K, T, E]
        self._prefixes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer -> keys [K, D, P], values [K, P, E]

    def make_room(self, num_tokens: int, num_kept: int, num_rows: int) -> None:
        """Let `num_rows` slots hold `num_tokens` each; what the first `num_kept` slots hold is kept."""
        room = self.room.fitted(num_rows, num_tokens, self._most_slots, enters=num_rows > num_kept)
        if room == self.room:
            return
        held, self.room = min(self.room.num_tokens, room.num_tokens), room
        for layer, (old_keys, old_values) in self._slots.items():
            keys, values = self._empty(old_keys.mT).mT.contiguous(), self._empty(old_values)
            keys[:num_kept, ..., :held] = old_keys[:num_kept, ..., :held]
            values[:num_kept, :, :held] = old_values[:num_kept, :, :held]
            self._slots[layer] = keys, values

    def write_prefix(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep key and value [1, K, N, D] of the first P tokens of a step as what all rows share."""
        if self.num_shared and layer not in self._prefixes:
            self._prefixes[layer] = (
                key[0, :, : self.num_shared].mT.contiguous(),
                value[0, :, : self.num_shared].contiguous(),
            )

    def write(
        self, layer: int, slots: torch.Tensor, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Put token n of key and value [1, K, N, D] at `places[n]` of slot `slots[n]`."""
        if layer not in self._slots:
            self._slots[layer] = self._empty(key).mT.contiguous(), self._empty(value)
        keys, values = self._slots[layer]
        keys[slots, :, :, places] = key[0].transpose(0, 1)
        values[slots, :, places] = value[0].transpose(0, 1)

    def move(self, sources: Sequence[int], targets: Sequence[int], num_tokens: int) -> None:
        """Copy the first `num_tokens` tokens of some slots to others."""
        given, taken = list(sources), list(targets)
        for keys, values in self._slots.values():
            keys[taken, ..., :num_tokens] = keys[given, ..., :num_tokens]
            values[taken, :, :num_tokens] = values[given, :, :num_tokens]

    def attend(
        self, layer: int, query: torch.Tensor, hidden: torch.Tensor, scale: float, softcap: float | None = None
    ) -> torch.Tensor:
        """One query a row, [1, H, B, D], over the row's own tokens and the prefix: output [1, B, H, E].

        `hidden` [B * K, 1, T'] is 0 where a row sees a token of its slot and -inf where not; T' of the T tokens are looked at. A
        `softcap` caps the scores.
        """
        num_rows, num_looked_at = query.shape[2], hidden.shape[-1]
        keys, values = (store[:num_rows].flatten(0, 1) for store in self._slots[layer])
        keys, values = keys[..., :num_looked_at], values[:, :num_looked_at]
        queries = query[0].transpose(0, 1).reshape(len(keys), -1, query.shape[-1])
        scores = (
            _capped(torch.bmm(queries, keys).mul_(scale), softcap).add_(hidden)
            if softcap
            else torch.baddbmm(hidden, queries, keys, alpha=scale)
        )
        if not self.num_shared:
            output = torch.bmm(scores.softmax(-1), values)
            return output.view(1, num_rows, query.shape[1], -1)
        prefix_keys, prefix_values = self._prefixes[layer]
        shared = _capped(torch.bmm(_by_key_head(queries, num_rows), prefix_keys).mul_(scale), softcap)
        probabilities = torch.cat([_by_row(shared, num_rows), scores], -1).softmax(-1)
        own, shared = probabilities[..., self.num_shared :], probabilities[..., : self.num_shared]
        output = torch.bmm(own, values) + _by_row(torch.bmm(_by_key_head(shared, num_rows), prefix_values), num_rows)
        return output.view(1, num_rows, query.shape[1], -1)

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self.room.num_slots, like.shape[1], self.room.num_tokens, like.shape[-1])


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """softcap * tanh(scores / softcap), in place."""
    return scores.div_(softcap).tanh_().mul_(softcap) if softcap else scores


def _by_key_head(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """[B * K, R, X] as [K, B * R, X]."""
    _, repeats, size = rows.shape
    return rows.view(num_rows, -1, repeats, size).transpose(0, 1).reshape(-1, num_rows * repeats, size)


def _by_row(heads: torch.Tensor, num_rows: int) -> torch.Tensor:
    """[K, B * R, X] as [B * K, R, X]."""
    num_key_heads, _, size = heads.shape
    return heads.view(num_key_heads, num_rows, -1, size).transpose(0, 1).reshape(num_rows * num_key_heads, -1, size)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The tokens of one call of the model, and which rows they belong to.

    token_ids   int64 [N]   the flat stream
    positions   int64 [N]   the position of each in its row
    predictors  int64 [B]   the tokens whose predictions are wanted, a row each
    written     int64 [W]   the tokens whose keys and values are kept; a token of several rows is written for each
    slots       int64 [W]   where: the slot,
    places      int64 [W]   and the place in it
    prompts                 the trie of the prompts that enter; None where every token is the newest of its row, in order of slots
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    predictors: torch.Tensor
    written: torch.Tensor
    slots: torch.Tensor
    places: torch.Tensor
    prompts: TrieBatch | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DecodeStep:
    """What attention is handed in a call: the cache, the tokens, and who sees whom.

    plan        among prompts; None where every token is the newest of its row
    hidden      by the window of a layer: [B * K, 1, T'], what such a row does not see of its slot; None for prompts
    """

    key_values: KeyValues
    tokens: Tokens
    plan: AttentionPlan | None = None
    hidden: Callable[[int | None], torch.Tensor] | None = None


class TorchEngine:
    """Calls of transformers' own forward with the attention of this file, inside `packed`, which may hold its weights packed."""

    def __init__(
        self, model: PreTrainedModel, num_slots: int, num_shared: int, packed: AbstractContextManager[Any]
    ) -> None:
        self._model, self._packed = model, packed
        self._key_values = KeyValues(num_slots, num_shared)
        self.make_room, self.move = self._key_values.make_room, self._key_values.move

    def logits(self, tokens: Tokens) -> torch.Tensor:
        """The logits [B, vocabulary] of the predictors."""
        with self._packed:
            return compute_logits(
                self._model,
                tokens.predictors,
                input_ids=tokens.token_ids[None],
                position_ids=tokens.positions[None],
                use_cache=False,
                step=self._step(tokens),
            )[0]

    def _step(self, tokens: Tokens) -> DecodeStep:
        if tokens.prompts is not None:
            return DecodeStep(self._key_values, tokens, plan=plan_attention(tokens.prompts, self._model))
        config = self._model.config.get_text_config()
        num_key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        at, newest = torch.arange(int(tokens.places.max()) + 1), tokens.places[:, None]

        @functools.cache
        def hidden(window: int | None) -> torch.Tensor:
            unseen = at > newest if window is None else (at > newest) | (at <= newest - window)
            mask = torch.zeros(unseen.shape, dtype=self._model.dtype).masked_fill_(unseen, -torch.inf)
            return mask.repeat_interleave(num_key_heads, 0)[:, None]

        return DecodeStep(self._key_values, tokens, hidden=hidden)


def cached_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    step: DecodeStep | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every layer: keep what is new, then attend.

    query [1, H, N, D], key [1, K, N, D], value [1, K, N, E] -> output [1, N, H, E], in the query's dtype. A layer says its window
    as `sliding_window`; a `softcap` caps the scores.
    """
    check_plain(step, "step", attention_mask, dropout, {**kwargs, "sliding_window": None})
    assert step is not None
    layer, tokens = int(module.layer_idx), step.tokens  # type: ignore[arg-type]
    if step.plan is not None:
        step.key_values.write_prefix(layer, key, value)
        kept = (tensor.index_select(2, tokens.written) for tensor in (key, value))
        step.key_values.write(layer, tokens.slots, tokens.places, *kept)
        return trie_attention(module, query, key, value, attention_mask, scaling, dropout, step.plan, softcap, **kwargs)
    assert step.hidden is not None
    sliding_window = kwargs.get("sliding_window")
    assert sliding_window is None or not step.key_values.num_shared, "what all rows share is seen by all of them"
    step.key_values.write(layer, tokens.slots, tokens.places, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return step.key_values.attend(layer, query, step.hidden(sliding_window), scale, softcap), None
