"""The gate of `tuneful evaluate`: of a run what base and tuned differ in, as at the end of a run; of a file what its answers are.

Conditions are read before anything is asked or checked, and held against what was found then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuneful.errors import ConfigError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.evaluation.answered import AnsweredSet
    from tuneful.evaluation.checks import Check
    from tuneful.evaluation.gate import Condition
    from tuneful.evaluation.sides import Request, Shared
    from tuneful.judge.items import AnswerSet
    from tuneful.runs.schema import ChecksDocument, EvaluationDocument, GateOutcome
    from tuneful.types import Verdict


@dataclass(frozen=True, slots=True)
class EvaluationGate:
    """The conditions on a set of answers; of a run its two `sides`, what they `shared`, and how they are compared."""

    conditions: tuple[Condition, ...]
    request: Request | None = None
    sides: tuple[AnsweredSet, AnsweredSet] | None = None
    shared: Shared | None = None


def read_gate(answers: Path, config: Config, checks: Sequence[Check], limit: int | None) -> EvaluationGate | None:
    """The gate of `config`, None where it has none; ConfigError for a condition on what these answers cannot have."""
    from tuneful.evaluation.answered import read_answered
    from tuneful.evaluation.checks import metrics_of
    from tuneful.evaluation.gate import ALONE, parse_gate
    from tuneful.evaluation.sides import requested, shared_by

    if not config.report.gate.strip():
        return None
    if not answers.is_dir():
        own = [spec.name for spec in metrics_of(checks)]
        conditions = parse_gate(config.report.gate, others=own, figures=ALONE)
        if config.judge.model is None and any(condition.name == "judge_score" for condition in conditions):
            raise ConfigError("report.gate: judge_score needs a judge, and none is named; name one (--judge)")
        return EvaluationGate(conditions)
    if missing := [file for file in _files_of(answers) if not file.is_file()]:
        raise ConfigError(f"{answers}: is no run folder with answers: there is no {missing[0]}")
    before, after = (read_answered(str(file), config.data) for file in _files_of(answers))
    shared, _ = shared_by(before, after)
    request = requested(config, (before, after), shared.tests[1], has_answers=True)
    pairing = shared.pairing
    shared = replace(shared, pairing=replace(pairing, base=pairing.base[:limit], tuned=pairing.tuned[:limit]))
    return EvaluationGate(request.conditions, request, (before, after), shared)


def _files_of(run: Path) -> list[Path]:
    return [run / "answers" / f"{name}.jsonl" for name in ("base", "tuned")]


def outcomes_of(
    gate: EvaluationGate | None,
    sets: Sequence[AnswerSet],
    config: Config,
    checks: ChecksDocument | None,
    summary: EvaluationDocument | None,
    verdicts: Mapping[str, Sequence[Verdict]],
    terminal: Terminal,
) -> tuple[GateOutcome, ...]:
    """What became of each condition, printed; of the answers `sets`, with what checks and the judge found of them."""
    from tuneful.evaluation.tables import show_gate

    if gate is None:
        return ()
    if gate.request is not None and gate.sides is not None and gate.shared is not None:
        return _of_run(gate.request, gate.sides, gate.shared, summary, verdicts, terminal)
    found = _alone(gate, sets, config, checks, summary)
    show_gate(found, terminal)
    return tuple(found)


def _of_run(
    request: Request,
    sides: tuple[AnsweredSet, AnsweredSet],
    shared: Shared,
    summary: EvaluationDocument | None,
    verdicts: Mapping[str, Sequence[Verdict]],
    terminal: Terminal,
) -> tuple[GateOutcome, ...]:
    from tuneful.evaluation.sides import checked, compare_sides
    from tuneful.evaluation.tables import apply_gate, show_comparison

    for remark in request.remarks:
        terminal.say(remark, style="yellow")
    shared = checked(request, shared)
    before, after = sides
    if summary is not None:
        shared = _judged(shared, verdicts)
        before, after = (replace(side, judge=summary.finding) for side in sides)
    comparison = compare_sides(request, before, after, shared)
    show_comparison(comparison, terminal, ("base", "tuned"))
    return apply_gate(request.conditions, comparison, terminal).gate or ()


def _judged(shared: Shared, verdicts: Mapping[str, Sequence[Verdict]]) -> Shared:
    """What is shared, with the judge's scores of now; of two answers that were compared the base has what the tuned has not."""
    first, *others = ({one.source: one.score for one in own} for own in verdicts.values())
    if others:
        of_base, of_tuned = first, others[0]
    else:
        of_base = {source: None if score is None else 100 - score for source, score in first.items()}
        of_tuned = first
    base, tuned = (
        tuple(replace(one, scores=replace(one.scores, judge_score=scores.get(one.source))) for one in side)
        for side, scores in ((shared.pairing.base, of_base), (shared.pairing.tuned, of_tuned))
    )
    return replace(shared, pairing=replace(shared.pairing, base=base, tuned=tuned))


def _alone(
    gate: EvaluationGate,
    sets: Sequence[AnswerSet],
    config: Config,
    checks: ChecksDocument | None,
    summary: EvaluationDocument | None,
) -> list[GateOutcome]:
    from tuneful.evaluation.gate import check_alone
    from tuneful.evaluation.metrics import score_answer
    from tuneful.evaluation.one_set import check_figures, judge_figure, need_texts, text_figures

    if len(sets) != 1 or (checks is not None and len(checks.answers) != 1):
        names = ", ".join(checks.answers if checks is not None else (one.name for one in sets))
        raise ConfigError(f"report.gate: is for one set of answers, and there are {names}; name one: --answer-key KEY")
    (own,) = sets
    measured = check_figures(next(iter(checks.answers.values()))) if checks is not None else {}
    void: set[str] = set()
    if summary is not None:
        measured["judge_score"] = judge_figure(summary.answers[own.name])
        void |= {"judge_score"} if summary.finding and summary.finding.verdict == "not usable" else set()
    if need_texts(gate.conditions):
        measured |= text_figures(
            [score_answer(one.answer, one.reference, ended=None) for one in own.items if one.reference is not None],
            confidence=config.report.confidence,
            num_resamples=config.report.num_resamples,
            seed=config.train.seed,
        )
    return check_alone(gate.conditions, measured, void=void)
