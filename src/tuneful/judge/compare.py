"""Base against tuned on the same test items: every metric with the interval of its difference, and a verdict in words.

Takes the `AnswerScores` of two models, item by item, and gives the `Comparison` that `comparison.json` and the report
show. Intervals are paired percentile bootstraps (Efron & Tibshirani 1993, chapter 13): test items are drawn with
replacement, base and tuned together, and the difference is recomputed on each draw. Pairing takes the difficulty of
the items out of the comparison.

What it trades: the percentile interval asks nothing of the distribution and serves means and ratios alike, but is too
narrow on few items (`Comparison.caution` says so below 20), and it speaks of the test items only, not of another
training seed. Each metric has its own interval; there is no correction for looking at eight of them.
10,000 resamples of 10,000 items take seconds and less than 100 MB.

Legend of shapes: B resamples, R resamples of one chunk, I items, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tuneful.judge.metrics import AnswerScores

Verdict = Literal["better", "worse", "changed", "cannot tell"]
_Array = npt.NDArray[np.float64]

HEADLINE_METRIC = "rouge_l"
FEW_ITEMS = 20

_MAX_CELLS = 1 << 20  # resamples x items held at once: three arrays of 8 MiB
_MAX_LOSS = 700.0  # nats per token; exp() of more is not a float64
_LOSS_METRICS = ("reference_loss", "perplexity")


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
        "ended", "Ending by itself", "share of items", True, "Answers that the model ended, not the token limit."
    ),
    MetricSpec(
        "length", "Length", "words", None, "Mean number of words of the answers; neither longer nor shorter is better."
    ),
)


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric of both models on the same items.

    `difference` is tuned - base, `low`..`high` its interval; all five numbers are in `unit`. `wins` counts the items
    on which the tuned model is better, `losses` those on which it is worse, `ties` the equal ones; for a metric without
    a good direction a win is a higher number. For loss and perplexity an item's number is its loss per token.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    base: float
    tuned: float
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Base against tuned on `num_items` paired items, a `MetricComparison` for each of `METRICS`, in that order.

    `confidence` of the intervals, in 0..1; `num_resamples` and `seed` of the bootstrap reproduce them.
    `reference_words` is the mean length of the reference answers, to hold the metric `length` against. `caution` says
    in words what weakens the intervals, None where nothing does.
    """

    num_items: int
    confidence: float
    num_resamples: int
    seed: int
    reference_words: float
    caution: str | None
    metrics: tuple[MetricComparison, ...]

    def __post_init__(self) -> None:
        for metric in self.metrics:
            assert metric.wins + metric.losses + metric.ties == self.num_items, metric


def compare(
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models item by item: `base[i]` and `tuned[i]` answer the same instruction.

    A verdict other than "cannot tell" needs both an interval without 0 and enough items that changed: were the models
    equal, k changed items would all point the same way with probability 2**(1 - k), so at 95 % fewer than 6 changed
    items show nothing, however unanimous. Where the models cut the references into different tokens, loss per token
    does not compare, and its verdict is "cannot tell". The same arguments give the same numbers.
    """
    assert len(base) == len(tuned) > 0, (len(base), len(tuned))
    assert 0 < confidence < 1, confidence
    assert all(b.reference_words == t.reference_words for b, t in zip(base, tuned, strict=True)), "other references"
    same_tokens = all(b.reference_tokens == t.reference_tokens for b, t in zip(base, tuned, strict=True))
    pairs = [(_ratio(spec.name, base), _ratio(spec.name, tuned)) for spec in METRICS]
    differences_by_metric = _resampled_differences(pairs, num_resamples, seed)
    return Comparison(
        num_items=len(base),
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        reference_words=float(np.mean([scores.reference_words for scores in base])),
        caution=_caution(len(base), same_tokens, confidence),
        metrics=tuple(
            _metric_comparison(spec, *pair, differences_B, confidence, same_tokens or spec.name not in _LOSS_METRICS)
            for spec, pair, differences_B in zip(METRICS, pairs, differences_by_metric, strict=True)
        ),
    )


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain dicts, lists and numbers, as `comparison.json` holds it; every number is finite."""
    return {**asdict(comparison), "metrics": [asdict(metric) for metric in comparison.metrics]}


def items_as_dicts(
    sources: Sequence[str], base: Sequence[AnswerScores], tuned: Sequence[AnswerScores]
) -> list[dict[str, Any]]:
    """The scores behind a comparison, a dict an item: `{"source": "test.jsonl:3", "base": {...}, "tuned": {...}}`."""
    return [
        {"source": source, "base": asdict(base_scores), "tuned": asdict(tuned_scores)}
        for source, base_scores, tuned_scores in zip(sources, base, tuned, strict=True)
    ]


def summary_sentence(comparison: Comparison) -> str:
    """The result in plain words for the head of a report: ROUGE-L, what points elsewhere, the caution."""
    headline = next(metric for metric in comparison.metrics if metric.name == HEADLINE_METRIC)
    items = f"{comparison.num_items:,} test item" + ("s" if comparison.num_items != 1 else "")
    numbers = _numbers_in_words(headline, comparison.confidence)
    if headline.verdict == "cannot tell":
        text = (
            f"The test cannot tell whether the tuned model's answers are better: {headline.label} {numbers} on {items}."
        )
    else:
        text = f"The tuned model's answers are {headline.verdict} on {headline.label}: {numbers} on {items}."
    for verdict in ("better", "worse"):
        labels = [
            _in_sentence(metric.label)
            for metric in comparison.metrics
            if metric.verdict == verdict != headline.verdict and metric.name != "perplexity"  # it repeats the loss
        ]
        text += f" The tuned model is {verdict} on {_listed(labels)}." if labels else ""
    return text + (f" Caution: {comparison.caution}." if comparison.caution else "")


class _Ratio(NamedTuple):
    """A metric of one model: sum(numerators) / sum(denominators), both [I], through exp() where `exponential`."""

    numerators: _Array
    denominators: _Array
    exponential: bool

    def of_sums(self, numerators: _Array, denominators: _Array) -> _Array:
        """The metric where the sums over items are already taken, whatever their shape."""
        ratios = numerators / denominators
        return np.exp(np.minimum(ratios, _MAX_LOSS)) if self.exponential else ratios

    def value(self) -> float:
        """The metric over all items, each counted once."""
        return float(self.of_sums(self.numerators.sum(), self.denominators.sum()))


def _ratio(name: str, scores: Sequence[AnswerScores]) -> _Ratio:
    if name in _LOSS_METRICS:
        nll_I = np.array([item.reference_nll for item in scores], dtype=np.float64)
        tokens_I = np.array([item.reference_tokens for item in scores], dtype=np.float64)
        return _Ratio(nll_I, tokens_I, exponential=name == "perplexity")
    field = "num_words" if name == "length" else name
    values_I = np.array([getattr(item, field) for item in scores], dtype=np.float64)
    return _Ratio(values_I, np.ones_like(values_I), exponential=False)


def _resampled_differences(
    pairs: Sequence[tuple[_Ratio, _Ratio]], num_resamples: int, seed: int, max_cells: int = _MAX_CELLS
) -> list[_Array]:
    """Tuned - base on every resample, an array [B] a metric; all metrics and both models see the same resamples."""
    columns_CI = np.stack([column_I for pair in pairs for ratio in pair for column_I in ratio[:2]])
    # Equal columns are summed once: faster, and equal models differ by exactly 0 instead of by a rounding.
    distinct_CI, place_C = np.unique(columns_CI, axis=0, return_inverse=True)
    chunks = _resampled_counts(columns_CI.shape[1], num_resamples, seed, max_cells)
    sums_CB = np.concatenate([distinct_CI @ counts_RI.T for counts_RI in chunks], axis=1)[place_C.reshape(-1)]
    differences = []
    for (base, tuned), sums_4B in zip(pairs, sums_CB.reshape(len(pairs), 4, num_resamples), strict=True):
        differences.append(tuned.of_sums(sums_4B[2], sums_4B[3]) - base.of_sums(sums_4B[0], sums_4B[1]))
    return differences


def _resampled_counts(num_items: int, num_resamples: int, seed: int, max_cells: int) -> Iterator[_Array]:
    """How often each item is in each resample: [R, I], chunk by chunk, at most `max_cells` cells (or one row) each."""
    generator = np.random.Generator(np.random.PCG64(seed))
    chunk_size = max(1, max_cells // num_items)
    for start in range(0, num_resamples, chunk_size):
        size = min(chunk_size, num_resamples - start)
        drawn_RI = generator.integers(num_items, size=(size, num_items))
        drawn_RI += num_items * np.arange(size)[:, None]  # each resample counts in cells of its own
        counts = np.bincount(drawn_RI.reshape(-1), minlength=size * num_items)
        yield counts.reshape(size, num_items).astype(np.float64)


def _percentile_interval(differences_B: _Array, confidence: float) -> tuple[float, float]:
    """The k-th smallest and k-th largest, k = floor((B + 1) (1 - confidence) / 2) (Efron & Tibshirani 1993, 12.5).

    Order statistics, not interpolations, so that swapping the models flips the interval, and loss and perplexity,
    whose resampled differences agree in sign one by one, never get opposite verdicts.
    """
    k = int((len(differences_B) + 1) * (1 - confidence) / 2 + 1e-9)
    assert k >= 1, f"{len(differences_B)} resamples are too few for a {confidence} interval"
    ordered_B = np.sort(differences_B)
    return float(ordered_B[k - 1]), float(ordered_B[-k])


def _metric_comparison(
    spec: MetricSpec, base: _Ratio, tuned: _Ratio, differences_B: _Array, confidence: float, comparable: bool
) -> MetricComparison:
    low, high = _percentile_interval(differences_B, confidence)
    change_I = tuned.numerators / tuned.denominators - base.numerators / base.denominators
    num_up, num_down = int((change_I > 0).sum()), int((change_I < 0).sum())
    wins, losses = (num_down, num_up) if spec.higher_is_better is False else (num_up, num_down)
    enough = comparable and num_up + num_down >= _min_changed(confidence)
    return MetricComparison(
        name=spec.name,
        label=spec.label,
        unit=spec.unit,
        higher_is_better=spec.higher_is_better,
        base=base.value(),
        tuned=tuned.value(),
        difference=tuned.value() - base.value(),
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        ties=len(change_I) - wins - losses,
        verdict=_verdict(low, high, spec.higher_is_better) if enough else "cannot tell",
    )


def _verdict(low: float, high: float, higher_is_better: bool | None) -> Verdict:
    if low <= 0 <= high:
        return "cannot tell"
    if higher_is_better is None:
        return "changed"
    return "better" if (low > 0) == higher_is_better else "worse"


def _min_changed(confidence: float) -> int:
    """The fewest changed items that can show anything: the smallest k with 2**(1 - k) <= 1 - confidence."""
    return int(np.ceil(1 - np.log2(1 - confidence) - 1e-9))


def _caution(num_items: int, same_tokens: bool, confidence: float) -> str | None:
    cautions = []
    only = f"only {num_items} test item" + ("s" if num_items != 1 else "")
    if num_items < _min_changed(confidence):
        cautions.append(f"{only}: below {_min_changed(confidence)} nothing can be told")
    elif num_items < FEW_ITEMS:
        cautions.append(f"{only}: intervals are too narrow below {FEW_ITEMS}")
    if not same_tokens:
        cautions.append("the two models cut the references into different tokens: loss and perplexity do not compare")
    return "; ".join(cautions) or None


def _numbers_in_words(metric: MetricComparison, confidence: float) -> str:
    """`0.21 -> 0.48 (+0.27, 95 % interval +0.22 to +0.32)`, with as many decimals as the interval's width deserves."""
    half_width = (metric.high - metric.low) / 2
    decimals = int(np.clip(np.ceil(-np.log10(half_width)), 2, 4)) if half_width > 1e-9 else 2

    def signed(value: float) -> str:
        return f"{round(value, decimals) + 0.0:+.{decimals}f}"  # + 0.0 turns -0.0 into 0.0

    return (
        f"{metric.base:.{decimals}f} -> {metric.tuned:.{decimals}f} ({signed(metric.difference)}, "
        f"{100 * confidence:g} % interval {signed(metric.low)} to {signed(metric.high)})"
    )


def _listed(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1]


def _in_sentence(label: str) -> str:
    return label[0].lower() + label[1:] if label[1].islower() else label
