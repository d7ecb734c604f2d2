"""Answers on disk become two lists over the same items: what `tuneful compare A B` compares.

A side is a run folder (its tuned answers), an answers file of a run (`RUN/answers/base.jsonl`), or any JSON or JSONL whose
rows hold `instruction`, `input`, `output` and an answer under `text` or `model_response`. Items are the same where task and
reference are: sources hang on where a file lay. What only one side answers is counted and left out.

Beside a run's answers lie its other findings, which are taken along: what the references cost the model
(answers/*-references.jsonl), what a judge gave (scores/), what general text cost (general/).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.data.read import Record, read_data
from tuneful.errors import DataError
from tuneful.judge.forgetting import GeneralScore, score_of_row
from tuneful.judge.metrics import AnswerScores, score_answer

ANSWER_KEYS = ("text", "model_response", "answer")
KIND_KEYS = ("kind", "category", "task_type", "task", "type")
"""Under which of its keys a record says what kind of task it is, the first that holds a short text."""
_MAX_KIND = 60  # characters; what is longer is a text and no kind


@dataclass(frozen=True, slots=True)
class Answered:
    """One item and one model's answer to it; `ended_by` is "" and `kind` None where nobody wrote it down."""

    source: str
    prompt: str
    reference: str
    text: str
    ended_by: str
    num_tokens: int | None
    kind: str | None
    scores: AnswerScores


@dataclass(frozen=True, slots=True)
class AnsweredSet:
    """One side of a comparison: `name` as it was asked for, its items in file order, and what general text cost."""

    name: str
    items: tuple[Answered, ...]
    general: tuple[GeneralScore, ...]


@dataclass(frozen=True, slots=True)
class Pairing:
    """The items that both sides answer, in A's order, and how many only one of them does."""

    base: tuple[Answered, ...]
    tuned: tuple[Answered, ...]
    num_only_base: int
    num_only_tuned: int


def kind_of(raw: Mapping[str, Any]) -> str | None:
    """The kind of task that a record names; None where it names none."""
    found = (raw.get(key) for key in KIND_KEYS)
    return next(
        (value.strip() for value in found if isinstance(value, str) and 0 < len(value.strip()) <= _MAX_KIND), None
    )


def read_answered(name: str) -> AnsweredSet:
    """The answers in `name`, a run folder or a file; DataError, with file and line, for what cannot be compared."""
    path = Path(name)
    if path.is_dir():
        path = path / "answers" / "tuned.jsonl"
        if not path.is_file():
            raise DataError(
                f"{name}: holds no answers/tuned.jsonl; a run folder has one once `tuneful run` has answered"
            )
    rows = _own_rows(path)
    run = path.parent.parent if path.parent.name == "answers" else None
    if rows is not None and run is not None and (run / "data" / "test.jsonl").is_file():
        return AnsweredSet(name, tuple(_of_a_run(path, run, rows)), tuple(_general(run / "general" / path.name)))
    if rows is not None:
        raise DataError(
            f"{path}: its rows hold no reference, and the run folder they come from is not around them; give the run "
            "folder, or rows with `instruction`, `input`, `output` and the answer under `text`"
        )
    return AnsweredSet(name, tuple(_foreign(record, path) for record in read_data(str(path)).records), ())


def pair(base: AnsweredSet, tuned: AnsweredSet) -> Pairing:
    """The items of both sides; DataError where they have none in common."""
    of_tuned = dict(_keyed(tuned.items))
    both = [(one, of_tuned[key]) for key, one in _keyed(base.items) if key in of_tuned]
    if not both:
        raise DataError(
            f"{base.name} and {tuned.name}: no item in common (of {len(base.items)} and {len(tuned.items)}): the same "
            "instruction, input and reference must stand in both"
        )
    return Pairing(
        tuple(one for one, _ in both),
        tuple(other for _, other in both),
        len(base.items) - len(both),
        len(tuned.items) - len(both),
    )


def _keyed(items: Sequence[Answered]) -> list[tuple[Hashable, Answered]]:
    """Each item under its task and reference, and how many of the same came before."""
    seen: Counter[tuple[str, str]] = Counter()
    keyed: list[tuple[Hashable, Answered]] = []
    for item in items:
        seen[item.prompt, item.reference] += 1
        keyed.append(((item.prompt, item.reference, seen[item.prompt, item.reference]), item))
    return keyed


def _of_a_run(path: Path, run: Path, rows: Sequence[tuple[int, dict[str, Any]]]) -> Iterable[Answered]:
    records = {str(record.raw.get("source")): record for record in read_data(str(run / "data" / "test.jsonl")).records}
    likelihoods = _likelihoods(run, path.stem)
    judged = {str(row.get("source")): row.get("score") for _, row in _own_rows(run / "scores" / path.name) or ()}
    for line, row in rows:
        source = str(row["source"])
        if source not in records:
            raise DataError(f"{path}:{line}: answers {source}, which is not in {run / 'data' / 'test.jsonl'}")
        nll, num_tokens = likelihoods.get(source, (None, None))
        yield _answered(
            records[source],
            source,
            str(row["text"]),
            ended_by=str(row.get("ended_by", "")),
            num_tokens=row.get("num_tokens"),
            reference_nll=nll,
            reference_tokens=num_tokens,
            judge_score=judged.get(source),
        )


def _foreign(record: Record, path: Path) -> Answered:
    key = next((key for key in ANSWER_KEYS if isinstance(record.raw.get(key), str)), None)
    if key is None:
        raise DataError(
            f"{record.source}: no answer under {' or '.join(f'`{key}`' for key in ANSWER_KEYS)} beside `output`"
        )
    return _answered(
        record, record.source, record.raw[key], ended_by=str(record.raw.get("ended_by", "")), num_tokens=None
    )


def _answered(
    record: Record,
    source: str,
    text: str,
    *,
    ended_by: str,
    num_tokens: int | None,
    reference_nll: float | None = None,
    reference_tokens: int | None = None,
    judge_score: float | None = None,
) -> Answered:
    turns = record.conversation.answered_turns
    before = [part for turn in turns[:-1] for part in (turn.instruction, turn.input, turn.response)]
    asked = [record.conversation.system, *before, turns[-1].instruction, turns[-1].input]
    reference = turns[-1].response
    return Answered(
        source=source,
        prompt="\n\n".join(part for part in asked if part),
        reference=reference,
        text=text,
        ended_by=ended_by,
        num_tokens=num_tokens,
        kind=kind_of(record.raw),
        scores=score_answer(
            text,
            reference,
            ended=ended_by == "stop" if ended_by else None,
            reference_nll=reference_nll,
            reference_tokens=reference_tokens,
            judge_score=judge_score,
        ),
    )


def _own_rows(path: Path) -> list[tuple[int, dict[str, Any]]] | None:
    """(line, row) of a JSONL file of a run; None where the file is none."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append((number, json.loads(line)))
    except (OSError, ValueError, RecursionError):
        return None  # the reader of records says what is wrong
    is_own = all(isinstance(row, dict) and "source" in row and "instruction" not in row for _, row in rows)
    return rows if rows and is_own else None


def _likelihoods(run: Path, side: str) -> dict[str, tuple[float | None, int | None]]:
    """What each reference cost the model of this side, by source; empty where the run did not write that down."""
    rows = _own_rows(run / "answers" / f"{side}-references.jsonl") or ()
    return {str(row["source"]): (row.get("nll"), row.get("num_tokens")) for _, row in rows}


def _general(path: Path) -> Iterable[GeneralScore]:
    for line, row in _own_rows(path) or ():
        try:
            yield score_of_row(row)
        except TypeError:
            raise DataError(
                f"{path}:{line}: is not what a run writes there; remove the file to compare without it"
            ) from None
