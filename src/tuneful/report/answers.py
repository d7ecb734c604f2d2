"""Puts every test answer before and after training beside its reference, and picks the first handful to look at.

Joins four files of the run by source: the records, both models' answers and the scores. The handful is chosen by score
from both ends, never by hand: as many of the largest losses as of the largest gains.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from tuneful.report.folder import Item, Json, Metric, Reply, Run, rows, text
from tuneful.report.numbers import fixed, signed

HANDFUL_EACH_WAY = 3

_WORD = re.compile(r"\S+")
_EDGE_PUNCTUATION = re.compile(r"^\W+|\W+$")
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
_SAME = 1e-9

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One model's answer: its text with words marked, how it ended, and its scores in words."""

    text: Markup
    is_empty: bool
    ended_by: str
    num_tokens: int | None
    scores: str
    is_exact: bool


@dataclass(frozen=True, slots=True)
class ItemView:
    """One test item; `direction` is `improved`, `worse`, `same`, or empty where it has no score."""

    position: int
    source: str
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
    """All items in test-set order, the handful from both ends, and how many went which way."""

    items: tuple[ItemView, ...]
    gains: tuple[ItemView, ...]
    losses: tuple[ItemView, ...]
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
    measure = main_metric(run.comparison.metrics if run.comparison else ())
    base, tuned = _by_source((row.source, row) for row in run.base), _by_source((row.source, row) for row in run.tuned)
    records = _by_source((text(row, "source"), row) for row in run.test)
    scores = _by_source((item.source, item) for item in (run.comparison.items if run.comparison else ()))
    items = tuple(
        _item(position, key, records.get(key, {}), base.get(key), tuned.get(key), scores.get(key), measure)
        for position, key in enumerate({**base, **tuned}, start=1)
    )
    directions = Counter(item.direction for item in items)
    by_gain = sorted((item for item in items if item.gain is not None), key=lambda item: -(item.gain or 0.0))
    return Answers(
        items=items,
        gains=tuple(item for item in by_gain[:HANDFUL_EACH_WAY] if item.direction == "improved"),
        losses=tuple(item for item in by_gain[: -HANDFUL_EACH_WAY - 1 : -1] if item.direction == "worse"),
        num_improved=directions["improved"],
        num_worse=directions["worse"],
        num_same=directions["same"],
        measure=measure.label if measure else "",
        has_base=bool(run.base),
        has_tuned=bool(run.tuned),
    )


def main_metric(metrics: Sequence[Metric]) -> Metric | None:
    """The measure that stands for the others on the page: ROUGE-L, else the first."""
    return next((metric for metric in metrics if metric.name == "rouge_l"), metrics[0] if metrics else None)


def question(record: Json) -> tuple[str, str]:
    """Instruction and input of a test record, whatever its shape; empty where it has none we know."""
    turns = _turns(record)
    if turns:
        asked = turns[:-1] if turns[-1][0] == "assistant" else turns
        return (asked[0][1] if len(asked) == 1 else "\n".join(f"{role}: {said}" for role, said in asked)), ""
    return text(record, "instruction") or text(record, "prompt") or text(record, "question"), text(record, "input")


def reference(record: Json) -> str:
    """The answer that a test record wants."""
    turns = _turns(record)
    if turns:
        return turns[-1][1] if turns[-1][0] == "assistant" else ""
    return next((text(record, key) for key in ("output", "response", "completion", "answer") if text(record, key)), "")


def mark_differences(answer: str, wanted: str) -> Markup:
    """`answer`, with the words that `wanted` lacks in <mark>, as long as most words agree (else nothing is marked)."""
    pieces = list(_WORD.finditer(answer))
    left = Counter(_bare(word) for word in _WORD.findall(wanted))
    differs = []
    for piece in pieces:
        word = _bare(piece.group())
        differs.append(left[word] <= 0)
        left[word] -= 1
    if not any(differs) or sum(differs) * 2 > len(pieces):
        return Markup.escape(answer)
    parts, end = [], 0
    for piece, is_different in zip(pieces, differs, strict=True):
        if is_different:
            parts.append(Markup("{}<mark>{}</mark>").format(answer[end : piece.start()], piece.group()))
            end = piece.end()
    return Markup("").join([*parts, Markup.escape(answer[end:])])


def _item(
    position: int,
    key: tuple[str, int],
    record: Json,
    base: Reply | None,
    tuned: Reply | None,
    item: Item | None,
    measure: Metric | None,
) -> ItemView:
    name = measure.name if measure else ""
    wanted = item.reference if item and item.reference is not None else reference(record)
    before, after = (item.base.get(name), item.tuned.get(name)) if item else (None, None)
    gain = _gain(before, after, measure)
    instruction, given = question(record)
    return ItemView(
        position=position,
        source=key[0],
        instruction=instruction,
        input=given,
        prompt=(base or tuned or Reply("", "", "", "", None)).prompt,
        reference=wanted,
        base=_answer(base, wanted, item.base if item else {}),
        tuned=_answer(tuned, wanted, item.tuned if item else {}),
        direction="" if gain is None else "improved" if gain > _SAME else "worse" if gain < -_SAME else "same",
        gain=gain,
        tuned_score=after,
        score=f"{fixed(before, 2)} → {fixed(after, 2)}" if gain is not None else "",
        change="" if before is None or after is None else signed(after - before, 2),
    )


def _gain(before: float | None, after: float | None, measure: Metric | None) -> float | None:
    """How much better the tuned answer is, above 0 meaning better whichever way the measure counts."""
    if before is None or after is None:
        return None
    return before - after if measure and measure.higher_is_better is False else after - before


def _answer(reply: Reply | None, wanted: str, scores: Mapping[str, float]) -> AnswerView | None:
    if reply is None:
        return None
    shown = [f"{label} {fixed(scores[name], 2)}" for name, label in _SHOWN_SCORES.items() if name in scores]
    return AnswerView(
        text=mark_differences(reply.text, wanted) if wanted else Markup.escape(reply.text),
        is_empty=not reply.text.strip(),
        ended_by=reply.ended_by,
        num_tokens=reply.num_tokens,
        scores=" · ".join(shown),
        is_exact=scores.get("exact_match") == 1,
    )


_SHOWN_SCORES = {"rouge_l": "ROUGE-L", "chrf": "chrF"}


def _turns(record: Json) -> list[tuple[str, str]]:
    turns = rows(record, "messages") or rows(record, "conversations")
    named = [(text(turn, "role") or text(turn, "from"), text(turn, "content") or text(turn, "value")) for turn in turns]
    return [(_ROLES.get(role, role), said) for role, said in named]


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
