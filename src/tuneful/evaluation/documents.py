"""Held-out documents: how well a model expects them, before and after the training.

Stands beside `forgetting.py`, over `metric_comparison.py`. A document is scored as it is trained, in chunks of `data.max_length`
tokens whose targets are summed, so that every token counts once and the document is the unit of the interval. Perplexity is per
token; bits per byte say the same for comparing models whose tokenizers differ.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

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


def compare_documents(
    base: Sequence[GeneralScore],
    tuned: Sequence[GeneralScore],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> tuple[MetricComparison, ...]:
    """Perplexity and bits per byte of the same documents under both models, with intervals over documents; none for none."""
    assert [one.source for one in base] == [one.source for one in tuned]
    if not base:
        return ()
    pairs = [
        (spec, (_ratio(base, spec.formula == "perplexity"), _ratio(tuned, spec.formula == "perplexity")))
        for spec in DOCUMENTS
    ]
    return tuple(compare_ratios(pairs, confidence=confidence, num_resamples=num_resamples, seed=seed))


def comparison_of_documents(
    documents: tuple[MetricComparison, ...],
    forgetting: Iterable[MetricComparison],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> Comparison:
    """The comparison of a run whose test set holds documents and no prompt; its headline is the perplexity."""
    main = documents[0]
    comparison = Comparison(
        num_items=main.num_items,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        headline=main.name,
        reference_words=0.0,
        caution=caution_of(main.num_items, True, confidence, main),
        metrics=documents,
        forgetting=tuple(forgetting),
        items=(),
    )
    return replace(comparison, sentence=summary_sentence(comparison))


def _ratio(scores: Sequence[GeneralScore], is_perplexity: bool) -> Ratio:
    nll = np.array([score.nll for score in scores])
    if is_perplexity:
        return Ratio(nll, np.array([score.num_tokens for score in scores], dtype=np.float64), exponential=True)
    return Ratio(nll / math.log(2), np.array([score.num_bytes for score in scores], dtype=np.float64))
