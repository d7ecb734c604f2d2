"""The two sides of `tuneful compare A B`: answers on disk become two lists over the same items.

Stands over `answers.py`, which reads the files. A side is a run folder (its tuned answers), an answers file of a run
(`RUN/answers/base.jsonl`), or any JSON or JSONL whose rows hold `instruction`, `input`, `output` and an answer under `text`
or `model_response`. Items are the same where task and reference are: sources depend on the place of a file. What only one
side answers is counted and left out.

The other results of a run are read with its answers: the likelihood of the references (answers/*-references.jsonl), a judge's
scores (scores/), the loss on general text (general/), on documents of the test set (documents/) and of standard tests (tests/),
of which each of the last two may stand alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuneful.config import DataConfig
from tuneful.errors import DataError
from tuneful.evaluation.answers import AnsweredRecord, config_of_run, read_answer_rows, run_of, task_text
from tuneful.evaluation.metrics import score_answer
from tuneful.evaluation.ratings import load_ratings
from tuneful.evaluation.taken_tests import TakenTest, read_tests
from tuneful.runs.schema import (
    AnswerScores,
    EvaluationDocument,
    FinishReason,
    GeneralScore,
    JudgeFinding,
    JudgeScore,
    RatingRow,
    ReferenceLoss,
    check_sources,
    check_sum,
    load_document,
    load_rows,
    noted_sums,
)

Row = TypeVar("Row")

KIND_KEYS = ("kind", "category", "task_type", "task", "type")
"""The keys under which a record may name its kind of task; the first that holds a short text counts."""
_MAX_KIND = 60  # characters; what is longer is a text, not a kind


@dataclass(frozen=True, slots=True)
class Answered:
    """One item and one model's answer to it; `finish_reason` is "" and `kind` None where the file does not say."""

    source: str
    prompt: str
    reference: str
    text: str
    finish_reason: FinishReason
    num_tokens: int | None
    kind: str | None
    scores: AnswerScores


@dataclass(frozen=True, slots=True)
class AnsweredSet:
    """One side of a comparison: `name` as it was asked for, its items in file order, its loss on general text, what people rated
    in its run, what the documents of its test set cost, what is known of the judge that scored it, the tests it took, and the
    checks that its run was configured with. `remarks` say what of it cannot be compared."""

    name: str
    items: tuple[Answered, ...]
    general: tuple[GeneralScore, ...]
    ratings: tuple[RatingRow, ...] = ()
    documents: tuple[GeneralScore, ...] = ()
    judge: JudgeFinding | None = None
    tests: tuple[TakenTest, ...] = ()
    checks: tuple[Mapping[str, Any], ...] = ()
    remarks: tuple[str, ...] = ()


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


def read_answered(name: str, config: DataConfig, answer_key: str | None = None) -> AnsweredSet:
    """The answers in `name`, a run folder or a file; DataError, with file and line, for what cannot be compared.

    `config` and `answer_key` as for `read_answer_rows`.
    """
    path = Path(name)
    if path.is_dir():
        files = [path / folder / "tuned.jsonl" for folder in ("answers", "documents")]
        if (found := next(filter(Path.is_file, files), None)) is None:
            if taken := read_tests(path, "tuned")[0]:
                return AnsweredSet(name, (), tuple(_results(GeneralScore, path, "general/tuned.jsonl")), tests=taken)
            raise DataError(
                f"{name}: holds no answers/tuned.jsonl, nor documents/tuned.jsonl; a run folder has one once `tuneful run` has "
                "measured the trained model"
            )
        path = found
    if path.parent.name == "documents" and (path.parent.parent / "run.json").is_file():
        return _of_documents(name, path)
    rows = read_answer_rows(path, config, answer_key)
    if (run := run_of(path)) is None:
        return AnsweredSet(name, tuple(map(_answered, rows)), ())
    sources = [row.source for row in rows]
    likelihoods = _likelihoods(run, path.stem, sources)
    judged = {one.source: one.score for one in _results(JudgeScore, run, f"scores/{path.name}", sources)}
    items = (_answered(row, *likelihoods.get(row.source, (None, None)), judged.get(row.source)) for row in rows)
    general = _results(GeneralScore, run, f"general/{path.name}")
    documents = _results(GeneralScore, run, f"documents/{path.name}")
    tests, remarks = read_tests(run, path.stem)
    configured = config_of_run(run)
    return AnsweredSet(
        name,
        tuple(items),
        tuple(general),
        tuple(load_ratings(run)),
        tuple(documents),
        _finding(run) if judged else None,
        tests,
        configured.evaluation.checks if configured is not None else (),
        remarks,
    )


def _finding(run: Path) -> JudgeFinding | None:
    """What evaluation.json of `run` says of the judge; None where it says nothing."""
    try:
        document = load_document(EvaluationDocument, run / "evaluation.json")
        check_sum(run / "evaluation.json", noted_sums(run).get("evaluation.json"))
    except DataError as error:
        raise DataError(f"{error}. Restore it, or remove it to compare without it") from None
    return None if document is None else document.finding


def _of_documents(name: str, path: Path) -> AnsweredSet:
    """The side of a run whose test set holds documents and nothing to answer; `path` is their file."""
    run = path.parent.parent
    documents, general = (_results(GeneralScore, run, f"{folder}/{path.name}") for folder in ("documents", "general"))
    tests, remarks = read_tests(run, path.stem)
    return AnsweredSet(name, (), tuple(general), documents=tuple(documents), tests=tests, remarks=remarks)


def pair(base: AnsweredSet, tuned: AnsweredSet, *, num_others: int = 0) -> Pairing:
    """The items of both sides; DataError where they have none in common, but for sides that do not both answer and have
    `num_others` documents or tests in common."""
    of_tuned = dict(_keyed(tuned.items))
    both = [(one, of_tuned[key]) for key, one in _keyed(base.items) if key in of_tuned]
    if not base.items and not tuned.items and not num_others and (base.tests or tuned.tests):
        raise DataError(f"{base.name} and {tuned.name}: no test in common: the same file, asked in the same way")
    if not base.items and not tuned.items and not num_others:
        raise DataError(
            f"{base.name} and {tuned.name}: no document in common (of {len(base.documents)} and {len(tuned.documents)}): the "
            "same text must stand in both"
        )
    if not both and (not num_others or (base.items and tuned.items)):
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


def items_of_all(sides: Sequence[Sequence[Answered]]) -> list[tuple[Answered, ...]]:
    """The items that all sides answer, for each side in the order of the first; items are the same as in `pair`."""
    keyed = [dict(_keyed(items)) for items in sides]
    common = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
    return [tuple(of_side[key] for key in common) for of_side in keyed]


def _keyed(items: Sequence[Answered]) -> list[tuple[Hashable, Answered]]:
    """Each item under its task and reference, and how many of the same came before."""
    seen: Counter[tuple[str, str]] = Counter()
    keyed: list[tuple[Hashable, Answered]] = []
    for item in items:
        seen[item.prompt, item.reference] += 1
        keyed.append(((item.prompt, item.reference, seen[item.prompt, item.reference]), item))
    return keyed


def _answered(
    given: AnsweredRecord,
    reference_nll: float | None = None,
    reference_tokens: int | None = None,
    judge_score: float | None = None,
) -> Answered:
    return Answered(
        source=given.source,
        prompt=task_text(given.record.conversation),
        reference=given.reference,
        text=given.text,
        finish_reason=given.finish_reason,
        num_tokens=given.num_tokens,
        kind=kind_of(given.record.raw),
        scores=score_answer(
            given.text,
            given.reference,
            ended=given.finish_reason == "stop" if given.finish_reason else None,
            reference_nll=reference_nll,
            reference_tokens=reference_tokens,
            judge_score=judge_score,
        ),
    )


def _likelihoods(run: Path, side: str, sources: Sequence[str]) -> dict[str, tuple[float | None, int | None]]:
    """Summed nll and number of tokens of each reference under the model of this side, by source; empty where unknown."""
    losses = _results(ReferenceLoss, run, f"answers/{side}-references.jsonl", sources)
    return {one.source: (one.nll, one.num_tokens) for one in losses if one.num_tokens}


def _results(kind: type[Row], run: Path, name: str, sources: Sequence[str] | None = None) -> list[Row]:
    """The rows of a further result of a run, which are of `sources`; none where it has no such file. DataError where the file
    is damaged."""
    path = run / name
    try:
        if (rows := load_rows(kind, path, ("source", "score") if kind is JudgeScore else None)) is None:
            return []
        if sources is not None:
            check_sources(rows, sources, path)
        check_sum(path, noted_sums(run).get(name))
        return rows
    except DataError as error:
        raise DataError(f"{error}. Restore it, or remove it to compare without it") from None
