"""Documents become Examples, and long ones chunks: every token is predicted exactly once, whatever its chunk.

    document    begin token, where the tokenizer puts one before a text; the text; the tokenizer's end token
    chunks      t0 t1 t2 t3 | t3 t4 t5 t6 | t6 t7 E        max_length 4, overlap 1: the first token of a chunk that goes on is
                0  1  1  1    0  1  1  1    0  1  1        context, and was the last target of the chunk before

The first token is predicted where a begin token stands before it, as in pretraining; nothing predicts it elsewhere. No chunk
holds two documents, and no template stands around them. What looks like a control token in a document is text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, overload

import numpy as np

from tuneful.config import Config, TemplateConfig
from tuneful.encoding.chat_template import TOKENIZER_TEMPLATE, load_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Example, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT_TOKENS = 32
"""Tokens of a document that its continuation is asked for with, at most half of it."""
_PROMPT_CHARACTERS = 2000


def with_own_template(config: Config, tokenizer: PreTrainedTokenizerBase) -> Config:
    """`config` with the tokenizer's own chat template where documents are trained and nobody asked for another: the trained model
    answers as it did before."""
    is_asked_for = config.template.model_fields_set & {"name", "file"}
    if config.train.objective != "text" or is_asked_for or not getattr(tokenizer, "chat_template", None):
        return config
    own = TemplateConfig(name=TOKENIZER_TEMPLATE)
    with contextlib.suppress(TemplateError):  # one that cannot be used for prompts is no reason not to read documents
        load_template(own, tokenizer)
        return config.model_copy(update={"template": own})
    return config


def document_example(conversation: Conversation, text: TextEncoder) -> Example | str:
    """The Example of a whole document, however long, or the reason why it can have none."""
    begin = text.begin_token_ids
    content = text.text_ids(conversation.turns[0].response)
    if not content:
        return "the tokenizer writes no token of this document"
    ids = np.array([*begin, *content, text.document_end_id], dtype=np.int32)
    num_given = max(1, len(begin))
    weights = np.full(len(ids), conversation.weight, dtype=np.float32)
    weights[:num_given] = 0.0
    return Example(ids, weights, num_given, conversation.source)


def beginning_ids(conversation: Conversation, text: TextEncoder) -> list[int]:
    """Token ids of the beginning of a document, for a model to go on from: 32 tokens, or half of a shorter one."""
    content = text.text_ids(conversation.turns[0].response[:_PROMPT_CHARACTERS])
    return [*text.begin_token_ids, *content[: max(1, min(_PROMPT_TOKENS, len(content) // 2))]]


class Chunks(Sequence[Example]):
    """Examples as a step takes them: one longer than `max_length` in chunks, each beginning with the last `overlap` tokens of the
    one before.

    `record_of` int64 [number of chunks] is the index of the example that each is of. Each asking makes another object.
    """

    def __init__(self, examples: Sequence[Example], num_tokens: IntArray, max_length: int, overlap: int) -> None:
        self._examples, self._max_length, self._new = examples, max_length, max_length - overlap
        self._last: tuple[int, Example] | None = None
        over = np.maximum(num_tokens.astype(np.int64) - max_length, 0)
        num_chunks = 1 + -(-over // self._new)
        self._first = np.cumsum(num_chunks) - num_chunks
        self.record_of = np.repeat(np.arange(len(num_tokens), dtype=np.int64), num_chunks)

    def __len__(self) -> int:
        """Number of chunks, a whole record being one."""
        return len(self.record_of)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """The chunk at `index`, or those of a slice."""
        if isinstance(index, slice):
            return [self._chunk(at) for at in range(*index.indices(len(self)))]
        return self._chunk(range(len(self))[index])

    def __iter__(self) -> Iterator[Example]:
        return (self._chunk(at) for at in range(len(self)))

    def _chunk(self, at: int) -> Example:
        record = int(self.record_of[at])
        number = at - int(self._first[record])
        if self._last is None or self._last[0] != record:  # of a document on disk, its chunks in turn read it once
            self._last = record, self._examples[record]
        whole = self._last[1]
        return whole if len(whole) <= self._max_length else self._cut(whole, number)

    def _cut(self, whole: Example, number: int) -> Example:
        """Chunk `number`, from 0, of a document."""
        start = number * self._new
        token_ids = whole.token_ids[start : start + self._max_length]
        weights = whole.weights[start : start + self._max_length]
        is_last = start + len(token_ids) == len(whole)
        if number == 0:
            return replace(whole, token_ids=token_ids, weights=weights, cut=not is_last)
        weights = weights.copy()
        weights[: self._max_length - self._new] = 0.0
        return Example(
            token_ids,
            weights,
            self._max_length - self._new,
            f"{whole.source}{CHUNK_MARK}{number + 1}",
            cut=not is_last,
        )


CHUNK_MARK = " chunk "
"""Stands between the source of a document and the number of a chunk that is not its first."""


def in_chunks(examples: Sequence[Example], num_tokens: IntArray, max_length: int, overlap: int) -> Sequence[Example]:
    """`examples` as they are where none is longer than `max_length`, else in chunks."""
    is_long = len(num_tokens) > 0 and int(num_tokens.max()) > max_length
    return Chunks(examples, num_tokens, max_length, min(overlap, max_length - 1)) if is_long else examples


def records_of(chunks: Sequence[Example]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The index of the record that each of `chunks` is of."""
    return chunks.record_of if isinstance(chunks, Chunks) else np.arange(len(chunks), dtype=np.int64)
