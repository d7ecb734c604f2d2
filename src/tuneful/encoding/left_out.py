"""What a template leaves out of records without a word, counted and said: thoughts of earlier answers, and answers that are
context because of it.

Stands beside `prepare.py`, which encodes; `check`, `show`, a run and its report print the notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

from tuneful.data.notes import Noted, ReadingNotes, quoted
from tuneful.encoding.encode import Encoder
from tuneful.errors import TemplateError
from tuneful.runs.schema import ReadingNote
from tuneful.types import Conversation, sides_of


class LeftOut:
    """Counts over the records that `add` is given; `notes` are the sentences."""

    def __init__(self, encoder: Encoder) -> None:
        self._template = encoder.text.template
        self._notes = ReadingNotes()

    def add(self, conversations: Iterable[Conversation]) -> None:
        """Look at some more records; what the template cannot render was refused, and is not counted."""
        for conversation in conversations:
            sides = sides_of(conversation)
            if not conversation.tools and not any(turn.thought or turn.calls for one in sides for turn in one.turns):
                continue
            try:
                counts = [self._template.left_out(side) for side in sides]
            except TemplateError:
                continue
            thoughts, answers = (_of_both(own, _num_shared(sides)) for own in zip(*counts, strict=True))
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


def _num_shared(sides: Sequence[Conversation]) -> int:
    """How many turns all sides begin with."""
    alike = takewhile(lambda turns: turns[0] == turns[-1], zip(*(side.turns for side in sides), strict=False))
    return sum(1 for _ in alike)


def _of_both(counts: Sequence[int], num_shared: int) -> int:
    """The counts of the sides of a pair as one: what stands in the turns that they share is counted once."""
    return sum(counts) - (min(*counts, num_shared) if len(counts) > 1 else 0)
