"""`tuneful evaluate MODEL --tests FILE`: a model takes tests, or both models of a run do and are compared.

OUTPUT/NAME-MODEL.jsonl   OUTPUT/tests.json   OUTPUT/comparison.json (of a run)
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneful.commands.options import configuration
from tuneful.errors import ConfigError
from tuneful.files import write_json, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.encoding.encode import Encoder
    from tuneful.evaluation.task_comparison import ItemScore
    from tuneful.evaluation.task_files import Task
    from tuneful.runs.schema import Comparison, GateOutcome, TasksDocument

_MODEL, _BASE, _TUNED = "model", "base", "tuned"


@dataclass(frozen=True, slots=True)
class TasksResult:
    """The scores of each model in each test, in the order of its items, few-shot items left out; their `summary`, and the
    `comparison` of the two models of a run. `folder` is where they were written, if anywhere; `gate` is what became of each
    condition."""

    scores: Mapping[str, Mapping[str, Sequence[ItemScore]]]
    summary: TasksDocument
    comparison: Comparison | None
    folder: Path | None
    gate: tuple[GateOutcome, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The document of `--json`."""
        from tuneful.runs.schema import as_row

        more: dict[str, Any] = {"comparison": as_row(self.comparison)} if self.comparison else {}
        if self.gate and not self.comparison:
            more["gate"] = [as_row(outcome) for outcome in self.gate]
        return {**as_row(self.summary), **more}


def evaluate_tests(
    model: str | Path,
    tests: Sequence[str] | None = None,
    *,
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
) -> TasksResult:
    """Let `model` take `tests`, files of multiple choice or of instructions (default: `evaluation.tests` of `config`).

    Of a run folder the trained model and its base do, and are compared, under the template of the training; without `output`
    RUN/tests/evaluated is written. Raises InputError where the request or its input is wrong.
    """
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.evaluation.gate import ALONE, FIGURES, Figure, check_alone, parse_gate
    from tuneful.evaluation.tables import apply_gate, show_gate
    from tuneful.evaluation.task_comparison import metric_names
    from tuneful.evaluation.tasks import tasks_of
    from tuneful.runs.schema import GateOutcome, as_row

    name, config, terminal = str(model), config or Config(), terminal or Terminal(quiet=True)
    if tests is not None:
        config = _with(config, "evaluation", tests=tuple(tests))
    tasks = tasks_of(config.evaluation, config.train.seed)
    if not tasks:
        raise ConfigError("no test was named: --tests FILE, or evaluation.tests")
    is_run = (Path(name).expanduser() / "run.json").is_file()
    conditions = parse_gate(config.report.gate, others=metric_names(tasks), figures=FIGURES if is_run else ALONE)
    folder = output if output is not None else Path(name).expanduser() / "tests" / "evaluated" if is_run else None
    scores = _scores_of_all(name, is_run, tasks, config, terminal)
    summary = _summary(name, tasks, scores, config)
    comparison, gate = None, list[GateOutcome]()
    if is_run:
        comparison = apply_gate(conditions, _compared(tasks, scores, config, terminal), terminal)
        gate = list(comparison.gate or ())
    else:
        _show(summary, terminal)
        figures = {one.name: Figure(one.value, one.low, one.high) for one in summary.models[_MODEL].figures}
        gate = check_alone(conditions, figures)
        show_gate(gate, terminal)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for side, own in scores.items():
            for test, rows in own.items():
                write_rows(folder / f"{test}-{side}.jsonl", map(as_row, rows))
        write_json(folder / "tests.json", as_row(summary))
        if comparison is not None:
            write_json(folder / "comparison.json", as_row(comparison))
        terminal.say(f"written: {folder}")
    return TasksResult(scores, summary, comparison, folder, tuple(gate))


def take_tests(
    model: str,
    tests: Sequence[str],
    config: Path | None,
    overrides: Sequence[str] | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    judging: Sequence[str],
) -> None:
    """What `tuneful evaluate --tests` does; `judging` are options that were given and are for judges."""
    from tuneful.console import Terminal, to_stdout
    from tuneful.evaluation.gate import check_met

    if judging:
        raise ConfigError(f"{' and '.join(judging)} is for answers that are judged; with --tests drop it")
    settings = configuration(config, [*(overrides or []), f"evaluation.tests={json.dumps(list(tests))}"], {})
    result = evaluate_tests(model, config=settings, output=output, terminal=Terminal(quiet=quiet))
    if as_json:
        to_stdout(json.dumps(result.as_dict(), indent=1))
    check_met(result.gate)


def _with(config: Config, section: str, **values: Any) -> Config:
    """`config` with other values in one section, checked together."""
    from tuneful.config import Config

    given = config.model_dump(exclude_unset=True)
    return Config(**{**given, section: {**given.get(section, {}), **values}})


def _scores_of_all(
    name: str, is_run: bool, tasks: Sequence[Task], config: Config, terminal: Terminal
) -> dict[str, dict[str, Sequence[ItemScore]]]:
    """Of a run its base first; both are asked by the encoder of the trained model. One model is in memory at a time."""
    from tuneful.evaluation.tasks import encoder_of
    from tuneful.files import cache_root
    from tuneful.infer.session import LoadedModel, load_to_answer
    from tuneful.model.precision import cast_parameters, choose_device, choose_dtype
    from tuneful.model.saved_template import with_saved_template
    from tuneful.serve.models import base_of_run

    config = with_saved_template(_with(config, "model", name_or_path=name))
    pretrained = load_to_answer(config, terminal.say)
    loaded = LoadedModel.of(pretrained, config, terminal.say)
    encoder = encoder_of(loaded.encoder, pretrained.tokenizer, config.evaluation)
    own = _scores(loaded.model, encoder, tasks, config, terminal, _TUNED if is_run else _MODEL)
    if not is_run:
        return {_MODEL: own}
    del pretrained, loaded
    gc.collect()
    device = choose_device(config.model.device)
    name = base_of_run(Path(name).expanduser())
    base = load_to_answer(_with(config, "model", name_or_path=name), terminal.say).model
    cast_parameters(base, choose_dtype(config.model.dtype, device, cache_root()))
    return {_BASE: _scores(base.to(device), encoder, tasks, config, terminal, _BASE), _TUNED: own}


def _scores(
    model: PreTrainedModel, encoder: Encoder, tasks: Sequence[Task], config: Config, terminal: Terminal, side: str
) -> dict[str, Sequence[ItemScore]]:
    from tuneful.evaluation.tasks import ask_instructions, choice_examples, fewshot, score_choices, score_instructions
    from tuneful.infer.file import answer_rows
    from tuneful.model.load import context_length
    from tuneful.train.scoring import layout_for_scoring

    found: dict[str, Sequence[ItemScore]] = {}
    for task in tasks:
        if task.kind == "choices":
            shown, items = fewshot(task, config.evaluation, config.train.seed)
            examples = choice_examples(shown, items, encoder)
            layout = layout_for_scoring(model, [one for own in examples if not isinstance(own, str) for one in own])
            if layout.reason:
                terminal.say(f"{side}, {task.name}: {layout.reason}", style="yellow")
            found[task.name] = score_choices(model, items, examples, layout)
            continue
        asked = ask_instructions(task, encoder, context_length(model))
        conversations = list(asked.conversations.values())
        numbers = range(len(conversations))
        with terminal.progress(f"{side} answers to {task.name}", len(conversations), "answers") as advance:
            rows = answer_rows(
                model,
                encoder,
                conversations,
                config.generate,
                seed=config.train.seed,
                numbers=numbers,
                journal=None,
                advance=advance,
            )
        found[task.name] = score_instructions(asked, [rows[number] for number in numbers])
    return found


def _summary(
    name: str, tasks: Sequence[Task], scores: Mapping[str, Mapping[str, Sequence[ItemScore]]], config: Config
) -> TasksDocument:
    from tuneful.evaluation.task_comparison import figures_of, summary_of
    from tuneful.runs.schema import TakenTasks, TasksDocument

    report, seed = config.report, config.train.seed
    return TasksDocument(
        report.confidence,
        {
            side: TakenTasks(
                name if side != _BASE else f"base of {name}",
                tuple(summary_of(task, config.evaluation, own[task.name], own[task.name]) for task in tasks),
                tuple(
                    figure
                    for task in tasks
                    for figure in figures_of(
                        task,
                        own[task.name],
                        confidence=report.confidence,
                        num_resamples=report.num_resamples,
                        seed=seed,
                    )
                ),
            )
            for side, own in scores.items()
        },
    )


def _compared(
    tasks: Sequence[Task], scores: Mapping[str, Mapping[str, Sequence[ItemScore]]], config: Config, terminal: Terminal
) -> Comparison:
    from tuneful.evaluation.documents import comparison_without_answers
    from tuneful.evaluation.tables import show_comparison
    from tuneful.evaluation.task_comparison import compare_all_tests

    report, seed = config.report, config.train.seed
    tests, metrics = compare_all_tests(
        tasks,
        config.evaluation,
        scores[_BASE],
        scores[_TUNED],
        confidence=report.confidence,
        num_resamples=report.num_resamples,
        seed=seed,
    )
    comparison = comparison_without_answers(
        metrics, (), confidence=report.confidence, num_resamples=report.num_resamples, seed=seed
    )
    comparison = replace(comparison, tests=tests)
    show_comparison(comparison, terminal, (_BASE, _TUNED))
    return comparison


def _show(summary: TasksDocument, terminal: Terminal) -> None:
    from tuneful.evaluation.tables import items_in_words

    own = summary.models[_MODEL]
    terminal.heading(f"Tests of {own.model}")
    rows = [
        [one.label, f"{one.value:.3f}", f"[{one.low:.3f}, {one.high:.3f}]", str(one.num_items)] for one in own.figures
    ]
    terminal.table(["", "", f"{summary.confidence:.0%} interval", "items"], rows)
    for test in own.tests:
        terminal.say(items_in_words(test))
