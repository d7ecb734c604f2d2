"""The metrics that are compared, one row each: name, label, unit, good direction and formula.

Stands under `compare.py`, `summary.py` and `gate.py`. A new metric is a field of `AnswerScores`, computed in `metrics.py`, and a
row here. Names are keys of comparison.json and of gates; labels are for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tuneful.runs.schema import AnswerScores, MetricComparison, PairwiseMetric

Formula = Literal["mean", "share", "loss", "perplexity", "macro_f1"]
"""How items become one number: the mean of scores, the share of items, a loss per token (or byte), exp() of one, and the mean F1
of labels."""

_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"0 to 100": (0.0, 100.0), "0 to 1": (0.0, 1.0), "share of items": (0.0, 1.0)}
)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric is: `name` in files, `label` and `unit` on the page, its good direction (None: neither).

    `field` of `AnswerScores` holds an item's number, where it is not called `name`. `in_sentence` is the label inside a
    sentence, where that is not the label in lower case. `check` names the check of one's own whose outcomes are measured.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    formula: Formula = "mean"
    field: str = ""
    in_sentence: str = ""
    check: str = ""

    @property
    def is_per_token(self) -> bool:
        """Whether the metric depends on how a model's tokenizer cuts the references."""
        return self.formula in ("loss", "perplexity")

    @property
    def span(self) -> float:
        """From the least value that the metric can have to the greatest, as its unit says: no difference is larger.

        Infinite where the unit names no end.
        """
        least, greatest = _RANGES.get(self.unit, (-math.inf, math.inf))
        return greatest - least


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("judge_score", "Judge score", "0 to 100", True),
    MetricSpec("people_preference", "People's preference", "share of items", True, formula="share"),
    MetricSpec("exact_match", "Exact match", "share of items", True, formula="share"),
    MetricSpec("token_f1", "Token F1", "0 to 1", True),
    MetricSpec("rouge_l", "ROUGE-L", "0 to 1", True),
    MetricSpec("chrf", "chrF", "0 to 1", True),
    MetricSpec("reference_loss", "Reference loss", "nats per token", False, formula="loss", field="reference_nll"),
    MetricSpec("perplexity", "Perplexity", "", False, formula="perplexity", field="reference_nll"),
    MetricSpec(
        "ended",
        "Stopped at end token",
        "share of items",
        True,
        formula="share",
        in_sentence="stopping at the end token",
    ),
    MetricSpec("length", "Length", "words", None, field="num_words"),
)

FORGETTING: tuple[MetricSpec, ...] = (
    MetricSpec("forgetting", "General text", "bits per byte", False, formula="loss"),
    MetricSpec("kl_to_base", "KL to base", "bits per token", None, formula="loss"),
)
"""What `forgetting.py` measures on text that the finetuning never showed."""


DOCUMENTS: tuple[MetricSpec, ...] = (
    MetricSpec("document_perplexity", "Perplexity of documents", "per token", False, formula="perplexity"),
    MetricSpec("document_bits", "Documents", "bits per byte", False, formula="loss"),
)
"""What `documents.py` measures on documents of the test set, where documents are trained."""


def metric_spec(name: str) -> MetricSpec:
    """The metric called `name`, one of `METRICS`, `DOCUMENTS` or `FORGETTING`."""
    return next(spec for spec in (*METRICS, *DOCUMENTS, *FORGETTING) if spec.name == name)


def item_value(name: str, scores: AnswerScores) -> float | None:
    """What one item has of the metric `name`, of answers or of a check of one's own; None where it was not measured.

    Of macro F1, which no single item has, whether its label is right.
    """
    spec = next((one for one in METRICS if one.name == name), None)
    if spec is None:
        checks = scores.checks or {}
        outcome = checks.get(name) or checks.get(name.removesuffix("_macro_f1"))
        return None if outcome is None else outcome.score
    value: float | None = getattr(scores, spec.field or spec.name)
    return value if value is None or not spec.is_per_token else value / (scores.reference_tokens or 1)


def label_in_sentence(metric: MetricComparison | PairwiseMetric) -> str:
    """The label of a metric inside a sentence: `exact match`, but `ROUGE-L` and `chrF`."""
    spec = next((one for one in METRICS if one.name == metric.name), None)
    if spec is not None and spec.in_sentence:
        return spec.in_sentence
    label = metric.label if spec is None else spec.label
    return label[:1].lower() + label[1:] if label[1:2].islower() else label
