"""Base against tuned on the same test items: every metric with the interval of its difference, and a verdict.

    AnswerScores of two models, item by item -> a Ratio pair a metric -> MetricComparison -> Comparison

`metric_specs.py` lists the metrics, `metric_comparison.py` compares one of them, `summary.py` puts the result into a sentence;
`comparison.json` and the report show all of it. The trade: it speaks of test items like these only, not of another training seed.
Kinds of task are corrected for their number, metrics are not: read the headline first. 10,000 resamples of 10,000 items take
seconds and less than 100 MB.

Legend of shapes: I items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np

from tuneful.evaluation.label_comparison import compare_labels
from tuneful.evaluation.metric_comparison import RatioPair, compare_ratios, metric_verdict
from tuneful.evaluation.metric_specs import METRICS, MetricSpec, label_in_sentence, metric_spec
from tuneful.evaluation.statistics import Ratio, fewest_items, holm
from tuneful.numbers import plural
from tuneful.runs.schema import (
    AnswerScores,
    CheckOutcome,
    Comparison,
    JudgeFinding,
    KindComparison,
    MetricComparison,
    WatchedDifference,
)

FEW_ITEMS, FEW_CHANGED = 20, 10
_FINDINGS = ("not usable", "not probed", "usable with care", "usable")
NO_KIND = "other"
"""The kind of items whose record names none."""


class _Settings(TypedDict):
    confidence: float
    num_resamples: int
    seed: int


def compare(
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    *,
    kinds: Sequence[str | None] = (),
    forgetting: Sequence[MetricComparison] = (),
    judge: JudgeFinding | None = None,
    checks: Sequence[MetricSpec] = (),
    headline: str | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models item by item: `base[i]` and `tuned[i]` answer the same instruction, of kind `kinds[i]`.

    A verdict other than "cannot tell" needs both an interval without 0 and a permutation test below 1 - confidence: at
    95 % fewer than 6 changed items show nothing, however unanimous. `checks` are the metrics of checks of one's own, which
    the scores hold. The headline is the metric called `headline`; without one, or where nothing of it was measured, the score
    of the judge, else ROUGE-L. Only a judge that `judge` says is usable has the headline; the score of one which is not usable
    has no verdict. Where the models cut the references into different tokens, loss per token does not compare, and its verdict
    is "cannot tell". The same arguments give the same numbers.
    """
    assert len(base) == len(tuned) > 0, (len(base), len(tuned))
    assert 0 < confidence < 1, confidence
    assert all(b.reference_words == t.reference_words for b, t in zip(base, tuned, strict=True)), "other references"
    assert not kinds or len(kinds) == len(base), (len(kinds), len(base))
    settings: _Settings = {"confidence": confidence, "num_resamples": num_resamples, "seed": seed}
    same_tokens = all(b.reference_tokens == t.reference_tokens for b, t in zip(base, tuned, strict=True))
    specs = (*METRICS, *(spec for spec in checks if spec.formula != "macro_f1"))
    pairs = [(spec, ratios(spec, base, tuned)) for spec in specs]
    measured = [(_as_scored(spec, pair), pair) for spec, pair in pairs if pair[0].denominators.any()]
    metrics = compare_ratios(measured, **settings)
    if not same_tokens:
        metrics = [
            _without_test(metric) if spec.is_per_token else metric
            for metric, (spec, _) in zip(metrics, measured, strict=True)
        ]
    if metrics[0].name == "judge_score":
        metrics[0] = _by_judge(metrics[0], judge, confidence)
    metrics = _with_macro_f1(metrics, checks, base, tuned, settings)
    main = _headline(headline, metrics, judge)
    cautions = [
        caution_of(len(base), same_tokens, confidence, main),
        _why_not_headline(headline, metrics, main, checks, base, tuned) if headline else None,
        _stopped_in_words(metrics[0], judge),
    ]
    return Comparison(
        num_items=len(base),
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        headline=main.name,
        reference_words=float(np.mean([scores.reference_words for scores in base])),
        caution="; ".join(caution for caution in cautions if caution) or None,
        metrics=tuple(metrics),
        kinds=next(
            (
                _compare_kinds(spec, pair, kinds, settings)
                for spec, pair in measured
                if spec.name == main.name and not (main.name == "judge_score" and judge and judge.watched)
            ),
            (),
        ),
        forgetting=tuple(forgetting),
        judge=judge if metrics[0].name == "judge_score" else None,
    )


def worse_finding(one: JudgeFinding | None, other: JudgeFinding | None) -> JudgeFinding | None:
    """What is known of the judges of two sides: the worse of it; None where nothing is known of either. Where either judge
    stopped early, that stays known."""
    known = [finding for finding in (one, other) if finding is not None]
    watched = next((finding.watched for finding in known if finding.watched is not None), None)
    if len(known) == 2:
        return replace(min(known, key=lambda finding: _FINDINGS.index(finding.verdict)), watched=watched)
    return replace(known[0], verdict="not probed") if watched is not None else None


def _headline(asked: str | None, metrics: Sequence[MetricComparison], judge: JudgeFinding | None) -> MetricComparison:
    """The metric that was asked for, else the judge's score, else ROUGE-L; a judge that is not known to be usable has none."""
    is_trusted = judge is not None and judge.verdict in ("usable", "usable with care")
    names = [name for name in (asked, "judge_score", "rouge_l") if is_trusted or name != "judge_score"]
    return next(metric for name in names for metric in metrics if metric.name == name)


def gains(
    comparison: Comparison,
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    checks: Sequence[MetricSpec] = (),
) -> list[float | None]:
    """How much better each answer became by the headline metric, above 0 meaning better; None where it was not measured.

    Of macro F1, which no single item has, whether its label became right.
    """
    own = (spec for spec in checks if spec.name == comparison.headline)
    before, after = ratios(next(own, None) or metric_spec(comparison.headline), base, tuned)
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
    values = [_value(spec, item) for item in scores]
    there_I = np.array(
        [value is not None and _value(spec, other) is not None for value, other in zip(values, others, strict=True)]
    )
    values_I = np.array([value if there else 0 for value, there in zip(values, there_I, strict=True)], dtype=np.float64)
    if not spec.is_per_token:
        return Ratio(values_I, there_I.astype(np.float64))
    tokens_I = np.array([item.reference_tokens or 0 for item in scores], dtype=np.float64) * there_I
    return Ratio(values_I, tokens_I, exponential=spec.formula == "perplexity")


def _by_judge(metric: MetricComparison, judge: JudgeFinding | None, confidence: float) -> MetricComparison:
    """The judge's score with what is known of the judge in its name; without a verdict where that is not usable."""
    verdict = "not probed" if judge is None else judge.verdict
    named = replace(metric, label=f"{metric.label} (judge {verdict})")
    if judge is not None and judge.watched is not None:
        named = _as_watched(named, judge.watched, confidence)
    return _without_test(named) if verdict == "not usable" else named


def _as_watched(metric: MetricComparison, watched: WatchedDifference, confidence: float) -> MetricComparison:
    """The metric with the interval and the p-value of the looks at which it might have stopped; without any where it is the
    difference of other items, or of other answers."""
    is_same = metric.num_items == watched.num_scored and abs(metric.difference - watched.difference) < 1e-6
    if not is_same:
        return replace(_without_test(metric), low=None, high=None)
    low, high, p_value = watched.low, watched.high, watched.p_value
    verdict = metric_verdict(low, high, p_value, metric.higher_is_better, confidence)
    return replace(metric, low=low, high=high, p_value=p_value, p_is_exact=False, detectable=None, verdict=verdict)


def _value(spec: MetricSpec, scores: AnswerScores) -> float | None:
    if spec.check:
        outcome = (scores.checks or {}).get(spec.check)
        return None if outcome is None else outcome.score
    value: float | None = getattr(scores, spec.field or spec.name)
    return value


def _as_scored(spec: MetricSpec, pair: RatioPair) -> MetricSpec:
    """The metric of a check as its scores make it: a share where each is a yes or a no, else a mean."""
    if not spec.check or all(np.isin(one.numerators, (0.0, 1.0)).all() for one in pair):
        return spec
    return replace(spec, formula="mean", unit="as the function scores")


def _with_macro_f1(
    metrics: Sequence[MetricComparison],
    checks: Sequence[MetricSpec],
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    settings: _Settings,
) -> list[MetricComparison]:
    """The metrics, and behind that of each check of labels its macro F1."""
    found = list(metrics)
    for spec in checks:
        if spec.formula == "macro_f1" and (sides := _scored_by_both(spec.check, base, tuned))[0]:
            place = next(index for index, metric in enumerate(found) if metric.name == spec.check)
            found.insert(place + 1, compare_labels(spec, *sides, **settings))
    return found


def _scored_by_both(
    check: str, base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]
) -> tuple[list[CheckOutcome], list[CheckOutcome]]:
    """What a check found of the answers that it scored for both models."""
    pairs = [
        ((one.checks or {}).get(check), (other.checks or {}).get(check)) for one, other in zip(base, tuned, strict=True)
    ]
    both = [(one, other) for one, other in pairs if one and other and None not in (one.score, other.score)]
    return [one for one, _ in both], [other for _, other in both]


def _why_not_headline(
    headline: str,
    metrics: Sequence[MetricComparison],
    main: MetricComparison,
    checks: Sequence[MetricSpec],
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
) -> str | None:
    """Why the headline which was asked for is not: not measured, and the commonest reason, or a judge's; None where it is."""
    if main.name == headline:
        return None
    if any(metric.name == headline for metric in metrics):
        return f"{headline} cannot be the headline that was asked for: the judge is not known to be usable"
    name = next((spec.check for spec in checks if spec.name == headline), "")
    outcomes = [(one.checks or {}).get(name) for one in (*base, *tuned)]
    reasons = Counter(one.unscored_reason for one in outcomes if one and one.unscored_reason)
    why = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
    return f"{headline}, the headline that was asked for, was measured on no item{why}"


def _stopped_in_words(metric: MetricComparison, judge: JudgeFinding | None) -> str | None:
    """What is to be known of a judge's score whose difference was watched; None where it was not."""
    if metric.name != "judge_score" or judge is None or judge.watched is None:
        return None
    if metric.low is None:
        return "the judge was asked until the difference of other answers was clear: its score has no interval here"
    seen = judge.watched
    return (
        f"the judge was asked about {seen.num_judged:,} of {seen.num_items:,} items, and its interval allows for having looked "
        "after every 20"
    )


def _without_test(metric: MetricComparison) -> MetricComparison:
    return replace(metric, p_value=None, p_is_exact=False, detectable=None, verdict="cannot tell")


def _compare_kinds(
    headline: MetricSpec, pair: RatioPair, kinds: Sequence[str | None], settings: _Settings
) -> tuple[KindComparison, ...]:
    """Each kind on its own by the metric `headline`, the largest first; nothing where there are fewer than two."""
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
            (found[name],) = compare_ratios([(spec, (base, tuned))], **settings)
    corrected = holm([metric.p_value or 0.0 for metric in found.values()])
    return tuple(
        _kind_comparison(metric, p_value, settings["confidence"])
        for metric, p_value in zip(found.values(), corrected, strict=True)
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
