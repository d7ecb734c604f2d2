"""Features and factors become scores, and scores the records that stand out on either side.

    score[item, record] = sum over weights c of factor[c, record] * <direction of the item, features of the record> at c

Positive: training on the record made the item likelier. TracIn (Pruthi et al. 2020, "TracInCP") with the direction of an item
in the place of its features: what all records share is taken out of it (`curvature.py`). `cosines` are between direction and
features, the mean over weights by their learning rates: the measure of LESS (Xia et al. 2024), but for that direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuneful.influence.features import Features

Figures = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """float64 [items, records] each: what training on a record did to an item, and how alike their gradients are, -1 to 1."""

    scores: Figures
    cosines: Figures


class Sums:
    """Adds up an `Influence` of `num_items` and `num_records`, checkpoint by checkpoint and chunk by chunk."""

    def __init__(self, num_items: int, num_records: int) -> None:
        self._scores = np.zeros((num_items, num_records))
        self._cosines = np.zeros((num_items, num_records))
        self._weights = np.zeros(num_records)

    def add(
        self, items: tuple[Figures, Figures], start: int, records: Features, factors: Figures, weight: float
    ) -> None:
        """One set of weights, which weighs `weight`: the directions [I, D] of all items, those for scores and those for cosines,
        features of the records from `start` on [n, D], and the factors [n] of these."""
        places, wide = slice(start, start + len(records)), records.astype(np.float64)
        for_scores, for_cosines = items
        products = for_cosines @ wide.T
        lengths = np.linalg.norm(for_cosines, axis=1)[:, None] * np.linalg.norm(wide, axis=1)
        self._scores[:, places] += for_scores @ wide.T * factors
        self._cosines[:, places] += weight * np.divide(
            products, lengths, where=lengths > 0, out=np.zeros_like(products)
        )
        self._weights[places] += weight

    def influence(self) -> Influence:
        """What was added up."""
        weights = np.where(self._weights > 0, self._weights, 1.0)
        return Influence(self._scores, np.clip(self._cosines / weights, -1.0, 1.0))


def strongest(values: Sequence[float] | Figures, num: int) -> tuple[list[int], list[int]]:
    """The places of the `num` largest positive `values`, largest first, and of the `num` smallest negative ones."""
    order = np.argsort(np.asarray(values), kind="stable")
    against = [int(place) for place in order[:num] if values[place] < 0]
    towards = [int(place) for place in order[::-1][:num] if values[place] > 0]
    return towards, against
