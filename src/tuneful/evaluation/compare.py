"""Base against tuned on the same test items: every metric with the interval of its difference, and a verdict.

    AnswerScores of two models, item by item -> a Ratio pair a metric -> MetricComparison -> Comparison

`metric_specs.py` lists the metrics, `metric_comparison.py` compares one of them, `summary.py` puts the result into a sentence;
`comparison.json` and the report show all of it. The trade: it speaks of test items like these only, not of another training seed.
Kinds of task are corrected for their number, metrics are not: read the headline first. 10,000 resamples of 10,000 items take
seconds and less than 100 MB.

Legend of shapes: I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tuneful.evaluation.metric_comparison import RatioPair, compare_ratios, metric_verdict
from tuneful.evaluation.metric_specs import METRICS, MetricSpec, label_in_sentence, metric_spec
from tuneful.evaluation.statistics import Ratio, fewest_items, holm
from tuneful.numbers import plural
from tuneful.runs.schema import AnswerScores, Comparison, JudgeFinding, KindComparison, MetricComparison

FEW_ITEMS, FEW_CHANGED = 20, 10
_FINDINGS = ("not usable", "not probed", "usable with care", "usable")
NO_KIND = "other"
"""The kind of items whose record names none."""


def compare(
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    *,
    kinds: Sequence[str | None] = (),
    forgetting: Sequence[MetricComparison] = (),
    judge: JudgeFinding | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models item by item: `base[i]` and `tuned[i]` answer the same instruction, of kind `kinds[i]`.

    A verdict other than "cannot tell" needs both an interval without 0 and a permutation test below 1 - confidence: at
    95 % fewer than 6 changed items show nothing, however unanimous. The headline is the score of a judge that `judge` says is
    usable, else ROUGE-L; that of one which is not usable has no verdict. Where the models cut the references into different
    tokens, loss per token does not compare, and its verdict is "cannot tell". The same arguments give the same numbers.
    """
    assert len(base) == len(tuned) > 0, (len(base), len(tuned))
    assert 0 < confidence < 1, confidence
    assert all(b.reference_words == t.reference_words for b, t in zip(base, tuned, strict=True)), "other references"
    assert not kinds or len(kinds) == len(base), (len(kinds), len(base))
    same_tokens = all(b.reference_tokens == t.reference_tokens for b, t in zip(base, tuned, strict=True))
    measured = [(spec, pair) for spec in METRICS if (pair := ratios(spec, base, tuned))[0].denominators.any()]
    metrics = compare_ratios(measured, confidence=confidence, num_resamples=num_resamples, seed=seed)
    if not same_tokens:
        metrics = [_without_test(metric) if metric_spec(metric.name).is_per_token else metric for metric in metrics]
    if metrics[0].name == "judge_score":
        metrics[0] = _by_judge(metrics[0], judge)
    is_trusted = judge is not None and judge.verdict in ("usable", "usable with care")
    headline = "judge_score" if metrics[0].name == "judge_score" and is_trusted else "rouge_l"
    main = next(metric for metric in metrics if metric.name == headline)
    main_pair = next(pair for spec, pair in measured if spec.name == headline)
    return Comparison(
        num_items=len(base),
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        headline=headline,
        reference_words=float(np.mean([scores.reference_words for scores in base])),
        caution=caution_of(len(base), same_tokens, confidence, main),
        metrics=tuple(metrics),
        kinds=_compare_kinds(metric_spec(headline), main_pair, kinds, confidence, num_resamples, seed),
        forgetting=tuple(forgetting),
        judge=judge if metrics[0].name == "judge_score" else None,
    )


def worse_finding(one: JudgeFinding | None, other: JudgeFinding | None) -> JudgeFinding | None:
    """What is known of the judges of two sides: the worse of it; None where nothing is known of either."""
    known = [finding for finding in (one, other) if finding is not None]
    return min(known, key=lambda finding: _FINDINGS.index(finding.verdict)) if len(known) == 2 else None


def gains(comparison: Comparison, base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]) -> list[float | None]:
    """How much better each answer became by the headline metric, above 0 meaning better; None where it was not measured."""
    before, after = ratios(metric_spec(comparison.headline), base, tuned)
    change_I = after.numerators - before.numerators
    sign = -1.0 if comparison.main.higher_is_better is False else 1.0
    return [
        float(change) * sign if there else None for change, there in zip(change_I, before.denominators, strict=True)
    ]


def ratios(spec: MetricSpec, base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]) -> RatioPair:
    """The metric `spec` of both models; an item that was not measured in both has denominator 0."""
    return _ratio(spec, base, tuned), _ratio(spec, tuned, base)


def _ratio(spec: MetricSpec, scores: Sequence[AnswerScores], others: Sequence[AnswerScores]) -> Ratio:
    """The metric `spec` of `scores`, over the items that were measured in `others` too."""
    field = spec.field or spec.name
    values = [getattr(item, field) for item in scores]
    there_I = np.array(
        [value is not None and getattr(other, field) is not None for value, other in zip(values, others, strict=True)]
    )
    values_I = np.array([value if there else 0 for value, there in zip(values, there_I, strict=True)], dtype=np.float64)
    if not spec.is_per_token:
        return Ratio(values_I, there_I.astype(np.float64))
    tokens_I = np.array([item.reference_tokens or 0 for item in scores], dtype=np.float64) * there_I
    return Ratio(values_I, tokens_I, exponential=spec.formula == "perplexity")


def _by_judge(metric: MetricComparison, judge: JudgeFinding | None) -> MetricComparison:
    """The judge's score with what is known of the judge in its name; without a verdict where that is not usable."""
    verdict = "not probed" if judge is None else judge.verdict
    named = replace(metric, label=f"{metric.label} (judge {verdict})")
    return _without_test(named) if verdict == "not usable" else named


def _without_test(metric: MetricComparison) -> MetricComparison:
    return replace(metric, p_value=None, p_is_exact=False, detectable=None, verdict="cannot tell")


def _compare_kinds(
    headline: MetricSpec,
    pair: RatioPair,
    kinds: Sequence[str | None],
    confidence: float,
    num_resamples: int,
    seed: int,
) -> tuple[KindComparison, ...]:
    """Each kind on its own, the largest first; nothing where there are fewer than two."""
    names = np.array([kind or NO_KIND for kind in kinds])
    sizes = sorted(((int((names == name).sum()), str(name)) for name in set(names)), key=lambda one: (-one[0], one[1]))
    if len(sizes) < 2:
        return ()
    found: dict[str, MetricComparison] = {}
    for _, name in sizes:
        own = names == name
        base, tuned = (Ratio(one.numerators[own], one.denominators[own], one.exponential) for one in pair)
        if base.denominators.any():
            spec = replace(headline, name=name, label=name)
            (found[name],) = compare_ratios(
                [(spec, (base, tuned))], confidence=confidence, num_resamples=num_resamples, seed=seed
            )
    corrected = holm([metric.p_value or 0.0 for metric in found.values()])
    return tuple(
        _kind_comparison(metric, p_value, confidence) for metric, p_value in zip(found.values(), corrected, strict=True)
    )


def _kind_comparison(metric: MetricComparison, p_value: float, confidence: float) -> KindComparison:
    return KindComparison(
        kind=metric.name,
        num_items=metric.num_items,
        base=metric.base,
        tuned=metric.tuned,
        difference=metric.difference,
        low=metric.low,
        high=metric.high,
        wins=metric.wins,
        losses=metric.losses,
        ties=metric.ties,
        p_value=p_value,
        verdict=metric_verdict(metric.low, metric.high, p_value, metric.higher_is_better, confidence),
    )


def caution_of(num_items: int, same_tokens: bool, confidence: float, headline: MetricComparison) -> str | None:
    """What weakens the intervals of `num_items` test items, in words; None for nothing."""
    cautions = []
    num_changed = headline.wins + headline.losses
    only = f"only {plural(num_items, 'test item')}"
    if num_items < fewest_items(confidence):
        cautions.append(f"{only}: below {fewest_items(confidence)} nothing can be told")
    elif num_items < FEW_ITEMS:
        cautions.append(f"{only}: intervals are less sure than they say below {FEW_ITEMS}")
    elif 0 < num_changed < FEW_CHANGED:
        changed = f"only {num_changed} of {headline.num_items} items changed on {label_in_sentence(headline)}"
        cautions.append(f"{changed}, and the interval knows nothing of rarer changes")
    if not same_tokens:
        cautions.append("the two models cut the references into different tokens: loss and perplexity do not compare")
    return "; ".join(cautions) or None
