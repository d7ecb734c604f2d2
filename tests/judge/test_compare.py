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

from tuneful.judge import compare as compare_module
from tuneful.judge.compare import (
    METRICS,
    Comparison,
    MetricComparison,
    as_dict,
    compare,
    items_as_dicts,
    summary_sentence,
)
from tuneful.judge.metrics import AnswerScores

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


def test_every_metric_is_compared_in_the_order_of_the_list() -> None:
    comparison = compare(*random_pair(30), num_resamples=100)
    assert [metric.name for metric in comparison.metrics] == [spec.name for spec in METRICS]
    assert [(m.label, m.unit, m.higher_is_better) for m in comparison.metrics] == [
        (spec.label, spec.unit, spec.higher_is_better) for spec in METRICS
    ]


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
        assert (one.low, one.high, one.difference) == (-other.high, -other.low, -other.difference)
        assert (one.wins, one.losses, one.ties) == (other.losses, other.wins, other.ties)
        assert one.verdict == opposite[other.verdict]


def test_chunks_change_nothing() -> None:
    pairs = [tuple(compare_module._ratio(spec.name, scores) for scores in random_pair(30)) for spec in METRICS]
    whole, cut = (compare_module._resampled_differences(pairs, 200, 0, max_cells) for max_cells in (10**6, 7 * 30 + 1))
    np.testing.assert_allclose(whole, cut, rtol=0, atol=1e-12)


def test_no_chunk_holds_more_than_its_cells() -> None:
    chunks = list(compare_module._resampled_counts(30, 100, seed=0, max_cells=1000))
    assert [len(chunk_RI) for chunk_RI in chunks] == [33, 33, 33, 1]
    assert all((chunk_RI.sum(axis=1) == 30).all() for chunk_RI in chunks)


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
    comparison = compare(base, tuned, num_resamples=199, seed=3)
    for name, differences in (("reference_loss", loss), ("perplexity", perplexity), ("rouge_l", rouge)):
        metric = metric_of(comparison, name)
        # (199 + 1) * 0.025 = 5: the fifth from either end
        assert (metric.low, metric.high) == pytest.approx((sorted(differences)[4], sorted(differences)[-5]))


def test_loss_weighs_tokens_and_not_items() -> None:
    comparison = compare(
        scores_of(reference_nll=[1.0, 300.0], reference_tokens=[1, 99]),
        scores_of(reference_nll=[3.0, 300.0], reference_tokens=[1, 99]),
        num_resamples=100,
    )
    assert metric_of(comparison, "reference_loss").base == pytest.approx(3.01)
    assert metric_of(comparison, "reference_loss").difference == pytest.approx(0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    num_covered = dict.fromkeys(("rouge_l", "reference_loss"), 0)
    for seed in range(300):
        difficulty = generator.uniform(0.1, 0.5, 60)
        gain = generator.uniform(0.0, 0.3, 60)  # 0.15 in the mean
        tokens = generator.integers(5, 50, 60)
        base = scores_of(
            rouge_l=difficulty.tolist(), reference_nll=(3 * tokens).tolist(), reference_tokens=tokens.tolist()
        )
        saved = generator.uniform(0, 1, 60)  # nats per token: 0.5 in the mean, whatever the number of tokens
        tuned = scores_of(
            rouge_l=(difficulty + gain).tolist(),
            reference_nll=((3 - saved) * tokens).tolist(),
            reference_tokens=tokens.tolist(),
        )
        comparison = compare(base, tuned, num_resamples=1000, seed=seed)
        for name, truth in (("rouge_l", 0.15), ("reference_loss", -0.5)):
            metric = metric_of(comparison, name)
            num_covered[name] += metric.low <= truth <= metric.high
    for covered in num_covered.values():
        assert 0.90 <= covered / 300 <= 0.98


def test_equal_models_are_rarely_told_apart() -> None:
    num_told = 0
    for seed in range(200):
        base, tuned = random_pair(40, seed)
        num_told += metric_of(compare(base, tuned, num_resamples=300, seed=seed), "rouge_l").verdict != "cannot tell"
    assert num_told / 200 <= 0.10


def test_pairing_keeps_the_difficulty_of_the_items_out_of_the_interval() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.uniform(0, 0.9, 100)
    base = scores_of(rouge_l=difficulty.tolist())
    tuned = scores_of(rouge_l=(difficulty + generator.uniform(0.01, 0.03, 100)).tolist())
    metric = metric_of(compare(base, tuned, num_resamples=2000), "rouge_l")
    assert metric.verdict == "better"
    assert metric.high - metric.low == pytest.approx(2 * 1.96 * 0.02 / math.sqrt(12 * 100), rel=0.15)
    unpaired_width = 2 * 1.96 * math.sqrt(2 * difficulty.var() / 100)
    assert unpaired_width > 50 * (metric.high - metric.low)


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
    assert metric.low == pytest.approx(metric.difference)
    assert metric.high == pytest.approx(metric.difference)
    right_wins = {"better": (30, 0, 0), "worse": (0, 30, 0), "cannot tell": (0, 0, 30)}
    assert (metric.wins, metric.losses, metric.ties) == right_wins.get(verdict, (metric.wins, metric.losses, 0))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_equal_models_differ_by_exactly_nothing(num_items: int, seed: int) -> None:
    base, _ = random_pair(num_items, seed)
    for metric in compare(base, base, num_resamples=100, seed=seed).metrics:
        assert (metric.difference, metric.low, metric.high, metric.ties) == (0, 0, 0, num_items)
        assert metric.verdict == "cannot tell"


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 40), st.integers(0, 1000))
def test_loss_and_perplexity_never_disagree(num_items: int, seed: int) -> None:
    comparison = compare(*random_pair(num_items, seed), confidence=0.5, num_resamples=100, seed=seed)
    assert metric_of(comparison, "reference_loss").verdict == metric_of(comparison, "perplexity").verdict


def test_a_single_item_tells_nothing() -> None:
    comparison = compare(scores_of(rouge_l=[0.1]), scores_of(rouge_l=[0.9]), num_resamples=100)
    metric = metric_of(comparison, "rouge_l")
    assert (metric.low, metric.high) == (metric.difference, metric.difference)
    assert all(metric.verdict == "cannot tell" for metric in comparison.metrics)
    assert comparison.caution == "only 1 test item: below 6 nothing can be told"


@pytest.mark.parametrize(("num_changed", "verdict"), [(4, "cannot tell"), (5, "cannot tell"), (6, "better")])
def test_a_handful_of_changed_items_tells_nothing_however_many_are_equal(num_changed: int, verdict: str) -> None:
    base = scores_of(exact_match=[False] * 100)
    tuned = scores_of(exact_match=[True] * num_changed + [False] * (100 - num_changed))
    assert metric_of(compare(base, tuned, num_resamples=2000), "exact_match").verdict == verdict


@pytest.mark.parametrize(
    ("num_items", "caution"),
    [
        (5, "only 5 test items: below 6 nothing can be told"),
        (8, "only 8 test items: intervals are too narrow below 20"),
        (19, "only 19 test items: intervals are too narrow below 20"),
        (20, None),
    ],
)
def test_few_items_come_with_a_caution(num_items: int, caution: str | None) -> None:
    assert compare(*random_pair(num_items), num_resamples=100).caution == caution


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
    assert all(math.isfinite(value) for m in comparison.metrics for value in (m.base, m.tuned, m.low, m.high))


def test_what_cannot_be_paired_is_our_mistake() -> None:
    base, tuned = random_pair(3)
    for broken in ([], tuned[:2], [replace(scores, reference_words=1) for scores in tuned]):
        with pytest.raises(AssertionError):
            compare(base, broken)
    with pytest.raises(AssertionError):
        compare([], [])
    with pytest.raises(AssertionError, match="too few"):
        compare(base, tuned, num_resamples=10)
    with pytest.raises(AssertionError):
        compare(base, tuned, confidence=1.0)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    narrow, wide = (
        metric_of(compare(*random_pair(50), confidence=confidence, num_resamples=2000), "rouge_l")
        for confidence in (0.8, 0.99)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_ten_thousand_items_stay_within_their_memory() -> None:
    base, tuned = random_pair(10_000)
    comparison = compare(base, tuned, num_resamples=300)
    assert comparison.num_items == 10_000
    assert comparison.caution is None


def test_the_comparison_survives_json() -> None:
    comparison = compare(*random_pair(10), num_resamples=100)
    plain = as_dict(comparison)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain) == [
        "num_items", "confidence", "num_resamples", "seed", "reference_words", "caution", "metrics",
    ]  # fmt: skip
    assert plain["metrics"][2] == asdict(comparison.metrics[2])


def test_items_keep_their_source_and_both_scores() -> None:
    base, tuned = random_pair(2)
    rows = items_as_dicts(["test.jsonl:1", "test.jsonl:7"], base, tuned)
    assert [row["source"] for row in rows] == ["test.jsonl:1", "test.jsonl:7"]
    assert AnswerScores(**rows[1]["base"]) == base[1]
    assert AnswerScores(**rows[1]["tuned"]) == tuned[1]
    assert json.loads(json.dumps(rows)) == rows
    with pytest.raises(ValueError, match="zip"):
        items_as_dicts(["test.jsonl:1"], base, tuned)


def written(headline: dict[str, Any], **others: str) -> Comparison:
    """A comparison of 130 items with the headline metric given and a verdict for some others."""
    metrics = []
    for spec in METRICS:
        numbers: dict[str, Any] = {"base": 0.5, "tuned": 0.5, "difference": 0.0, "low": 0.0, "high": 0.0}
        numbers["verdict"] = others.get(spec.name, "cannot tell")
        if spec.name == "rouge_l":
            numbers.update(headline)
        metrics.append(
            MetricComparison(
                spec.name, spec.label, spec.unit, spec.higher_is_better, wins=0, losses=0, ties=130, **numbers
            )
        )
    return Comparison(130, 0.95, 10_000, 0, 12.0, None, tuple(metrics))


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
        " The tuned model is better on token F1. The tuned model is worse on ending by itself."
    )


def test_the_summary_shows_decimals_where_the_interval_is_narrow_and_no_negative_zero() -> None:
    narrow = {"base": 0.2114, "tuned": 0.2131, "difference": 0.0017, "low": -0.0003, "high": 0.0037}
    text = summary_sentence(written({**narrow, "verdict": "cannot tell"}))
    assert "0.211 -> 0.213 (+0.002, 95 % interval +0.000 to +0.004)" in text


def test_the_summary_ends_with_the_caution() -> None:
    base, tuned = scores_of(rouge_l=[0.1] * 8), scores_of(rouge_l=[0.3] * 8)
    text = summary_sentence(compare(base, tuned, num_resamples=100))
    assert text.startswith("The tuned model's answers are better on ROUGE-L: 0.10 -> 0.30 (+0.20")
    assert text.endswith("on 8 test items. Caution: only 8 test items: intervals are too narrow below 20.")
