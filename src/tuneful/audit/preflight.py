"""What happens to a record on its way into the model: the checks that need the tokenizer.

A prompt must be the untrained prefix of its example; the end token must be trained; no text may open with two begin
tokens; and what the tokenizer is given must be what comes out again. (SmolLM2's vocabulary, for one, lacks byte F1:
characters from U+40000 on vanish without a message.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneful.encoding.encode import Encoder
from tuneful.encoding.template import Origin, Template
from tuneful.encoding.tokens import TextEncoder
from tuneful.types import Conversation, Example, answer_text, rejected_texts, sides_of, texts_of

_NUM_PROMPTS = 256
"""Records whose prompt is encoded a second time, as inference does it: it doubles the work, and one in many shows it."""


class Preflight:
    """The checks of one encoder, record by record; `num_ended` counts the records whose end token is trained."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._text = encoder, encoder.text
        self._writable: dict[str, bool] = {}
        self._num_looked_at = 0
        self.num_ended = 0

    def look(self, conversation: Conversation, example: Example) -> Iterator[tuple[str, str]]:
        """(kind, text) of everything that is wrong with how `conversation` became `example`."""
        ids = example.token_ids
        sides = sides_of(example)
        self.num_ended += all(map(self._is_ended, sides))
        begin = self._text.bos_token_ids
        if begin and len(ids) > 1 and ids[0] == ids[1] == begin[0]:
            yield "double_bos", self._text.token_text(ids[:8].tolist())
        if any(side.cut for side in sides):
            yield "cut_records", f"{len(ids)} tokens kept"
        elif self._num_looked_at < _NUM_PROMPTS and not self._is_prefix(conversation, example):
            yield "prompt_mismatch", self._encoder.prompt_text(conversation)
        self._num_looked_at += 1
        if lost := self._lost_characters(conversation):
            yield "unwritable_characters", " ".join(f"U+{ord(character):04X}" for character in lost)
        if any(side.seams_apart for side in sides):
            yield "boundary_tokenization", answer_text(conversation.answered_turns[-1])[:40]

    def _is_ended(self, side: Example) -> bool:
        return bool(side.token_ids[-1] in self._text.stop_token_ids and side.weights[-1] > 0)

    def _is_prefix(self, conversation: Conversation, example: Example) -> bool:
        """Whether what inference sends is what training saw before the last response, up to an earlier one that it encodes
        otherwise (`boundary_tokenization`)."""
        prompt = self._encoder.prompt_ids(conversation)
        same = min((len(prompt), *(max(0, place - 1) for place in example.seams_apart)))
        return bool(prompt[:same] == example.token_ids[:same].tolist())

    def _lost_characters(self, conversation: Conversation) -> list[str]:
        characters: set[str] = set()
        for turn in conversation.turns:
            characters.update(*texts_of(turn))
        characters.update(*rejected_texts(conversation))
        characters.update(conversation.system)
        lost = []
        for character in sorted(characters):
            if character not in self._writable:
                self._writable[character] = self._is_written(character)
            if not self._writable[character]:
                lost.append(character)
        return lost

    def _is_written(self, character: str) -> bool:
        text = f"a{character}b"
        return self._text.token_text(self._text.continued_ids(text)) == text


class SpecialTokenTexts:
    """What looks like structure inside text of the user's: texts of control tokens, and those that begin a template's turn."""

    def __init__(self, template: Template, text: TextEncoder | None) -> None:
        texts = {one.strip() for one in (*template.stop, template.end)}
        if text is not None:
            texts |= set(text.control_token_ids.values())
        texts = {one for one in texts if len(one) > 2}
        self._pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
        self._heads = sorted({one[:2] for one in texts})

    def find(self, conversation: Conversation) -> tuple[str, int] | None:
        """The first text of `conversation` that holds one, and where; None where none does."""
        said = (text for turn in conversation.turns for text in texts_of(turn))
        for text in (*said, *rejected_texts(conversation)):
            if any(head in text for head in self._heads) and (found := self._pattern.search(text)):
                return text, found.start()
        found = self._pattern.search(conversation.system) if conversation.system else None
        return (conversation.system, found.start()) if found else None


def _opening(template: Template, conversation: Conversation) -> str:
    """The template's text before the first response; empty where something else stands there."""
    before = None
    for piece in template.example(conversation):
        if piece.origin is Origin.RESPONSE:
            return before.text if before and before.origin is Origin.TEMPLATE else ""
        before = piece
    return ""
