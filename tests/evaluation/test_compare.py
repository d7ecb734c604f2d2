"""Base against tuned: the statistics by simulation and by brute force, the verdicts and the words by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.doubles.populations import ends

from tuneful.evaluation.compare import compare, gains, ratios
from tuneful.evaluation.metric_comparison import compare_ratios, metric_verdict
from tuneful.evaluation.metric_specs import FORGETTING, METRICS, metric_spec
from tuneful.evaluation.statistics import resampled_differences
from tuneful.evaluation.summary import summary_sentence
from tuneful.runs.schema import AnswerScores, Comparison, JudgeFinding, MetricComparison, as_row

SURFACE = [spec for spec in METRICS if spec.name != "judge_score"]
"""The metrics that need no judge."""

PLAIN = AnswerScores(
    exact_match=False,
    token_f1=0.5,
    rouge_l=0.5,
    chrf=0.5,
    ended=True,
    num_words=10,
    reference_nll=20.0,
    reference_tokens=10,
    reference_words=12,
)


def scores_of(**columns: Any) -> list[AnswerScores]:
    """Plain scores, but for the columns given: `scores_of(rouge_l=[0.1, 0.2])` are two answers."""
    rows = zip(*columns.values(), strict=True)
    return [replace(PLAIN, **dict(zip(columns, row, strict=True))) for row in rows]


def metric_of(comparison: Comparison, name: str) -> MetricComparison:
    return next(metric for metric in comparison.metrics if metric.name == name)


def random_pair(num_items: int, seed: int = 0) -> tuple[list[AnswerScores], list[AnswerScores]]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 40, num_items).tolist()

    def one_model() -> list[AnswerScores]:
        return scores_of(
            exact_match=(generator.random(num_items) < 0.3).tolist(),
            token_f1=generator.random(num_items).tolist(),
            rouge_l=generator.random(num_items).tolist(),
            chrf=generator.random(num_items).tolist(),
            ended=(generator.random(num_items) < 0.8).tolist(),
            num_words=generator.integers(0, 50, num_items).tolist(),
            reference_nll=(generator.gamma(2, 1, num_items) * tokens).tolist(),
            reference_tokens=tokens,
        )

    return one_model(), one_model()


def test_every_metric_that_was_measured_is_compared_in_the_order_of_the_list() -> None:
    comparison = compare(*random_pair(30), num_resamples=100)
    assert [(m.name, m.label, m.unit, m.higher_is_better) for m in comparison.metrics] == [
        (spec.name, spec.label, spec.unit, spec.higher_is_better)
        for spec in SURFACE
        if spec.name != "people_preference"  # nobody rated
    ]
    assert comparison.headline == "rouge_l"


def test_answers_from_elsewhere_bring_no_likelihood_and_no_ending_and_are_compared_on_the_rest() -> None:
    base, tuned = (
        [replace(one, reference_nll=None, reference_tokens=None, ended=None) for one in side]
        for side in random_pair(30)
    )
    names = [metric.name for metric in compare(base, tuned, num_resamples=100).metrics]
    assert names == ["exact_match", "token_f1", "rouge_l", "chrf", "length"]


def test_a_judge_speaks_in_the_headline_of_the_items_that_it_scored_for_both_models() -> None:
    base, tuned = scores_of(judge_score=[10.0] * 20 + [None, 90.0]), scores_of(judge_score=[60.0] * 20 + [0.0, None])
    usable = JudgeFinding("j", "usable", 40, "j passed every probe.")
    comparison = compare(base, tuned, judge=usable, num_resamples=100)
    assert comparison.headline == "judge_score"
    judged = comparison.main
    assert (judged.num_items, judged.base, judged.tuned, judged.wins, judged.verdict) == (20, 10, 60, 20, "better")
    assert comparison.metrics[1].num_items == 22
    assert gains(comparison, base, tuned) == [50.0] * 20 + [None, None]
    assert summary_sentence(comparison).startswith(
        "The tuned model's answers are better on judge score: 10.0 -> 60.0 (+50.0"
    )


def test_the_point_estimates_by_hand() -> None:
    base = scores_of(
        rouge_l=[0.0, 0.4], exact_match=[False, True], reference_nll=[10.0, 2.0], reference_tokens=[2, 2],
        ended=[False, True], num_words=[3, 4],
    )  # fmt: skip
    tuned = scores_of(
        rouge_l=[0.6, 0.2], exact_match=[True, True], reference_nll=[1.0, 3.0], reference_tokens=[2, 2],
        ended=[True, True], num_words=[5, 4],
    )  # fmt: skip
    comparison = compare(base, tuned, num_resamples=100)
    expected = {
        "rouge_l": (0.2, 0.4, 1, 1, 0),
        "exact_match": (0.5, 1.0, 1, 0, 1),
        "reference_loss": (3.0, 1.0, 1, 1, 0),  # lower wins
        "perplexity": (math.exp(3), math.exp(1), 1, 1, 0),
        "ended": (0.5, 1.0, 1, 0, 1),
        "length": (3.5, 4.5, 1, 0, 1),
        "chrf": (0.5, 0.5, 0, 0, 2),
    }
    for name, (base_value, tuned_value, wins, losses, ties) in expected.items():
        metric = metric_of(comparison, name)
        assert metric.base == pytest.approx(base_value)
        assert metric.tuned == pytest.approx(tuned_value)
        assert metric.difference == pytest.approx(tuned_value - base_value)
        assert (metric.wins, metric.losses, metric.ties) == (wins, losses, ties)
    assert comparison.reference_words == 12


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    base, tuned = random_pair(50)
    first, again, other = (compare(base, tuned, num_resamples=500, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert metric_of(first, "rouge_l").low != metric_of(other, "rouge_l").low


def test_swapping_the_models_flips_every_difference_interval_and_verdict() -> None:
    base, tuned = random_pair(40)
    tuned = [replace(scores, rouge_l=min(1.0, scores.rouge_l + 0.3)) for scores in tuned]
    forth, back = (compare(*pair, num_resamples=500) for pair in ((base, tuned), (tuned, base)))
    opposite = {"better": "worse", "worse": "better", "changed": "changed", "cannot tell": "cannot tell"}
    for one, other in zip(forth.metrics, back.metrics, strict=True):
        assert (*ends(one), one.difference) == tuple(-end for end in (*reversed(ends(other)), other.difference))
        assert (one.wins, one.losses, one.ties) == (other.losses, other.wins, other.ties)
        assert one.verdict == opposite[other.verdict]


def test_the_bootstrap_is_the_brute_force_one_ratio_and_perplexity_included() -> None:
    base, tuned = random_pair(25)
    generator = np.random.Generator(np.random.PCG64(3))
    loss, perplexity, rouge = [], [], []
    for _ in range(199):
        drawn = generator.integers(25, size=(1, 25))[0]
        values = []
        for model in (base, tuned):
            nll = sum(model[i].reference_nll for i in drawn)
            values.append(nll / sum(model[i].reference_tokens for i in drawn))
        loss.append(values[1] - values[0])
        perplexity.append(math.exp(values[1]) - math.exp(values[0]))
        rouge.append(sum(tuned[i].rouge_l - base[i].rouge_l for i in drawn) / 25)
    names = ("reference_loss", "perplexity", "rouge_l")
    pairs = [ratios(metric_spec(name), base, tuned) for name in names]
    found = resampled_differences(pairs, 199, 3)
    np.testing.assert_allclose(found, [loss, perplexity, rouge], rtol=1e-9)
    comparison = compare(base, tuned, num_resamples=199, seed=3)
    for name, differences in zip(names, found, strict=True):
        metric = metric_of(comparison, name)
        # sqrt(25 / 24) * t(24) = 2.106, of whose normal tail 200 draws hold 3.5: the third from either end, or further out
        assert metric.low <= sorted(differences)[2] + 1e-12
        assert metric.high >= sorted(differences)[-3] - 1e-12


def test_loss_weighs_tokens_and_not_items() -> None:
    comparison = compare(
        scores_of(reference_nll=[1.0, 300.0], reference_tokens=[1, 99]),
        scores_of(reference_nll=[3.0, 300.0], reference_tokens=[1, 99]),
        num_resamples=100,
    )
    assert metric_of(comparison, "reference_loss").base == pytest.approx(3.01)
    assert metric_of(comparison, "reference_loss").difference == pytest.approx(0.02)


def test_pairing_keeps_the_difficulty_of_the_items_out_of_the_interval() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.uniform(0, 0.9, 100)
    base = scores_of(rouge_l=difficulty.tolist())
    tuned = scores_of(rouge_l=(difficulty + generator.uniform(0.01, 0.03, 100)).tolist())
    metric = metric_of(compare(base, tuned, num_resamples=2000), "rouge_l")
    assert metric.verdict == "better"
    low, high = ends(metric)
    assert high - low == pytest.approx(2 * 1.96 * 0.02 / math.sqrt(12 * 100), rel=0.15)
    unpaired_width = 2 * 1.96 * math.sqrt(2 * difficulty.var() / 100)
    assert unpaired_width > 50 * (high - low)


@pytest.mark.parametrize(
    ("column", "base_value", "tuned_value", "name", "verdict"),
    [
        ("rouge_l", 0.2, 0.4, "rouge_l", "better"),
        ("rouge_l", 0.4, 0.2, "rouge_l", "worse"),
        ("rouge_l", 0.4, 0.4, "rouge_l", "cannot tell"),
        ("exact_match", False, True, "exact_match", "better"),
        ("ended", True, False, "ended", "worse"),
        ("reference_nll", 20.0, 10.0, "reference_loss", "better"),
        ("reference_nll", 10.0, 20.0, "reference_loss", "worse"),
        ("reference_nll", 20.0, 10.0, "perplexity", "better"),
        ("reference_nll", 10.0, 20.0, "perplexity", "worse"),
        ("num_words", 10, 20, "length", "changed"),
        ("num_words", 20, 10, "length", "changed"),
        ("num_words", 20, 20, "length", "cannot tell"),
    ],
)
def test_verdicts_follow_the_good_direction(
    column: str, base_value: Any, tuned_value: Any, name: str, verdict: str
) -> None:
    base, tuned = scores_of(**{column: [base_value] * 30}), scores_of(**{column: [tuned_value] * 30})
    metric = metric_of(compare(base, tuned, num_resamples=100), name)
    assert metric.verdict == verdict
    if (name, verdict) == ("length", "cannot tell"):  # thirty times nothing, on a scale without an end
        assert (metric.low, metric.high) == (None, None)
    else:  # 30 of 30 need not be all there is: no interval is a point
        low, high = ends(metric)
        assert low < high
        assert low <= metric.difference <= high
    right_wins = {"better": (30, 0, 0), "worse": (0, 30, 0), "cannot tell": (0, 0, 30)}
    assert (metric.wins, metric.losses, metric.ties) == right_wins.get(verdict, (metric.wins, metric.losses, 0))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_equal_models_differ_by_exactly_nothing(num_items: int, seed: int) -> None:
    base, _ = random_pair(num_items, seed)
    for metric in compare(base, base, num_resamples=100, seed=seed).metrics:
        assert (metric.difference, metric.ties, metric.p_value) == (0, num_items, 1)
        assert metric.verdict == "cannot tell"
        has_range = metric.name not in ("reference_loss", "perplexity", "length")
        if num_items < 6 or not has_range:  # equal so far: of a scale without an end that says nothing
            assert (metric.low, metric.high, metric.detectable) == (None, None, None)
        elif metric.name in ("exact_match", "ended"):
            assert ends(metric)[0] < 0 < ends(metric)[1]
        else:
            assert ends(metric)[1] == -ends(metric)[0] == pytest.approx(1 - 0.05 ** (1 / num_items))


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 40), st.integers(0, 1000))
def test_loss_and_perplexity_never_contradict_each_other(num_items: int, seed: int) -> None:
    comparison = compare(*random_pair(num_items, seed), confidence=0.5, num_resamples=100, seed=seed)
    loss, perplexity = metric_of(comparison, "reference_loss"), metric_of(comparison, "perplexity")
    assert {loss.verdict, perplexity.verdict} != {"better", "worse"}
    assert loss.p_value == perplexity.p_value


def test_a_single_item_tells_nothing() -> None:
    comparison = compare(scores_of(rouge_l=[0.1]), scores_of(rouge_l=[0.9]), num_resamples=100)
    metric = metric_of(comparison, "rouge_l")
    assert (metric.low, metric.high, metric.detectable) == (None, None, None)
    assert all(metric.verdict == "cannot tell" and metric.low is None for metric in comparison.metrics)
    assert "0.10 -> 0.90 (+0.80, interval not known) on 1 test item" in summary_sentence(comparison)
    assert comparison.caution == "only 1 test item: below 6 nothing can be told"


def test_no_interval_leaves_what_a_metric_can_be() -> None:
    """Ten answers that gain 0.8 and one that gains 1: unclipped, the interval would end beyond 1."""
    base = scores_of(rouge_l=[0.0] * 11, judge_score=[0.0] * 11, exact_match=[False] * 11)
    tuned = scores_of(rouge_l=[0.8] * 10 + [1.0], judge_score=[80.0] * 10 + [100.0], exact_match=[True] * 11)
    pairs = [(one, pair) for one in METRICS if (pair := ratios(one, base, tuned))[0].denominators.any()]
    unclipped = compare_ratios(
        [(replace(spec, unit="any"), pair) for spec, pair in pairs], confidence=0.999, num_resamples=400, seed=0
    )
    assert any(one.high is not None and one.high > metric_spec(one.name).span for one in unclipped)
    for metric in compare(base, tuned, confidence=0.999, num_resamples=400).metrics:
        span = metric_spec(metric.name).span
        assert metric.low is None or -span <= ends(metric)[0] <= metric.difference <= ends(metric)[1] <= span
    assert (metric_spec("judge_score").span, metric_spec("rouge_l").span) == (100, 1)
    assert metric_spec("perplexity").span == math.inf


@pytest.mark.parametrize(("num_changed", "verdict"), [(4, "cannot tell"), (5, "cannot tell"), (6, "better")])
def test_a_handful_of_changed_items_tells_nothing_however_many_are_equal(num_changed: int, verdict: str) -> None:
    base = scores_of(exact_match=[False] * 100)
    tuned = scores_of(exact_match=[True] * num_changed + [False] * (100 - num_changed))
    assert metric_of(compare(base, tuned, num_resamples=2000), "exact_match").verdict == verdict


@pytest.mark.parametrize(
    ("num_items", "caution"),
    [
        (5, "only 5 test items: below 6 nothing can be told"),
        (8, "only 8 test items: intervals are less sure than they say below 20"),
        (19, "only 19 test items: intervals are less sure than they say below 20"),
        (20, None),
    ],
)
def test_few_items_come_with_a_caution(num_items: int, caution: str | None) -> None:
    assert compare(*random_pair(num_items), num_resamples=100).caution == caution


@pytest.mark.parametrize(("num_changed", "has_caution"), [(0, False), (1, True), (9, True), (10, False)])
def test_few_changed_items_come_with_a_caution(num_changed: int, has_caution: bool) -> None:
    tuned = scores_of(rouge_l=[0.6] * num_changed + [0.5] * (50 - num_changed))
    caution = compare(scores_of(rouge_l=[0.5] * 50), tuned, num_resamples=100).caution or ""
    assert ("of 50 items changed on ROUGE-L, and the interval knows nothing of rarer changes" in caution) is has_caution


def test_losses_over_different_tokens_are_not_judged() -> None:
    base = scores_of(reference_nll=[30.0] * 30, rouge_l=[0.2] * 30)
    tuned = scores_of(reference_nll=[20.0] * 30, rouge_l=[0.3] * 30, reference_tokens=[11] * 30)
    comparison = compare(base, tuned, num_resamples=100)
    assert metric_of(comparison, "reference_loss").verdict == "cannot tell"
    assert metric_of(comparison, "perplexity").verdict == "cannot tell"
    assert metric_of(comparison, "rouge_l").verdict == "better"
    assert comparison.caution is not None
    assert "different tokens" in comparison.caution


def test_a_hopeless_loss_still_gives_finite_numbers() -> None:
    comparison = compare(scores_of(reference_nll=[1e6] * 30), scores_of(reference_nll=[20.0] * 30), num_resamples=100)
    values = [value for m in comparison.metrics for value in (m.base, m.tuned, m.low, m.high) if value is not None]
    assert all(map(math.isfinite, values))
    assert metric_of(comparison, "perplexity").low is not None


def test_what_cannot_be_paired_is_our_mistake() -> None:
    base, tuned = random_pair(3)
    for broken in ([], tuned[:2], [replace(scores, reference_words=1) for scores in tuned]):
        with pytest.raises(AssertionError):
            compare(base, broken)
    with pytest.raises(AssertionError):
        compare([], [])
    with pytest.raises(AssertionError):
        compare(base, tuned, confidence=1.0)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    narrow, wide = (
        metric_of(compare(*random_pair(50), confidence=confidence, num_resamples=2000), "rouge_l")
        for confidence in (0.8, 0.99)
    )
    assert ends(wide)[0] < ends(narrow)[0] < ends(narrow)[1] < ends(wide)[1]


def test_ten_thousand_items_stay_within_their_memory() -> None:
    base, tuned = random_pair(10_000)
    comparison = compare(base, tuned, num_resamples=300)
    assert comparison.num_items == 10_000
    assert comparison.caution is None


def test_the_comparison_survives_json() -> None:
    comparison = compare(*random_pair(10), num_resamples=100)
    plain = as_row(comparison)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain) == [
        "num_items", "confidence", "num_resamples", "seed", "headline", "reference_words", "caution", "metrics", "kinds",
        "forgetting", "tests",
    ]  # fmt: skip
    assert plain["metrics"][2] == asdict(comparison.metrics[2])


def test_kinds_are_compared_one_by_one_and_their_verdicts_corrected_for_their_number() -> None:
    base = scores_of(rouge_l=[0.2] * 40)
    after = [0.6] * 10 + [0.1] * 10 + [0.2] * 10 + [0.4] * 6 + [0.2] * 4
    kinds = ["sorting"] * 10 + ["summary"] * 10 + ["plural"] * 10 + [None] * 10
    comparison = compare(base, scores_of(rouge_l=after), kinds=kinds, num_resamples=200)
    found = {kind.kind: kind for kind in comparison.kinds}
    assert list(found) == ["other", "plural", "sorting", "summary"]
    assert found["sorting"].num_items == 10
    assert (found["sorting"].base, found["sorting"].tuned) == pytest.approx((0.2, 0.6))
    assert {name: kind.verdict for name, kind in found.items()} == {
        "sorting": "better",
        "summary": "worse",
        "plural": "cannot tell",
        "other": "cannot tell",  # six changed items alone would have shown something, as one of four kinds they do not
    }
    assert found["sorting"].p_value == pytest.approx(4 * 2 / 2**10)  # Holm: the least of four counts four times
    assert found["other"].p_value == pytest.approx(2 * 2 / 2**6)


def test_one_kind_is_no_kind() -> None:
    base, tuned = random_pair(10)
    for kinds in ([], [None] * 10, ["all"] * 10):
        assert compare(base, tuned, kinds=kinds, num_resamples=100).kinds == ()


def written(headline: dict[str, Any], **others: str) -> Comparison:
    """A comparison of 130 items with the headline metric given and a verdict for some others."""
    metrics = []
    for spec in (*SURFACE, FORGETTING[0]):
        numbers: dict[str, Any] = {"base": 0.5, "tuned": 0.5, "difference": 0.0, "low": 0.0, "high": 0.0}
        numbers |= {"p_value": 0.5, "p_is_exact": True, "detectable": 0.07, "num_items": 130}
        numbers |= {"wins": 0, "losses": 0, "ties": 130}
        numbers["verdict"] = others.get(spec.name, "cannot tell")
        if spec.name == "rouge_l":
            numbers.update(headline)
        if spec.name == "forgetting":
            numbers |= {"base": 0.9, "tuned": 0.96, "difference": 0.06, "low": 0.02, "high": 0.1}
        metrics.append(MetricComparison(spec.name, spec.label, spec.unit, spec.higher_is_better, **numbers))
    forgetting = tuple(metrics[-1:]) if "forgetting" in others else ()
    return Comparison(130, 0.95, 10_000, 0, "rouge_l", 12.0, None, tuple(metrics[:-1]), (), forgetting)


BETTER = {"base": 0.21, "tuned": 0.48, "difference": 0.27, "low": 0.22, "high": 0.32, "verdict": "better"}
WORSE = {"base": 0.48, "tuned": 0.21, "difference": -0.27, "low": -0.32, "high": -0.22, "verdict": "worse"}
UNKNOWN = {"base": 0.21, "tuned": 0.2, "difference": -0.01, "low": -0.07, "high": 0.05, "verdict": "cannot tell"}


def test_the_summary_says_better_in_numbers() -> None:
    assert summary_sentence(written(BETTER, chrf="better", length="changed")) == (
        "The tuned model's answers are better on ROUGE-L: "
        "0.21 -> 0.48 (+0.27, 95 % interval +0.22 to +0.32) on 130 test items."
    )


def test_the_summary_says_worse_and_does_not_hide_what_is_better() -> None:
    others = {"reference_loss": "better", "perplexity": "better", "chrf": "better", "exact_match": "better"}
    assert summary_sentence(written(WORSE, **others)) == (
        "The tuned model's answers are worse on ROUGE-L: "
        "0.48 -> 0.21 (-0.27, 95 % interval -0.32 to -0.22) on 130 test items."
        " The tuned model is better on exact match, chrF and reference loss."
    )


def test_the_summary_says_that_it_cannot_tell() -> None:
    assert summary_sentence(written(UNKNOWN, ended="worse", token_f1="better")) == (
        "The test cannot tell whether the tuned model's answers are better: ROUGE-L "
        "0.21 -> 0.20 (-0.01, 95 % interval -0.07 to +0.05) on 130 test items."
        " A true difference of 0.07 would show in 4 of 5 such tests."
        " The tuned model is better on token F1. The tuned model is worse on stopping at the end token."
    )


def test_the_summary_says_why_an_interval_without_0_is_no_verdict() -> None:
    apart = {"base": 0.28, "tuned": 0.83, "difference": 0.55, "low": 0.14, "high": 0.76, "verdict": "cannot tell"}
    assert (
        "(+0.55, 95 % interval +0.14 to +0.76) on 130 test items. The interval leaves out 0, but 5 changed answers can be "
        "chance: 6 is the fewest that cannot." in summary_sentence(written({**apart, "wins": 4, "losses": 1}))
    )
    assert (
        "The interval leaves out 0, but the permutation test does not (p = 0.062); a verdict needs both."
        in summary_sentence(written({**apart, "wins": 7, "losses": 1, "p_value": 0.0621}))
    )


def test_the_summary_shows_decimals_where_the_interval_is_narrow_and_no_negative_zero() -> None:
    narrow = {"base": 0.2114, "tuned": 0.2131, "difference": 0.0017, "low": -0.0003, "high": 0.0037}
    text = summary_sentence(written({**narrow, "verdict": "cannot tell"}))
    assert "0.211 -> 0.213 (+0.002, 95 % interval +0.000 to +0.004)" in text


def test_the_summary_ends_with_the_caution() -> None:
    base, tuned = scores_of(rouge_l=[0.1] * 8), scores_of(rouge_l=[0.3] * 8)
    text = summary_sentence(compare(base, tuned, num_resamples=100))
    assert text.startswith("The tuned model's answers are better on ROUGE-L: 0.10 -> 0.30 (+0.20")
    assert text.endswith("on 8 test items. Caution: only 8 test items: intervals are less sure than they say below 20.")


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("worse", " B has forgotten something: "),
        ("better", " B has forgotten nothing that was measured: "),
        ("cannot tell", " Whether B has forgotten anything cannot be told: "),
    ],
)
def test_the_summary_says_what_was_forgotten_beside_the_gain(verdict: str, words: str) -> None:
    text = summary_sentence(written(BETTER, forgetting=verdict), "B")
    assert text.startswith("B's answers are better on ROUGE-L: ")
    assert text.endswith(words + "general text 0.90 -> 0.96 (+0.06, 95 % interval +0.02 to +0.10) bits per byte.")


def test_a_verdict_needs_both_the_interval_and_the_test() -> None:
    verdicts = {
        (low, p_value): metric_verdict(low, 0.4, p_value, True, 0.95)
        for low in (-0.01, 0.01)
        for p_value in (0.03, 0.08)
    }
    assert [key for key, verdict in verdicts.items() if verdict != "cannot tell"] == [(0.01, 0.03)]
