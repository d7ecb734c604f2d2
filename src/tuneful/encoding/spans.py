"""A filled frame becomes pieces: who wrote each stretch of a rendered conversation, and what of it the model has to write.

    frame   ...assistant\n|<think>\n  [1]     \n</think>\n\n  [2]      \n<tool_call>...|<|im_end|>
    pieces  template     | prefix    thought  prefix         response call             | end

Stands between `frame.py`, which knows where things stand, and `chat_template.py`, which renders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tuneful.encoding.frame import CLOSING, Frame, Span
from tuneful.encoding.outline import Outline, Text
from tuneful.encoding.template import Origin, Piece

_CONTEXT = {Origin.RESPONSE: Origin.USER, Origin.THOUGHT: Origin.USER, Origin.ARGUMENT: Origin.USER}


class SpanPieces:
    """The pieces of a conversation of `texts` under its `frame`; `weights` are those of its messages in the loss."""

    def __init__(self, frame: Frame, outline: Outline, texts: Sequence[Text], weights: Sequence[float]) -> None:
        self._frame, self._outline, self._texts, self._weights = frame, outline, texts, weights

    def divided(self, found: Sequence[str], *, is_prompt: bool) -> tuple[list[Piece], list[Piece]]:
        """The pieces before the last span and those of it, with `found[k]` in slot k; all of a prompt stands before.

        What follows the last end token is left out.
        """
        frame = self._frame
        place, start = 0, 0  # how far the pieces reach: a literal, and a character in it
        before: list[Piece] = []
        for span in frame.spans:
            context = list(self._context(found, place, start, span.first, span.start))
            own = list(self._written(found, span))
            place, start = span.last, span.stop
            if span is frame.spans[-1] and not is_prompt:
                return [*before, *context], own
            before += (*context, *own)
        last = len(frame.literals) - 1
        return [*before, *self._context(found, place, start, last, len(frame.literals[last]))], []

    def _context(self, found: Sequence[str], place: int, start: int, last: int, stop: int) -> Iterator[Piece]:
        """From character `start` of literal `place` to character `stop` of literal `last`: nothing of it is trained."""
        for number in range(place, last + 1):
            literal = self._frame.literals[number]
            yield Piece(literal[start if number == place else 0 : stop if number == last else None], Origin.TEMPLATE)
            if number < last:
                origin = self._texts[self._frame.slots[number]].origin
                yield Piece(found[number], _CONTEXT.get(origin, origin))

    def _written(self, found: Sequence[str], span: Span) -> Iterator[Piece]:
        frame, weight = self._frame, self._weights[span.message]
        calls = bool(self._outline.messages[span.message].calls)
        before: Origin | None = None  # of the text before a literal
        for number in range(span.first, span.last + 1):
            start = span.start if number == span.first else 0
            literal = frame.literals[number][start : span.end if number == span.last else None]
            after = None if number == span.last else self._texts[frame.slots[number]].origin
            yield from self._literal(literal, before, after, weight, calls=calls)
            if after is not None:
                yield Piece(found[number], after, weight)
            before = after
        yield Piece(frame.literals[span.last][span.end : span.stop], Origin.END, weight)

    def _literal(
        self, literal: str, before: Origin | None, after: Origin | None, weight: float, *, calls: bool
    ) -> Iterator[Piece]:
        """What the template writes between two texts: around a thought and before a response, else of a call."""
        if after in (Origin.THOUGHT, Origin.RESPONSE) or not calls:
            yield Piece(literal, Origin.GENERATION_PREFIX, weight)
            return
        closing = CLOSING.match(literal) if before is Origin.THOUGHT else None
        at = closing.end() if closing else 0
        yield Piece(literal[:at], Origin.GENERATION_PREFIX, weight)
        yield Piece(literal[at:], Origin.CALL, weight)
