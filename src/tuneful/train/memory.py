"""What fits the memory: how many tokens a micro-batch may compute, and smaller pieces where memory runs out all the same.

A micro-batch that does not fit is no end of a run: it is cut in two, again and again down to a single record, and what fits is
kept for the rest of the run. The mathematics is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from tuneful.errors import OutOfMemoryError
from tuneful.model.memory import available_bytes
from tuneful.types import Example

Found = TypeVar("Found")

MIN_TOKENS = 256
"""What a micro-batch may compute, however little memory is free; a single longer record is computed all the same."""


LARGE_BASE = 1 << 30
"""From how many bytes of frozen weights on the activations beside them are bounded, and by how many."""


def fitted(attempt: Callable[[int], Found], max_tokens: int, *, sharded: bool = False) -> tuple[Found, int, list[str]]:
    """What `attempt(max_tokens)` finds, with the limit halved until it fits.

    Returns it, the limit that it was found with, and a sentence for each time that memory ran out. OutOfMemoryError where a
    single record does not fit; or at once where the model is `sharded`, whose other ranks wait within the same layer.
    """
    said: list[str] = []
    while True:
        try:
            return attempt(max_tokens), max_tokens, said
        except OutOfMemoryError as error:
            if sharded:
                raise error.among_ranks(min(max_tokens, error.num_tokens) // 2) from None
            if error.num_records == 1 or max_tokens <= 1:  # both sides of a pair are two
                raise
            max_tokens = min(max_tokens, error.num_tokens) // 2
            said.append(
                f"out of memory at a micro-batch of {error.shape}: going on with at most {max_tokens:,} computed "
                "tokens in one, which changes no result"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def out_of_memory_says(batch: Sequence[Example]) -> Iterator[None]:
    """Memory that runs out inside becomes an OutOfMemoryError that tells the shape of `batch`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error)
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "can't allocate memory" not in said and "not enough memory" not in said:
            raise
        lengths = [len(example) for example in batch]
        raise OutOfMemoryError(len(batch), sum(lengths), max(lengths), batch[0].source) from None


def affordable_tokens(model: PreTrainedModel, dtype: torch.dtype, computed_again: bool) -> int:
    """Tokens a micro-batch may compute so that its activations and logits take at most a third of the free memory; where an
    adapter is trained beside a base of more than `LARGE_BASE` bytes, no more than that: some hundred rows keep its products busy,
    its gradients cost little to collect, and the base decides what a machine has to have."""
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    inner = max(inner) if isinstance(inner, (list, tuple)) else inner  # where layers are of unlike width
    a_token = bytes_a_token(hidden, inner, layers, config.vocab_size, dtype, computed_again=computed_again)
    room = available_bytes(model.device) / 3
    if _frozen_bytes(model) > LARGE_BASE:
        room = min(room, LARGE_BASE)
    return int(min(max(room / a_token, MIN_TOKENS), 16_384))


def _frozen_bytes(model: PreTrainedModel) -> int:
    """What the base of an adapter takes, in whatever form; 0 where more than a little of the model is trained."""
    trained = sum(one.nbytes for one in model.parameters() if one.requires_grad)
    every = sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
    return every - trained if 4 * trained < every else 0


def bytes_a_token(
    hidden: int, inner: int, layers: int, vocab_size: int, dtype: torch.dtype, *, computed_again: bool
) -> int:
    """Bytes that each computed token of a micro-batch takes until its backward is done.

    Counted for a Llama-like block: about 14 hidden-size and 5 inner-size vectors a token and layer are kept for the
    backward, and 10 bytes a vocabulary entry for each target; attention over long records keeps up to half as much again. Of
    layers that are `computed_again` all that is kept is their input, and one at a time the rest.
    """
    layer = 14 * hidden + 5 * inner
    kept = layers * hidden + layer if computed_again else layers * layer
    return kept * dtype.itemsize + 10 * vocab_size
