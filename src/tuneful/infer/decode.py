"""Calls of the model: prompts in, logits out, then a token a row in and logits out, until rows leave. Which decoder makes them.

There are five, each right for more families and slower than the one before:

    shared     `cached.py`  our cache; prompts share their prefill as a trie, rows enter and leave at any time: by the compiled
                            kernels where they serve the model (`compiled.py`), else by torch's operations (`cache.py`)
    padded     `plain.py`   transformers' cache over prompts padded to the left; rows enter together and leave one by one,
    held                    or, where a cache lets no row go, stay in it until all have left
    single     `plain.py`   one row at a time, with whatever the family keeps between two tokens
    recompute  `plain.py`   one row at a time, all of its tokens anew for each that is generated

`choose_decoder` takes the first that proves itself: a few prompts of unlike length, a few tokens each, a row that leaves early,
and the logits are those of each row alone in one plain forward. That costs some fifty tokens, once a model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from tuneful.infer.cached import NOT_PACKED, CachedDecoder, Weights
from tuneful.infer.compiled import CompiledModel, compiled_model
from tuneful.infer.packed import packed_weights
from tuneful.infer.plain import PaddedDecoder, RecomputingDecoder, SingleDecoder
from tuneful.model.attention import has_windows, why_no_trie
from tuneful.model.behaviour import failure, longest_changes_others, relative_difference
from tuneful.model.decoder import is_changed, is_served
from tuneful.model.forward import compute_logits, own_attention
from tuneful.model.load import UNLIMITED, context_length
from tuneful.model.nf4_layers import is_in_4_bits
from tuneful.model.precision import computes_in

SELF_CHECK_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest relative difference of the logits of a few tokens from those of each row alone."""
_PROMPT_LENGTHS, _SHORTEST, _NUM_SHARED, _NUM_STEPS = (9, 4, 7), 4, 3, 3
"""The self-check's prompts, what all of them begin with, and how many tokens each is given."""
LEAST_SHARED, LEAST_SHARED_COMPILED = 256, 32
"""From how many common tokens on all rows attend to one copy of them: by torch's operations more of these cost more than the
reading below, the kernels gain from the first block on."""
_REACHING, _LONGEST_REACH = ("window", "chunk", "compress", "topk", "block_size", "local_attention"), 256
"""What settings are called that show only after as many tokens as they say: all prompts but the shortest are that much longer."""

_KEPT = "_tuneful_laid_out"

DecoderName = Literal["shared", "padded", "held", "single", "recompute"]
_IN_WORDS: dict[DecoderName, str] = {
    "shared": "shared prefill",
    "padded": "a padded batch",
    "held": "a padded batch that all leave together",
    "single": "one prompt at a time",
    "recompute": "one prompt at a time, without a cache",
}


class Decoder(Protocol):
    """What the order of work needs of a model. Rows are numbered from 0 in the order in which they entered.

    `attention` is the name of the attention that the model must use while `admit` and `step` run, None where these call no layer
    of it; `max_rows` is how many rows may be in flight.
    """

    attention: str | None
    max_rows: int

    def admits(self) -> bool:
        """Whether rows may enter now."""

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """New rows, numbered after those in flight: the logits [prompts, vocabulary] of their next tokens."""

    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        """One more token for each row in flight: the logits [rows, vocabulary] of the ones after, until the next call."""

    def release(self, gone: Collection[int]) -> list[int]:
        """Rows leave; the old numbers of those that stay, in their new order."""


@dataclass(frozen=True, slots=True)
class DecoderChoice:
    """Which decoder a model answers with, and why none before it; None where nothing speaks against the first.

    `by_length`: whether a long row might change what others beside it are given, so that each request looks at its longest.
    """

    name: DecoderName
    reason: str | None = None
    by_length: bool = False

    def __str__(self) -> str:
        return _IN_WORDS[self.name] + (f", because {self.reason}" if self.reason else "")


LaidOut = tuple[DecoderChoice, Weights]
"""How a model answers, and its weights as that reads them."""


def make_decoder(model: PreTrainedModel, num_rows: int, num_shared: int, longest: int = 0) -> Decoder:
    """The decoder for `model`, with room for `num_rows` rows whose prompts all begin with the same `num_shared` tokens, none of
    them to become longer than `longest` tokens."""
    choice, weights = laid_out(model)
    least = LEAST_SHARED_COMPILED if isinstance(weights, CompiledModel) else LEAST_SHARED
    if num_shared < least or has_windows(model):  # a window slides over what all share, of each row at its own pace
        num_shared = 0
    apart = choice.by_length and longest_changes_others(model, _prompts(model)[0], longest)
    return _decoder("single" if apart else choice.name, model, num_rows, num_shared, weights)


def laid_out(model: PreTrainedModel) -> LaidOut:
    """The decoder for `model`, and its weights as that reads them: by the compiled kernels, where they serve the model and prove
    themselves on it, else by torch's operations. What `keep_laid_out` was called for is laid out once."""
    kept: _Kept | None = vars(model).get(_KEPT)
    return _lay_out(model) if kept is None else kept.of(model)


def keep_laid_out(model: PreTrainedModel) -> None:
    """From now on what `laid_out` makes of `model` stays with it as long as its weights are what they were: for one that only
    answers, as a copy that takes as much memory as the weights."""
    vars(model).setdefault(_KEPT, _Kept())


def kept_laid_out(model: PreTrainedModel) -> LaidOut | None:
    """What stays with `model` now; None where nothing does."""
    kept: _Kept | None = vars(model).get(_KEPT)
    return None if kept is None else kept.found


def give_back_laid_out(model: PreTrainedModel) -> None:
    """Free what stays with `model`; it is laid out again when it is asked for."""
    if (kept := vars(model).get(_KEPT)) is not None:
        kept.found = None


class _Kept:
    """What was made of a model's weights when they were last laid out. A copy of the model has nothing of it."""

    def __init__(self) -> None:
        self._weights: list[Any] = []
        self.found: LaidOut | None = None

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()

    def of(self, model: PreTrainedModel) -> LaidOut:
        """The same as before, unless weights have been replaced or written to, layers switched, or there was no room."""
        weights: list[Any]
        weights = [(id(one), one.data_ptr(), one._version) for one in (*model.parameters(), *model.buffers())]
        weights += [(id(module), *_switches(module)) for module in model.modules()]
        if self.found is None or weights != self._weights:
            self.found = None  # not both at once
            found, self._weights = _lay_out(model), weights
            if isinstance(found[1], nullcontext):
                return found
            self.found = found
        return self.found


def _switches(module: Any) -> tuple[Any, ...]:
    """What besides its weights decides what a module computes: code of others, and which adapters are on, and how strong."""
    if not hasattr(module, "lora_A"):
        return (is_changed(module),)
    return (
        *(is_changed(module), tuple(module.active_adapters), module.disable_adapters),
        *(tuple(module.merged_adapters), tuple(module.scaling.items())),
    )


def _lay_out(model: PreTrainedModel) -> LaidOut:
    reason = None
    if (compiled := compiled_model(model)) is not None:
        choice = chosen_decoder(model, compiled)
        if choice.name == "shared":
            return choice, compiled
        reason = f"by the compiled kernels {choice.reason}"
    # Beside a base in 4 bits a copy of the output head alone would be a third of what is saved.
    packed = NOT_PACKED if is_in_4_bits(model) else packed_weights(model)
    choice = chosen_decoder(model, packed)
    return (choice if reason is None or choice.reason else replace(choice, reason=reason)), packed


def chosen_decoder(model: PreTrainedModel, weights: Weights = NOT_PACKED) -> DecoderChoice:
    """What `choose_decoder` found when it was first asked about `model` on its device, in its dtype, with weights laid out so.

    It stays with the model, whose weights may change meanwhile: an answer is asked for after every evaluation of a training.
    """
    place = (model.device.type, model.dtype, type(weights))
    proved: dict[Any, DecoderChoice] = vars(model).setdefault("_tuneful_decoders", {})
    if place not in proved:
        proved[place] = choose_decoder(model, weights)
    return proved[place]


def forget_decoders(model: PreTrainedModel) -> None:
    """Let the choice be made anew: `model` is a copy of another, and no longer like it."""
    vars(model).pop("_tuneful_decoders", None)


def choose_decoder(model: PreTrainedModel, weights: Weights = NOT_PACKED) -> DecoderChoice:
    """The first decoder that gives the logits of each row alone, ours by `weights`; and why those before it do not."""
    context = context_length(model)
    by_length = context == UNLIMITED or longest_changes_others(model, _prompts(model)[0], context)
    reasons = [why_not_cached(model, weights)]
    if reasons[0] is None:
        return DecoderChoice("shared", by_length=by_length)
    names: tuple[DecoderName, ...] = ("padded", "held", "single")
    for name in names:
        if name == "held" and "differs" in str(reasons[-1]):
            continue  # it is not the leaving that is wrong
        if (found := _difference(model, _decoder(name, model))) is None:
            return DecoderChoice(name, "; ".join(filter(None, reasons)), by_length and name != "single")
        reasons.append(f"{_IN_WORDS[name]} {found}")
    return DecoderChoice("recompute", "; ".join(filter(None, reasons)))


def why_not_cached(model: PreTrainedModel, weights: Weights = NOT_PACKED) -> str | None:
    """Why `model` must generate through transformers' own forward; None where ours gives the same logits by `weights`."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    if reason := why_no_trie(model):
        return reason
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    if has_windows(model) and window > _LONGEST_REACH and not is_served(model):
        return f"the model has sliding-window layers of {window} tokens, and its family is not among those that were tested"
    num_shared = 0 if has_windows(model) else _NUM_SHARED
    found = _difference(model, CachedDecoder(model, len(_PROMPT_LENGTHS), num_shared, weights))
    return found and f"{_IN_WORDS['shared']} {found}"


@contextmanager
def attending(model: PreTrainedModel, attention: str | None) -> Iterator[None]:
    """The model attends through `attention` without gradients, and as before afterwards; None says that it is not called.

    Not in torch's inference mode: what a model that is spread over ranks gathers in it, no later training may use.
    """
    if attention is None:  # telling all modules takes longer than sampling does
        with torch.no_grad():
            yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(before)


def _decoder(
    name: DecoderName,
    model: PreTrainedModel,
    num_rows: int = 1,
    num_shared: int = 0,
    weights: Weights = NOT_PACKED,
) -> Decoder:
    if name == "shared":
        return CachedDecoder(model, num_rows, num_shared, weights)
    if name in ("padded", "held"):
        return PaddedDecoder(model, holding=name == "held")
    return SingleDecoder(model) if name == "single" else RecomputingDecoder(model)


def _difference(model: PreTrainedModel, decoder: Decoder) -> str | None:
    """What is wrong with what `decoder` gives for a few prompts and the likeliest tokens after them; None for nothing."""
    prompts, training = _prompts(model), model.training
    model.eval()
    try:
        rows = _continued(model, decoder, prompts)
        with attending(model, own_attention(model)):
            wanted = [_alone(model, prompt, tokens) for prompt, (tokens, _) in zip(prompts, rows, strict=True)]
    except Exception as error:  # of the code of any family, at inputs that it was not written for
        return f"fails ({failure(error)})"
    finally:
        model.train(training)
    difference = relative_difference(torch.cat([logits for _, logits in rows]), torch.cat(wanted))
    if difference <= SELF_CHECK_TOLERANCE[computes_in(model)]:
        return None
    return f"differs (the logits of a few tokens differ by {difference:.2g} from those of each prompt alone)"


def _prompts(model: PreTrainedModel) -> list[list[int]]:
    """The self-check's prompts, as far as they fit the model's context. No text has a padding token in it, nor have they: some
    families number positions by what is none."""
    num_tokens, room = model.get_input_embeddings().weight.shape[0], max(1, context_length(model) - _NUM_STEPS)
    config = model.config.get_text_config()
    lengths = [min(length + (length > _SHORTEST) * _reach(config.to_dict()), room) for length in _PROMPT_LENGTHS]
    padding = getattr(config, "pad_token_id", None)
    ids = np.random.default_rng(0).integers(0, num_tokens, (len(lengths), max(lengths)))
    ids[ids == padding] = 0 if padding else 1
    ids[:, :_NUM_SHARED] = ids[0, :_NUM_SHARED]
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


def _reach(config: Mapping[str, Any]) -> int:
    """After how many tokens the windows, chunks and compressed stretches of a family begin to show; 0 where none does soon."""
    found = [0]
    for name, value in config.items():
        if isinstance(value, Mapping):
            inner = {f"{name}.{key}": each for key, each in value.items()}
            found.append(_reach(inner))
        elif isinstance(value, int) and value <= _LONGEST_REACH and any(word in name for word in _REACHING):
            found.append(value)
    return max(found)


def _continued(
    model: PreTrainedModel, decoder: Decoder, prompts: Sequence[Sequence[int]]
) -> list[tuple[list[int], torch.Tensor]]:
    """The tokens that each prompt is given, and the logits [tokens, vocabulary] of which each is the likeliest.

    All prompts enter together where the decoder lets them; the first row leaves before the others.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    with attending(model, decoder.attention):
        together = min(decoder.max_rows, len(prompts))
        for start in range(0, len(prompts), together):
            rows = list(range(start, start + together))
            given = decoder.admit([prompts[row] for row in rows])
            while True:
                for row, own in zip(rows, given, strict=True):
                    logits[row].append(own.clone())  # the next step may be computed over it
                    tokens[row].append(int(own.argmax()))
                gone = {at for at, row in enumerate(rows) if len(tokens[row]) == _NUM_STEPS - (row == 0)}
                rows = [rows[at] for at in decoder.release(gone)] if gone else rows
                if not rows:
                    break
                given = decoder.step([tokens[row][-1] for row in rows])
    return [(own, torch.stack(found)) for own, found in zip(tokens, logits, strict=True)]


def _alone(model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """The logits [tokens, vocabulary] of `tokens` after `prompt` in one plain forward."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]], device=model.device)
    return compute_logits(model, len(tokens), input_ids=ids, use_cache=False)[0]
