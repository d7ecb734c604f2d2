"""Conversation and template become an Example: token ids, and how much predicting each one counts.

Each piece is encoded on its own and the ids are concatenated, so which token is trained is known, not found. Text of the
user's is encoded by a copy of the tokenizer that has no control tokens: `<|im_end|>` in a record is seven ordinary tokens.
A seam is where the last piece ends: ids never merge across it, in training and in generation alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from tuneful.data.template import Origin, Piece, Template
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """Text to token ids and back, by origin.

    `end_token_id` closes a response: the template's own control token where the tokenizer has it, else the tokenizer's end
    token. `stop_token_ids` are all tokens at which an answer ends. Raises TemplateError for a tokenizer with neither.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(
                f"{tokenizer.name_or_path}: no fast tokenizer (tokenizer.json); convert the tokenizer first"
            )
        document = json.loads(backend.to_str())
        self.template = template
        self._encoders = {True: _first_and_next(document, _bare), False: _first_and_next(document, _plain)}
        self._backend = backend
        self.bos_token_ids = _bos_token_ids(tokenizer)
        self.control_token_ids = {
            token["id"]: token["content"] for token in document["added_tokens"] if token["special"]
        }
        self.end_token_id = self._find_end(tokenizer)
        self.stop_token_ids = {self.end_token_id, tokenizer.eos_token_id} - {None}
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    def piece_ids(self, piece: Piece, *, first: bool = False) -> list[int]:
        """Token ids of one piece; `first` where it opens the record (some tokenizers mark the start of a text)."""
        if piece.origin is Origin.END:
            return [self.end_token_id]
        encoder = self._encoders[piece.origin is Origin.TEMPLATE][0 if first else 1]
        return list(encoder.encode(piece.text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated ids; control tokens are left out."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=True))

    def token_text(self, token_ids: Sequence[int]) -> str:
        """The text of a few tokens, control tokens included; bytes that are no whole character come out as U+FFFD."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=False))

    def _find_end(self, tokenizer: PreTrainedTokenizerBase) -> int:
        if self.template.end:
            for token_id, content in self.control_token_ids.items():
                if content == self.template.end:
                    return int(token_id)
        if tokenizer.eos_token_id is None:
            raise TemplateError(
                f"{tokenizer.name_or_path}: the tokenizer has no end token, so no response could ever end; set `eos_token` "
                "in its tokenizer_config.json"
            )
        return int(tokenizer.eos_token_id)


def _bos_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before every text: its begin token, or nothing."""
    opening = tokenizer("", add_special_tokens=True)["input_ids"]
    return [tokenizer.bos_token_id] if opening[:1] == [tokenizer.bos_token_id] else []


def _first_and_next(document: dict[str, Any], make: Callable[..., dict[str, Any]]) -> tuple[Tokenizer, Tokenizer]:
    """Encoders for the piece that opens a record and for the others: the same one where no mark tells them apart."""
    opening, following = make(document, first=True), make(document, first=False)
    first = Tokenizer.from_str(json.dumps(opening))
    return first, first if following == opening else Tokenizer.from_str(json.dumps(following))


def _bare(document: dict[str, Any], *, first: bool) -> dict[str, Any]:
    """The tokenizer without what it adds around a text; unless `first`, without the mark at a text's start either."""
    bare = {**document, "post_processor": None, "truncation": None, "padding": None}
    if not first:
        bare["pre_tokenizer"] = _without_start_mark(document["pre_tokenizer"])
        bare["normalizer"] = _without_start_mark(document["normalizer"])
    return bare


def _plain(document: dict[str, Any], *, first: bool) -> dict[str, Any]:
    """The tokenizer without control tokens: of the added tokens only runs of white space stay."""
    kept = [token for token in document["added_tokens"] if not token["special"] and not token["content"].strip()]
    control = {token["content"] for token in document["added_tokens"] if token["special"]}
    return {**_bare(document, first=first), "added_tokens": kept, "model": _without(control, document["model"])}


def _without(control: set[str], model: dict[str, Any]) -> dict[str, Any]:
    """The model with its control tokens renamed to what no text holds: some models look whole words up in the vocabulary.

    The token for the unknown keeps its name, by which the model finds it.
    """
    control = control - {model.get("unk_token")}

    def renamed(token: str, token_id: int) -> str:
        return f"\uffff{token_id}\uffff" if token in control else token

    vocab = model["vocab"]
    if isinstance(vocab, dict):
        return {**model, "vocab": {renamed(token, token_id): token_id for token, token_id in vocab.items()}}
    return {**model, "vocab": [[renamed(token, token_id), *rest] for token_id, (token, *rest) in enumerate(vocab)]}


def _without_start_mark(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    for key in ("normalizers", "pretokenizers"):
        if key in step:
            inner = [kept for part in step[key] if (kept := _without_start_mark(part)) is not None]
            return {**step, key: inner}
    return step


@dataclass(frozen=True, slots=True)
class Encoder:
    """Conversations to Examples under one template and one set of limits.

    A response token weighs 1, a prompt token `prompt_weight`. A record over `max_length` tokens is refused, or, with
    `cut_response`, loses the end of its response and with it the end token.
    """

    text: TextEncoder
    max_length: int
    prompt_weight: float = 0.0
    cut_response: bool = False

    def example(self, conversation: Conversation) -> Example | str:
        """The Example of a conversation, or the reason why it can have none."""
        ids, weights = list(self.text.bos_token_ids), [0.0] * len(self.text.bos_token_ids)
        num_prompt_tokens = 0
        for index, piece in enumerate(self.text.template.example(conversation)):
            trained = piece.origin in (Origin.RESPONSE, Origin.END)
            if piece.origin is Origin.RESPONSE and not num_prompt_tokens:
                num_prompt_tokens = len(ids)
            piece_ids = self.text.piece_ids(piece, first=index == 0)
            ids += piece_ids
            weights += [1.0 if trained else self.prompt_weight] * len(piece_ids)
        weights[0] = 0.0
        cut = len(ids) > self.max_length
        if cut and not self.cut_response:
            return f"{len(ids)} tokens, over data.max_length={self.max_length} (data.on_long=cut_response would cut it)"
        if cut and num_prompt_tokens >= self.max_length:
            return f"the prompt alone is {num_prompt_tokens} tokens and leaves no response in data.max_length={self.max_length}"
        return Example(
            np.asarray(ids[: self.max_length], dtype=np.int32),
            np.asarray(weights[: self.max_length], dtype=np.float32),
            num_prompt_tokens,
            conversation.source,
            cut,
        )

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids of the prompt of the last turn: the untrained prefix of its example, id for id."""
        ids = list(self.text.bos_token_ids)
        for index, piece in enumerate(self.text.template.prompt(conversation)):
            ids += self.text.piece_ids(piece, first=index == 0)
        return ids

    def prompt_text(self, conversation: Conversation) -> str:
        """The prompt as text, as it is shown and stored."""
        return "".join(piece.text for piece in self.text.template.prompt(conversation))
