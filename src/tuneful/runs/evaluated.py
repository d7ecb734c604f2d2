"""What a run will measure both models on, for `--dry-run`: in words, and how long checks of one's own take.

Stands under `estimate.py`. Nothing is answered yet: references stand in for answers.
"""

from __future__ import annotations

from collections import Counter

from tuneful.evaluation.answers import task_text
from tuneful.evaluation.checks import Check, check_item, run_checks
from tuneful.evaluation.task_files import ChoiceItem, Task
from tuneful.numbers import plural
from tuneful.runs.phases import seconds_of
from tuneful.runs.schema import CheckOutcome
from tuneful.runs.setup import RunState
from tuneful.types import answer_text

_TIMED_ANSWERS = 32


def evaluated_in_words(run: RunState) -> tuple[str, ...]:
    """What base and tuned are measured on, a part each; nothing of a training alone."""
    if run.verb != "run":
        return ()
    parts = [plural(len(run.asked), "answer")] if len(run.asked) else []
    parts += [plural(len(run.documents), "document")] if len(run.documents) else []
    parts += [plural(len(run.general_texts), "passage") + " of general text"] if run.general_texts else []
    parts += [_task_in_words(task, run.config.evaluation.num_fewshot) for task in run.tasks]
    if run.checks and len(run.asked):
        parts.append(f"{plural(len(run.checks), 'check')} of each answer ({', '.join(map(_named, run.checks))})")
    return tuple(parts)


def _task_in_words(task: Task, num_fewshot: int) -> str:
    choices = [item for item in task.items if isinstance(item, ChoiceItem)]
    if not choices:
        return f"{task.name}: {plural(len(task.items), 'prompt')} to answer, instructions verified"
    num_choices = sum(len(item.choices) for item in choices)
    shots = f" after {plural(num_fewshot, 'item')}" if num_fewshot else ""
    return f"{task.name}: {plural(len(choices) - num_fewshot, 'question')} of {num_choices / len(choices):.3g} choices{shots}"


def _named(check: Check) -> str:
    kind, name = check.spec.kind, check.spec.name
    return name if name == kind else f"{name}: {kind}"


def seconds_of_checks(run: RunState) -> float:
    """How long the checks of both models' answers take, by what they take on some references; a line says which scored none.

    What a check takes to begin, as a function's imports, counts once a model.
    """
    if run.verb != "run" or not run.checks or not len(run.asked):
        return 0.0
    items = [
        check_item(one.source, task_text(one), text := answer_text(one.answered_turns[-1]), text)
        for one in run.asked.conversations[:_TIMED_ANSWERS]
    ]
    begin = seconds_of(lambda: run_checks(run.checks, items[:1]))
    found: list[dict[str, CheckOutcome]] = []
    whole = seconds_of(lambda: found.extend(run_checks(run.checks, items)))
    run.warn([said for check in run.checks if (said := _why_none(check.spec.name, found))])
    an_answer = max(0.0, whole - begin) / max(1, len(items) - 1)
    return 2 * (begin + an_answer * (len(run.asked) - 1))


def _why_none(name: str, found: list[dict[str, CheckOutcome]]) -> str | None:
    reasons = Counter(one[name].unscored_reason for one in found)
    if None in reasons:
        return None
    return f"{name} scores none of {plural(len(found), 'reference')}: {reasons.most_common(1)[0][0]}"
