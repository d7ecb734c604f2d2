"""What the records' gradients have in common, taken out: the inverse of their own second moment, damped.

    M = 1/N sum_z phi(z) phi(z)^T          inverse of (M + lambda I)          lambda = damping x the mean eigenvalue of M

Most of a gradient says what every record says: how a response begins, its style, its end. Those few directions rule plain inner
products. M is large along them and small along what few records teach, so its inverse weighs a direction by how rare it is. It
stands for the Hessian of influence functions (Koh & Liang 2017), as the empirical Fisher matrix of the projected gradients (TRAK:
Park et al. 2023); lambda keeps directions that no record has from ruling (Grosse et al. 2023).

Scores take M of the features as they are, which also keeps a few long ones from ruling all scores. Cosines, which know no length,
take it of `directions_of` these: records that a model knows already have gradients of next to nothing, and would be in no M.

The trade: two matrices of min(N, D) squared in float64, 134 MB at D = 4,096, and a cubic solve of it for each set of weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tuneful.influence.features import Features

# Legend of shapes: N records, D numbers of a feature, I items

DAMPING = 1.0
"""lambda as a share of the mean of the min(N, D) eigenvalues of M that can be above 0. With 0.1 and less, records that teach the
same share what each would have alone, and fall apart: one stands first and its fellows last (LOG.md)."""

Numbers = npt.NDArray[np.float64]


def directions_of(features: Features) -> Features:
    """Features [n, D] of length 1; those of length 0 as they are."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    found: Features = np.divide(features, lengths, where=lengths > 0, out=np.zeros_like(features))
    return found


class SecondMoment:
    """M of `num_records` records of `dim` numbers each, added chunk by chunk."""

    def __init__(self, num_records: int, dim: int) -> None:
        self._num_records, self._dim = num_records, dim
        self._features: list[Features] = []  # where these are less than M is
        self._sum: Numbers | None = None if num_records < dim else np.zeros((dim, dim))

    def add(self, features: Features) -> None:
        """Take the features [n, D] of some records."""
        if self._sum is None:
            self._features.append(features)
        else:
            wide = features.astype(np.float64)
            self._sum += wide.T @ wide

    def solve(self, items: Features, damping: float = DAMPING) -> Numbers:
        """(M + lambda I)^-1 times the features [I, D] of each item: float64 [I, D]; all 0 where no record has a gradient."""
        wide = items.astype(np.float64)
        small = self._gram() if self._sum is None else self._sum / self._num_records
        shift = damping * float(np.trace(small)) / len(small)
        if not shift > 0:
            return np.zeros_like(wide)
        small[np.diag_indices(len(small))] += shift
        if self._sum is not None:
            return np.linalg.solve(small, wide.T).T.astype(np.float64, copy=False)
        # Woodbury: (1/N F^T F + lambda I)^-1 = 1/lambda (I - F^T (1/N F F^T + lambda I)^-1 F / N)
        records = self._records()
        shared: Numbers = np.linalg.solve(small, records @ wide.T).T @ records
        return (wide - shared / self._num_records) / shift

    def _records(self) -> Numbers:
        return np.concatenate(self._features).astype(np.float64)

    def _gram(self) -> Numbers:
        """1/N F F^T, whose eigenvalues above 0 are those of M."""
        records = self._records()
        gram: Numbers = records @ records.T / self._num_records
        return gram
