"""The comparison that `comparison.json` holds: two models compared, the sentence, and every item behind it.

Stands over `compare.py` and `forgetting.py`, for `tuneful compare` and for the end of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import starmap

from tuneful.config import Config
from tuneful.evaluation.checks import Check, check_results, metrics_of
from tuneful.evaluation.compare import compare, gains
from tuneful.evaluation.forgetting import compare_forgetting
from tuneful.evaluation.summary import summary_sentence
from tuneful.runs.schema import (
    AnswerScores,
    CheckedSides,
    ComparedSides,
    Comparison,
    ComparisonItem,
    GeneralScore,
    JudgeFinding,
)


def compare_models(
    config: Config,
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    kinds: Sequence[str | None],
    general_base: Sequence[GeneralScore],
    general_tuned: Sequence[GeneralScore],
    judge: JudgeFinding | None = None,
    checks: Sequence[Check] = (),
) -> Comparison:
    """Compare the answers and the forgetting of two models with the confidence, resamples, seed and headline of `config`;
    `judge` is what is known of whoever scored them, `checks` are those that the scores hold."""
    report, seed = config.report, config.train.seed
    forgetting = compare_forgetting(
        general_base, general_tuned, confidence=report.confidence, num_resamples=report.num_resamples, seed=seed
    )
    compared = compare(
        base,
        tuned,
        kinds=kinds,
        forgetting=forgetting,
        judge=judge,
        checks=metrics_of(checks),
        headline=report.headline,
        confidence=report.confidence,
        num_resamples=report.num_resamples,
        seed=seed,
    )
    if not checks:
        return compared
    sides = (
        check_results(
            checks,
            [one.checks or {} for one in side],
            confidence=report.confidence,
            num_resamples=report.num_resamples,
            seed=seed,
        )
        for side in (base, tuned)
    )
    return replace(compared, checks=CheckedSides(*sides))


def with_items(
    comparison: Comparison,
    *,
    sources: Sequence[str],
    references: Sequence[str],
    kinds: Sequence[str | None],
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    names: ComparedSides | None = None,
    checks: Sequence[Check] = (),
) -> Comparison:
    """The comparison as comparison.json holds it: with its sentence, and the items behind it, each with its `gain`."""
    rows = zip(sources, references, kinds, gains(comparison, base, tuned, metrics_of(checks)), base, tuned, strict=True)
    sentence = summary_sentence(comparison, "B") if names else summary_sentence(comparison)
    return replace(comparison, names=names, sentence=sentence, items=tuple(starmap(ComparisonItem, rows)))
