"""What a run measures before and after its training: answers to the test set, what references and general text cost, the
judge's scores; and the comparison of the two.

Every result is a file of the run folder, written whole, and a run that goes on takes what it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from tuneful.evaluation.answered import kind_of
from tuneful.evaluation.compare import Comparison
from tuneful.evaluation.document import compare_models, comparison_document
from tuneful.evaluation.forgetting import (
    GeneralScore,
    covers,
    score_of_row,
    score_passages,
    score_samples,
    write_samples,
)
from tuneful.evaluation.gate import GateOutcome
from tuneful.evaluation.metrics import AnswerScores, score_answer
from tuneful.evaluation.tables import apply_gate, show_comparison
from tuneful.infer.file import Journal, answer_rows, request_sha256
from tuneful.judge.run import judge_run
from tuneful.model.lora import without_adapter
from tuneful.runs.setup import Engine, RunState
from tuneful.train.loop import record_nll
from tuneful.types import Example


@dataclass(frozen=True, slots=True)
class Measured:
    """What one model was found to be: the scores of its answers to the test set, and what general text costs it."""

    answers: Sequence[AnswerScores]
    general: Sequence[GeneralScore]


def measure(run: RunState, engine: Engine, name: str) -> Measured:
    """Measure the model as it came (`base`, without its adapter) or as it was trained (`tuned`)."""
    return Measured(_answer_test_set(run, engine, name), _measure_general(run, engine, name))


def compare(run: RunState, base: Measured, tuned: Measured) -> tuple[Comparison, list[GateOutcome]]:
    """Base against tuned on the test set and on general text, judged where a judge is named, written as comparison.json and
    shown as tables; and what became of each condition of the gate."""
    test = run.dataset.test
    before, after = _judged(run, base.answers, tuned.answers)
    kinds = [kind_of(record.raw) for record in test.records]
    result = compare_models(run.config, before, after, kinds, base.general, tuned.general)
    document = comparison_document(
        result,
        sources=[record.source for record in test.records],
        references=[conversation.answered_turns[-1].response for conversation in test.conversations],
        kinds=kinds,
        base=before,
        tuned=after,
    )
    show_comparison(result, document["sentence"], run.terminal, ("base", "tuned"))
    outcomes = apply_gate(run.conditions, result, document, run.terminal)
    run.folder.write_json("comparison.json", document)
    return result, outcomes


def _answer_test_set(run: RunState, engine: Engine, name: str) -> list[AnswerScores]:
    """The scores of the model's answers to the test set, with what the references cost it."""
    test, rows, losses = run.dataset.test, _answers(run, name), _reference_losses(run, engine, name)
    return [
        score_answer(
            row["text"],
            conversation.answered_turns[-1].response,
            ended=row["finish_reason"] == "stop",
            reference_nll=loss["nll"],
            reference_tokens=loss["num_tokens"],
        )
        for row, conversation, loss in zip(rows, test.conversations, losses, strict=True)
    ]


def _answers(run: RunState, name: str) -> list[dict[str, Any]]:
    """The model's answers to the test set, written as answers/{name}.jsonl; as they come, they are kept in a journal."""
    rows: list[dict[str, Any]] | None = run.group.broadcast(run.folder.read_rows(f"answers/{name}.jsonl"))
    if rows is not None:
        return rows
    own = _own_answers(run)
    with (
        _answering_as(run, name),
        run.phase(f"answers_{name}"),
        _journal(run, name) as journal,
        run.terminal.progress(f"{name} answers", len(own), "answers") as advance,
    ):
        given = answer_rows(
            run.model,
            run.encoder,
            run.dataset.test.conversations,
            run.config.generate,
            seed=run.config.train.seed,
            numbers=own,
            journal=journal,
            advance=advance,
        )
        rows = [row for _, row in sorted(dict(run.group.gather(list(given.items()))).items())]
        run.folder.write_rows(f"answers/{name}.jsonl", rows)
        if journal is not None:
            journal.forget()
    return rows


def _reference_losses(run: RunState, engine: Engine, name: str) -> list[dict[str, Any]]:
    """What the references of the test set cost the model, written as answers/{name}-references.jsonl."""
    rows: list[dict[str, Any]] | None = run.group.broadcast(run.folder.read_rows(f"answers/{name}-references.jsonl"))
    if rows is not None:
        return rows
    references = _references(run)
    with _answering_as(run, name), run.phase(f"references_{name}"):
        nll = record_nll(run.model, references, engine.layout)
    rows = [
        {"source": reference.source, "nll": own, "num_tokens": int((reference.weights > 0).sum())}
        for reference, own in zip(references, nll, strict=True)
    ]
    run.folder.write_rows(f"answers/{name}-references.jsonl", rows)
    return rows


def _measure_general(run: RunState, engine: Engine, name: str) -> list[GeneralScore]:
    """What general text, and samples of the base model's own, cost the model; written as general/{name}.jsonl."""
    texts, text = run.general_texts, run.encoder.text
    samples = None
    if name == "tuned":
        samples = [score for score in _general_scores(run, "base") if score.kind == "sample"]
    found = _general_scores(run, name)
    if not texts or covers(found, texts, samples):
        return found
    with _answering_as(run, name), run.phase(f"general_{name}"):
        scores = score_passages(run.model, text, texts, engine.layout)
        if samples is None:
            scores += write_samples(run.model, text, texts, engine.layout, seed=run.config.train.seed)
        else:
            scores += score_samples(run.model, text, samples, engine.layout)
    run.folder.write_rows(f"general/{name}.jsonl", (score.row() for score in scores))
    return scores


def _general_scores(run: RunState, name: str) -> list[GeneralScore]:
    """What general/{name}.jsonl holds; nothing where it was not written yet."""
    return [score_of_row(row) for row in run.group.broadcast(run.folder.read_rows(f"general/{name}.jsonl")) or ()]


def _judged(
    run: RunState, base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]
) -> tuple[Sequence[AnswerScores], Sequence[AnswerScores]]:
    """Both with what the judge of `judge.model` gave each answer; as they came where no judge is named or there."""
    if run.config.judge.model is None:
        return base, tuned
    with run.phase("judging"):
        found = judge_run(run.folder.path, run.config, run.terminal) if run.group.is_main else None
    sides = run.group.broadcast(found)
    if sides is None:
        return base, tuned
    judged = [
        [replace(scores, judge_score=score) for scores, score in zip(side, sides[name], strict=True)]
        for name, side in (("base", base), ("tuned", tuned))
    ]
    return judged[0], judged[1]


def _references(run: RunState) -> list[Example]:
    """The test records with loss on their last responses only, however training weighs them; each fits, or it was refused."""
    encoder = replace(run.encoder, prompt_weight=0.0, last_turn=True)
    references = [encoder.example(conversation) for conversation in run.dataset.test.conversations]
    return [reference for reference in references if isinstance(reference, Example)]


def _own_answers(run: RunState) -> list[int]:
    """Which test records this rank answers: its share, or all of them where all ranks compute each layer together."""
    everything = range(len(run.dataset.test))
    return list(everything if run.group.sharded else everything[run.group.rank :: run.group.size])


def _journal(run: RunState, name: str) -> AbstractContextManager[Journal | None]:
    """Where this rank's answers are kept as they come; nowhere where all ranks have to give each answer together."""
    if run.group.sharded:
        return nullcontext()
    part = f"{name}.jsonl" if run.group.size == 1 else f"{name}-{run.group.rank}-of-{run.group.size}.jsonl"
    request = request_sha256(
        run.model, run.encoder, run.dataset.test.conversations, run.config.generate, run.config.train.seed
    )
    folder = run.folder.path / "answers"
    folder.mkdir(exist_ok=True)
    return Journal(folder / part, request, replace=True)


def _answering_as(run: RunState, name: str) -> AbstractContextManager[None]:
    """Inside, the model answers as the `base` that it came as, without its adapter; or as the `tuned` one."""
    return without_adapter(run.method.adapter if name == "base" else None)
