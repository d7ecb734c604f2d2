"""Held-out documents: how well a model expects them, before and after the training.

Stands beside `forgetting.py`, over `metric_comparison.py`. A document is scored as it is trained, in chunks of `data.max_length`
tokens whose targets are summed, so that every token counts once and the document is the unit of the interval. Perplexity is per
token; bits per byte say the same for comparing models whose tokenizers differ.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from tuneful.errors import DataError
from tuneful.evaluation.compare import caution_of
from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import DOCUMENTS
from tuneful.evaluation.statistics import Ratio
from tuneful.evaluation.summary import summary_sentence
from tuneful.runs.schema import Comparison, GeneralScore, MetricComparison


def document_score(source: str, text: str, nll: float, num_tokens: int) -> GeneralScore:
    """What one document costs a model: `nll` nats over `num_tokens` tokens, its end token among them."""
    content = text.encode("utf-8", "surrogatepass")
    return GeneralScore("document", source, nll, num_tokens, len(content), hashlib.sha256(content).hexdigest()[:16])


def pair_documents(
    base: Sequence[GeneralScore], tuned: Sequence[GeneralScore]
) -> tuple[list[GeneralScore], list[GeneralScore]]:
    """The documents that both sides have, in the first one's order: those of the same text, wherever they were read."""
    of_tuned = dict(_keyed(tuned))
    both = [(one, of_tuned[key]) for key, one in _keyed(base) if key in of_tuned]
    return [one for one, _ in both], [other for _, other in both]


def _keyed(scores: Sequence[GeneralScore]) -> list[tuple[tuple[str, int, int], GeneralScore]]:
    """Each document under its text, and how many of the same came before."""
    seen: Counter[str] = Counter()
    keyed = []
    for one in scores:
        seen[one.sha256] += 1
        keyed.append(((one.sha256, one.num_bytes, seen[one.sha256]), one))
    return keyed


def compare_documents(
    base: Sequence[GeneralScore],
    tuned: Sequence[GeneralScore],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> tuple[MetricComparison, ...]:
    """Perplexity and bits per byte of the same documents under both models, with intervals over documents; none for none.

    No perplexity where the models count other tokens: of those a mean per token says nothing.
    """
    assert [one.sha256 for one in base] == [one.sha256 for one in tuned]
    if not base:
        return ()
    same_tokens = [one.num_tokens for one in base] == [one.num_tokens for one in tuned]
    pairs = [
        (spec, (_ratio(base, spec.formula == "perplexity"), _ratio(tuned, spec.formula == "perplexity")))
        for spec in DOCUMENTS
        if same_tokens or spec.formula != "perplexity"
    ]
    return tuple(compare_ratios(pairs, confidence=confidence, num_resamples=num_resamples, seed=seed))


def comparison_without_answers(
    metrics: tuple[MetricComparison, ...],
    forgetting: Iterable[MetricComparison],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> Comparison:
    """The comparison of a run that has no test record to answer: of documents, and of tests; its headline is the first metric."""
    if not metrics:
        raise DataError("no item of evaluation.tests was scored by both models; tests/ says why")
    main = metrics[0]
    comparison = Comparison(
        num_items=main.num_items,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        headline=main.name,
        reference_words=0.0,
        caution=caution_of(main.num_items, True, confidence, main),
        metrics=metrics,
        forgetting=tuple(forgetting),
        items=(),
    )
    return replace(comparison, sentence=summary_sentence(comparison))


def _ratio(scores: Sequence[GeneralScore], is_perplexity: bool) -> Ratio:
    nll = np.array([score.nll for score in scores])
    if is_perplexity:
        return Ratio(nll, np.array([score.num_tokens for score in scores], dtype=np.float64), exponential=True)
    return Ratio(nll / math.log(2), np.array([score.num_bytes for score in scores], dtype=np.float64))
