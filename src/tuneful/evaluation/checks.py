"""Checks of one's own over a set of answers: every answer scored or unscored with its reason, and each check a metric.

    read_checks     evaluation.checks of the configuration -> Checks; ConfigError before anything is trained
    run_checks      Checks, items -> what each check found of each item, by its name
    check_results   those -> CheckResults, for people and for comparison.json and checks.json

Stands over `check_kinds.py`, `labels.py` and `python_check.py`; `compare.py` compares two models by the metrics made here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuneful.config import Config
from tuneful.config.checks import CheckSpec, check_spec
from tuneful.errors import ConfigError
from tuneful.evaluation.answered import Answered
from tuneful.evaluation.bounded_search import SECONDS, bounded_search
from tuneful.evaluation.check_kinds import (
    NEED_REFERENCE,
    NO_REFERENCE,
    RULES,
    SEARCHING,
    CheckItem,
    in_words,
    unscored,
)
from tuneful.evaluation.json_schema import check_schema, read_json
from tuneful.evaluation.labels import class_table, label_outcomes, labelled, labels_of, macro_f1, macro_f1_interval
from tuneful.evaluation.languages import LANGUAGES
from tuneful.evaluation.metric_specs import DOCUMENTS, FORGETTING, METRICS, MetricSpec
from tuneful.evaluation.metrics import without_outer_marks, without_thought
from tuneful.evaluation.python_check import check_function, function_outcomes
from tuneful.evaluation.statistics import fewest_items, interval, resampled_counts, wilson_interval
from tuneful.runs.schema import CheckOutcome, CheckResult

Outcomes = Mapping[str, CheckOutcome]
"""What every check found of one answer, by the check's name."""

NOT_BY_ALL = "another side's answer has no score"
_MAX_REASONS = 5


@dataclass(frozen=True, slots=True)
class Check:
    """A check that can be run, and the metrics that it makes: its score, and of labels macro F1."""

    spec: CheckSpec
    metrics: tuple[MetricSpec, ...]


def read_checks(config: Config, others: Sequence[str] = ()) -> tuple[Check, ...]:
    """The checks of `evaluation.checks`, their files read; ConfigError says which cannot be made and why.

    `others` are metrics besides those that there always are, whose names are taken.
    """
    checks = tuple(_read_check(check_spec(entry)) for entry in config.evaluation.checks)
    taken = {*others, *(spec.name for spec in (*METRICS, *DOCUMENTS, *FORGETTING))}
    for check in checks:
        for metric in check.metrics:
            if metric.name in taken:
                raise ConfigError(f"evaluation.checks: `{metric.name}` is another metric; give the check another name")
            taken.add(metric.name)
    return checks


def metrics_of(checks: Sequence[Check]) -> tuple[MetricSpec, ...]:
    """The metrics of all checks, in order."""
    return tuple(metric for check in checks for metric in check.metrics)


def need_references(checks: Sequence[Check]) -> bool:
    """Whether any of them holds answers against references."""
    return any(check.spec.kind in NEED_REFERENCE for check in checks)


def check_item(source: str, prompt: str, reference: str | None, text: str) -> CheckItem:
    """An answer to check, without what was thought before it."""
    return CheckItem(source, prompt, reference, without_thought(text, reference or ""))


def run_checks(checks: Sequence[Check], items: Sequence[CheckItem]) -> list[dict[str, CheckOutcome]]:
    """What each of `checks` found of each of `items`, in their order."""
    columns = {check.spec.name: _outcomes(check.spec, items) for check in checks}
    for name, column in columns.items():
        assert len(column) == len(items), name
        assert all((one.score is None) == (one.unscored_reason is not None) for one in column), name
    return [{name: column[index] for name, column in columns.items()} for index in range(len(items))]


def _outcomes(spec: CheckSpec, items: Sequence[CheckItem]) -> list[CheckOutcome]:
    if spec.kind == "label":
        return label_outcomes(items, spec.value, whole=spec.options["whole"])
    if spec.kind == "python":
        return function_outcomes(spec, items)
    if spec.kind in SEARCHING:
        with bounded_search(spec.options.get("timeout_seconds", SECONDS)) as search:
            return list(map(SEARCHING[spec.kind](spec, search), items))
    rule, needs = RULES[spec.kind](spec), spec.kind in NEED_REFERENCE
    return [unscored(NO_REFERENCE) if needs and item.reference is None else rule(item) for item in items]


def with_checks(checks: Sequence[Check], side: Sequence[Answered]) -> tuple[Answered, ...]:
    """The answers of one side with what the checks found of them among their scores."""
    if not checks:
        return tuple(side)
    found = run_checks(checks, [check_item(one.source, one.prompt, one.reference, one.text) for one in side])
    return tuple(replace(one, scores=replace(one.scores, checks=own)) for one, own in zip(side, found, strict=True))


def scored_by_all(sides: Sequence[Sequence[Answered]]) -> list[tuple[Answered, ...]]:
    """The same items of several sides; a check that has no score of one side's answer has none of the others'."""
    rows = [_scored_by_all(row) for row in zip(*sides, strict=True)]
    return [tuple(row[place] for row in rows) for place in range(len(sides))]


def _scored_by_all(row: Sequence[Answered]) -> list[Answered]:
    outcomes = [one.scores.checks or {} for one in row]
    missing = {name for own in outcomes for name, outcome in own.items() if outcome.score is None}
    return [
        replace(one, scores=replace(one.scores, checks={**own, **_unscored(own, missing)})) if missing else one
        for one, own in zip(row, outcomes, strict=True)
    ]


def _unscored(outcomes: Outcomes, names: Collection[str]) -> dict[str, CheckOutcome]:
    return {name: unscored(NOT_BY_ALL) for name in names if outcomes[name].score is not None}


# Reading


def _read_check(spec: CheckSpec) -> Check:
    if spec.kind == "json" and spec.options["schema"] is not None:
        schema = _read_schema(spec.options["schema"], spec.name)
        spec = replace(spec, options={**spec.options, "schema": schema})
    if spec.kind == "python":
        check_function(spec)
    if spec.kind == "language" and spec.value not in LANGUAGES:
        raise ConfigError(
            f"evaluation.checks: {spec.name}: {spec.value} is told from no other language; there are {', '.join(LANGUAGES)}"
        )
    if spec.kind == "label":
        folded = Counter(map(without_outer_marks, spec.value))
        if same := [label for label in spec.value if folded[without_outer_marks(label)] > 1]:
            raise ConfigError(
                f"evaluation.checks: {spec.name}: {' and '.join(same)} are one label, but for case and outer marks"
            )
    return Check(spec, _metrics(spec))


def _read_schema(given: Any, name: str) -> Any:
    where = f"evaluation.checks: {name}: "
    try:
        if isinstance(given, str):
            where += f"{given}: "
            given = read_json(Path(given).read_text(encoding="utf-8-sig"))
        check_schema(given)
    except OSError as error:
        raise ConfigError(f"{where}cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}{error}") from None
    return json.loads(json.dumps(given))


def _metrics(spec: CheckSpec) -> tuple[MetricSpec, ...]:
    label = spec.name.replace("_", " ")
    label = "JSON" if label == "json" else label[:1].upper() + label[1:]
    direction = bool(spec.options.get("higher_is_better", True))
    own = MetricSpec(spec.name, label, "share of items", direction, formula="share", check=spec.name)
    if spec.kind != "label":
        return (own,)
    f1 = MetricSpec(f"{spec.name}_macro_f1", f"{label}, macro F1", "0 to 1", True, formula="macro_f1", check=spec.name)
    return own, f1


# Results of one set of answers


def check_results(
    checks: Sequence[Check], outcomes: Sequence[Outcomes], *, confidence: float, num_resamples: int, seed: int
) -> tuple[CheckResult, ...]:
    """Every check of one set of answers in numbers."""
    settings = {"num_resamples": num_resamples, "seed": seed}
    return tuple(
        _result(check.spec, [one[check.spec.name] for one in outcomes], confidence, settings) for check in checks
    )


def _result(
    spec: CheckSpec, outcomes: Sequence[CheckOutcome], confidence: float, settings: Mapping[str, int]
) -> CheckResult:
    scores = np.array([one.score for one in outcomes if one.score is not None])
    low, high = score_interval(scores, confidence, **settings)
    reasons = Counter(one.unscored_reason for one in outcomes if one.unscored_reason is not None)
    failed = Counter(one.why for one in outcomes if one.why is not None)
    result = CheckResult(
        name=spec.name,
        kind=spec.kind,
        asks=in_words(spec),
        num_items=len(outcomes),
        num_scored=len(scores),
        num_unscored=len(outcomes) - len(scores),
        value=float(scores.mean()) if len(scores) else None,
        low=low,
        high=high,
        unscored=dict(reasons.most_common()),
        failed=dict(failed.most_common(_MAX_REASONS)),
    )
    return _with_labels(result, outcomes, confidence, settings) if spec.kind == "label" and len(scores) else result


def score_interval(
    scores: np.ndarray[Any, np.dtype[np.float64]], confidence: float, num_resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Wilson's for shares, the bootstrap's for other numbers; (None, None) of nothing, and of other numbers where they are fewer
    than `fewest_items` or all alike, since what they could have been is not known."""
    if not len(scores):
        return None, None
    if is_share(scores):
        return wilson_interval(float(scores.mean()), len(scores), confidence)
    if len(scores) < fewest_items(confidence) or np.ptp(scores) == 0:
        return None, None
    counts = resampled_counts(len(scores), num_resamples, seed)
    means = np.concatenate([counts_RI @ scores for counts_RI in counts]) / len(scores)
    return interval(means, len(scores), confidence, scores - scores.mean())


def is_share(scores: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Whether every score is a yes or a no."""
    return all(score in (0.0, 1.0) for score in scores)


def _with_labels(
    result: CheckResult, outcomes: Sequence[CheckOutcome], confidence: float, settings: Mapping[str, int]
) -> CheckResult:
    scored = [one for one in outcomes if one.score is not None]
    items = labelled(scored, labels_of(scored))
    low, high = macro_f1_interval(items, confidence=confidence, **settings)
    classes, confusion = class_table(scored)
    return replace(
        result,
        macro_f1=macro_f1(items),
        macro_f1_low=low,
        macro_f1_high=high,
        classes=classes,
        confusion=confusion,
    )
