"""Conversation and template become an Example: token ids, and how much predicting each one counts.

    pieces -> [context, reply, context, reply ...] -> stretches -> token ids and weights

A context is encoded in one go, so that the ids of a prompt are those that the tokenizer makes of the rendered prompt. The one
seam is where generation begins: no token reaches across it, because a server has sent the prompt before the model writes its
first token. A reply is what the model would have written: the rest of context and reply encoded in one go, or, where the two
would melt into one token there (`seams_apart` counts these), the reply by itself.

Stretches of a batch are encoded together, each distinct one once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from tuneful.encoding.documents import beginning_ids, document_example
from tuneful.encoding.template import Origin, Piece, without_thoughts
from tuneful.encoding.tokens import Run, TextEncoder
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Example, has_question, sides_of

_MAX_TRIES = 8
"""How often the text that was asked is cut until a record fits: each cut is of as many tokens as were too many."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """A context or a reply, as control tokens and stretches, and the weight of its tokens; `opens` where a record begins."""

    run: Run
    is_reply: bool
    weight: float
    opens: bool


@dataclass(frozen=True, slots=True)
class Encoder:
    """Conversations to Examples under one template and one set of limits; documents under neither.

    A trained token weighs what its turn does (1), a token of the context `prompt_weight`, and both the record's own weight; an
    answer that is marked as not trained weighs nothing, nor does a thought without `train_reasoning`. With `last_turn` only the
    last response is trained. A record over `max_length` tokens is refused, or, by `on_long`, loses the end of its last responses
    and with it the end token (`cut_response`), or as much of what was asked as leaves room (`cut_input`).
    """

    text: TextEncoder
    max_length: int
    prompt_weight: float = 0.0
    on_long: str = "refuse"
    last_turn: bool = False
    train_reasoning: bool = True

    def example(self, conversation: Conversation) -> Example | str:
        """The Example of a conversation, or the reason why it can have none."""
        return self.examples([conversation])[0]

    def examples(self, conversations: Sequence[Conversation]) -> list[Example | str]:
        """For each conversation its Example, or the reason why it can have none; encoded in one batch."""
        if any(one.rejected is not None or one.label is not None for one in conversations):
            return self._preferences(conversations)
        pieces = [document_example(one, self.text) if one.is_document else self._pieces(one) for one in conversations]
        whole = iter(self._encoded([one for one in pieces if isinstance(one, list)]))
        return [
            self._fitted(conversation, one, next(whole)) if isinstance(one, list) else one
            for conversation, one in zip(conversations, pieces, strict=True)
        ]

    def answers(self, conversations: Sequence[Conversation]) -> list[Example | str]:
        """For each conversation an Example, however long, whose targets are the tokens of its last response alone, without what
        ends it: what a model says where it chooses among answers. Or the reason why it can have none."""
        plain = replace(self, prompt_weight=0.0, last_turn=True, max_length=sys.maxsize)
        pieces = [plain._pieces(one) for one in conversations]
        whole = iter(plain._encoded([_up_to_response(one) for one in pieces if isinstance(one, list)]))
        found: list[Example | str] = []
        for conversation, one in zip(conversations, pieces, strict=True):
            if isinstance(one, str):
                found.append(one)
                continue
            encoded = next(whole)
            num_prompt_tokens = sum(map(len, encoded.ids[: encoded.first_trained]))
            found.append(plain._example(conversation, encoded, num_prompt_tokens, False, 0))
        return found

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids of the prompt of the last response: those of the tokenizer for the rendered prompt.

        Of a document, those of its beginning. Raises TemplateError where the template cannot render it.
        """
        if conversation.is_document:
            return beginning_ids(conversation, self.text)
        (ids,) = self.text.ids([self._opening_run(self.text.template.prompt(conversation))])
        return ids

    def prompt_text(self, conversation: Conversation) -> str:
        """The prompt as text, as it is shown and stored."""
        if conversation.is_document:
            return self.text.token_text(beginning_ids(conversation, self.text))
        return self.text.text_of(self.text.template.prompt(conversation))

    def _pieces(self, conversation: Conversation) -> list[Piece] | str:
        try:
            return without_thoughts(self.text.template.example(conversation), trained=self.train_reasoning)
        except TemplateError as error:  # of this record: the template itself was tried when it was loaded
            greeted = " (the record begins with a message of the assistant's, which template.name=chatml renders)"
            return str(error) + ("" if has_question(conversation.turns[0]) else greeted)

    def _encoded(self, records: Sequence[Sequence[Piece]]) -> list[_Encoded]:
        """The token ids of each record, of all of them in one batch."""
        segments = [self._segments(pieces) for pieces in records]
        found = self.text.stretch_ids([key for one in segments for key in _keys(one)])
        return [self._joined(one, found) for one in segments]

    def _segments(self, pieces: Sequence[Piece]) -> list[_Segment]:
        """Contexts and replies in turn. An end token closes its reply, and what follows is encoded as standing behind it."""
        trained = [piece.is_trained for piece in pieces]
        last = max(number for number, is_trained in enumerate(trained) if not is_trained) if self.last_turn else 0
        trained[:last] = [False] * last
        kinds = [self._kind(piece, is_trained) for piece, is_trained in zip(pieces, trained, strict=True)]
        segments: list[_Segment] = []
        for (reply, weight), group in groupby(zip(kinds, pieces, strict=True), key=lambda pair: pair[0]):
            own = [piece for _, piece in group]
            after = [part for one in segments[-1:] for part in one.run[-1:] if isinstance(part, int) and not reply]
            run = self.text.run(own, after=after, strips=not reply) if segments else self._opening_run(own)
            segments.append(_Segment(run, reply, weight, not segments))
        return segments

    def _kind(self, piece: Piece, is_trained: bool) -> tuple[bool, float]:
        """Whether `piece` is encoded as a reply, and the weight of its tokens.

        An answer that is marked as not trained is context, whose tokens count for nothing even where those of a prompt do.
        """
        if is_trained:
            return True, piece.weight
        apart = piece.is_response and not piece.weight and self.prompt_weight > 0
        return apart, 0.0 if apart else self.prompt_weight

    def _opening_run(self, pieces: Sequence[Piece]) -> Run:
        """The run that opens a record: the begin token is one of its control tokens, whoever writes it."""
        bos = self.text.bos_token_ids
        return [*bos, *self.text.run(pieces, after=bos)]

    def _joined(self, segments: Sequence[_Segment], found: dict[tuple[str, bool], Sequence[int]]) -> _Encoded:
        """The token ids of each segment, put together from those of their stretches."""
        ids: list[list[int]] = []
        seams_apart: list[int] = []
        for number, segment in enumerate(segments):
            first: Sequence[int] | None = None
            if number and (seam := _seam(segments[number - 1], segment)) is not None:
                before, joint = found[seam.before, seam.opens], found[seam.joint, seam.opens]
                if list(joint[: len(before)]) == list(before):
                    first = joint[len(before) :]
                else:
                    first = self.text.continued_ids(seam.after)
                    seams_apart.append(sum(map(len, ids)))
            own: list[int] = []
            for place, part in enumerate(segment.run):
                if isinstance(part, int):
                    own.append(part)
                else:
                    opens = segment.opens and place == 0
                    own.extend(first if first is not None and place == 0 else found[part, opens])
            ids.append(own)
        trained = next(number for number, segment in enumerate(segments) if segment.is_reply and segment.weight)
        return _Encoded(ids, [segment.weight for segment in segments], trained, tuple(seams_apart))

    def _fitted(self, conversation: Conversation, pieces: list[Piece], encoded: _Encoded) -> Example | str:
        """The Example where it fits `max_length`, as it is or cut; else the reason why not."""
        over = encoded.num_tokens - self.max_length
        too_long = f"{encoded.num_tokens} tokens, over data.max_length={self.max_length}"
        if over > 0 and self.on_long == "refuse":
            return f"{too_long} (data.on_long=cut_response or cut_input would cut it)"
        num_input_cut = 0
        if over > 0 and self.on_long == "cut_input":
            shorter = self._with_less_input(pieces, encoded)
            if shorter is None:
                return f"{too_long}, and cutting all that was asked would not make room"
            num_input_cut, encoded, over = encoded.num_tokens - shorter.num_tokens, shorter, 0
        num_prompt_tokens = sum(map(len, encoded.ids[: encoded.first_trained]))
        if over > 0 and num_prompt_tokens >= self.max_length:
            return f"the prompt alone is {num_prompt_tokens} tokens and leaves no response in data.max_length={self.max_length}"
        return self._example(conversation, encoded, num_prompt_tokens, over > 0, num_input_cut)

    def _example(
        self, conversation: Conversation, encoded: _Encoded, num_prompt_tokens: int, cut: bool, num_input_cut: int
    ) -> Example:
        lengths = list(map(len, encoded.ids))
        weights = np.repeat((np.array(encoded.weights) * conversation.weight).astype(np.float32), lengths)
        weights[0] = 0.0
        token_ids = np.array([token_id for own in encoded.ids for token_id in own], dtype=np.int32)
        token_ids, weights = token_ids[: self.max_length], weights[: self.max_length]
        return Example(
            token_ids, weights, num_prompt_tokens, conversation.source, cut, num_input_cut, encoded.seams_apart
        )

    def _with_less_input(self, pieces: list[Piece], encoded: _Encoded) -> _Encoded | None:
        """The record with the longest of the texts that were asked shortened, from their ends, until it fits; None where it
        never does: a token of each text stays."""
        for _ in range(_MAX_TRIES):
            if (over := encoded.num_tokens - self.max_length) <= 0:
                return encoded
            shorter = self._shortened(pieces, over)
            if shorter == pieces:
                return None
            pieces = shorter
            (encoded,) = self._encoded([pieces])
        return encoded if encoded.num_tokens <= self.max_length else None

    def _shortened(self, pieces: list[Piece], over: int) -> list[Piece]:
        """`pieces` with about `over` tokens less in those that were asked, the longest first."""
        lengths = {
            number: len(self.text.continued_ids(piece.text))
            for number, piece in enumerate(pieces)
            if piece.origin is Origin.USER
        }
        shorter = list(pieces)
        for number in sorted(lengths, key=lambda number: -lengths[number]):
            if over <= 0:
                break
            kept = max(1, lengths[number] - over)
            shorter[number] = replace(pieces[number], text=self.text.cut_after(pieces[number].text, kept))
            over -= lengths[number] - kept
        return shorter

    # Preferences: both sides of a pair, or a record with a label

    def _preferences(self, conversations: Sequence[Conversation]) -> list[Example | str]:
        """The Examples of pairs and of records with a label: nothing of a prompt is trained, and all that follows it is."""
        plain = replace(self, prompt_weight=0.0, last_turn=False)
        sides = [side for one in conversations for side in sides_of(one)]
        fitted = iter(plain.examples([replace(side, rejected=None, label=None) for side in sides]))
        return [plain._preference(one, next(fitted), next(fitted) if one.rejected else None) for one in conversations]

    def _preference(
        self, conversation: Conversation, chosen: Example | str, rejected: Example | str | None
    ) -> Example | str:
        """The Example of a pair, or the reason why it has none: both sides have to begin with the same prompt, and end in an
        answer. Where thoughts are context the sides may part in them: the prompt is what they share."""
        if rejected is None:
            return chosen if isinstance(chosen, str) else replace(chosen, label=conversation.label)
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            if isinstance(side, str):
                return f"the {name} side: {side}"
        assert isinstance(chosen, Example)
        assert isinstance(rejected, Example)
        if chosen.num_input_cut or rejected.num_input_cut:
            if isinstance(sides := self._cut_alike(conversation), str):
                return sides
            chosen, rejected = sides
        num_shared = _num_shared(chosen, rejected)
        if num_shared < max(chosen.num_prompt_tokens, rejected.num_prompt_tokens) and not self._part_in_thoughts(
            conversation
        ):
            return "the two sides of the pair do not begin with the same prompt under this template"
        other = replace(rejected, num_prompt_tokens=num_shared)
        return replace(chosen, num_prompt_tokens=num_shared, rejected=other, label=conversation.label)

    def _part_in_thoughts(self, conversation: Conversation) -> bool:
        """Whether both sides of a pair are asked the same, and what differs before a trained token are untrained thoughts."""
        if self.train_reasoning:
            return False
        asked = [own[: _num_asked(own)] for own in map(self.text.template.example, sides_of(conversation))]
        return asked[0] == asked[1]

    def _cut_alike(self, conversation: Conversation) -> tuple[Example, Example] | str:
        """Both sides of a pair with as much less of the same prompt as the longer one needs; else the reason why not."""
        sides = sides_of(conversation)
        pieces = [self.text.template.example(side) for side in sides]
        num_asked = _num_asked(pieces[0])
        if pieces[0][:num_asked] != pieces[1][: _num_asked(pieces[1])]:
            return "the two sides of the pair do not begin with the same prompt under this template"
        pieces = [without_thoughts(own, trained=self.train_reasoning) for own in pieces]
        whole = encoded = self._encoded(pieces)
        for _ in range(_MAX_TRIES):
            if (over := max(one.num_tokens for one in encoded) - self.max_length) <= 0:
                break
            shorter = self._shortened(pieces[0][:num_asked], over)
            pieces = [[*shorter, *own[num_asked:]] for own in pieces]
            encoded = self._encoded(pieces)
        if (longest := max(one.num_tokens for one in encoded)) > self.max_length:
            return f"{longest} tokens, over data.max_length={self.max_length}, and cutting all that was asked would not make room"
        chosen, rejected = (
            self._example(
                side, one, sum(map(len, one.ids[: one.first_trained])), False, before.num_tokens - one.num_tokens
            )
            for side, one, before in zip(sides, encoded, whole, strict=True)
        )
        return chosen, rejected


def _up_to_response(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """A record's pieces up to its last response."""
    return pieces[: 1 + max(place for place, piece in enumerate(pieces) if piece.origin is Origin.RESPONSE)]


def _num_asked(pieces: Sequence[Piece]) -> int:
    """How many of a record's pieces stand before the first that is trained."""
    return next(number for number, piece in enumerate(pieces) if piece.is_trained)


def _num_shared(chosen: Example, rejected: Example) -> int:
    """How many tokens before the first trained one both sides begin with."""
    num_tokens = min(chosen.num_prompt_tokens, rejected.num_prompt_tokens)
    unlike = np.flatnonzero(chosen.token_ids[:num_tokens] != rejected.token_ids[:num_tokens])
    return int(unlike[0]) if len(unlike) else num_tokens


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The token ids of a record's segments, their weights, which is trained first, and where a reply begins inside a token."""

    ids: list[list[int]]
    weights: list[float]
    first_trained: int
    seams_apart: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.ids))


@dataclass(frozen=True, slots=True)
class _Seam:
    """Where generation begins between two stretches: the text `before` it, and `after`; `opens` as of a segment."""

    before: str
    after: str
    opens: bool

    @property
    def joint(self) -> str:
        return self.before + self.after


def _seam(context: _Segment, reply: _Segment) -> _Seam | None:
    """The seam of two segments, or None where a control token stands on one side of it."""
    if not context.run or not reply.run or isinstance(context.run[-1], int) or isinstance(reply.run[0], int):
        return None
    return _Seam(context.run[-1], reply.run[0], context.opens and len(context.run) == 1)


def _keys(segments: Sequence[_Segment]) -> Iterator[tuple[str, bool]]:
    """Every stretch that has to be encoded, with whether it opens a text."""
    for number, segment in enumerate(segments):
        seam = _seam(segments[number - 1], segment) if number else None
        if seam is not None:
            yield from ((seam.before, seam.opens), (seam.joint, seam.opens))
        for place, part in enumerate(segment.run):
            if isinstance(part, str) and not (seam is not None and place == 0):
                yield part, segment.opens and place == 0
