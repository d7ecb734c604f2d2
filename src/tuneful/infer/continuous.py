"""Rows that come at any time, each with sampling settings of its own, answered together: what a server needs.

A row enters before the next token of those in flight, as far as there is a place for it, and leaves with its last token, or as
soon as nobody wants it. Its tokens are those that `generate.py` gives the same prompt with the same seed: the same decoders, the
same sampling, another order of work. A long prompt is computed at once and holds up the others for as long as it takes.

Keys and values of all rows take at most a part of the memory that was free: where rows outgrow it, those that came last go back
to those that wait, and are computed anew, up to where they were, when there is room.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from tuneful.config import GenerateConfig
from tuneful.errors import TunefulError
from tuneful.infer.decode import Decoder, attending, give_back_laid_out, keep_laid_out, kept_laid_out, make_decoder
from tuneful.infer.row import Row, TokenLogprobs
from tuneful.infer.sample import next_tokens
from tuneful.model.forward import compute_logits, own_attention
from tuneful.model.memory import available_bytes, room_for_a_copy
from tuneful.model.precision import in_float64

_PREFILL_TOKENS, _PREFILL_BESIDE = 4096, 1024
"""Most prompt tokens that enter at once, and most while others are in flight, who wait meanwhile. One prompt may be longer."""
_MAX_SCORED_LOGITS = 1 << 27
"""Most logits that `prompt_logprobs` holds at once (512 MB): of a longer prompt the forward is computed several times."""
_MAX_PRECISE_LOGITS = 1 << 23
"""Most logits that are float64 at once (64 MB)."""
_CACHE_SHARE, _SPARE_TOKENS = 4, 32
"""Keys and values take at most this part of the memory that is free when the first row enters, the room that slots have to grow
not counted; how many tokens a row needs beyond its own to enter."""


@dataclass(eq=False)
class LiveRow:
    """A row and how its tokens are chosen: sampling under `config`, after penalties on what it generated so far.

    `presence_penalty` is taken from the logit of every token that it has generated, `frequency_penalty` once for each time (as
    OpenAI defines the two). With `num_logprobs` each token's log-probability is kept, and those of so many of the likeliest.
    """

    row: Row
    config: GenerateConfig
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_logprobs: int | None = None
    is_cancelled: bool = False
    """Set by anybody, in any thread: the row leaves before its next token."""
    failure: Exception | None = None
    """Why it has no next token, and left without one; of others beside it nothing is wrong."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Of its prompt and its answer so far."""
        return len(self.row.prompt) + len(self.row.generated)

    @property
    def sampling(self) -> tuple[float | int | None, ...]:
        """Rows of which this is equal are sampled together."""
        config = self.config
        return (config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty)


class ContinuousBatch:
    """The rows of one model: those in flight, at most `max_rows`, and those that wait.

    None becomes longer than `longest` tokens. Not for several threads at once.
    """

    def __init__(
        self, model: PreTrainedModel, stop_token_ids: Collection[int], *, max_rows: int, longest: int = 0
    ) -> None:
        self.model, self._stops, self._max_rows, self._longest = model, stop_token_ids, max_rows, longest
        self._decoder: Decoder | None = None  # none while no row is in flight: it holds their keys and values
        keep_laid_out(model)  # from one row to the next: laying out takes as long as several tokens
        self._most_cached = 0
        self._rows: list[LiveRow] = []
        self._waiting: deque[LiveRow] = deque()
        self._dropped: list[LiveRow] = []

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._rows or self._waiting)

    def enter(self, row: LiveRow) -> None:
        """A row that waits for its place."""
        self._waiting.append(row)

    def step(self) -> list[LiveRow]:
        """One token for the rows that enter, or else for those in flight: these rows, in no order. One without has a `failure`.

        Cancelled rows leave before. Raises whatever the model does; `clear` then.
        """
        self._drop_cancelled()
        if not self:
            self._decoder = None
            return []
        if self._decoder is None:
            self.model.eval()
            self._decoder = make_decoder(self.model, self._max_rows, 0, self._longest)
            self._most_cached = available_bytes(self.model.device) // _CACHE_SHARE // bytes_per_token(self.model)
        with attending(self.model, self._decoder.attention):
            stepped = self._stepped(self._decoder)
        self._leave({at for at, live in enumerate(self._rows) if live.row.finish_reason or live.failure})
        if not self._rows:
            self._decoder = None
        return stepped

    @property
    def holds_weights(self) -> bool:
        """Whether it holds the model's weights a second time, laid out for answers, and no row is in flight that needs them."""
        return kept_laid_out(self.model) is not None and not self

    def give_back_weights(self) -> None:
        """Free them; they are laid out again when a row comes."""
        give_back_laid_out(self.model)

    def lacks_room(self) -> bool:
        """Whether it has yet to lay out the weights, and there is no memory for that."""
        num_bytes = sum(one.numel() * one.element_size() for one in self.model.parameters())
        return kept_laid_out(self.model) is None and not room_for_a_copy(num_bytes)

    def take_dropped(self) -> list[LiveRow]:
        """The rows that were cancelled and have left since the last call."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def clear(self) -> list[LiveRow]:
        """Give up on every row; those that were there."""
        gone = [*self._rows, *self._waiting]
        self._rows, self._waiting, self._decoder = [], deque(), None
        return gone

    def _stepped(self, decoder: Decoder) -> list[LiveRow]:
        self._send_back()
        entering = self._entering(decoder)
        self._rows += entering
        stepped = entering or self._rows
        if entering:
            logits = decoder.admit([live.row.prompt + live.row.generated for live in entering])
        else:
            logits = decoder.step([live.row.generated[-1] for live in self._rows])
        tokens = _chosen(logits, stepped)
        _note_logprobs(logits, stepped, tokens)
        for live, token_id in zip(stepped, tokens, strict=True):
            if live.failure is None:
                live.row.accept(token_id, self._stops)
        return list(stepped)

    def _entering(self, decoder: Decoder) -> list[LiveRow]:
        """The rows that enter now, in the order in which they came."""
        room = min(self._max_rows, decoder.max_rows) - len(self._rows)
        if room <= 0 or not self._waiting or not decoder.admits():
            return []
        entering: list[LiveRow] = []
        num_tokens, most = 0, _PREFILL_BESIDE if self._rows else _PREFILL_TOKENS
        while self._waiting and len(entering) < room:
            num_own = self._waiting[0].num_tokens
            fits = self._num_cached([*self._rows, *entering, self._waiting[0]], _SPARE_TOKENS) <= self._most_cached
            if (entering and num_tokens + num_own > most) or ((entering or self._rows) and not fits):
                break
            entering.append(self._waiting.popleft())
            num_tokens += num_own
        return entering

    def _send_back(self) -> None:
        """The rows that came last wait again, as many as there is no memory for; one may always stay."""
        staying = sorted(self._rows, key=lambda live: -len(live.row.generated))
        gone: list[LiveRow] = []
        while len(staying) > 1 and self._num_cached(staying, 1) > self._most_cached:
            gone.append(staying.pop())
        if gone:
            self._leave({at for at, live in enumerate(self._rows) if live in gone})
            self._waiting.extendleft(gone)

    @staticmethod
    def _num_cached(rows: Sequence[LiveRow], num_more: int) -> int:
        """The tokens that the slots of `rows` have room for, each to get so many more: as many as the longest has."""
        return len(rows) * (max((live.num_tokens for live in rows), default=0) + num_more)

    def _drop_cancelled(self) -> None:
        cancelled = [live for live in (*self._rows, *self._waiting) if live.is_cancelled]
        if cancelled:
            self._leave({at for at, live in enumerate(self._rows) if live in cancelled})
            self._waiting = deque(live for live in self._waiting if live not in cancelled)
            self._dropped += cancelled

    def _leave(self, gone: Collection[int]) -> None:
        if gone:
            assert self._decoder is not None
            self._rows = [self._rows[at] for at in self._decoder.release(gone)]


def bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of the keys and values of a token in all layers, about: as if every layer attended."""
    config = model.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", None) or 1
    num_key_heads = getattr(config, "num_key_value_heads", None) or num_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_bytes: int = 2 * config.num_hidden_layers * num_key_heads * size * model.dtype.itemsize
    return max(1, num_bytes)


def prompt_logprobs(model: PreTrainedModel, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs | None]:
    """The log-probability of each token of a text after those before it, and of the `num_top` likeliest there; None for the
    first, which nothing predicts."""
    if len(token_ids) < 2:
        return [None] * len(token_ids)
    ids = torch.tensor([list(token_ids)], device=model.device)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    found: list[TokenLogprobs | None] = [None]
    model.eval()
    with attending(model, own_attention(model)):
        for rows in torch.arange(len(token_ids) - 1).split(max(1, _MAX_SCORED_LOGITS // vocabulary)):
            logits = compute_logits(model, rows.to(ids.device), input_ids=ids, use_cache=False)[0]
            found += _logprobs(logits, [token_ids[int(row) + 1] for row in rows], num_top)
    return found


def _chosen(logits: torch.Tensor, rows: Sequence[LiveRow]) -> list[int]:
    """The next token of each row, from logits [rows, vocabulary]: rows that are sampled alike together.

    A row for which there is none, its logits not being finite, has a `failure` from then on, and any token here.
    """
    logits = _penalized(logits, rows)
    groups: dict[tuple[float | int | None, ...], list[int]] = {}
    for at, live in enumerate(rows):
        groups.setdefault(live.sampling, []).append(at)
    tokens = [0] * len(rows)
    for places in groups.values():
        part = logits if len(groups) == 1 else logits[places]
        for at, token_id in zip(places, _drawn(part, [rows[at] for at in places]), strict=True):
            tokens[at] = token_id
    return tokens


def _drawn(logits: torch.Tensor, rows: Sequence[LiveRow]) -> list[int]:
    """The next tokens of rows that are sampled alike; where that fails, nothing having been drawn, of each for itself."""
    config = rows[0].config
    contexts = [live.row.prompt + live.row.generated for live in rows] if config.repetition_penalty != 1 else []
    try:
        return next_tokens(logits, config, [live.row.generator for live in rows], contexts).tolist()
    except TunefulError as error:
        if len(rows) == 1:
            rows[0].failure = error
            return [0]
        return [_drawn(own[None], [live])[0] for own, live in zip(logits, rows, strict=True)]


def _penalized(logits: torch.Tensor, rows: Sequence[LiveRow]) -> torch.Tensor:
    """`logits` less the rows' presence and frequency penalties; itself where no row has any."""
    if not any(live.presence_penalty or live.frequency_penalty for live in rows):
        return logits
    logits = logits.float().clone()
    for own, live in zip(logits, rows, strict=True):
        if live.row.generated and (live.presence_penalty or live.frequency_penalty):
            counts = Counter(live.row.generated)
            times = torch.tensor([float(count) for count in counts.values()], device=logits.device)
            own[list(counts)] -= live.presence_penalty + live.frequency_penalty * times
    return logits


def _note_logprobs(logits: torch.Tensor, rows: Sequence[LiveRow], tokens: Sequence[int]) -> None:
    places = [at for at, live in enumerate(rows) if live.num_logprobs is not None and live.failure is None]
    if not places:
        return
    most = max(rows[at].num_logprobs or 0 for at in places)
    for at, found in zip(places, _logprobs(logits[places], [tokens[at] for at in places], most), strict=True):
        top = found.top[: rows[at].num_logprobs]
        rows[at].logprobs.append(TokenLogprobs(found.token_id, found.logprob, top))


def _logprobs(logits: torch.Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """The log-probabilities of `token_ids`, one a row of logits [rows, vocabulary], and of the `num_top` likeliest of each
    row. In float64: in float32 their sum over a text of 20 tokens is off by 2e-4."""
    found: list[TokenLogprobs] = []
    size = max(1, _MAX_PRECISE_LOGITS // logits.shape[-1])
    for start in range(0, len(token_ids), size):
        logprobs, ids = in_float64(logits[start : start + size]).log_softmax(-1), list(token_ids[start : start + size])
        own = logprobs[torch.arange(len(ids)), ids].tolist()
        values, top = logprobs.topk(min(num_top, logprobs.shape[-1]), -1)
        found += [
            TokenLogprobs(token_id, logprob, tuple(zip(top_ids, top_values, strict=True)))
            for token_id, logprob, top_ids, top_values in zip(ids, own, top.tolist(), values.tolist(), strict=True)
        ]
    return found
