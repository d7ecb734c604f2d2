"""How long the records are: the spread of a length in five figures, and a histogram of a dozen bins.

The one place where lengths become figures, so that `tuneful check` and the report of a run show the same ones. The bins
are of a round width, which a person reads at a glance; the trade is that the last one takes the longest 1 % together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tuneful.runs.schema import Histogram, LengthSummary

_NUM_BINS = 12


def summarize_lengths(values: npt.NDArray[np.int64]) -> LengthSummary:
    """The spread of `values`, int [N], N > 0."""
    p50, p95, p99 = (float(value) for value in np.percentile(values, [50, 95, 99]))
    return LengthSummary(round(float(values.mean()), 1), p50, p95, float(values.max()), p99)


def length_histogram(values: npt.NDArray[np.int64]) -> Histogram:
    """A dozen bins of a round width; the last takes all that is longer than the longest of 99 %. Empty for no values."""
    if not len(values):
        return Histogram((), ())
    width = _round_up(max(1.0, float(np.percentile(values, 99)) / (_NUM_BINS - 1)))
    edges = [width * step for step in range(_NUM_BINS)]
    edges = [edge for edge in edges if edge <= values.max()]
    counts, _ = np.histogram(values, bins=[*edges, np.inf])
    end = float(max(values.max() + 1, edges[-1] + width))
    return Histogram((*map(float, edges), end), tuple(counts.tolist()))


def _round_up(width: float) -> int:
    """The next of 1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 80, 100, 200 ..."""
    scale = 1
    while True:
        for step in (1, 2, 2.5, 4, 5, 8):
            if step * scale >= width and step * scale == int(step * scale):
                return int(step * scale)
        scale *= 10
