"""pairwise.json, which `tuneful compare A B C --output` writes: every two of several sides compared, corrected for their number.

Every field says what it holds and in which unit; `docs/run-folder.md` is made from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tuneful.runs.schema.results import MetricVerdict
from tuneful.runs.schema.rows import ABSENT


@dataclass(frozen=True, slots=True)
class Side:
    """One of the sides that are compared: `num_items` of its answers are answered by all sides."""

    letter: Annotated[str, "what it is called: `A`, `B` ..."]
    name: Annotated[str, "the run folder or file, as it was named"]
    num_items: Annotated[int, "its answers that are compared"]
    num_left_out: Annotated[int, "its answers that are not, because another side lacks the item"]


@dataclass(frozen=True, slots=True)
class PairOfSides:
    """Two of the sides by one metric, on the same items: `wins + losses + ties = num_items`."""

    base: Annotated[str, "the letter of the one side"]
    tuned: Annotated[str, "the letter of the other, which the verdict is about"]
    num_items: Annotated[int, "items measured for both"]
    difference: Annotated[float, "tuned - base"]
    low: Annotated[
        float | None, "lower end of the difference's interval, at `pair_confidence`; null where it is not known"
    ]
    high: Annotated[float | None, "upper end of the interval; null where it is not known"]
    wins: Annotated[int, "items on which `tuned` is better (a metric without a direction: higher)"]
    losses: Annotated[int, "items on which it is worse"]
    ties: Annotated[int, "items on which both are equal"]
    p_value: Annotated[float | None, "of the permutation test, of this pair alone; null where there is none"]
    p_corrected: Annotated[float | None, "the same, corrected for the number of pairs (Holm)"]
    detectable: Annotated[
        float | None, "the true difference that these items show in 4 of 5 cases, at `pair_confidence`"
    ]
    verdict: Annotated[MetricVerdict, "needs both an interval without 0 and a corrected test that agrees"]


@dataclass(frozen=True, slots=True)
class PairwiseMetric:
    """One metric of all sides, and every pair of them."""

    name: Annotated[str, "the metric"]
    label: Annotated[str, "the metric in words"]
    unit: Annotated[str, "unit of all its figures"]
    higher_is_better: Annotated[bool | None, "its good direction; null where there is none"]
    values: Annotated[tuple[float, ...], "of each side, in the order of `sides`"]
    pairs: Annotated[tuple[PairOfSides, ...], "every pair of sides"]
    groups: Annotated[tuple[tuple[str, ...], ...], "the largest sets of sides of which no two can be told apart"]
    sentence: Annotated[str, "which sides are better than which, in words"]


@dataclass(frozen=True, slots=True)
class PairwiseComparison:
    """Three or more sides on the items that all of them answer. At `confidence` no verdict of one metric is wrong of sides that
    are equal, and all its intervals hold together."""

    sides: Annotated[tuple[Side, ...], "what was compared"]
    confidence: Annotated[float, "of all pairs of one metric together, 0 to 1"]
    pair_confidence: Annotated[float, "of each pair's interval: 1 - (1 - confidence) / number of pairs (Bonferroni)"]
    num_resamples: Annotated[int, "resamples of the bootstrap"]
    seed: Annotated[int, "of the bootstrap"]
    headline: Annotated[str, "the metric that `sentence` speaks of"]
    metrics: Annotated[tuple[PairwiseMetric, ...], "every metric that was measured for all sides"]
    caution: Annotated[str | None, "what weakens the intervals, in words; null for nothing"] = None
    sentence: Annotated[str | None, "the result in words", ABSENT] = None

    @property
    def main(self) -> PairwiseMetric:
        """The metric that the sentence speaks of."""
        return next(metric for metric in self.metrics if metric.name == self.headline)
