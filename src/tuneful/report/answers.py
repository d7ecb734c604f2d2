"""The answers section: every test answer before and after training beside its reference, the largest changes first.

Feeds `sections.py` from the records, both models' answers and their scores, joined by source. What is shown first is chosen by
score, never by hand: as many of the largest losses as of the largest gains, and the worst answers. The trade: every answer stands
in the page, about 4 kB each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeVar

from markupsafe import Markup

from tuneful.data.pairs import record_texts
from tuneful.evaluation.metric_specs import METRICS
from tuneful.numbers import fixed, known, signed
from tuneful.report.folder import Json, Run, text
from tuneful.report.scores import main_metric
from tuneful.runs.schema import AnswerRow, AnswerScores, ComparisonItem, MetricComparison

HANDFUL_EACH_WAY = 3
NUM_WORST = 20

_MAX_COMPARED_WORDS = 2000
"""The words of longer answers are counted instead of aligned, which would take time in the square of their number."""
_ALIKE = 0.3
"""The share of words in common below which two answers differ as a whole, and marks on every word would show nothing."""

_WORD = re.compile(r"\S+")
_EDGE_PUNCTUATION = re.compile(r"^\W+|\W+$")
_SAME = 1e-9

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One model's answer: its text with words marked, its finish reason, and its scores in words."""

    text: Markup
    is_empty: bool
    finish_reason: str
    num_tokens: int | None
    scores: str
    is_exact: bool


@dataclass(frozen=True, slots=True)
class ItemView:
    """One test item; `direction` is `improved`, `worse`, `same`, or empty where it has no score."""

    position: int
    source: str
    kind: str
    instruction: str
    input: str
    prompt: str
    reference: str
    base: AnswerView | None
    tuned: AnswerView | None
    direction: str
    gain: float | None
    tuned_score: float | None
    score: str
    change: str


@dataclass(frozen=True, slots=True)
class Answers:
    """All items in test-set order, the handful from both ends, the `worst` after training, and how many went which way.

    `sides` are what the two models are called.
    """

    items: tuple[ItemView, ...]
    gains: tuple[ItemView, ...]
    losses: tuple[ItemView, ...]
    worst: tuple[ItemView, ...]
    sides: tuple[str, str]
    num_improved: int
    num_worse: int
    num_same: int
    measure: str
    has_base: bool
    has_tuned: bool

    @property
    def is_scored(self) -> bool:
        """Whether at least one item has a score on both sides."""
        return self.num_improved + self.num_worse + self.num_same > 0


def view_answers(run: Run) -> Answers:
    """Join the run's test records, answers and scores."""
    measure = main_metric(run.comparison) if run.comparison else None
    base, tuned = _by_source((row.source, row) for row in run.base), _by_source((row.source, row) for row in run.tuned)
    records = _by_source((text(row, "source"), row) for row in run.test)
    compared = (run.comparison.items or ()) if run.comparison else ()
    scores = _by_source((item.source, item) for item in compared)
    items = tuple(
        _item(position, key, records.get(key, {}), base.get(key), tuned.get(key), scores.get(key), measure)
        for position, key in enumerate({**base, **tuned}, start=1)
    )
    directions = Counter(item.direction for item in items)
    lower_is_worse = not measure or measure.higher_is_better is not False
    scored = [item for item in items if item.tuned_score is not None]
    by_score = sorted(
        scored, key=lambda item: ((item.tuned_score or 0.0) * (1 if lower_is_worse else -1), item.gain or 0.0)
    )
    by_gain = sorted((item for item in items if item.gain is not None), key=lambda item: -(item.gain or 0.0))
    return Answers(
        items=items,
        gains=tuple(item for item in by_gain[:HANDFUL_EACH_WAY] if item.direction == "improved"),
        losses=tuple(item for item in by_gain[: -HANDFUL_EACH_WAY - 1 : -1] if item.direction == "worse"),
        worst=tuple(by_score[:NUM_WORST]),
        sides=("A", "B") if run.comparison and run.comparison.names else ("Before", "After"),
        num_improved=directions["improved"],
        num_worse=directions["worse"],
        num_same=directions["same"],
        measure=measure.label if measure else "",
        has_base=bool(run.base),
        has_tuned=bool(run.tuned),
    )


def question(record: Json) -> tuple[str, str]:
    """Instruction and input of a test record, whatever its format; empty where it has none we know."""
    texts = record_texts(record)
    if len(texts.turns) > 1:
        return "\n".join(f"{role}: {said}" for role, said in texts.turns), texts.input
    return texts.asked, texts.input


def reference(record: Json) -> str:
    """The answer that a test record wants."""
    return record_texts(record).reference


def mark_changes(before: str, after: str, wanted: str) -> tuple[Markup, Markup]:
    """Both answers with the words that differ in <mark>: class `hit` where `wanted` has them, `miss` where it does not.

    Words are compared in their order, without case and outer punctuation. Where the answers have little in common, only
    what `wanted` has is marked.
    """
    sides = [list(_WORD.finditer(text)) for text in (before, after)]
    words = [[_bare(piece.group()) for piece in pieces] for pieces in sides]
    same = _words_in_common(*words)
    are_alike = sum(map(len, same)) >= _ALIKE * sum(map(len, words))
    marked = []
    for answer, pieces, own, kept in zip((before, after), sides, words, same, strict=True):
        left = Counter(_bare(word) for word in _WORD.findall(wanted))
        classes = []
        for index, word in enumerate(own):
            is_wanted = left[word] > 0
            left[word] -= 1
            classes.append("" if index in kept else "hit" if is_wanted else "miss" if are_alike else "")
        marked.append(_marked(answer, pieces, classes))
    return marked[0], marked[1]


def _words_in_common(before: list[str], after: list[str]) -> tuple[set[int], set[int]]:
    """The positions, in either answer, of the words that both have in the same order."""
    if max(len(before), len(after)) > _MAX_COMPARED_WORDS:
        found: list[set[int]] = []
        for own, others in ((before, after), (after, before)):
            left = Counter(others)
            kept = set()
            for index, word in enumerate(own):
                if left[word] > 0:
                    kept.add(index)
                left[word] -= 1
            found.append(kept)
        return found[0], found[1]
    blocks = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return (
        {block.a + offset for block in blocks for offset in range(block.size)},
        {block.b + offset for block in blocks for offset in range(block.size)},
    )


def _marked(answer: str, pieces: Sequence[re.Match[str]], classes: Sequence[str]) -> Markup:
    parts, end = [], 0
    for piece, css_class in zip(pieces, classes, strict=True):
        if css_class:
            parts.append(
                Markup('{}<mark class="{}">{}</mark>').format(answer[end : piece.start()], css_class, piece.group())
            )
            end = piece.end()
    return Markup("").join([*parts, Markup.escape(answer[end:])])


def _item(
    position: int,
    key: tuple[str, int],
    record: Json,
    base: AnswerRow | None,
    tuned: AnswerRow | None,
    item: ComparisonItem | None,
    measure: MetricComparison | None,
) -> ItemView:
    name = measure.name if measure else ""
    wanted = (item.reference if item else "") or reference(record)
    before, after = (_score(item.base, name), _score(item.tuned, name)) if item else (None, None)
    gain = _gain(before, after, measure)
    decimals = 0 if name == "judge_score" else 2
    instruction, given = question(record)
    marked = mark_changes(base.text if base else "", tuned.text if tuned else "", wanted)
    return ItemView(
        position=position,
        source=key[0],
        kind=(item.kind or "") if item else "",
        instruction=instruction,
        input=given,
        prompt=next((answer.prompt for answer in (base, tuned) if answer), ""),
        reference=wanted,
        base=_answer(base, marked[0], item.base if item else None),
        tuned=_answer(tuned, marked[1], item.tuned if item else None),
        direction="" if gain is None else "improved" if gain > _SAME else "worse" if gain < -_SAME else "same",
        gain=gain,
        tuned_score=after,
        score=f"{fixed(before, decimals)} → {fixed(after, decimals)}" if gain is not None else "",
        change="" if before is None or after is None else signed(after - before, decimals),
    )


def _gain(before: float | None, after: float | None, measure: MetricComparison | None) -> float | None:
    """How much better the tuned answer is, above 0 meaning better in the good direction of the measure."""
    if before is None or after is None:
        return None
    return before - after if measure and measure.higher_is_better is False else after - before


def _score(scores: AnswerScores, metric: str) -> float | None:
    """What an answer scored by a metric, or by the check of one's own whose metric it is; None where it has no such score."""
    checks = scores.checks or {}
    check = checks.get(metric, checks.get(metric.removesuffix("_macro_f1")))
    value = getattr(scores, _FIELDS.get(metric, metric), None) if check is None else check.score
    return float(value) if known(value) else None


def _answer(answer: AnswerRow | None, marked: Markup, scores: AnswerScores | None) -> AnswerView | None:
    if answer is None:
        return None
    shown = [
        f"{label} {fixed(value, 0 if name == 'judge_score' else 2)}"
        for name, label in _SHOWN_SCORES.items()
        if scores is not None and (value := _score(scores, name)) is not None
    ]
    return AnswerView(
        text=marked,
        is_empty=not answer.text.strip(),
        finish_reason=answer.finish_reason,
        num_tokens=answer.num_tokens,
        scores=" · ".join([*shown, *(_checks_in_words(scores) if scores is not None else [])]),
        is_exact=scores is not None and scores.exact_match,
    )


def _checks_in_words(scores: AnswerScores) -> list[str]:
    """What each check found of an answer: `valid_product met`, `label not met: another label`, `number unscored`."""
    said = []
    for name, one in (scores.checks or {}).items():
        if not known(one.score):
            said.append(f"{name} unscored")
        elif one.score in (0, 1):
            why = f": {one.why}" if one.why else ""
            said.append(f"{name} {'met' if one.score else 'not met'}{why}")
        else:
            said.append(f"{name} {fixed(one.score, 2)}")
    return said


_FIELDS = {spec.name: spec.field for spec in METRICS if spec.field}
_SHOWN_SCORES = {"judge_score": "judge", "rouge_l": "ROUGE-L", "chrf": "chrF"}


def _by_source(keyed: Iterable[tuple[str, Row]]) -> dict[tuple[str, int], Row]:
    """Rows by (source, how many of the same source came before), in their order."""
    seen: Counter[str] = Counter()
    found = {}
    for source, row in keyed:
        found[source, seen[source]] = row
        seen[source] += 1
    return found


def _bare(word: str) -> str:
    return _EDGE_PUNCTUATION.sub("", word).casefold() or word
