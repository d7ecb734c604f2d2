"""How long the records are: the spread of a length in five figures, and a histogram of a dozen bins.

The one place where lengths become figures, so that `tuneful check` and the report of a run show the same ones. The bins
are of a round width, which a person reads at a glance; the trade is that the last one takes the longest 1 % together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_NUM_BINS = 12


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of a length over all records."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: npt.NDArray[np.int64]) -> Spread:
        """The spread of `values`, int [N], N > 0."""
        p50, p95, p99 = (float(value) for value in np.percentile(values, [50, 95, 99]))
        return cls(round(float(values.mean()), 1), p50, p95, p99, float(values.max()))


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[k]` records are from `edges[k]` to below `edges[k + 1]` long; both empty where there is no record."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: npt.NDArray[np.int64]) -> Histogram:
        """A dozen bins of a round width; the last takes all that is longer than the longest of 99 %."""
        if not len(values):
            return cls((), ())
        width = _round_up(max(1.0, float(np.percentile(values, 99)) / (_NUM_BINS - 1)))
        edges = [width * step for step in range(_NUM_BINS)]
        edges = [edge for edge in edges if edge <= values.max()]
        counts, _ = np.histogram(values, bins=[*edges, np.inf])
        end = float(max(values.max() + 1, edges[-1] + width))
        return cls((*map(float, edges), end), tuple(counts.tolist()))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"edges": list(self.edges), "counts": list(self.counts)}


def _round_up(width: float) -> int:
    """The next of 1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 80, 100, 200 ..."""
    scale = 1
    while True:
        for step in (1, 2, 2.5, 4, 5, 8):
            if step * scale >= width and step * scale == int(step * scale):
                return int(step * scale)
        scale *= 10
