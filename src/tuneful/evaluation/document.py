"""The document of `comparison.json`: the comparison of two models, its sentence, and every item behind it.

Stands over `compare.py` and `forgetting.py`, for `tuneful compare` and for the end of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tuneful.config import Config
from tuneful.evaluation.compare import Comparison, as_dict, compare, gains
from tuneful.evaluation.forgetting import GeneralScore, compare_forgetting
from tuneful.evaluation.metrics import AnswerScores
from tuneful.evaluation.summary import summary_sentence


def compare_models(
    config: Config,
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    kinds: Sequence[str | None],
    general_base: Sequence[GeneralScore],
    general_tuned: Sequence[GeneralScore],
) -> Comparison:
    """Compare the answers and the forgetting of two models with the confidence, resamples and seed of `config`."""
    report, seed = config.report, config.train.seed
    forgetting = compare_forgetting(
        general_base, general_tuned, confidence=report.confidence, num_resamples=report.num_resamples, seed=seed
    )
    return compare(
        base,
        tuned,
        kinds=kinds,
        forgetting=forgetting,
        confidence=report.confidence,
        num_resamples=report.num_resamples,
        seed=seed,
    )


def comparison_document(
    comparison: Comparison,
    *,
    sources: Sequence[str],
    references: Sequence[str],
    kinds: Sequence[str | None],
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What comparison.json holds: the comparison, its sentence, and the items behind it, each with its `gain`."""
    rows = zip(sources, references, kinds, gains(comparison, base, tuned), base, tuned, strict=True)
    items = [
        {
            "source": source,
            "reference": reference,
            "kind": kind,
            "gain": gain,
            "base": asdict(before),
            "tuned": asdict(after),
        }
        for source, reference, kind, gain, before, after in rows
    ]
    sentence = summary_sentence(comparison, "B") if names else summary_sentence(comparison)
    named = {"names": dict(names)} if names else {}
    return {**as_dict(comparison), **named, "sentence": sentence, "items": items}
