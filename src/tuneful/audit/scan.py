"""The one look at each row: what it shows by itself becomes findings, and what it takes to compare rows is kept.

    (record, example) -> defects, special token texts, preflight -> FindingCollector
                      -> ScannedRows, traits                     -> the normal prompt, yielded

First of the two stages of an audit (`cross_checks.py` is the second). A row is looked at while it is read and then
forgotten; what is kept of it is under 900 bytes, the sketch of its prompt included, so a million rows fit a laptop.
"""

from __future__ import annotations

import contextlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tuneful.audit.defects import find_defects, find_document_defects, is_error_row
from tuneful.audit.findings import FindingCollector
from tuneful.audit.preferences import Preferences, find_pair_defects
from tuneful.audit.preflight import Preflight, SpecialTokenTexts
from tuneful.audit.traits import conversation_text, first_words_of, language_of, script_of
from tuneful.config import Config
from tuneful.data.duplicates import Texts, normal_text
from tuneful.data.hashes import text_hash
from tuneful.data.read import Record, SkippedRow
from tuneful.data.split import normal_prompt
from tuneful.encoding.encode import Encoder
from tuneful.encoding.template import find_template
from tuneful.errors import TemplateError
from tuneful.types import Conversation, Example, answer_text, question_text, sides_of

AuditedRow = tuple[Record | SkippedRow, Example | str | None]
"""A row as it was read, and its example; the reason why it has none; or None where nothing was encoded."""

_EXCERPT_CHARACTERS = 72
_NO_SIDE = "a pair needs two answers"
_NO_ANSWER = re.compile(r"nothing to learn|no answer to learn|the assistant's, is empty|`output`.* is null")


@dataclass(slots=True)
class ScannedRows:
    """What is kept of the usable rows, an entry a row.

    `number` counts all rows read, from 0. `fits` says that the row has an example, or that nothing was encoded; rows that do
    not fit have no `units` and `prompt_units` (tokens, or words where nothing was encoded), which are therefore shorter.
    `beside_hash` is of what makes two rows with one prompt and one answer no copies: label, tools and thoughts.
    """

    number: array[int] = field(default_factory=lambda: array("q"))
    fits: array[int] = field(default_factory=lambda: array("b"))
    side: array[int] = field(default_factory=lambda: array("b"))
    prompt_units: array[int] = field(default_factory=lambda: array("q"))
    units: array[int] = field(default_factory=lambda: array("q"))
    asked_characters: array[int] = field(default_factory=lambda: array("q"))
    answer_characters: array[int] = field(default_factory=lambda: array("q"))
    answer_words: array[int] = field(default_factory=lambda: array("q"))
    answer_hash: array[int] = field(default_factory=lambda: array("Q"))
    normal_answer_hash: array[int] = field(default_factory=lambda: array("Q"))
    beside_hash: array[int] = field(default_factory=lambda: array("Q"))
    sources: Texts = field(default_factory=Texts)
    asked: Texts = field(default_factory=Texts)
    answers: Texts = field(default_factory=Texts)

    def __len__(self) -> int:
        """Number of usable rows."""
        return len(self.number)

    def add(self, number: int, side: int, conversation: Conversation, example: Example | str | None) -> None:
        """Keep what it takes of one more row."""
        turns = conversation.turns
        asked = "\n".join(filter(None, [text for turn in turns for text in (question_text(turn), turn.input)]))
        asked = turns[0].response if conversation.is_document else asked
        sides = sides_of(conversation)
        answers = ["\n".join(map(answer_text, side.turns)) for side in sides]
        answer = answers[0]
        normal = normal_text(answer)
        beside = [str(conversation.label), conversation.tools, *(turn.thought for one in sides for turn in one.turns)]
        self.number.append(number)
        self.side.append(side)
        self.fits.append(not isinstance(example, str))
        if isinstance(example, Example):
            self.prompt_units.append(example.num_prompt_tokens)
            other = example.rejected
            self.units.append(len(example) + (len(other) - example.num_prompt_tokens if other is not None else 0))
        elif example is None:
            self.prompt_units.append(num_asked := asked.count(" ") + 1)
            self.units.append(num_asked + sum(text.count(" ") + 1 for text in answers))
        self.asked_characters.append(len(asked))
        self.answer_characters.append(len(answer))
        self.answer_words.append(normal.count(" ") + 1)
        self.answer_hash.append(text_hash("\0".join([text.strip() for text in answers])))
        self.normal_answer_hash.append(text_hash("\0".join([normal, *map(normal_text, answers[1:])])))
        self.beside_hash.append(text_hash("\0".join([text.strip() for text in beside])))
        self.sources.append(conversation.source)
        self.asked.append(asked[:_EXCERPT_CHARACTERS])
        self.answers.append(answer[:_EXCERPT_CHARACTERS])


@dataclass(slots=True)
class TraitCounts:
    """How many records are of each kind: by number of turns, language, script and first words."""

    turns: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    first_words: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def add(self, conversation: Conversation) -> None:
        """Count one more record."""
        head = conversation_text(conversation)
        script = script_of(head)
        self.turns[str(len(conversation.turns))] += 1
        self.languages[language_of(head, script)] += 1
        self.scripts[script] += 1
        self.first_words[first_words_of(conversation)] += 1


class Scan:
    """The first stage. All of it is there once the iterator that `prompts` gives is through.

    `findings` are those of single rows, `rows` and `traits` are of the usable ones. `dropped` are the numbers of the rows that
    cannot be used, with the reason. `prompt` is the first record's prompt as inference sends it. `preflight` is None without
    an encoder.
    """

    def __init__(self, config: Config, encoder: Encoder | None, advance: Callable[[int], None]) -> None:
        self.findings, self.rows, self.traits = FindingCollector(), ScannedRows(), TraitCounts()
        self.preferences = Preferences()
        self.num_read = self.num_trained = 0
        self.dropped: dict[int, str] = {}
        self.prompt = self.prompt_source = ""
        self.preflight = Preflight(encoder) if encoder else None
        self._advance = advance
        self._template = encoder.text.template if encoder else find_template(config.template.name)
        self._special_token_texts = SpecialTokenTexts(self._template, encoder.text if encoder else None)

    def prompts(self, rows: Iterable[tuple[int, AuditedRow]]) -> Iterator[str]:
        """Look at `rows`, each with its side; yields the normal prompt of each usable one."""
        for number, (side, (row, example)) in enumerate(rows):
            self.num_read += 1
            self._advance(1)
            if isinstance(row, SkippedRow):
                kind = _kind_of(row)
                self.findings.add(kind, number, row.source, row.reason)
                self.dropped[number] = kind
            else:
                self._look(number, row, example)
                self.preferences.add(len(self.rows), row.conversation, example)
                self.rows.add(number, side, row.conversation, example)
                self.traits.add(row.conversation)
                yield normal_prompt(row.conversation)

    def _look(self, number: int, record: Record, example: Example | str | None) -> None:
        conversation, source = record.conversation, record.source
        for kind, text in find_pair_defects(record.raw, conversation):
            self.findings.add(kind, number, source, text)
            if kind == "identical_sides":
                self.dropped[number] = kind
        find = find_document_defects if conversation.is_document else find_defects
        for kind, text, at in find(conversation):
            self.findings.add(kind, number, source, _around(text, at))
        if is_error_row(conversation):
            self.dropped[number] = "null_answers"
        if found := self._special_token_texts.find(conversation):
            self.findings.add("special_token_texts", number, source, _around(*found))
        if isinstance(example, str):
            self.findings.add("too_long" if "data.max_length" in example else "unusable_rows", number, source, example)
        elif example is not None and self.preflight:
            self.num_trained += sum(int((side.weights > 0).sum()) for side in sides_of(example))
            for kind, text in self.preflight.look(conversation, example):
                self.findings.add(kind, number, source, text)
        if not self.prompt_source and not isinstance(example, str) and not conversation.is_document:
            with contextlib.suppress(TemplateError):  # the record is refused where it is encoded
                self.prompt = "".join(piece.text for piece in self._template.prompt(conversation))
                self.prompt_source = source


def _kind_of(skipped: SkippedRow) -> str:
    """What a skipped row is a finding of: too long, without an answer, or of no use for what else is wrong with it."""
    if "data.max_length" in skipped.reason:
        return "too_long"
    if _NO_SIDE in skipped.reason:
        return "empty_sides"
    return "empty_answers" if _NO_ANSWER.search(skipped.reason) else "unusable_rows"


def _around(text: str, at: int) -> str:
    """The neighbourhood of a place in a text: what an excerpt is made of."""
    start = max(0, at - 30)
    return ("..." if start else "") + text[start : start + 200]
