"""What a template leaves out of records without a word, counted and said: thoughts of earlier answers, and answers that are
context because of it.

Stands beside `prepare.py`, which encodes; `check`, `show`, a run and its report print the notes.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuneful.data.notes import Noted, ReadingNotes, quoted
from tuneful.encoding.encode import Encoder
from tuneful.errors import TemplateError
from tuneful.runs.schema import ReadingNote
from tuneful.types import Conversation


class LeftOut:
    """Counts over the records that `add` is given; `notes` are the sentences."""

    def __init__(self, encoder: Encoder) -> None:
        self._template = encoder.text.template
        self._notes = ReadingNotes()

    def add(self, conversations: Iterable[Conversation]) -> None:
        """Look at some more records; what the template cannot render was refused, and is not counted."""
        for conversation in conversations:
            if not conversation.tools and not any(turn.thought or turn.calls for turn in conversation.turns):
                continue
            try:
                thoughts, answers = self._template.left_out(conversation)
            except TemplateError:
                continue
            noted, name = Noted(), quoted(f"template.name={self._template.name}")
            for _ in range(thoughts):
                noted.add("thought_left_out", name)
            for _ in range(answers):
                noted.add("answer_as_context", name)
            self._notes.add(noted, conversation.source)

    @property
    def notes(self) -> tuple[ReadingNote, ...]:
        """The sentences, none where nothing was left out."""
        return self._notes.notes(0)
