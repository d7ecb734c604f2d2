"""What a check can find: the catalogue of what is wrong with data, each with its harm and what to do about it.

`defects.py`, `preflight.py` and `cross_checks.py` say where; this file says what it means. A *finding* is worth stopping for
(`check --strict` ends with 3); a *note* is worth knowing and may be as it should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tuneful.runs.schema import Case, FindingSummary, as_row

NUM_CASES = 3
"""Examples that each finding shows."""

_EXCERPT_WIDTH = 76
_REASON_WIDTH = 400
_REASONS = frozenset(("unusable_rows", "empty_answers", "too_long", "empty_sides"))
"""Kinds whose text is a reason of ours and not the user's: the first is told whole, for what to do about it stands at its end."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: its `title`, `why` it hurts, what to do (`advice`), and what `--fix` does about it, if anything."""

    name: str
    severity: Literal["finding", "note"]
    title: str
    why: str
    advice: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """All places of one kind: `sources` in file order, the first few with their text as `cases`."""

    kind: Kind
    sources: tuple[str, ...]
    cases: tuple[Case, ...]

    @property
    def count(self) -> int:
        """Number of records."""
        return len(self.sources)

    def summary(self) -> FindingSummary:
        """What data.json of a run folder holds of it."""
        kind = self.kind
        return FindingSummary(
            kind.name, kind.severity, kind.title, self.count, self.cases, kind.why, kind.advice, kind.fix
        )

    def as_dict(self, max_sources: int) -> dict[str, Any]:
        """For `check --json`: the summary, and the first `max_sources` places."""
        return {**as_row(self.summary()), "sources": list(self.sources[:max_sources])}


@dataclass(slots=True)
class FindingCollector:
    """Findings while they are made: a place is noted once for each kind, however often it is found there."""

    _places: dict[str, dict[int, str]] = field(default_factory=dict)
    _cases: dict[str, list[Case]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    """A sentence with figures that goes before the harm of a kind."""

    def add(self, name: str, row: int, source: str, text: str, label: str = "") -> None:
        """Row number `row`, which stands at `source`, has a finding of the kind `name`; `text` shows it, behind a `label`."""
        places = self._places.setdefault(name, {})
        if row not in places:
            places[row] = source
            cases = self._cases.setdefault(name, [])
            if len(cases) < NUM_CASES:
                width = _REASON_WIDTH if name in _REASONS and not cases else _EXCERPT_WIDTH
                cases.append(Case(source, label + excerpt(text, width=width)))

    def findings(self, is_grouped: bool) -> tuple[Finding, ...]:
        """Everything found, in the order of the catalogue: findings first, then notes.

        What the split has to do with it depends on whether it keeps like prompts together already (`is_grouped`).
        """
        found = (
            Finding(
                self._detailed(KINDS[name] if is_grouped else _UNGROUPED.get(name, KINDS[name])),
                tuple(self._places[name].values()),
                tuple(self._cases[name]),
            )
            for name in KINDS
            if name in self._places
        )
        return tuple(sorted(found, key=lambda one: one.kind.severity == "note"))

    def _detailed(self, kind: Kind) -> Kind:
        detail = self.details.get(kind.name, "")
        return replace(kind, why=f"{detail[0].upper()}{detail[1:]}. {kind.why}") if detail else kind


def excerpt(text: str, at: int = 0, width: int = _EXCERPT_WIDTH) -> str:
    """One line of at most `width` characters of `text`, with the place `at` in it; controls as escapes."""
    start = max(0, at - width // 3) if len(text) > width else 0
    line = "".join(_visible(text[start : start + width]))
    if start:
        line = "..." + line
    return line if start + width >= len(text) else line + "..."


def _visible(text: str) -> Iterator[str]:
    for character in text:
        if character == "\n":
            yield "⏎"
        elif character.isprintable():
            yield character
        else:
            yield f"\\u{ord(character):04x}"


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "unusable_rows",
            "finding",
            "Rows that cannot be used",
            "One that cannot be read stops a run; one that the template cannot render is left out of it.",
            "Fix them, or train without them: data.on_error=skip.",
            "dropped",
        ),
        Kind(
            "empty_answers",
            "finding",
            "Rows without an answer",
            "There is nothing to learn from them; trained as they are they would teach to say nothing.",
            "Write the answers, or train without the rows: data.on_error=skip.",
            "dropped",
        ),
        Kind(
            "null_answers",
            "finding",
            "Answers that are a missing value written out",
            "The model learns to answer with the word: it usually comes from a table's empty cells.",
            "Write the answers, or delete the rows.",
            "rows that answer nothing but `<nooutput>` are dropped; the others may be answers",
        ),
        Kind(
            "null_inputs",
            "finding",
            "Inputs that are a missing value written out",
            "The prompt tells the model that there is an input, and that it is this word.",
            "Leave `input` empty; `tuneful check --fix` does.",
            "emptied",
        ),
        Kind(
            "placeholder_answers",
            "finding",
            "Answers that were never filled in",
            "The model learns to answer with the placeholder.",
            "Write the answers, or delete the rows.",
        ),
        Kind(
            "declined_answers",
            "finding",
            "Answers that decline, or speak as some other assistant",
            "A few hundred are enough to make a model refuse what it could do.",
            "Delete the rows, unless declining is what you want to teach.",
        ),
        Kind(
            "copied_instructions",
            "finding",
            "Answers that are the instruction again",
            "The model learns to echo.",
            "Write the answers, or delete the rows.",
        ),
        Kind(
            "contradictions",
            "finding",
            "The same question, different short answers",
            "At most one of them can be right; the model is taught to be unsure.",
            "Decide on one answer.",
        ),
        Kind(
            "unfinished_answers",
            "finding",
            "Answers that break off in mid-sentence",
            "The end token is trained right after them: the model learns to stop in mid-sentence.",
            "Complete the answers, or delete the rows.",
        ),
        Kind(
            "length_ratios",
            "finding",
            "Answers far longer or shorter than their like",
            "At 40 times the usual ratio of answer to question something is usually glued on or lost.",
            "Look at them; delete what does not belong.",
        ),
        Kind(
            "mojibake",
            "finding",
            "Text that was decoded wrongly",
            "The model learns to write broken characters.",
            "Read the original with its own encoding; `tuneful check --fix` puts right what it can prove.",
            "decoded again where the bytes say how",
        ),
        Kind(
            "control_characters",
            "finding",
            "Control and invisible characters",
            "They are tokens like all others: the model learns to write what no reader sees.",
            "Remove them; `tuneful check --fix` does.",
            "removed (a carriage return before a line feed too)",
        ),
        Kind(
            "escaped_line_feeds",
            "finding",
            "Line feeds that are written out as \\n",
            "The model learns to write a backslash and an n where a line should end.",
            "Write line feeds; `tuneful check --fix` does.",
            "written as line feeds",
        ),
        Kind(
            "html_leftovers",
            "finding",
            "HTML left over from a web page",
            "The model learns to write tags and entities into plain answers.",
            "Convert the text to plain text or Markdown.",
        ),
        Kind(
            "label_spellings",
            "finding",
            "Labels that are written in several ways",
            "All answers are few short labels, and each way to write one is another answer for the model.",
            "Write each label in one way.",
        ),
        Kind(
            "unseen_labels",
            "finding",
            "Test or validation labels that are never trained",
            "All answers are few short labels; what the model was never shown it cannot answer.",
            "Add such records to the training set, or take the label out of the others.",
        ),
        Kind(
            "email_addresses",
            "finding",
            "E-mail addresses",
            "A model repeats what it was trained on, to every user.",
            "Replace them, for instance by name@example.com.",
        ),
        Kind(
            "secrets",
            "finding",
            "What looks like a key, a token or a password",
            "A model repeats what it was trained on, to every user. (Shown shortened here.)",
            "Remove them, and revoke them: they were in a file that goes around.",
        ),
        Kind(
            "exact_duplicates",
            "finding",
            "Records that stand in the file again",
            "Each copy weighs as much as another record: the model memorises it.",
            "Keep one of each; `tuneful check --fix` does.",
            "the later copies are dropped",
        ),
        Kind(
            "near_duplicates",
            "finding",
            "Questions that were nearly asked before",
            "They count more than they should.",
            "Look at the clusters, and at what differs; keep the best of those that ask the same.",
        ),
        Kind(
            "leakage",
            "finding",
            "Test or validation prompts that were trained on",
            "Their scores measure memory, not skill.",
            "Take the rows out of one of the sides.",
        ),
        Kind(
            "overlap",
            "finding",
            "Prompts that stand in a file given with --against",
            "Scores on that file would measure memory, not skill.",
            "Leave them out of the training data; `tuneful check --fix` does.",
            "dropped",
        ),
        Kind(
            "empty_sides",
            "finding",
            "Pairs one side of which is empty",
            "There is nothing to compare; they stop a run, or are left out of it.",
            "Write the answers, or train without the pairs: data.on_error=skip.",
            "dropped",
        ),
        Kind(
            "identical_sides",
            "finding",
            "Pairs whose two answers are the same",
            "They teach nothing, and count in every mean as a pair that is not told apart.",
            "Delete them; `tuneful check --fix` does.",
            "dropped",
        ),
        Kind(
            "contradicting_ratings",
            "finding",
            "Pairs whose own ratings prefer the rejected answer",
            "Either the sides or the ratings are swapped: the model learns the contrary of one of them.",
            "Find out which is meant; exchange the sides, or delete the pairs.",
        ),
        Kind(
            "contradicting_preferences",
            "finding",
            "The same answers to the same prompt, preferred the other way round",
            "What one record raises the other lowers; together they teach nothing.",
            "Decide on one order, or one label.",
        ),
        Kind(
            "prefix_sides",
            "finding",
            "Pairs in which one answer is the beginning of the other",
            "All that tells them apart is where the answer ends: the model learns to stop, or to go on, not to answer better.",
            "Look whether an answer was cut off; delete the pairs where it was.",
        ),
        Kind(
            "length_bias",
            "finding",
            "Preferences that follow the length of the answers",
            "A model that learns nothing but the length agrees with most pairs: its answers grow, or shrink.",
            "Balance the pairs by length, or take a loss that divides by it: train.objective=simpo.",
        ),
        Kind(
            "answer_leakage",
            "finding",
            "Answers of the test or validation set that were trained on",
            "That such a pair is told apart measures memory, not skill.",
            "Take the rows out of one of the sides.",
        ),
        Kind(
            "too_long",
            "finding",
            "Records over data.max_length, refused",
            "They are not trained on at all.",
            "Raise data.max_length, or set data.on_long=cut_response.",
        ),
        Kind(
            "cut_records",
            "finding",
            "Records over data.max_length, cut",
            "The end of the answer and its end token are not trained.",
            "Raise data.max_length, or set data.on_long=refuse.",
        ),
        Kind(
            "double_bos",
            "finding",
            "Records that open with two begin tokens",
            "The template writes the token and the tokenizer adds another: no pretrained model has seen that.",
            "Take the begin token out of the template.",
        ),
        Kind(
            "prompt_mismatch",
            "finding",
            "Prompts that are no prefix of what is trained",
            "The model is asked in another format than the one it learns.",
            "Choose another template.name.",
        ),
        Kind(
            "unwritable_characters",
            "finding",
            "Characters that the tokenizer cannot write",
            "They vanish or change on the way into the model: what is trained is not what stands here.",
            "Replace the characters, or choose a model whose tokenizer has them.",
        ),
        Kind(
            "equal_ratings",
            "note",
            "Pairs whose two answers are rated the same",
            "Which of them was chosen is chance, as far as the ratings say.",
            "Nothing, if somebody compared the two; else delete them.",
        ),
        Kind(
            "several_answers",
            "note",
            "The same question, several long answers",
            "Where the task is open they are variety; where it has one answer they contradict each other.",
            "Look at them once.",
        ),
        Kind(
            "special_token_texts",
            "note",
            "Texts of special tokens, or of the template, inside your records",
            "They stay plain text and never become structure; an answer that holds one is cut there when it is read back.",
            "Nothing, if they belong there; else delete them.",
        ),
        Kind(
            "boundary_tokenization",
            "note",
            "Answers that begin inside a token",
            "Prompt and answer in one go would have another token there. A prompt is sent without its answer, so the answer is "
            "encoded by itself: as the model has to write it, which may be unusual for it.",
            "Nothing, or a template whose prompt does not end in a space.",
        ),
    )
}
"""Every kind there is, in the order in which they are shown."""

_UNGROUPED: Mapping[str, Kind] = {
    "near_duplicates": replace(
        KINDS["near_duplicates"],
        why="They count more than they should, and may stand on both sides of the split: data.split=grouped keeps them on one.",
    ),
    "leakage": replace(
        KINDS["leakage"], advice="Divide with data.split=grouped, or take the rows out of one of the sides."
    ),
}

NEEDS_PAIRS = frozenset(
    {
        "empty_sides",
        "identical_sides",
        "contradicting_ratings",
        "contradicting_preferences",
        "prefix_sides",
        "length_bias",
        "answer_leakage",
        "equal_ratings",
    }
)
"""What can be found in preferences only."""

NEEDS_TOKENS = frozenset(
    {
        "too_long",
        "cut_records",
        "double_bos",
        "prompt_mismatch",
        "unwritable_characters",
        "boundary_tokenization",
    }
)
"""What cannot be looked for without the model's tokenizer."""
