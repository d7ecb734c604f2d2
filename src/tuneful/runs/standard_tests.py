"""The tests of a run (`evaluation.tests`): taken by the base model before the training and by the trained one after it.

Stands under `measure.py`, over `evaluation/tasks.py`. Scores are rows of tests/NAME-base.jsonl and tests/NAME-tuned.jsonl. Beside
them stands what was asked: where a run goes on and asks otherwise, they are made again.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuneful.errors import DataError
from tuneful.evaluation.task_comparison import ItemScore
from tuneful.evaluation.task_files import Task
from tuneful.evaluation.tasks import (
    ask_instructions,
    asked_of,
    choice_examples,
    encoder_of,
    fewshot,
    score_choices,
    score_instructions,
)
from tuneful.model.load import context_length
from tuneful.runs.schema import ChoiceScore, InstructionScore, TaskRequest
from tuneful.runs.setup import Engine, RunState
from tuneful.runs.sides import answer_and_write, answering_as, written


def measure_tests(run: RunState, engine: Engine, name: str) -> dict[str, Sequence[ItemScore]]:
    """The model's scores of each test, by its name; written as tests/*-{name}.jsonl."""
    if not run.tasks:
        return {}
    with answering_as(run, name), run.phase(f"tests_{name}"):
        return {task.name: _measured(run, engine, task, name) for task in run.tasks}


def _measured(run: RunState, engine: Engine, task: Task, name: str) -> Sequence[ItemScore]:
    file = f"tests/{task.name}-{name}.jsonl"
    kind: type[ChoiceScore] | type[InstructionScore] = ChoiceScore if task.kind == "choices" else InstructionScore
    encoder = encoder_of(run.encoder, run.pretrained.tokenizer, run.config.evaluation)
    request = TaskRequest(
        task.file, asked_of(task, encoder, run.config.evaluation, run.config.generate, run.config.train.seed)
    )
    asked = f"tests/{task.name}-{name}.json"
    same = run.group.broadcast(_request(run, asked) == request if run.group.is_main else None)
    found: Sequence[ItemScore] | None = written(run, kind, file) if same else None
    if found is not None:
        return found
    run.folder.forget(file)
    run.folder.write_document(asked, request)
    if task.kind == "choices":
        shown, items = fewshot(task, run.config.evaluation, run.config.train.seed)
        scores = score_choices(run.model, items, choice_examples(shown, items, encoder), engine.layout)
        run.folder.write_finished(file, scores)
        return scores
    instructions = ask_instructions(task, encoder, context_length(run.model))
    answers = answer_and_write(
        run,
        encoder,
        list(instructions.conversations.values()),
        file,
        f"{name} answers to {task.name}",
        lambda rows: run.folder.write_finished(file, score_instructions(instructions, rows)),
    )
    return score_instructions(instructions, answers)


def _request(run: RunState, name: str) -> TaskRequest | None:
    """What an earlier process asked, as far as that can be read."""
    try:
        return run.folder.read_document(TaskRequest, name)
    except DataError:
        return None
