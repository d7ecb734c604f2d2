"""The objects of OpenAI's protocol, whole and in chunks: chat completions, and text completions with their log-probabilities."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from tuneful.encoding.tokens import TextEncoder
from tuneful.infer.row import TokenLogprobs
from tuneful.serve.engine import Piece, Scored
from tuneful.serve.models import ServedModel


class Shape(Protocol):
    """How answers are written: `chunks` of a stream, and the `choice` of a whole one."""

    name: str
    chunk_name: str
    id_prefix: str

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The choices of a stream before anything came of answer `index`."""

    def chunks(self, event: Piece | Scored) -> list[dict[str, Any]]:
        """The choices that tell what came, each in a chunk of its own."""

    def choice(self, index: int, events: Sequence[Piece | Scored]) -> dict[str, Any]:
        """Answer `index` as all that came of it."""


class ChatShape:
    """Chat completions. Of the log-probabilities that of the end token is left out, as its text is."""

    name, chunk_name, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, text: TextEncoder, stop_token_ids: Collection[int], with_logprobs: bool) -> None:
        self._text, self._stops, self._with_logprobs = text, stop_token_ids, with_logprobs

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The chunk that says who speaks."""
        return [self._chunk(index, {"role": "assistant", "content": ""}, (), None)]

    def chunks(self, event: Piece | Scored) -> list[dict[str, Any]]:
        """The text, where there is any, and at the end a chunk that only says why it ended."""
        if isinstance(event, Scored):
            return []
        found = []
        if event.text or event.logprobs:
            found.append(self._chunk(event.index, {"content": event.text}, event.logprobs, None))
        if event.finish_reason:
            found.append(self._chunk(event.index, {}, (), event.finish_reason))
        return found

    def choice(self, index: int, events: Sequence[Piece | Scored]) -> dict[str, Any]:
        """The message as a whole."""
        pieces = [event for event in events if isinstance(event, Piece)]
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None},
            "logprobs": self._logprobs([one for piece in pieces for one in piece.logprobs]),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprobs], finish_reason: str | None
    ) -> dict[str, Any]:
        shown = self._logprobs(logprobs) if logprobs else None
        return {"index": index, "delta": delta, "logprobs": shown, "finish_reason": finish_reason}

    def _logprobs(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        said = [one for one in logprobs if one.token_id not in self._stops]
        return {"content": [self._token(one) for one in said], "refusal": None}

    def _token(self, one: TokenLogprobs) -> dict[str, Any]:
        top = [self._one(token_id, logprob) for token_id, logprob in one.top]
        return {**self._one(one.token_id, one.logprob), "top_logprobs": top}

    def _one(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._text.token_text([token_id])
        return {"token": text, "logprob": _finite(logprob), "bytes": _bytes(text)}


class TextShape:
    """Text completions: `echoed` is the text of the prompt of each answer where that comes first, `prompt_ids` its tokens.

    Of log-probabilities every token has its own, the end token and, echoed, those of the prompt: the first of them has none.
    """

    name, chunk_name, id_prefix = "text_completion", "text_completion", "cmpl-"

    def __init__(
        self,
        text: TextEncoder,
        with_logprobs: bool,
        echoed: Sequence[str] | None,
        prompt_ids: Sequence[Sequence[int]],
    ) -> None:
        self._text, self._with_logprobs, self._echoed, self._prompt_ids = text, with_logprobs, echoed, prompt_ids
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The prompt, where it is echoed without log-probabilities: these come later."""
        if self._echoed is None or self._with_logprobs:
            return []
        return [self._chunk(index, self._echoed[index], None, None)]

    def chunks(self, event: Piece | Scored) -> list[dict[str, Any]]:
        """One chunk for what came."""
        if isinstance(event, Scored):
            assert self._echoed is not None
            return [self._chunk(event.index, self._echoed[event.index], self._scored(event), None)]
        shown = self._logprobs(event.index, [(one.token_id, one) for one in event.logprobs])
        return [self._chunk(event.index, event.text, shown, event.finish_reason)]

    def choice(self, index: int, events: Sequence[Piece | Scored]) -> dict[str, Any]:
        """The text as a whole."""
        pieces = [event for event in events if isinstance(event, Piece)]
        text = "".join(piece.text for piece in pieces)
        if self._echoed is not None:
            text = self._echoed[index] + text
        parts = [self._scored(event) for event in events if isinstance(event, Scored)]
        parts.append(self._logprobs(index, [(one.token_id, one) for piece in pieces for one in piece.logprobs]))
        return self._chunk(index, text, _joined([part for part in parts if part is not None]), pieces[-1].finish_reason)

    def _chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _scored(self, event: Scored) -> dict[str, Any] | None:
        return self._logprobs(event.index, list(zip(self._prompt_ids[event.index], event.logprobs, strict=True)))

    def _logprobs(self, index: int, tokens: Sequence[tuple[int, TokenLogprobs | None]]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        texts = [self._text.token_text([token_id]) for token_id, _ in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [None if one is None else _finite(one.logprob) for _, one in tokens],
            "top_logprobs": [None if one is None else self._top(one) for _, one in tokens],
            "text_offset": offsets,
        }

    def _top(self, one: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens by their text; of several with one text (parts of characters) the likeliest."""
        found: dict[str, float] = {}
        for token_id, logprob in one.top:
            found.setdefault(self._text.token_text([token_id]), _finite(logprob))
        return found


class Envelope:
    """What all objects of one response have in common."""

    def __init__(self, model: ServedModel, shape: Shape) -> None:
        self._shape = shape
        self._common = {
            "id": shape.id_prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": f"fp_{model.digest[:10]}",
        }

    def chunk(self, choices: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
        """A chunk of a stream."""
        return {**self._common, "object": self._shape.chunk_name, "choices": choices, **others}

    def document(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The whole response."""
        return {**self._common, "object": self._shape.name, "choices": choices, "usage": usage}


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not parts:
        return None
    return {key: [one for part in parts for one in part[key]] for key in parts[0]}


def _finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for what is impossible."""
    return max(logprob, -9999.0)


def _bytes(text: str) -> list[int] | None:
    """The bytes of a token; None for a part of a character, whose bytes its text does not tell."""
    return None if "\ufffd" in text else list(text.encode())
