"""What a run measures before and after its training: answers to the test set, what references and general text cost, the
judge's scores; and the comparison of the two.

Every result is a file of the run folder, written whole, and a run that goes on takes what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np

from tuneful.encoding.documents import records_of
from tuneful.evaluation.answered import kind_of
from tuneful.evaluation.answers import task_text
from tuneful.evaluation.checks import check_item, run_checks
from tuneful.evaluation.document import compare_models, with_items
from tuneful.evaluation.documents import compare_documents, comparison_without_answers, document_score
from tuneful.evaluation.forgetting import compare_forgetting, covers, score_passages, score_samples, write_samples
from tuneful.evaluation.metrics import score_answer
from tuneful.evaluation.tables import apply_gate, show_comparison
from tuneful.evaluation.task_comparison import ItemScore, compare_all_tests
from tuneful.infer.decode import laid_out
from tuneful.judge.run import judge_run
from tuneful.runs.schema import (
    AnswerRow,
    AnswerScores,
    CheckRow,
    Comparison,
    GeneralScore,
    JudgeFinding,
    ReferenceLoss,
    as_row,
    read_rows,
    read_strictly,
)
from tuneful.runs.setup import Engine, RunState
from tuneful.runs.sides import answer_and_write, answering_as, written
from tuneful.runs.standard_tests import measure_tests
from tuneful.train.loop import record_nll
from tuneful.types import Example, answer_text


class _Settings(TypedDict):
    confidence: float
    num_resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What one model was found to be: the scores of its answers to the test set, what its documents and general text cost it, and
    its scores of each test by its name."""

    answers: Sequence[AnswerScores]
    documents: Sequence[GeneralScore]
    general: Sequence[GeneralScore]
    tests: Mapping[str, Sequence[ItemScore]] = field(default_factory=dict)


def has_measured(run: RunState) -> bool:
    """Whether there is what models are compared on: test records that are answered, documents, or tests."""
    return len(run.asked) > 0 or len(run.documents) > 0 or len(run.tasks) > 0


def measure(run: RunState, engine: Engine, name: str) -> Measured:
    """Measure the model as it came (`base`, without its adapter) or as it was trained (`tuned`)."""
    answers = _answer_test_set(run, engine, name) if len(run.asked) else []
    tests = measure_tests(run, engine, name)
    return Measured(answers, _measure_documents(run, engine, name), _measure_general(run, engine, name), tests)


def compare(run: RunState, base: Measured, tuned: Measured) -> Comparison:
    """Base against tuned on the test set and on general text, judged where a judge is named, and held against the gate;
    written as comparison.json and shown as tables."""
    comparison = _compared(run, base, tuned)
    show_comparison(comparison, run.terminal, ("base", "tuned"))
    comparison = apply_gate(run.conditions, comparison, run.terminal)
    run.folder.write_document("comparison.json", comparison)
    return comparison


def _compared(run: RunState, base: Measured, tuned: Measured) -> Comparison:
    """The comparison of answers and documents, of either where the test set has only that."""
    report, test = run.config.report, run.asked
    settings: _Settings = {
        "confidence": report.confidence,
        "num_resamples": report.num_resamples,
        "seed": run.config.train.seed,
    }
    documents = compare_documents(base.documents, tuned.documents, **settings)
    tests, of_tests = compare_all_tests(run.tasks, run.config.evaluation, base.tests, tuned.tests, **settings)
    if not len(test):
        forgetting = compare_forgetting(base.general, tuned.general, **settings)
        return replace(comparison_without_answers((*documents, *of_tests), forgetting, **settings), tests=tests)
    before, after, judge = _judged(run, base.answers, tuned.answers)
    kinds = [kind_of(record.raw) for record in test.records]
    compared = compare_models(run.config, before, after, kinds, base.general, tuned.general, judge, run.checks)
    return with_items(
        replace(compared, metrics=(*compared.metrics, *documents, *of_tests), tests=tests),
        sources=[record.source for record in test.records],
        references=[answer_text(conversation.answered_turns[-1]) for conversation in test.conversations],
        kinds=kinds,
        base=before,
        tuned=after,
        checks=run.checks,
    )


def _answer_test_set(run: RunState, engine: Engine, name: str) -> list[AnswerScores]:
    """The model's answers to the test set, written as answers/{name}.jsonl, and their scores."""
    test = run.asked
    sources = [conversation.source for conversation in test.conversations]
    if (answers := written(run, AnswerRow, f"answers/{name}.jsonl", sources)) is None:
        answers = _answer(run, name)
    if (losses := written(run, ReferenceLoss, f"answers/{name}-references.jsonl", sources)) is None:
        losses = _read_references(run, engine, name)
    scores = [
        score_answer(
            answer.text,
            answer_text(conversation.answered_turns[-1]),
            ended=answer.finish_reason == "stop",
            reference_nll=loss.nll,
            reference_tokens=loss.num_tokens,
        )
        for answer, conversation, loss in zip(answers, test.conversations, losses, strict=True)
    ]
    return _checked(run, answers, scores)


def _checked(run: RunState, answers: Sequence[AnswerRow], scores: list[AnswerScores]) -> list[AnswerScores]:
    """The scores with what the checks of one's own found of each answer, by the main rank for all."""
    if not run.checks:
        return scores
    items = [
        check_item(answer.source, task_text(asked), answer_text(asked.answered_turns[-1]), answer.text)
        for answer, asked in zip(answers, run.asked.conversations, strict=True)
    ]
    with run.phase("checks"):
        found = run_checks(run.checks, items) if run.group.is_main else []
        rows = [as_row(CheckRow(item.source, one)) for item, one in zip(items, found, strict=False)]
        given = read_rows(CheckRow, run.group.broadcast(rows), run.folder.path)
    return [replace(one, checks=row.checks) for one, row in zip(scores, given, strict=True)]


def _answer(run: RunState, name: str) -> list[AnswerRow]:
    """Every rank's answers to its share of the test set, together in answers/{name}.jsonl."""
    file = f"answers/{name}.jsonl"
    if name == "base":
        _show_decoder(run)
    with answering_as(run, name), run.phase(f"answers_{name}"):
        return answer_and_write(
            run,
            run.encoder,
            run.asked.conversations,
            file,
            f"{name} answers",
            lambda rows: run.folder.write_finished(file, rows),
        )


def _show_decoder(run: RunState) -> None:
    """Where the model answers in a slower way than others, which and why."""
    with answering_as(run, "base"):
        choice, _ = laid_out(run.model)
    if choice.reason:
        run.terminal.facts({"answers": str(choice)})


def _read_references(run: RunState, engine: Engine, name: str) -> list[ReferenceLoss]:
    """What the reference answers cost the model, in answers/{name}-references.jsonl."""
    references = _references(run)
    with answering_as(run, name), run.phase(f"references_{name}"):
        nll = record_nll(run.model, references, engine.layout)
    losses = [
        ReferenceLoss(reference.source, own, int((reference.weights > 0).sum()))
        for reference, own in zip(references, nll, strict=True)
    ]
    run.folder.write_finished(f"answers/{name}-references.jsonl", losses)
    return losses


def _measure_documents(run: RunState, engine: Engine, name: str) -> list[GeneralScore]:
    """What each document of the test set costs the model; written as documents/{name}.jsonl."""
    documents = run.documents
    if not len(documents):
        return []
    if (found := written(run, GeneralScore, f"documents/{name}.jsonl", list(documents.sources))) is not None:
        return found
    with answering_as(run, name), run.phase(f"documents_{name}"):
        losses = np.bincount(
            records_of(documents.chunks),
            weights=record_nll(run.model, documents.chunks, engine.layout),
            minlength=len(documents),
        )
    scores = [
        document_score(one.source, one.turns[0].response, float(nll), int(num_tokens))
        for one, nll, num_tokens in zip(documents.conversations, losses, documents.sizes.num_trained, strict=True)
    ]
    run.folder.write_finished(f"documents/{name}.jsonl", scores)
    return scores


def _measure_general(run: RunState, engine: Engine, name: str) -> list[GeneralScore]:
    """What general text, and samples of the base model's own, cost the model; written as general/{name}.jsonl."""
    texts, text = run.general_texts, run.encoder.text
    samples = None
    if name == "tuned":
        samples = [score for score in _general_scores(run, "base") if score.kind == "sample"]
    found = _general_scores(run, name)
    if not texts or covers(found, texts, samples):
        return found
    with answering_as(run, name), run.phase(f"general_{name}"):
        scores = score_passages(run.model, text, texts, engine.layout)
        if samples is None:
            scores += write_samples(run.model, text, texts, engine.layout, seed=run.config.train.seed)
        else:
            scores += score_samples(run.model, text, samples, engine.layout)
    run.folder.write_finished(f"general/{name}.jsonl", scores)
    return scores


def _general_scores(run: RunState, name: str) -> list[GeneralScore]:
    """What general/{name}.jsonl holds; nothing where it was not written yet."""
    return written(run, GeneralScore, f"general/{name}.jsonl") or []


def _judged(
    run: RunState, base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]
) -> tuple[Sequence[AnswerScores], Sequence[AnswerScores], JudgeFinding | None]:
    """Both with what the judge of `judge.model` gave each answer, and what is known of it; as they came where no judge is named
    or there."""
    if run.config.judge.model is None:
        return base, tuned, None
    with run.phase("judging"):
        found = judge_run(run.folder.path, run.config, run.terminal) if run.group.is_main else None
    told = run.group.broadcast(None if found is None else {"scores": found.scores, "finding": as_row(found.finding)})
    if told is None:
        return base, tuned, None
    judged = [
        [replace(scores, judge_score=score) for scores, score in zip(side, told["scores"][name], strict=True)]
        for name, side in (("base", base), ("tuned", tuned))
    ]
    return judged[0], judged[1], read_strictly(JudgeFinding, told["finding"], "the judge")


def _references(run: RunState) -> list[Example]:
    """The test records with loss on their last responses only, however training weighs them; each fits, or it was refused."""
    encoder = replace(run.encoder, prompt_weight=0.0, last_turn=True)
    references = [encoder.example(conversation) for conversation in run.asked.conversations]
    return [reference for reference in references if isinstance(reference, Example)]
