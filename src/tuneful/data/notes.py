"""What was done with the rows that is not plain from them: text that is not used, marks that were obeyed, cells read as text.

The readers of a row count under a kind and a name; `ReadingNotes` adds up all rows of a data set and gives the sentences that
`check`, `show`, a run and its report print.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tuneful.data.rows import shown
from tuneful.numbers import plural
from tuneful.runs.schema import ReadingNote

MIN_UNUSED_SHARE = 0.05
"""The share of the records that have to hold text in a column that is used for nothing before it is named."""

_MOST_REASONS = 3

UNUSED = "unused_text"
KINDS = {
    UNUSED: "{name} holds text in {records} and is not used{hint}",
    "weight_not_asked": "{name} is a number in {records} and does not weigh the loss; data.columns=weight={bare} makes it do so",
    "renamed": "{name} is read as {hint} in {records}",
    "numbers": "{name} is a number or a truth value in {records}: read as its text",
    "json_text": "{name} is the JSON text of its value in {records}",
    "texts_in_turn": "{name} is a list of texts in {records}: the user's and the assistant's in turn",
    "marked_trained": "{answers} marked by {name} as trained",
    "marked_context": "{answers} marked by {name} as not trained: context",
    "marked_weight": "{answers} marked by {name} with a weight of their own",
    "mark_not_read": "{name} on {messages} is not read: it may mean either; call it `train` or `masked`",
    "mark_on_record": "{name} is {hint} in {records} and is not read: marks are those of messages, and the records are trained",
    "mark_on_prompt": "{name} on {messages} of the system's or the user's is not obeyed; data.train_on=all trains what was asked",
    "thought": "{name} of {answers} is read as the thought before it",
    "calls": "{answers} call{s} tools; what tools answer is context, not trained",
    "result_as_json": "{messages} of tools' {are} no text: read as JSON",
    "thought_left_out": "{name} leaves out the thoughts of {answers}, as it does when the model answers",
    "answer_as_context": "{answers} stand{s} otherwise than {name} would ask for them (a thought left out, tools moved): context",
    "greeting": "{records} begin{s} with a message of the assistant's: context, not trained",
    "joined": "{messages} of one role in a row: joined by an empty line",
    "unanswered_end": "{records} end{s} with messages that nobody answers: left out",
    "untrained_end": "{records} end{s} with answers that are not trained: left out from there on",
    "placeholder": "{name} stands in the text of {records}: an image or sound that is not read",
    "label": "{name} is true in {records}: trained as answers; rows where it is false are refused",
}
"""Every kind of note, and its sentence."""


class NoteKey(NamedTuple):
    """What is counted: a kind, the column or key that it is about, and what its sentence needs besides."""

    kind: str
    name: str = ""
    hint: str = ""


class Noted:
    """The notes of one row, counted."""

    def __init__(self) -> None:
        self.counts: Counter[NoteKey] = Counter()

    def add(self, kind: str, name: str = "", hint: str = "") -> None:
        """One more."""
        assert kind in KINDS, kind
        self.counts[NoteKey(kind, name, hint)] += 1


class ReadingNotes:
    """The notes of all rows of a data set."""

    def __init__(self) -> None:
        self._records: Counter[NoteKey] = Counter()
        self._things: Counter[NoteKey] = Counter()
        self._first: dict[NoteKey, str] = {}

    def clear(self) -> None:
        """Begin anew."""
        self._records.clear()
        self._things.clear()
        self._first.clear()

    def add(self, noted: Noted, source: str) -> None:
        """The notes of one more record."""
        for key, count in noted.counts.items():
            self._records[key] += 1
            self._things[key] += count
            self._first.setdefault(key, source)

    def notes(self, num_records: int) -> tuple[ReadingNote, ...]:
        """All notes of `num_records` records, text that is not used first."""
        keys = sorted(self._records, key=lambda key: (list(KINDS).index(key.kind), -self._records[key], key))
        return tuple(
            self._note(key)
            for key in keys
            if key.kind != UNUSED or self._records[key] >= MIN_UNUSED_SHARE * num_records
        )

    def _note(self, key: NoteKey) -> ReadingNote:
        records, things = self._records[key], self._things[key]
        sentence = KINDS[key.kind]
        is_one = (records if "{records}" in sentence else things) == 1
        text = sentence.format(
            s="s" if is_one else "",
            are="is" if is_one else "are",
            name=key.name,
            bare=key.name.strip("`"),
            hint=key.hint,
            records=plural(records, "record"),
            messages=plural(things, "message"),
            answers=plural(things, "answer"),
        )
        return ReadingNote(key.kind, key.name.strip("`"), records, things, self._first[key], text)


def refused_in_words(rows: Iterable[tuple[str, str]], num_rows: int) -> list[str]:
    """A line for each of the first reasons among `rows`, (source, reason) each, of which there are `num_rows` in all.

    Rows of one reason are told together, and how many were refused for yet others.
    """
    places: dict[str, list[str]] = {}
    for source, reason in rows:
        places.setdefault(reason, []).append(source)
    told = list(places.items())[:_MOST_REASONS]
    lines = [
        f"refused {sources[0]}{f' and {len(sources) - 1:,} more' if len(sources) > 1 else ''}: {reason}"
        for reason, sources in told
    ]
    if rest := num_rows - sum(len(sources) for _, sources in told):
        lines.append(f"refused {rest:,} more for other reasons; `tuneful check` shows them, and the report of a run")
    return lines


def quoted(key: str) -> str:
    """The name of a column or key, as notes carry it."""
    return f"`{shown(key)}`"


def merged(*notes: Iterable[ReadingNote]) -> tuple[ReadingNote, ...]:
    """The notes of several data sets, each once: one file of records for a side of its own says the same as the others."""
    seen: dict[str, ReadingNote] = {}
    for note in (note for some in notes for note in some):
        seen.setdefault(note.text, note)
    return tuple(seen.values())
