"""Three and more models: corrected for their number, who is told from whom, and how often equal ones are called different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tuneful.config import Config, load_config
from tuneful.errors import DataError
from tuneful.evaluation.answered import Answered, AnsweredSet
from tuneful.evaluation.document import compare_models
from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import metric_spec
from tuneful.evaluation.metrics import score_answer
from tuneful.evaluation.pairwise import (
    compare_pairwise,
    corrected_p_values,
    enough_resamples,
    groups,
    in_words,
    pair_confidence,
    pairs_of,
    shared_items,
)
from tuneful.evaluation.statistics import Array, Ratio, interval
from tuneful.runs.schema import (
    Comparison,
    JudgeFinding,
    MetricVerdict,
    PairOfSides,
    PairwiseComparison,
    PairwiseMetric,
    Side,
)

NUM_MODELS, NUM_ITEMS, NUM_FAMILIES = 4, 40, 250

JUDGE = JudgeFinding("j", "usable", 40, "j passed every probe.")


def holds_zero(pair: PairOfSides) -> bool:
    """Whether the interval of a pair is known to hold 0; one that is not known says nothing and cannot be wrong."""
    return pair.low is None or pair.high is None or pair.low <= 0 <= pair.high


def sides(num: int) -> list[Side]:
    return [Side(letter, f"runs/{letter}", NUM_ITEMS, 0) for letter in "ABCDEFGH"[:num]]


def family(scores_MI: Array, metric: str = "rouge_l", seed: int = 0) -> PairwiseComparison:
    """The models of these scores, every two compared as `tuneful compare A B C` does."""
    pairs = pairs_of(len(scores_MI))
    level = pair_confidence(0.95, len(pairs))
    ratios = [Ratio(scores_I, np.ones_like(scores_I)) for scores_I in scores_MI]
    num_resamples = enough_resamples(1000, level)
    metrics = compare_ratios(
        [(metric_spec(metric), (ratios[base], ratios[tuned])) for base, tuned in pairs],
        confidence=level,
        num_resamples=num_resamples,
        seed=seed,
    )
    found = {
        pair: Comparison(scores_MI.shape[1], level, num_resamples, seed, metric, 5.0, None, (one,))
        for pair, one in zip(pairs, metrics, strict=True)
    }
    return compare_pairwise(sides(len(scores_MI)), found, confidence=0.95)


def equal_models(generator: np.random.Generator, metric: str) -> Array:
    """Scores [models, items] of models that differ by chance alone, on items some of which are harder."""
    difficulty_I = generator.beta(2, 2, NUM_ITEMS)
    if metric == "exact_match":
        return (generator.random((NUM_MODELS, NUM_ITEMS)) < difficulty_I).astype(float)
    return np.clip(difficulty_I + generator.normal(0, 0.15, (NUM_MODELS, NUM_ITEMS)), 0, 1)


@pytest.mark.parametrize("metric", ["rouge_l", "exact_match"])
def test_among_equal_models_any_false_verdict_is_rarer_than_the_level_and_all_intervals_hold_together(
    metric: str,
) -> None:
    generator = np.random.default_rng(7)
    false, uncorrected, together = [], [], []
    for seed in range(NUM_FAMILIES):
        pairs = family(equal_models(generator, metric), metric, seed).main.pairs
        false.append(any(pair.verdict != "cannot tell" for pair in pairs))
        uncorrected.append(any((pair.p_value or 0.0) <= 0.05 for pair in pairs))
        together.append(all(holds_zero(pair) for pair in pairs))
    assert np.mean(false) < 0.05, np.mean(false)
    assert np.mean(uncorrected) > 0.08, "without the correction the share would be above the level"
    assert np.mean(together) >= 0.93, np.mean(together)


def test_intervals_hold_together_where_the_models_differ() -> None:
    generator = np.random.default_rng(3)
    effects_M = np.array([0.0, 0.1, 0.1, 0.3])
    covered = []
    for seed in range(150):
        noise_MI = generator.normal(0, 0.2, (NUM_MODELS, NUM_ITEMS)) + generator.normal(0, 1, NUM_ITEMS)
        pairs = family(noise_MI + effects_M[:, None], seed=seed).main.pairs
        truths = [effects_M[tuned] - effects_M[base] for base, tuned in pairs_of(NUM_MODELS)]
        covered.append(all(pair.low <= truth <= pair.high for pair, truth in zip(pairs, truths, strict=True)))
    assert np.mean(covered) >= 0.93, np.mean(covered)


def test_a_model_that_is_better_is_found_among_equal_ones_and_the_others_stay_together() -> None:
    generator = np.random.default_rng(5)
    scores_MI = equal_models(generator, "rouge_l")
    scores_MI[2] = np.clip(scores_MI[2] + 0.3, 0, 1)
    compared = family(scores_MI)
    assert compared.main.sentence == "C is better than all others; A, B and D cannot be told apart"
    assert compared.main.groups == (("A", "B", "D"),)
    assert compared.main.values == pytest.approx(scores_MI.mean(1))
    by_pair = {(pair.base, pair.tuned): pair for pair in compared.main.pairs}
    assert (by_pair["A", "C"].verdict, by_pair["C", "D"].verdict) == ("better", "worse")
    assert by_pair["A", "C"].p_corrected is not None
    assert by_pair["A", "C"].p_corrected >= (by_pair["A", "C"].p_value or 0.0)
    assert "This allows for there being 6 pairs." in (compared.sentence or "")


def test_the_level_of_a_pair_and_its_resamples_follow_from_their_number() -> None:
    assert pair_confidence(0.95, 1) == pytest.approx(0.95)
    assert pair_confidence(0.95, 10) == pytest.approx(0.995)
    assert enough_resamples(10_000, 0.995) == 10_000
    level = pair_confidence(0.95, len(pairs_of(26)))
    many = enough_resamples(10_000, level)
    low, _ = interval(np.arange(many, dtype=float), 10_000, level)
    assert 8 <= low <= 11, "some ten resamples lie beyond the end"


def test_a_pair_without_a_test_has_no_p_value_but_counts_among_the_others() -> None:
    assert corrected_p_values([0.01, None, 0.02]) == [pytest.approx(0.03), None, pytest.approx(0.04)]


# Who is told from whom


def pair(base: str, tuned: str, verdict: MetricVerdict, difference: float = 0.1) -> PairOfSides:
    return PairOfSides(base, tuned, 20, difference, -1.0, 1.0, 1, 1, 18, 0.5, 0.5, 0.2, verdict)


def metric_of(values: str, pairs: list[PairOfSides], *, higher: bool | None = True) -> PairwiseMetric:
    letters = "ABCD"[: len(values)]
    metric = PairwiseMetric("rouge_l", "ROUGE-L", "0 to 1", higher, tuple(map(float, values)), tuple(pairs), (), "")
    return replace(metric, groups=groups(letters, pairs))


def test_sides_that_cannot_be_told_apart_may_stand_in_two_groups() -> None:
    """A < C, with B between them, told from neither."""
    found = metric_of("123", [pair("A", "B", "cannot tell"), pair("A", "C", "better"), pair("B", "C", "cannot tell")])
    assert found.groups == (("A", "B"), ("B", "C"))
    assert in_words(found, "ABC") == "C is better than A; A and B cannot be told apart; B and C cannot be told apart"


def test_all_that_can_be_told_is_said_the_best_first() -> None:
    steps = [pair(base, tuned, "better") for base, tuned in (("A", "B"), ("A", "C"), ("B", "C"))]
    assert in_words(metric_of("123", steps), "ABC") == "C is better than all others; B is better than A"
    falling = [replace(one, difference=-0.1) for one in steps]
    assert in_words(metric_of("321", falling, higher=False), "ABC") == "C is better than all others; B is better than A"
    alike = [pair(base, tuned, "cannot tell") for base, tuned in (("A", "B"), ("A", "C"), ("B", "C"))]
    assert in_words(metric_of("123", alike), "ABC") == "these three cannot be told apart: A, B and C"
    longer = [replace(steps[0], verdict="changed"), *alike[1:]]
    assert in_words(metric_of("123", longer, higher=None), "ABC").startswith("B is higher than A; ")


def test_groups_of_many_sides_are_found_at_once() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    everywhere = [pair(letters[base], letters[tuned], "cannot tell") for base, tuned in pairs_of(26)]
    assert groups(letters, everywhere) == (tuple(letters),)
    chain = [replace(one, verdict="better") if ord(one.tuned) - ord(one.base) > 1 else one for one in everywhere]
    assert groups(letters, chain) == tuple(pairwise(letters))
    assert groups("ABC", [replace(one, verdict="better") for one in everywhere[:2]] + [pair("B", "C", "worse")]) == ()


# Degenerate sets


def answered(name: str, texts: list[str], judged: Sequence[float | None] | None = None) -> AnsweredSet:
    items = [
        Answered(
            f"x:{index}",
            f"Ask {index}.",
            "yes",
            text,
            "stop",
            3,
            "kind",
            score_answer(text, "yes", ended=True, judge_score=score),
        )
        for index, (text, score) in enumerate(zip(texts, judged or [None] * len(texts), strict=True))
    ]
    return AnsweredSet(name, tuple(items), ())


def compared(answers: list[AnsweredSet], config: Config | None = None) -> PairwiseComparison:
    config = config or load_config(None, ["report.num_resamples=1000", f"report.confidence={pair_confidence(0.95, 3)}"])
    scores = [[one.scores for one in items] for items in shared_items(answers)]
    found = {
        (base, tuned): compare_models(config, scores[base], scores[tuned], [], (), (), JUDGE)
        for base, tuned in pairs_of(len(answers))
    }
    return compare_pairwise(sides(len(answers)), found, confidence=0.95)


def test_one_item_and_equal_answers_tell_nothing_and_say_so() -> None:
    one = compared([answered(name, [text]) for name, text in (("a", "yes"), ("b", "no"), ("c", "yes"))])
    assert all(pair.verdict == "cannot tell" for metric in one.metrics for pair in metric.pairs)
    assert "only 1 test item: below 7 nothing can be told" in (one.caution or "")
    equal = compared([answered(name, ["yes"] * 30) for name in "abc"])
    assert equal.main.sentence == "these three cannot be told apart: A, B and C"
    assert {pair.p_corrected for pair in equal.main.pairs} == {1.0}
    ends = {(pair.low, pair.high) for pair in equal.main.pairs}
    assert len(ends) == 1
    assert all(low is not None and high is not None and -0.2 < low == -high < 0 for low, high in ends)


def test_what_one_side_has_not_measured_of_an_item_counts_for_none() -> None:
    texts = ["yes", "no"] * 10
    last: dict[str, float | None] = {"a": 60.0, "b": None, "c": 70.0}
    judged = [answered(name, texts, [*[50.0] * 19, score]) for name, score in last.items()]
    found = compared(judged)
    assert found.headline == "judge_score"
    assert {pair.num_items for pair in found.main.pairs} == {19}
    assert list(found.main.values) == [50.0, 50.0, 50.0]
    never = compared([*judged[:2], answered("c", texts)])
    assert never.headline == "rouge_l"
    assert "judge_score" not in {metric.name for metric in never.metrics}


def test_only_items_that_all_sides_answer_are_compared() -> None:
    first, second, third = (answered(name, ["yes"] * 9) for name in "abc")
    fewer = replace(second, items=second.items[2:]), replace(third, items=third.items[:5])
    shared = shared_items([first, *fewer])
    assert [[one.prompt for one in items] for items in shared] == [["Ask 2.", "Ask 3.", "Ask 4."]] * 3
    with pytest.raises(DataError, match=r"no item that all sides answer, of a \(9\), b \(2\), c \(2\)"):
        shared_items([first, replace(second, items=second.items[:2]), replace(third, items=third.items[-2:])])
