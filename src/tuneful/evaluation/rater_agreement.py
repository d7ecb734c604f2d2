"""How far people who rated the same items agree beyond chance: kappa, with an interval over items.

Stands over `statistics.py`, under `ratings.py`. Two raters: Cohen's kappa (1960), over the items that both rated; more:
Fleiss' kappa (1971), where the number of raters may differ from item to item. Intervals are percentile bootstraps over items,
since what is drawn again is the item with all its ratings.

The trade: a category that nearly everything falls into leaves little beyond chance to agree on, and kappa is low however often
raters agree; the share of equal ratings is given beside it.

Legend of shapes: B resamples, I items, K categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tuneful.evaluation.statistics import Array, fewest_items, interval, resampled_counts
from tuneful.runs.schema import RaterAgreement


def rater_agreement(
    rated: Sequence[Mapping[str, str]], *, confidence: float, num_resamples: int, seed: int
) -> RaterAgreement | None:
    """The agreement of the raters of some items, each item a mapping of rater to category; None where no item has two."""
    both = [item for item in rated if len(item) > 1]
    raters = sorted({rater for item in both for rater in item})
    categories = sorted({category for item in both for category in item.values()})
    if not both:
        return None
    two = len(raters) == 2
    terms = _cohen_terms(both, raters, categories) if two else _fleiss_terms(both, categories)
    share, kappa = (float(value[0]) for value in _kappa(np.ones((1, len(both))), terms, two=two))
    low = high = None
    # Raters who agree on everything agree on every resample: of that the bootstrap knows no interval.
    if np.isfinite(kappa) and share < 1 and len(both) >= fewest_items(confidence):
        drawn = [_kappa(counts_RI, terms, two=two)[1] for counts_RI in resampled_counts(len(both), num_resamples, seed)]
        low, high = (float(end) for end in np.clip(interval(np.concatenate(drawn), len(both), confidence), -1, 1))
        low, high = min(low, kappa), max(high, kappa)
    return RaterAgreement(
        statistic="Cohen's kappa" if two else "Fleiss' kappa",
        num_items=len(both),
        share=share,
        kappa=kappa if np.isfinite(kappa) else None,
        low=low,
        high=high,
    )


def _cohen_terms(items: Sequence[Mapping[str, str]], raters: Sequence[str], categories: Sequence[str]) -> Array:
    """[I, 1 + 2 K]: whether both agree, then the category of the first and that of the second, one column each."""
    first, second = (_one_hot([item[rater] for item in items], categories) for rater in raters)
    return np.concatenate([(first * second).sum(1, keepdims=True), first, second], axis=1)


def _fleiss_terms(items: Sequence[Mapping[str, str]], categories: Sequence[str]) -> Array:
    """[I, 1 + K]: the share of an item's pairs of ratings that are equal, then its ratings of each category."""
    counts_IK = np.stack([_one_hot(list(item.values()), categories).sum(0) for item in items])
    num_I = counts_IK.sum(1)
    agreed_I = (counts_IK * (counts_IK - 1)).sum(1) / (num_I * (num_I - 1))
    return np.concatenate([agreed_I[:, None], counts_IK], axis=1)


def _kappa(counts_BI: Array, terms: Array, *, two: bool) -> tuple[Array, Array]:
    """Share of agreement and (share - chance) / (1 - chance), each [B]; kappa is nan where chance alone agrees always.

    By chance two raters agree as often as their own shares of the categories say (Cohen), or those of all ratings (Fleiss).
    """
    sums = counts_BI @ terms
    num_items_B = counts_BI.sum(1)
    share_B = sums[:, 0] / num_items_B
    if two:
        first, second = np.split(sums[:, 1:] / num_items_B[:, None], 2, axis=1)
    else:
        first = second = sums[:, 1:] / sums[:, 1:].sum(1, keepdims=True)
    chance_B = (first * second).sum(1)
    kappa_B = np.full(len(sums), np.nan)
    np.divide(share_B - chance_B, 1 - chance_B, out=kappa_B, where=chance_B < 1 - 1e-12)
    return share_B, kappa_B


def _one_hot(values: Sequence[str], categories: Sequence[str]) -> Array:
    return np.array([[float(value == category) for category in categories] for value in values])
