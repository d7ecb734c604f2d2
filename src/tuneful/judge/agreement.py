"""Agreement of a judge's scores with people's ratings, in two figures.

Stands beside calibration. Quadratic weighted kappa says how far the two agree in which band an answer belongs, beyond
chance; Spearman's rank correlation whether they put answers into the same order. The trade: the formulas are written out, forty
lines instead of the dependency on a statistics library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tuneful.errors import DataError
from tuneful.runs.schema import Agreement
from tuneful.types import Verdict

_NUM_BANDS = 5
_MIN_PAIRS = 4  # Fisher's interval needs n > 3


def read_ratings(file: Path) -> dict[str, float]:
    """Ratings by source, as bands' positions 0 to 1, from JSONL rows of `source` and `rating`.

    Ratings are 1 to 5 stars where none is above 5, else 0 to 100. Raises DataError with file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; expected rows of `source` and `rating`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    ratings: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            source, rating = _rating(line, f"{file}:{number}")
            if source in ratings:
                raise DataError(f"{file}:{number}: {source} is rated twice; keep one rating for an answer")
            ratings[source] = rating
    if not ratings:
        raise DataError(f"{file}: holds no rating")
    stars = max(ratings.values()) <= _NUM_BANDS
    if stars and min(ratings.values()) < 1:
        raise DataError(f"{file}: ratings are 1 to 5, or 0 to 100; found {min(ratings.values()):g} among 1 to 5")
    return {source: (rating - 1) / 4 if stars else rating / 100 for source, rating in ratings.items()}


def agree(verdicts: Sequence[Verdict], ratings: Mapping[str, float], confidence: float) -> Agreement:
    """How far the scores of `verdicts` agree with `ratings` (0 to 1, by source) of the same answers."""
    scores = {verdict.source: verdict.score / 100 for verdict in verdicts if verdict.score is not None}
    common = [source for source in ratings if source in scores]
    if len(common) < _MIN_PAIRS:
        raise DataError(
            f"only {len(common)} of {len(ratings)} ratings are of answers that the judge scored; {_MIN_PAIRS} are the least "
            "(a rating names the `source` of its item)"
        )
    people = np.array([ratings[source] for source in common])
    judge = np.array([scores[source] for source in common])
    correlation = spearman(people, judge)
    low, high = (None, None) if correlation is None else spearman_interval(correlation, len(common), confidence)
    kappa = weighted_kappa(_bands(people), _bands(judge), _NUM_BANDS)
    return Agreement(len(common), len(ratings) - len(common), kappa, correlation, low, high)


def weighted_kappa(first: Sequence[int], second: Sequence[int], num_bands: int) -> float | None:
    """Cohen's kappa with quadratic weights (Cohen 1968) of two gradings into bands 0 to `num_bands` - 1.

    1 - observed disagreement / disagreement by chance, a pair's disagreement being its squared distance. None where
    chance leaves none.
    """
    by_chance = sum((a - b) ** 2 for a in first for b in second) / len(first)
    observed = sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
    assert all(0 <= band < num_bands for band in (*first, *second)), (first, second)
    return None if by_chance == 0 else 1 - observed / by_chance


def spearman(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where one side is all equal."""
    a, b = (ranks - ranks.mean() for ranks in (_ranks(first), _ranks(second)))
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return None if spread == 0 else float(np.clip(a @ b / spread, -1, 1))


def spearman_interval(correlation: float, num_pairs: int, confidence: float) -> tuple[float, float] | tuple[None, None]:
    """Interval of a rank correlation by Fisher's z, with the standard error of Bonett & Wright (2000).

    (None, None) for a correlation of 1 or -1, of which the z knows none.
    """
    if abs(correlation) == 1:
        return None, None
    error = math.sqrt((1 + correlation**2 / 2) / (num_pairs - 3))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    z = math.atanh(correlation)
    return math.tanh(z - half), math.tanh(z + half)


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks


def _bands(values: npt.NDArray[np.float64]) -> list[int]:
    """Values 0 to 1 as the nearest of five bands, so that one to five stars are bands of their own."""
    return [int(band) for band in np.floor(values * (_NUM_BANDS - 1) + 0.5)]


def _rating(line: str, where: str) -> tuple[str, float]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: not valid JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("source"), str):
        raise DataError(f"{where}: expected an object with `source` and `rating`")
    if "rating" not in row and "preference" in row:
        raise DataError(
            f"{where}: holds a preference between two answers, no grade of one; `tuneful evaluate RUN` takes up the run's "
            "ratings.jsonl without --ratings"
        )
    rating = row.get("rating")
    if isinstance(rating, bool) or not isinstance(rating, (int, float)) or not 0 <= rating <= 100:
        raise DataError(f"{where}: `rating` is {rating!r}; expected 1 to 5, or 0 to 100")
    return row["source"], float(rating)
