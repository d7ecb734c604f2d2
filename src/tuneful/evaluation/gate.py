"""The gate: conditions that a comparison has to meet, such as `rouge_l>=0, forgetting<=0.05`.

Stands over `compare.py`. Conditions are parsed before anything is trained, so that a misspelt metric costs nothing, and checked
when the comparison is written. A bare name is the difference tuned - base, in the metric's own unit. An ending names another
figure: `.low` and `.high` the ends of its interval, `.base` and `.tuned` the two values.

    rouge_l>=0              not worse, as far as the test items say
    rouge_l.low>0           surely better
    exact_match.tuned>=0.4  good enough, whatever it was before
    forgetting<=0.05        at most 0.05 bits per byte of general text lost

Where there is one set of answers, or one model in tests, there is no difference: there `.value` (or `.tuned`), `.value_low` and
`.value_high` are the figures, and a bare name is refused, because a run's `rouge_l>=0` would be met by any answers.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tuneful.config.names import RENAMED_METRICS
from tuneful.errors import ConfigError, GateError
from tuneful.evaluation.metric_specs import DOCUMENTS, FORGETTING, METRICS, MetricSpec
from tuneful.runs.schema import Comparison, GateOutcome

FIGURES = ("difference", "low", "high", "base", "tuned")
ALONE = ("value", "value_low", "value_high", "tuned")
"""The figures where there is one set of answers, or one model."""
METRIC_NAMES = tuple(spec.name for spec in (*METRICS, *DOCUMENTS, *FORGETTING))

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(
    r"\s*(?P<name>[A-Za-z0-9_-]+)(?:\.(?P<figure>\w+))?\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>[-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*"
)
_EXAMPLE = 'such as "rouge_l>=0, forgetting<=0.05"'


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: the `figure` of the metric `name`, compared by `sign` with `limit`, has to be true."""

    name: str
    figure: str
    sign: str
    limit: float

    def __str__(self) -> str:
        figure = "" if self.figure == "difference" else f".{self.figure}"
        return f"{self.name}{figure}{self.sign}{self.limit:g}"


def parse_gate(
    text: str, where: str = "report.gate", others: Sequence[str] = (), figures: Sequence[str] = FIGURES
) -> tuple[Condition, ...]:
    """The conditions that `text` names, divided by commas; ConfigError, naming `where`, for one that cannot be read.

    `others` are metrics besides those that there always are: of tests, and of checks of one's own. `figures` are `ALONE` where
    nothing is compared.
    """
    known = (*METRIC_NAMES, *others)
    return tuple(_condition(part, where, known, figures) for part in text.split(",") if part.strip())


def check_headline(
    headline: str | None, checks: Sequence[MetricSpec], *, has_judge: bool = True, where: str = "report.headline"
) -> None:
    """Raise ConfigError for a headline that is no metric of answers, or that nothing is going to measure."""
    if headline is not None:
        _check_name(headline, headline, (*(spec.name for spec in METRICS), *(spec.name for spec in checks)), where)
        if headline == "judge_score" and not has_judge:
            raise ConfigError(f"{where}: judge_score needs a judge, and judge.model names none")


def check_measurable(conditions: tuple[Condition, ...], *, has_general: bool, has_judge: bool) -> None:
    """Raise ConfigError, before any work is done, for a condition on what this run is not going to measure."""
    for condition in conditions:
        if condition.name in {spec.name for spec in FORGETTING} and not has_general:
            raise ConfigError(f"report.gate: {str(condition)!r} needs general text, and report.general is none")
        if condition.name == "judge_score" and not has_judge:
            raise ConfigError(f"report.gate: {str(condition)!r} needs a judge, and judge.model names none")


def check_without_answers(
    conditions: tuple[Condition, ...], *, has_documents: bool, others: Sequence[str] = ()
) -> None:
    """Raise ConfigError for a condition on answers, in a run whose test set has no prompt; `others` are metrics of tests."""
    measured = [*(spec.name for spec in (*(DOCUMENTS if has_documents else ()), *FORGETTING)), *others]
    what = "documents have" if has_documents else "the test set has"
    for condition in conditions:
        if condition.name not in measured:
            raise ConfigError(
                f"report.gate: {str(condition)!r} needs answers, and {what} none; measured are {', '.join(measured)}"
            )


def check_gate(conditions: tuple[Condition, ...], comparison: Comparison) -> list[GateOutcome]:
    """The result of each condition; ConfigError for a metric that this comparison did not measure.

    What is not known is not met: the end of an interval on few items, any figure of a judge that is not usable.
    """
    outcomes = []
    for condition in conditions:
        metric = comparison.measured(condition.name)
        if metric is None:
            raise ConfigError(
                f"gate {str(condition)!r}: `{condition.name}` was not measured in this comparison; measured are "
                f"{', '.join(one.name for one in (*comparison.metrics, *comparison.forgetting))}"
            )
        is_void = (
            metric.name == "judge_score" and comparison.judge is not None and comparison.judge.verdict == "not usable"
        )
        found = None if is_void else getattr(metric, condition.figure)
        is_met = found is not None and _COMPARE[condition.sign](found, condition.limit)
        outcomes.append(GateOutcome(str(condition), found, is_met))
    return outcomes


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one set of answers, or of one model in a test: its value, and the ends of the interval as far as known."""

    value: float | None
    low: float | None
    high: float | None


def check_alone(
    conditions: tuple[Condition, ...], measured: Mapping[str, Figure], *, void: Collection[str] = ()
) -> list[GateOutcome]:
    """The result of each condition on what was `measured` of one set; ConfigError for a metric that was not.

    What is not known is not met, nor is any figure of a metric in `void`.
    """
    outcomes = []
    for condition in conditions:
        if condition.name not in measured:
            raise ConfigError(
                f"gate {str(condition)!r}: `{condition.name}` was not measured of these answers; measured are "
                f"{', '.join(measured) or 'none'}"
            )
        figure = measured[condition.name]
        figures = {"value_low": figure.low, "value_high": figure.high}
        found = None if condition.name in void else figures.get(condition.figure, figure.value)
        is_met = found is not None and _COMPARE[condition.sign](found, condition.limit)
        outcomes.append(GateOutcome(str(condition), found, is_met))
    return outcomes


def check_met(outcomes: Sequence[GateOutcome]) -> None:
    """Raise GateError, with the figures, where a condition is not met."""
    unmet = [outcome for outcome in outcomes if not outcome.met]
    if unmet:
        raise GateError(
            f"the gate is not met: {'; '.join(f'{one.condition} (found {one.found_in_words})' for one in unmet)}. "
            f"{len(outcomes) - len(unmet)} of {len(outcomes)} conditions are met"
        )


def _condition(text: str, where: str, known: Sequence[str], figures: Sequence[str]) -> Condition:
    found = _CONDITION.fullmatch(text)
    try:
        limit = float(found["limit"]) if found else None
    except ValueError:
        limit = None
    if found is None or limit is None:
        raise ConfigError(
            f"{where}: {text.strip()!r} is no condition: expected NAME, one of >= <= > <, a number, {_EXAMPLE}"
        )
    name, figure = found["name"].lower().replace("-", "_"), found["figure"] or "difference"
    _check_name(name, found["name"], known, where)
    if figure not in figures:
        if figures is ALONE and figure in FIGURES:
            what = f"`.{figure}`" if found["figure"] else "a bare name, which is the difference,"
            raise ConfigError(
                f"{where}: {what} is for the two models of a run; of one set of answers say {name}.value{found['sign']}"
                f"{found['limit']}, .value_low or .value_high"
            )
        raise ConfigError(f"{where}: `{name}` has no figure `.{figure}`; there are .{', .'.join(figures)}")
    return Condition(name, figure, found["sign"], limit)


def _check_name(name: str, written: str, known: Sequence[str], where: str) -> None:
    if name in RENAMED_METRICS:
        raise ConfigError(f"{where}: `{name}` is called `{RENAMED_METRICS[name]}` now")
    if name not in known:
        guess = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean `{guess[0]}`?" if guess else f"known are {', '.join(known)}"
        raise ConfigError(f"{where}: unknown metric `{written}`: {hint}")
