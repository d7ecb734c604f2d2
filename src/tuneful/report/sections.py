"""The sections of the page: a `Run` becomes a `Page` of finished words, figures and drawings.

Second stage of the report, between `folder.py` and `build.py`; the template only lays it out. The head, the samples and the setup
are written here, the other sections in `scores.py`, `checked.py`, `judged.py`, `people.py`, `trained_on.py`, `audited.py`,
`curves.py`, `records.py`, `answers.py` and `explained.py`. What a run does not have becomes a sentence that says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tuneful.numbers import (
    UNKNOWN,
    count,
    decimals_for,
    duration,
    fixed,
    known,
    plural,
    signed,
    significant,
    storage,
)
from tuneful.report.answers import Answers, view_answers
from tuneful.report.audited import FindingsView, view_findings
from tuneful.report.checked import CheckView, view_checks
from tuneful.report.curves import TrainingView, evenly, measured_losses, view_training
from tuneful.report.decision import Decision, view_decision, view_glance
from tuneful.report.explained import Explained, view_explained
from tuneful.report.folder import Run
from tuneful.report.forgotten import change_in_words, forgotten_in_words
from tuneful.report.judged import Judged, view_judged
from tuneful.report.paths import without_folders
from tuneful.report.people import People, view_people
from tuneful.report.records import RecordsView, view_records
from tuneful.report.scores import (
    Forgetting,
    Kinds,
    Scores,
    confidence,
    interval,
    main_metric,
    view_forgetting,
    view_kinds,
    view_scores,
)
from tuneful.report.tasks import TasksView, view_tasks
from tuneful.report.trained_on import Cells, DataView, view_data
from tuneful.runs.schema import Comparison, Environment, Evaluation

MAX_SAMPLES = 24


@dataclass(frozen=True, slots=True)
class Figure:
    """A key figure of the head."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class SampleView:
    """A sample answer written during training."""

    step: str
    validation_loss: str
    prompt: str
    text: str
    is_repeated: bool


@dataclass(frozen=True, slots=True)
class Samples:
    """The timeline of samples; `prompt` is set where all of them answer the same one."""

    prompt: str
    shown: tuple[SampleView, ...]
    num_all: int


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that `page.html.j2` lays out."""

    model: str
    relation: str
    data_name: str
    lede: str
    more: str
    caution: str
    notes: tuple[str, ...]
    when: str
    figures: tuple[Figure, ...]
    decision: Decision | None
    glance: Cells
    sides: tuple[str, str]
    scores: Scores | None
    kinds: Kinds | None
    checks: tuple[CheckView, ...]
    forgetting: Forgetting | None
    judged: Judged | None
    people: People | None
    data: DataView | None
    findings: FindingsView | None
    training: TrainingView | None
    records: RecordsView | None
    answers: Answers | None
    explained: Explained | None
    samples: Samples | None
    setup: tuple[tuple[str, Cells], ...]
    version: str
    tests: TasksView | None = None


def view_page(run: Run) -> Page:
    """The page of `run`; a section is None where the run has nothing for it."""
    answers = view_answers(run) if run.base or run.tuned else None
    comparison = run.comparison
    names = comparison.names if comparison else None
    source = (run.data.source if run.data else "") or "unnamed data"
    sides = ("A", "B") if names else ("Before", "After")
    return Page(
        model=without_folders((names.tuned if names else "") or _model_name(run)),
        relation="(B) compared with (A)" if names else "tuned on",
        data_name=without_folders((names.base if names else "") or source),
        lede=_lede(run)[0],
        more=_lede(run)[1],
        caution=_sentence((comparison.caution if comparison else None) or ""),
        notes=tuple(map(without_folders, (*(() if names else _missing(run)), *run.remarks))),
        when=moment_in_words(run.environment.started if run.environment else ""),
        figures=_figures(run),
        decision=view_decision(comparison),
        glance=view_glance(run),
        sides=sides,
        scores=view_scores(comparison) if comparison and comparison.metrics and not _is_of_tests(comparison) else None,
        kinds=view_kinds(comparison) if comparison and comparison.kinds else None,
        forgetting=view_forgetting(comparison) if comparison and comparison.forgetting else None,
        checks=view_checks(run, sides),
        judged=view_judged(run),
        people=view_people(run, sides),
        data=view_data(run) if run.data or run.steps else None,
        findings=view_findings(run.data),
        training=view_training(run) if run.steps or run.evaluations else None,
        records=view_records(run) if run.records else None,
        answers=answers,
        explained=view_explained(run.explained),
        samples=_samples(run.evaluations),
        setup=_setup(run),
        version=run.environment.tuneful if run.environment else "",
        tests=view_tasks(comparison) if comparison and comparison.tests else None,
    )


# Head ---------------------------------------------------------------------------------------------------------


def _model_name(run: Run) -> str:
    named = run.environment.model.name if run.environment else ""
    asked_for = run.config.get("model")
    return named or (str(asked_for.get("name_or_path") or "") if isinstance(asked_for, Mapping) else "") or "A model"


def _lede(run: Run) -> tuple[str, str]:
    """The verdict's first sentence, and what else it says (but not the caution, which has a box of its own)."""
    if run.comparison and run.comparison.sentence:
        sentence = run.comparison.sentence.removesuffix(f" Caution: {run.comparison.caution}.").replace(" -> ", " → ")
        first, stop, rest = sentence.partition(". ")
        return first + stop.rstrip(), rest
    if not run.steps:
        return "Nothing has been trained in this run yet.", ""
    if _is_unfinished(run):
        return f"This run stopped after step {count(run.steps[-1].step)}; there is no verdict on it yet.", ""
    return "The model was trained; whether it answers better was not measured in this run.", ""


def _sentence(words: str) -> str:
    """Words as a sentence: a capital, a full stop."""
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) or not words else ".")


def _is_unfinished(run: Run) -> bool:
    return run.environment is not None and not run.environment.finished


def _missing(run: Run) -> list[str]:
    notes = []
    if _is_unfinished(run):
        last = f"the last recorded step is {count(run.steps[-1].step)}" if run.steps else "no training step is recorded"
        notes.append(f"The run has not finished: {last}.")
    if not run.environment:
        notes.append("environment.json is missing: versions, hardware and times are unknown.")
    if not run.data:
        notes.append("data.json is missing: the page cannot say what was trained on.")
    if not run.steps and not _is_unfinished(run):
        notes.append("metrics.jsonl holds no training step: there are no curves.")
    compared = run.comparison
    if compared is not None and (compared.headline.startswith("document_") or _is_of_tests(compared)):
        pass  # nothing is answered but tests
    elif not run.base and not run.tuned:
        notes.append(
            "There are no test answers: “tuneful run” asks the model before and after training, "
            "“tuneful train” does not."
        )
    elif not run.base:
        notes.append("The answers before training (answers/base.jsonl) are missing.")
    elif not run.tuned:
        notes.append("The answers after training (answers/tuned.jsonl) are missing.")
    elif not run.comparison:
        notes.append("The answers were not compared: comparison.json is missing.")
    return notes


def _is_of_tests(comparison: Comparison) -> bool:
    """Whether nothing but standard tests was compared."""
    return any(comparison.headline in test.metrics for test in comparison.tests)


def moment_in_words(text: str) -> str:
    """`30 November 2026, 21:44 UTC` of a moment in ISO 8601; any other text as it is."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return text
    zone = " UTC" if moment.utcoffset() is not None and not moment.utcoffset() else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


def _figures(run: Run) -> tuple[Figure, ...]:
    figures = (
        _figure_of_score(run),
        _figure_of_forgetting(run),
        _figure_of_loss(run),
        _figure_of_time(run),
        _figure_of_records(run),
    )
    return tuple(figure for figure in figures if figure)


def _figure_of_loss(run: Run) -> Figure | None:
    measured = measured_losses(run.evaluations)
    if measured:
        best = min(measured, key=lambda point: point[1])
        first, last = measured[0][1], measured[-1][1]
        value = f"{fixed(first, 2)} → {fixed(last, 2)}" if len(measured) > 1 else fixed(first, 2)
        return Figure("Validation loss", value, f"lowest {fixed(best[1], 2)} at step {count(best[0])}")
    losses = [step.loss for step in run.steps if known(step.loss)]
    if not losses:
        return None
    return Figure("Training loss", f"{fixed(losses[0], 2)} → {fixed(losses[-1], 2)}", "first and last step")


def _figure_of_score(run: Run) -> Figure | None:
    metric = main_metric(run.comparison) if run.comparison else None
    if metric is None or run.comparison is None:
        return None
    decimals = decimals_for(metric.base, metric.tuned, metric.difference)
    between = interval(metric, decimals)
    note = f"{fixed(metric.base, decimals)} → {fixed(metric.tuned, decimals)}"
    if between:
        note = f"{confidence(run.comparison)} interval {between}"
    return Figure(f"{metric.label}, change", signed(metric.difference, decimals), note)


def _figure_of_forgetting(run: Run) -> Figure | None:
    found = run.comparison.forgetting if run.comparison else ()
    metric = next((metric for metric in found if metric.name == "forgetting"), None)
    if metric is None or run.comparison is None:
        return None
    between = interval(metric, 3)
    said = f"{confidence(run.comparison)} interval {between}" if between else "interval not known"
    return Figure(
        "Forgotten",
        forgotten_in_words(metric).replace("cannot be told from none", "cannot tell"),
        f"general text costs {change_in_words(metric)}; {signed(metric.difference, 3)} {metric.unit}, {said}",
    )


def _figure_of_time(run: Run) -> Figure | None:
    environment = run.environment
    seconds = environment.phase_seconds.get("training") if environment else None
    if seconds is None and run.steps:
        seconds = math.fsum(step.step_seconds for step in run.steps if known(step.step_seconds))
    if seconds is None:
        return None
    is_known = environment is not None and environment.device and environment.dtype
    where = f" on {environment.device}, {environment.dtype}" if environment and is_known else ""
    return Figure("Training time", duration(seconds), f"{plural(len(run.steps), 'step')}{where}")


def _figure_of_records(run: Run) -> Figure | None:
    split = run.data.split if run.data else None
    if split is None or not split.train:
        return None
    note = f"{count(split.validation)} validation · {count(split.test)} test"
    if run.data and run.data.num_chunks is not None:
        note = f"{plural(split.train, 'training record')}; {note}"
        return Figure("Tokens trained on", count(run.data.train_tokens.trained), note)
    return Figure("Records trained on", count(split.train), note)


# Samples and setup --------------------------------------------------------------------------------------------


def _samples(evaluations: Sequence[Evaluation]) -> Samples | None:
    found = [(one, one.sample) for one in evaluations if one.sample is not None]
    if not found:
        return None
    prompts = {sample.prompt for _, sample in found}
    common = prompts.pop() if len(prompts) == 1 else ""
    shown = evenly(found, MAX_SAMPLES)
    texts = [sample.text for _, sample in shown]
    return Samples(
        prompt=common,
        shown=tuple(
            SampleView(
                count(one.step),
                significant(one.validation_loss) if known(one.validation_loss) else "",
                "" if common else sample.prompt,
                sample.text,
                is_repeated=bool(common) and sample.text == before,
            )
            for before, (one, sample) in zip([None, *texts], shown, strict=False)
        ),
        num_all=len(found),
    )


def _setup(run: Run) -> tuple[tuple[str, Cells], ...]:
    """(heading, rows) of each table about how the run was made."""
    environment = run.environment
    tables = [
        ("Machine and command", _machine(environment) if environment else ()),
        ("Hashes", _hashes(run)),
        ("Time by phase", _phases(environment) if environment else ()),
        ("Packages", tuple(environment.packages.items()) if environment else ()),
        *((f"config.yaml: {name}", _flat(value)) for name, value in run.config.items()),
    ]
    return tuple((heading, cells) for heading, cells in tables if cells)


def _machine(environment: Environment) -> Cells:
    parameters, cores, memory = environment.model.num_parameters, environment.cores, environment.memory_bytes
    layout = (environment.layout, environment.layout_reason)
    cells = (
        ("Command", environment.command),
        ("Started", environment.started),
        ("Finished", environment.finished or "not finished"),
        ("Parameters", count(parameters) if parameters else ""),
        ("Device", environment.device),
        ("Precision", environment.dtype),
        ("Kernels", environment.kernels),
        ("Layout", ": ".join(part for part in layout if part)),
        *([("Transformers", environment.layout_note)] if environment.layout_note else []),
        ("Processor", environment.processor),
        ("Cores", count(cores) if cores else ""),
        ("Memory", storage(memory) if memory else ""),
        ("Platform", environment.platform),
        ("Python", environment.python),
        ("Tuneful", environment.tuneful),
    )
    return tuple((name, value) for name, value in cells if value)


def _hashes(run: Run) -> Cells:
    cells = (
        ("Model, sha256", run.environment.model.sha256 if run.environment else ""),
        ("Data, sha256", run.data.sha256 if run.data else ""),
    )
    return tuple((name, value) for name, value in cells if value)


def _phases(environment: Environment) -> Cells:
    """How long each phase took, and how long it was to take where that was estimated."""
    estimated = environment.estimated_seconds or {}

    def time_of(name: str, seconds: float) -> str:
        return (
            f"{duration(seconds)} (estimated {duration(estimated[name])})" if name in estimated else duration(seconds)
        )

    return tuple(
        (name.replace("_", " ").capitalize(), time_of(name, seconds))
        for name, seconds in environment.phase_seconds.items()
    )


def _flat(value: object, prefix: str = "") -> Cells:
    """A section of the configuration as (key, value) rows; deeper keys are joined with dots."""
    if isinstance(value, dict) and value:
        return tuple(
            row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        )
    return ((prefix or "value", _setting(value)),)


def _setting(value: object) -> str:
    if value is None or value == {}:
        return UNKNOWN
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_setting(entry) for entry in value) or UNKNOWN
    return str(value)
