"""Two sides of a comparison become one: answers, documents, standard tests, forgetting, people; and the checks that apply.

Stands over `answered.py` and `compare.py`, for `tuneful compare` and for the gate of `tuneful evaluate RUN`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneful.config import Config
from tuneful.errors import ConfigError
from tuneful.evaluation.answered import AnsweredSet, Pairing, pair
from tuneful.evaluation.checks import Check, metrics_of, read_checks, with_checks
from tuneful.evaluation.compare import worse_finding
from tuneful.evaluation.document import compare_models, with_items
from tuneful.evaluation.documents import compare_documents, comparison_without_answers, pair_documents
from tuneful.evaluation.forgetting import compare_forgetting
from tuneful.evaluation.gate import Condition, check_headline, parse_gate
from tuneful.evaluation.ratings import (
    MatchedRatings,
    RatedPair,
    judge_gain,
    match_ratings,
    summarise_ratings,
    with_preferences,
)
from tuneful.evaluation.summary import summary_sentence
from tuneful.evaluation.taken_tests import TakenTest, compare_taken, pair_tests
from tuneful.evaluation.task_comparison import metric_names
from tuneful.runs.schema import ComparedSides, Comparison, GeneralScore


@dataclass(frozen=True, slots=True)
class Shared:
    """What two sides have in common: items that both answer, documents that both read, tests that both took."""

    pairing: Pairing
    documents: tuple[list[GeneralScore], list[GeneralScore]]
    tests: tuple[tuple[TakenTest, ...], tuple[TakenTest, ...]] = ((), ())


@dataclass(frozen=True, slots=True)
class Request:
    """How sides are compared: the configuration with the checks that apply, those as they can be run, the conditions of the
    gate, and `remarks` about what is not compared."""

    config: Config
    checks: tuple[Check, ...]
    conditions: tuple[Condition, ...]
    remarks: tuple[str, ...]


def shared_by(before: AnsweredSet, after: AnsweredSet) -> tuple[Shared, list[str]]:
    """What both sides have, and remarks about tests that only one has; DataError where that is nothing."""
    documents = pair_documents(before.documents, after.documents)
    tests, remarks = pair_tests([before.tests, after.tests])
    pairing = pair(before, after, num_others=len(documents[0]) + len(tests))
    return Shared(pairing, documents, _columns(tests, 2)), remarks


def tests_of_all(sides: Sequence[AnsweredSet]) -> tuple[list[tuple[TakenTest, ...]], list[str]]:
    """The tests that all sides took, for each side, and remarks about the others."""
    tests, remarks = pair_tests([side.tests for side in sides])
    return list(_columns(tests, len(sides))), remarks


def _columns(rows: Sequence[tuple[TakenTest, ...]], num_sides: int) -> Any:
    return tuple(tuple(row[place] for row in rows) for place in range(num_sides))


def requested(config: Config, sides: Sequence[AnsweredSet], tests: Sequence[TakenTest], has_answers: bool) -> Request:
    """What `config` asks of `sides`; where it names no checks, those that all of their runs were configured with.

    Functions are left out of these: code is run where it is named, and not because a folder names it. ConfigError for what
    cannot be made or is not measured.
    """
    taken = metric_names([test.asked for test in tests])
    remarks = [remark for side in sides for remark in side.remarks]
    checks = read_checks(config, others=taken)
    if not checks and has_answers:
        entries, remark = _checks_of_runs(sides)
        own = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"checks": entries})})
        try:
            checks, config = read_checks(own, others=taken), own
        except ConfigError as error:
            remark = f"not checked as the runs were: {error}. Name a file of checks: --checks FILE"
        remarks += [remark] if remark else []
    metrics = metrics_of(checks)
    conditions = parse_gate(config.report.gate, others=[*taken, *(spec.name for spec in metrics)])
    check_headline(config.report.headline, metrics)
    return Request(config, checks, conditions, tuple(remarks))


def _checks_of_runs(sides: Sequence[AnsweredSet]) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """The checks of all runs' configuration, and what is to be said of those that are not taken."""
    first, *others = ([dict(entry) for entry in side.checks] for side in sides)
    if any(own != first for own in others):
        return (
            (),
            "not checked: the sides were not configured with the same evaluation.checks; name a file: --checks FILE",
        )
    kept = tuple(entry for entry in first if "python" not in entry)
    if len(kept) == len(first):
        return kept, None
    left = ", ".join(str(entry.get("name", "python")) for entry in first if "python" in entry)
    return kept, f"not checked: {left}, a function of one's own, which is run where it is named: --checks FILE"


def checked(request: Request, shared: Shared) -> Shared:
    """What is shared, with what the checks found of the answers."""
    base, tuned = (with_checks(request.checks, side) for side in (shared.pairing.base, shared.pairing.tuned))
    return replace(shared, pairing=replace(shared.pairing, base=base, tuned=tuned))


def compare_sides(
    request: Request, before: AnsweredSet, after: AnsweredSet, shared: Shared, *, matched: MatchedRatings | None = None
) -> Comparison:
    """The comparison of what both sides answer, read and took, of any of these where they share only that; the answers are
    `checked`.

    `matched` are people's ratings (default: those of both runs of the answers that are compared).
    """
    config, checks, pairing = request.config, request.checks, shared.pairing
    names, report = ComparedSides(before.name, after.name), config.report
    settings: dict[str, Any] = {
        "confidence": report.confidence,
        "num_resamples": report.num_resamples,
        "seed": config.train.seed,
    }
    tests, of_tests = compare_taken(*shared.tests, **settings)
    others = (*compare_documents(*shared.documents, **settings), *of_tests)
    if not pairing.base:
        if checks or report.headline is not None:
            setting = "evaluation.checks" if checks else "report.headline"
            raise ConfigError(f"{setting} is of answers, and {before.name} and {after.name} have none in common")
        forgetting = compare_forgetting(before.general, after.general, **settings)
        found = replace(comparison_without_answers(others, forgetting, **settings), tests=tests)
        return replace(found, names=names, sentence=summary_sentence(found, "B"))
    matched = matched or rated(before, after, pairing)
    kinds = [one.kind for one in pairing.tuned]
    base, tuned = ([one.scores for one in side] for side in (pairing.base, pairing.tuned))
    base, tuned = with_preferences(base, tuned, matched)
    judge = worse_finding(before.judge, after.judge)
    compared = compare_models(config, base, tuned, kinds, before.general, after.general, judge, checks)
    comparison = with_items(
        replace(compared, metrics=(*compared.metrics, *others), tests=tests),
        sources=[one.source for one in pairing.tuned],
        references=[one.reference for one in pairing.tuned],
        kinds=kinds,
        base=base,
        tuned=tuned,
        names=names,
        checks=checks,
    )
    return _with_people(comparison, matched)


def rated(before: AnsweredSet, after: AnsweredSet, pairing: Pairing) -> MatchedRatings:
    """What people rated in the run of either side, of the answers that are compared."""
    return match_ratings(dict.fromkeys((*before.ratings, *after.ratings)), rated_pairs(pairing))


def rated_pairs(pairing: Pairing) -> list[RatedPair]:
    """The items of a comparison as people may have rated them."""
    pairs = zip(pairing.base, pairing.tuned, strict=True)
    return [RatedPair((*{one.source, other.source},), one.text, other.text) for one, other in pairs]


def _with_people(comparison: Comparison, matched: MatchedRatings) -> Comparison:
    if not any(matched.by_item):
        return comparison
    people = summarise_ratings(
        matched,
        [judge_gain(item.base.judge_score, item.tuned.judge_score) for item in comparison.items or ()],
        confidence=comparison.confidence,
        num_resamples=comparison.num_resamples,
        seed=comparison.seed,
    )
    return replace(comparison, people=people)
