"""Tests of two models compared, or of one model in figures: accuracies with paired intervals, exact tests and verdicts.

Stands over `metric_comparison.py`, under `runs/` and the command. An item counts where both models have a score of it; the
others are counted by their reasons. Accuracy over instructions is a ratio of sums over items: an item with three of them counts
three times, and is drawn as one. Names are those of lm-evaluation-harness behind the name of the test: `arc_acc`,
`mine_prompt_level_strict_acc`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from tuneful.config import EvaluationConfig
from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import MetricSpec
from tuneful.evaluation.statistics import Ratio, resampled_differences, wilson_interval
from tuneful.evaluation.task_files import Task
from tuneful.runs.schema import ChoiceScore, InstructionScore, MetricComparison, TaskFigure, TaskSummary

ItemScore = ChoiceScore | InstructionScore

_CHOICES = ("acc", "acc_norm", "acc_bytes")
_INSTRUCTIONS = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")


def metric_names(tasks: Sequence[Task | TaskSummary]) -> list[str]:
    """Every metric that tests of `tasks` may have, as gates name them."""
    return [f"{task.name}_{what}" for task in tasks for what in (_CHOICES if task.kind == "choices" else _INSTRUCTIONS)]


def summary_of(
    task: Task, config: EvaluationConfig, base: Sequence[ItemScore], tuned: Sequence[ItemScore]
) -> TaskSummary:
    """What was asked, and how many items were scored; of one model `base` and `tuned` are the same."""
    asked = TaskSummary(
        name=task.name,
        file=task.file,
        sha256=task.sha256,
        kind=task.kind,
        prompt=config.tests_prompt,
        num_items=len(task.items),
        num_fewshot=len(task.items) - len(base),
        num_scored=0,
        num_unscored=0,
        unscored={},
        metrics=(),
    )
    return counted(asked, base, tuned)


def counted(asked: TaskSummary, base: Sequence[ItemScore], tuned: Sequence[ItemScore]) -> TaskSummary:
    """What was asked, with the counts and metrics that the scores of these two models make."""
    reasons = Counter(
        b.unscored_reason or t.unscored_reason or ""
        for b, t in zip(base, tuned, strict=True)
        if not (is_scored(b) and is_scored(t))
    )
    return replace(
        asked,
        num_scored=len(base) - reasons.total(),
        num_unscored=reasons.total(),
        unscored=dict(reasons.most_common()),
        metrics=tuple(spec.name for _, spec in _specs(asked, _both(base, tuned))),
    )


def compare_all_tests(
    tasks: Sequence[Task],
    config: EvaluationConfig,
    base: Mapping[str, Sequence[ItemScore]],
    tuned: Mapping[str, Sequence[ItemScore]],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> tuple[tuple[TaskSummary, ...], tuple[MetricComparison, ...]]:
    """What was asked in each test, and all its metrics; the scores are given by the names of the tests."""
    sides = [(task, base[task.name], tuned[task.name]) for task in tasks]
    found = [
        metric
        for task, before, after in sides
        for metric in compare_tests(task, before, after, confidence=confidence, num_resamples=num_resamples, seed=seed)
    ]
    return tuple(summary_of(task, config, before, after) for task, before, after in sides), tuple(found)


def compare_tests(
    task: Task | TaskSummary,
    base: Sequence[ItemScore],
    tuned: Sequence[ItemScore],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> list[MetricComparison]:
    """Every metric of the items that both models have a score of; none where there are none."""
    assert [one.source for one in base] == [one.source for one in tuned], "scores of other items"
    before, after = _both(base, tuned), _both(tuned, base)
    measured = [(spec, (_ratio(what, before), _ratio(what, after))) for what, spec in _specs(task, before)]
    if not measured:
        return []
    return compare_ratios(measured, confidence=confidence, num_resamples=num_resamples, seed=seed)


def figures_of(
    task: Task, scores: Sequence[ItemScore], *, confidence: float, num_resamples: int, seed: int
) -> list[TaskFigure]:
    """Every metric of one model: Wilson's interval of a share, the bootstrap's of a ratio with two average items more."""
    scored = [one for one in scores if is_scored(one)]
    found = []
    for what, spec in _specs(task, scored):
        ratio = _ratio(what, scored)
        value, num_items = ratio.value(), len(scored)
        if spec.formula == "share":
            low, high = wilson_interval(value, num_items, confidence)
        else:
            ratio = _with_average_items(ratio)
            nothing = Ratio(np.zeros(num_items + 2), ratio.denominators)
            (resampled,) = resampled_differences([(nothing, ratio)], num_resamples, seed)
            # Its percentiles as they are: the two items widen it as much as few items ask for.
            low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
            low, high = max(0.0, min(float(low), value)), min(1.0, max(float(high), value))
        found.append(TaskFigure(spec.name, spec.label, value, low, high, num_items))
    return found


def _with_average_items(ratio: Ratio) -> Ratio:
    """The ratio with two items more of average size, one followed whole, one not at all: of items that are all alike a bootstrap
    would be a point."""
    size = float(ratio.denominators.mean())
    return Ratio(np.append(ratio.numerators, [size, 0.0]), np.append(ratio.denominators, [size, size]))


def _specs(task: Task | TaskSummary, scored: Sequence[ItemScore]) -> list[tuple[str, MetricSpec]]:
    """What is measured of `scored`: accuracy by the byte only where it is not that by the character."""
    if not scored:
        return []
    names: Sequence[str] = _CHOICES if task.kind == "choices" else _INSTRUCTIONS
    if all(isinstance(one, ChoiceScore) and one.num_bytes == one.num_characters for one in scored):
        names = ("acc", "acc_norm")
    return [(what, _spec(task.name, what)) for what in names]


def _spec(task: str, what: str) -> MetricSpec:
    unit = "share of instructions" if what.startswith("inst") else "share of items"
    formula: Literal["mean", "share"] = "mean" if what.startswith("inst") else "share"
    words = {"prompt": "prompts", "inst": "instructions"}
    label = what if what in _CHOICES else f"{words[what.split('_')[0]]}, {what.split('_')[2]}"
    return MetricSpec(f"{task}_{what}", f"{task} {label}", unit, True, formula=formula)


def _both(own: Sequence[ItemScore], others: Sequence[ItemScore]) -> list[ItemScore]:
    """Those scores whose items the other model has a score of, too."""
    return [one for one, other in zip(own, others, strict=True) if is_scored(one) and is_scored(other)]


def is_scored(score: ItemScore) -> bool:
    """Whether the model has a score of the item."""
    return score.unscored_reason is None


def _ratio(what: str, scored: Sequence[ItemScore]) -> Ratio:
    if what in _CHOICES:
        return _of(scored, [float(getattr(one, what)) for one in scored], None)
    level, _, how, _ = what.split("_")
    followed = [getattr(one, how) for one in scored]
    if level == "prompt":
        return _of(scored, [float(all(one)) for one in followed], None)
    return _of(scored, [float(sum(one)) for one in followed], [float(len(one)) for one in followed])


def _of(scored: Sequence[ItemScore], numerators: list[float], denominators: list[float] | None) -> Ratio:
    return Ratio(np.array(numerators), np.array(denominators or [1.0] * len(scored)))
