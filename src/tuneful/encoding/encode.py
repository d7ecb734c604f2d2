"""Conversation and template become an Example: token ids, and how much predicting each one counts.

Each piece is encoded on its own and the ids are concatenated, so which token is trained is known, not found. Text of the
user's is encoded by a copy of the tokenizer that has no control tokens: `<|im_end|>` in a record is seven ordinary tokens.
Ids never merge across the boundary between two pieces, in training and in generation alike.

Text of the template's repeats from record to record and is encoded once; text of the user's goes to the tokenizer in
batches: about 25,000 short records a second on two cores.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from tuneful.encoding.template import Origin, Piece, Template
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_WORTH_THREADS = 32
"""Texts below which a batch of them costs more than it saves: waking the tokenizer's threads takes most of a millisecond."""

_TEMPLATE_ORIGINS = (Origin.TEMPLATE, Origin.GENERATION_PREFIX)


class TextEncoder:
    """Text to token ids and back, by origin.

    `end_token_id` closes a response: the template's own control token where the tokenizer has it, else the tokenizer's end
    token. `stop_token_ids` are all tokens at which an answer ends; `special_token_texts` are the texts that a record may
    hold and only the template may mean; `fingerprint` is over all of tokenizer and template that decides a token. Raises
    TemplateError for a tokenizer without an end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(
                f"{tokenizer.name_or_path}: no fast tokenizer (tokenizer.json); convert the tokenizer first"
            )
        description = backend.to_str()
        document = json.loads(description)
        self.template = template
        self._encoders = {True: _first_and_next(document, _bare), False: _first_and_next(document, _plain)}
        self._backend = backend
        self.bos_token_ids = [] if template.writes_bos else _bos_token_ids(tokenizer)
        self.control_token_ids = {
            token["id"]: token["content"] for token in document["added_tokens"] if token["special"]
        }
        self._control_ids = {content: token_id for token_id, content in self.control_token_ids.items()}
        self.end_token_id = self._find_end(tokenizer)
        added = {token["content"] for token in document["added_tokens"] if token["content"].strip()}
        self.special_token_texts = tuple(sorted(added | set(template.stop), key=lambda text: (-len(text), text)))
        self._any_special = re.compile("|".join(map(re.escape, self.special_token_texts)) or r"(?!)")
        self._template_ids = lru_cache(maxsize=4096)(self._encode_template)
        self.stop_token_ids = {self.end_token_id, tokenizer.eos_token_id} - {None}
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        end = self.token_text([self.end_token_id])
        kind = [
            template.name,
            template.chat_template(bos_text="", end_text=end),
            template.stop,
            self.bos_token_ids,
            end,
        ]
        self.fingerprint = hashlib.sha256((description + json.dumps(kind)).encode("utf-8", "surrogatepass")).hexdigest()

    def piece_ids(self, piece: Piece, *, first: bool = False) -> list[int]:
        """Token ids of one piece; `first` where it opens the record (some tokenizers mark the start of a text)."""
        return list(self.all_ids([(piece, first)])[0])

    def all_ids(self, pieces: Sequence[tuple[Piece, bool]]) -> list[Sequence[int]]:
        """Token ids of many pieces, each given with whether it opens its record; in order."""
        plain = [
            number
            for number, (piece, first) in enumerate(pieces)
            if not first and piece.origin is not Origin.END and piece.origin not in _TEMPLATE_ORIGINS
        ]
        encoder, texts = self._encoders[False][1], [pieces[number][0].text for number in plain]
        if len(texts) > _WORTH_THREADS:
            encoded = encoder.encode_batch_fast(texts, add_special_tokens=False)
        else:
            encoded = [encoder.encode(text, add_special_tokens=False) for text in texts]
        batched = dict(zip(plain, encoded, strict=True))
        return [
            batched[number].ids if number in batched else self._ids_alone(piece, first)
            for number, (piece, first) in enumerate(pieces)
        ]

    def _ids_alone(self, piece: Piece, first: bool) -> Sequence[int]:
        if piece.origin is Origin.END:
            return [self._control_ids.get(piece.text, self.end_token_id)]
        if piece.origin in _TEMPLATE_ORIGINS:
            return self._template_ids(piece.text, first)
        return list(self._encoders[False][0 if first else 1].encode(piece.text, add_special_tokens=False).ids)

    def _encode_template(self, text: str, first: bool) -> tuple[int, ...]:
        return tuple(self._encoders[True][0 if first else 1].encode(text, add_special_tokens=False).ids)

    def count_special_tokens(self, conversation: Conversation) -> Counter[str]:
        """How often each of `special_token_texts` stands in what the record itself says, where it is encoded as text."""
        found: Counter[str] = Counter()
        for text in _texts(conversation):
            found.update(self._any_special.findall(text))
        return found

    def text_of(self, pieces: Iterable[Piece]) -> str:
        """Pieces as text, end tokens included."""
        end = self.token_text([self.end_token_id])
        return "".join(piece.text or end if piece.origin is Origin.END else piece.text for piece in pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated ids; control tokens are left out."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=True))

    def token_text(self, token_ids: Sequence[int]) -> str:
        """The text of a few tokens, control tokens included; bytes that are no whole character come out as U+FFFD."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=False))

    def _find_end(self, tokenizer: PreTrainedTokenizerBase) -> int:
        if self.template.end in self._control_ids:
            return int(self._control_ids[self.template.end])
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


def _texts(conversation: Conversation) -> list[str]:
    said = [text for turn in conversation.turns for text in (turn.instruction, turn.input, turn.response)]
    return [conversation.system, *said]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Conversations to Examples under one template and one set of limits.

    A trained token weighs what its turn does (1), a token of the context `prompt_weight`, and both the record's own weight; an
    answer that is marked as not trained weighs nothing. With `last_turn` only the last response is trained. A record over
    `max_length` tokens is refused, or, by `on_long`, loses the end of its last responses and with it the end token
    (`cut_response`), or as much of what was asked as leaves room (`cut_input`).
    """

    text: TextEncoder
    max_length: int
    prompt_weight: float = 0.0
    on_long: str = "refuse"
    last_turn: bool = False

    def example(self, conversation: Conversation) -> Example | str:
        """The Example of a conversation, or the reason why it can have none."""
        return self.examples([conversation])[0]

    def examples(self, conversations: Sequence[Conversation]) -> list[Example | str]:
        """For each conversation its Example, or the reason why it can have none; encoded in one batch."""
        pieces = [self._pieces(conversation) for conversation in conversations]
        encoded = iter(
            self.text.all_ids(
                [(piece, number == 0) for one in pieces if not isinstance(one, str) for number, piece in enumerate(one)]
            )
        )
        return [
            one if isinstance(one, str) else self._example(conversation, one, [next(encoded) for _ in one])
            for conversation, one in zip(conversations, pieces, strict=True)
        ]

    def _pieces(self, conversation: Conversation) -> list[Piece] | str:
        try:
            return self.text.template.example(conversation)
        except TemplateError as error:  # of this record: the template itself was tried when it was loaded
            greets = not (conversation.turns[0].instruction or conversation.turns[0].input)
            hint = " (the record begins with a message of the assistant's, which template.name=chatml renders)"
            return str(error) + (hint if greets else "")

    def _example(self, conversation: Conversation, pieces: Sequence[Piece], ids: list[Sequence[int]]) -> Example | str:
        trained = _trained(pieces, self.last_turn)
        bos = self.text.bos_token_ids
        num_tokens = len(bos) + sum(map(len, ids))
        over = num_tokens - self.max_length
        num_input_cut = 0
        too_long = f"{num_tokens} tokens, over data.max_length={self.max_length}"
        if over > 0 and self.on_long == "refuse":
            return f"{too_long} (data.on_long=cut_response or cut_input would cut it)"
        if over > 0 and self.on_long == "cut_input":
            num_input_cut = self._cut_input(pieces, ids, over)
            if not num_input_cut:
                return f"{too_long}, and cutting all that was asked would not make room"
            over = 0
        lengths = [len(bos), *map(len, ids)]
        num_prompt_tokens = sum(lengths[: trained.index(True) + 1])
        if over > 0 and num_prompt_tokens >= self.max_length:
            return f"the prompt alone is {num_prompt_tokens} tokens and leaves no response in data.max_length={self.max_length}"
        of_pieces = np.array([self.prompt_weight, *map(self._weight_of, pieces, trained)])
        weights = np.repeat((of_pieces * conversation.weight).astype(np.float32), lengths)
        weights[0] = 0.0
        token_ids = np.fromiter(chain(bos, *ids), dtype=np.int32, count=sum(lengths))
        return Example(
            token_ids[: self.max_length],
            weights[: self.max_length],
            num_prompt_tokens,
            conversation.source,
            over > 0,
            num_input_cut,
        )

    def _weight_of(self, piece: Piece, is_trained: bool) -> float:
        """Of a token of `piece`: what the model wrote weighs as its turn says, also where that is nothing."""
        if is_trained or (piece.is_response and not piece.weight):
            return piece.weight
        return self.prompt_weight

    def _cut_input(self, pieces: Sequence[Piece], ids: list[Sequence[int]], over: int) -> int:
        """Shorten `ids` of the longest texts that were asked, from their ends, by `over` tokens in all or a few more.

        Returns how many went, 0 where that cannot be: a token of each text stays.
        """
        asked = [number for number, piece in enumerate(pieces) if piece.origin is Origin.USER]
        num_cut = 0
        for number in sorted(asked, key=lambda number: -len(ids[number])):
            length = len(ids[number])
            kept = self._whole_characters(ids[number], max(1, length - (over - num_cut)))
            ids[number] = ids[number][:kept]
            num_cut += length - kept
            if num_cut >= over:
                return num_cut
        return 0

    def _whole_characters(self, token_ids: Sequence[int], kept: int) -> int:
        """`kept`, or as much less as leaves no character in halves."""
        while kept > 1 and self.text.decode(token_ids[:kept]).endswith("\ufffd"):
            kept -= 1
        return kept

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids of the prompt of the last response: the untrained prefix of its example, id for id.

        Raises TemplateError where the template cannot render it.
        """
        pieces = self.text.template.prompt(conversation)
        encoded = self.text.all_ids([(piece, number == 0) for number, piece in enumerate(pieces)])
        return [*self.text.bos_token_ids, *chain(*encoded)]

    def prompt_text(self, conversation: Conversation) -> str:
        """The prompt as text, as it is shown and stored."""
        return self.text.text_of(self.text.template.prompt(conversation))


def _trained(pieces: Sequence[Piece], last_turn: bool) -> list[bool]:
    """Which pieces the model learns to write: responses with what leads to them and ends them, all or the last one."""
    trained = [piece.is_trained for piece in pieces]
    if last_turn:
        last = max(number for number, is_trained in enumerate(trained) if not is_trained)
        trained[:last] = [False] * last
    return trained
