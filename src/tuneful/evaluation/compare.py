"""Base against tuned on the same test items: every metric with the interval of its difference, and a verdict in words.

Takes the `AnswerScores` of two models, item by item, and gives the `Comparison` that `comparison.json` and the report
show. The statistics are in `statistics.py`: paired bootstrap intervals and permutation tests. Pairing takes the
difficulty of the items out of the comparison.

What it trades: a verdict needs both the interval and the test, so it errs towards "cannot tell" (false verdicts: at most
1 - confidence, measured by `benchmarks/coverage.py`); and it speaks of the test items only, not of another training seed.
Each metric has its own interval; there is no correction for looking at nine of them. Kinds of task are corrected.
10,000 resamples of 10,000 items take seconds and less than 100 MB.

Legend of shapes: B resamples, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tuneful.evaluation.statistics import (
    Array,
    PermutationTest,
    Ratio,
    detectable_difference,
    holm,
    influences,
    interval,
    permutation_tests,
    resampled_differences,
    with_pseudo_counts,
)
from tuneful.runs.schema import AnswerScores, Comparison, KindComparison, MetricComparison, MetricVerdict

FEW_ITEMS, FEW_CHANGED = 20, 10
NO_KIND = "other"
"""The kind of items whose record names none."""

_LOSS_METRICS = ("reference_loss", "perplexity")
_SHARES = ("exact_match", "ended")


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric is: `name` in files, `label` and `unit` on the page, its good direction (None: neither), `help`."""

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    help: str


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "judge_score",
        "Judge score",
        "0 to 100",
        True,
        "What the judge gave, over the items that it scored for both models.",
    ),
    MetricSpec(
        "exact_match",
        "Exact match",
        "share of items",
        True,
        "Answers that equal the reference but for case and outer marks.",
    ),
    MetricSpec("token_f1", "Token F1", "0 to 1", True, "Words shared with the reference, in any order."),
    MetricSpec("rouge_l", "ROUGE-L", "0 to 1", True, "Words shared with the reference, in the same order."),
    MetricSpec("chrf", "chrF", "0 to 1", True, "Runs of up to six characters shared with the reference."),
    MetricSpec(
        "reference_loss",
        "Reference loss",
        "nats per token",
        False,
        "How surprised the model is by the reference answers: negative log likelihood, averaged over their tokens.",
    ),
    MetricSpec(
        "perplexity",
        "Perplexity",
        "",
        False,
        "The reference loss as a number of equally likely tokens to choose from: exp(loss).",
    ),
    MetricSpec(
        "ended", "Stopped at end token", "share of items", True, "Answers that the model ended, not the token limit."
    ),
    MetricSpec(
        "length", "Length", "words", None, "Mean number of words of the answers; neither longer nor shorter is better."
    ),
)


FORGETTING: tuple[MetricSpec, ...] = (
    MetricSpec(
        "forgetting",
        "General text",
        "bits per byte",
        False,
        "What a byte of text costs that the finetuning never showed; more than before is forgetting.",
    ),
    MetricSpec(
        "kl_to_base",
        "KL to base",
        "bits per token",
        None,
        "What a token of the base model's own writing costs; the difference is how far the model has moved.",
    ),
)
"""What `forgetting.py` measures on text that the finetuning never showed."""


def compare(
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    *,
    kinds: Sequence[str | None] = (),
    forgetting: Sequence[MetricComparison] = (),
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models item by item: `base[i]` and `tuned[i]` answer the same instruction, of kind `kinds[i]`.

    A verdict other than "cannot tell" needs both an interval without 0 and a permutation test below 1 - confidence: at
    95 % fewer than 6 changed items show nothing, however unanimous. The headline is the judge's score where there is one,
    else ROUGE-L. Where the models cut the references into different tokens, loss per token does not compare, and its
    verdict is "cannot tell". The same arguments give the same numbers.
    """
    assert len(base) == len(tuned) > 0, (len(base), len(tuned))
    assert 0 < confidence < 1, confidence
    assert all(b.reference_words == t.reference_words for b, t in zip(base, tuned, strict=True)), "other references"
    assert not kinds or len(kinds) == len(base), (len(kinds), len(base))
    same_tokens = all(b.reference_tokens == t.reference_tokens for b, t in zip(base, tuned, strict=True))
    measured = [
        (spec, pair)
        for spec in METRICS
        if (pair := (_ratio(spec.name, base, tuned), _ratio(spec.name, tuned, base)))[0].denominators.any()
    ]
    metrics = compare_ratios(measured, confidence=confidence, num_resamples=num_resamples, seed=seed)
    headline = "judge_score" if metrics[0].name == "judge_score" else "rouge_l"
    return Comparison(
        num_items=len(base),
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        headline=headline,
        reference_words=float(np.mean([scores.reference_words for scores in base])),
        caution=_caution(len(base), same_tokens, confidence, next(one for one in metrics if one.name == headline)),
        metrics=tuple(
            metric if same_tokens or metric.name not in _LOSS_METRICS else _not_comparable(metric) for metric in metrics
        ),
        kinds=_compare_kinds(_pair_of(headline, measured), kinds, confidence, num_resamples, seed),
        forgetting=tuple(forgetting),
    )


def compare_ratios(
    measured: Sequence[tuple[MetricSpec, tuple[Ratio, Ratio]]],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> list[MetricComparison]:
    """Interval, test and verdict for each pair of measures; all pairs are over the same items, in the same order."""
    shares = [spec.name in _SHARES for spec, _ in measured]
    resampled: dict[int, Array] = {}
    for is_share in (False, True):
        chosen = [index for index, own in enumerate(shares) if own is is_share]
        pairs = [with_pseudo_counts(*measured[i][1]) if is_share else measured[i][1] for i in chosen]
        if pairs:
            resampled.update(zip(chosen, resampled_differences(pairs, num_resamples, seed), strict=True))
    tests = permutation_tests([_swappable(*pair) for _, pair in measured], num_resamples, seed)
    return [
        _metric_comparison(spec, *pair, resampled[index], tests[index], confidence)
        for index, (spec, pair) in enumerate(measured)
    ]


def gains(comparison: Comparison, base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]) -> list[float | None]:
    """How much better each answer became by the headline metric, above 0 meaning better; None where it was not measured."""
    before, after = _ratio(comparison.headline, base, tuned), _ratio(comparison.headline, tuned, base)
    change_I = after.numerators - before.numerators
    sign = -1.0 if comparison.main.higher_is_better is False else 1.0
    return [
        float(change) * sign if there else None for change, there in zip(change_I, before.denominators, strict=True)
    ]


def summary_sentence(comparison: Comparison, tuned: str = "the tuned model") -> str:
    """The result in plain words for the head of a report: the headline metric, what points elsewhere, the caution.

    `tuned` is what the second model is called.
    """
    headline = comparison.main
    items = f"{headline.num_items:,} test item" + ("s" if headline.num_items != 1 else "")
    numbers = _numbers_in_words(headline, comparison.confidence)
    if headline.verdict == "cannot tell":
        text = f"The test cannot tell whether {tuned}'s answers are better: {headline.label} {numbers} on {items}."
        if headline.detectable is not None:
            text += f" A true difference of {_decimal(headline.detectable, headline)} would show in 4 of 5 such tests."
    else:
        text = f"{_capital(tuned)}'s answers are {headline.verdict} on {_in_sentence(headline.label)}: {numbers} on {items}."
    for verdict in ("better", "worse"):
        labels = [
            _in_sentence(metric.label)
            for metric in comparison.metrics
            if metric.verdict == verdict != headline.verdict and metric.name != "perplexity"  # it repeats the loss
        ]
        text += f" {_capital(tuned)} is {verdict} on {_listed(labels)}." if labels else ""
    text += _forgetting_in_words(comparison, tuned)
    return text + (f" Caution: {comparison.caution}." if comparison.caution else "")


def _ratio(name: str, scores: Sequence[AnswerScores], others: Sequence[AnswerScores]) -> Ratio:
    """The metric `name` of `scores`, over the items that were measured in `others` too."""
    field = {"length": "num_words", "reference_loss": "reference_nll", "perplexity": "reference_nll"}.get(name, name)
    values = [getattr(item, field) for item in scores]
    there_I = np.array(
        [value is not None and getattr(other, field) is not None for value, other in zip(values, others, strict=True)]
    )
    values_I = np.array([value if there else 0 for value, there in zip(values, there_I, strict=True)], dtype=np.float64)
    if name in _LOSS_METRICS:
        tokens_I = np.array([item.reference_tokens or 0 for item in scores], dtype=np.float64) * there_I
        return Ratio(values_I, tokens_I, exponential=name == "perplexity")
    return Ratio(values_I, there_I.astype(np.float64))


def _pair_of(name: str, measured: Sequence[tuple[MetricSpec, tuple[Ratio, Ratio]]]) -> tuple[Ratio, Ratio]:
    return next(pair for spec, pair in measured if spec.name == name)


def _swappable(base: Ratio, tuned: Ratio) -> Array:
    """What changes sign where an item's two answers are swapped; the denominators are the same for both models."""
    return tuned.numerators - base.numerators


def _metric_comparison(
    spec: MetricSpec, base: Ratio, tuned: Ratio, differences_B: Array, test: PermutationTest, confidence: float
) -> MetricComparison:
    there_I = (base.denominators > 0) & (tuned.denominators > 0)
    num_items = int(there_I.sum())
    difference = tuned.value() - base.value()
    # Shares have their pseudo-counts, which say more about what was not seen than the shape of what was.
    shape_I = None if spec.name in _SHARES else influences(base, tuned)
    low, high = interval(differences_B, num_items, confidence, shape_I)
    low, high = min(low, difference), max(high, difference)
    change_I = tuned.numerators[there_I] / tuned.denominators[there_I]
    change_I = change_I - base.numerators[there_I] / base.denominators[there_I]
    num_up, num_down = int((change_I > 0).sum()), int((change_I < 0).sum())
    wins, losses = (num_down, num_up) if spec.higher_is_better is False else (num_up, num_down)
    return MetricComparison(
        name=spec.name,
        label=spec.label,
        unit=spec.unit,
        higher_is_better=spec.higher_is_better,
        num_items=num_items,
        base=base.value(),
        tuned=tuned.value(),
        difference=difference,
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        ties=num_items - wins - losses,
        p_value=test.p_value,
        p_is_exact=test.is_exact,
        detectable=detectable_difference(differences_B, num_items, confidence),
        verdict=_verdict(low, high, test.p_value, spec.higher_is_better, confidence),
    )


def _not_comparable(metric: MetricComparison) -> MetricComparison:
    return replace(metric, p_value=None, p_is_exact=False, detectable=None, verdict="cannot tell")


def _verdict(
    low: float, high: float, p_value: float, higher_is_better: bool | None, confidence: float
) -> MetricVerdict:
    if low <= 0 <= high or p_value > 1 - confidence + 1e-12:
        return "cannot tell"
    if higher_is_better is None:
        return "changed"
    return "better" if (low > 0) == higher_is_better else "worse"


def _compare_kinds(
    pair: tuple[Ratio, Ratio], kinds: Sequence[str | None], confidence: float, num_resamples: int, seed: int
) -> tuple[KindComparison, ...]:
    """Each kind on its own, the largest first; nothing where there are fewer than two."""
    names = np.array([kind or NO_KIND for kind in kinds])
    counted = sorted(
        ((int((names == name).sum()), str(name)) for name in set(names)), key=lambda one: (-one[0], one[1])
    )
    if len(counted) < 2:
        return ()
    spec = MetricSpec("kind", "", "", True, "")
    rows = []
    for _, name in counted:
        own = names == name
        part = [Ratio(ratio.numerators[own], ratio.denominators[own], ratio.exponential) for ratio in pair]
        if part[0].denominators.any():
            found = compare_ratios(
                [(spec, (part[0], part[1]))], confidence=confidence, num_resamples=num_resamples, seed=seed
            )
            rows.append((name, found[0]))
    corrected = holm([row.p_value or 0.0 for _, row in rows])
    return tuple(
        KindComparison(
            kind=name,
            num_items=row.num_items,
            base=row.base,
            tuned=row.tuned,
            difference=row.difference,
            low=row.low,
            high=row.high,
            wins=row.wins,
            losses=row.losses,
            ties=row.ties,
            p_value=p_value,
            verdict=_verdict(row.low, row.high, p_value, True, confidence),
        )
        for (name, row), p_value in zip(rows, corrected, strict=True)
    )


def _min_changed(confidence: float) -> int:
    """The fewest changed items that can show anything: the smallest k with 2**(1 - k) <= 1 - confidence."""
    return int(np.ceil(1 - np.log2(1 - confidence) - 1e-9))


def _caution(num_items: int, same_tokens: bool, confidence: float, headline: MetricComparison) -> str | None:
    cautions = []
    num_changed = headline.wins + headline.losses
    only = f"only {num_items} test item" + ("s" if num_items != 1 else "")
    if num_items < _min_changed(confidence):
        cautions.append(f"{only}: below {_min_changed(confidence)} nothing can be told")
    elif num_items < FEW_ITEMS:
        cautions.append(f"{only}: intervals are less sure than they say below {FEW_ITEMS}")
    elif 0 < num_changed < FEW_CHANGED:
        changed = f"only {num_changed} of {headline.num_items} items changed on {_in_sentence(headline.label)}"
        cautions.append(f"{changed}, and the interval knows nothing of rarer changes")
    if not same_tokens:
        cautions.append("the two models cut the references into different tokens: loss and perplexity do not compare")
    return "; ".join(cautions) or None


def _numbers_in_words(metric: MetricComparison, confidence: float) -> str:
    """`0.21 -> 0.48 (+0.27, 95 % interval +0.22 to +0.32)`, with as many decimals as the interval's width deserves."""
    base, tuned = (f"{value:.{_decimals(metric)}f}" for value in (metric.base, metric.tuned))
    difference, low, high = (_decimal(value, metric, "+") for value in (metric.difference, metric.low, metric.high))
    return f"{base} -> {tuned} ({difference}, {100 * confidence:g} % interval {low} to {high})"


def _decimals(metric: MetricComparison) -> int:
    half_width = (metric.high - metric.low) / 2
    fewest = 1 if metric.unit == "0 to 100" else 2
    return int(np.clip(np.ceil(-np.log10(half_width)), fewest, 4)) if half_width > 1e-9 else fewest


def _decimal(value: float, metric: MetricComparison, sign: str = "") -> str:
    decimals = _decimals(metric)
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # + 0.0 turns -0.0 into 0.0


def _forgetting_in_words(comparison: Comparison, tuned: str) -> str:
    """What the tuned model forgot of general text, or that it did not; nothing where it was not measured."""
    metric = comparison.measured("forgetting")
    if metric is None:
        return ""
    numbers = f"{_uncapital(metric.label)} {_numbers_in_words(metric, comparison.confidence)} {metric.unit}"
    if metric.verdict == "worse":
        return f" {_capital(tuned)} has forgotten something: {numbers}."
    if metric.verdict == "better":
        return f" {_capital(tuned)} has forgotten nothing that was measured: {numbers}."
    return f" Whether {tuned} has forgotten anything cannot be told: {numbers}."


def _listed(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1]


def _in_sentence(label: str) -> str:
    return _uncapital(label) if label[1].islower() else label


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _uncapital(text: str) -> str:
    return text[:1].lower() + text[1:]
