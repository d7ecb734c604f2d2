"""The damped inverse of the records' second moment is the dense one, whichever of records and numbers are more."""

from __future__ import annotations

import numpy as np
import pytest

from tuneful.influence.curvature import SecondMoment


def features(num: int, dim: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).normal(size=(num, dim)).astype(np.float32)


def moment_of(records: np.ndarray, chunk: int = 3) -> SecondMoment:
    moment = SecondMoment(*records.shape)
    for start in range(0, len(records), chunk):
        moment.add(records[start : start + chunk])
    return moment


@pytest.mark.parametrize(("num", "dim"), [(7, 20), (20, 7), (8, 8), (1, 5)])
def test_it_is_the_dense_inverse_whether_records_or_numbers_are_more(num: int, dim: int) -> None:
    records, items = features(num, dim, 0), features(3, dim, 1)
    matrix = records.astype(np.float64).T @ records / num
    damping = 0.1 * np.trace(matrix) / min(num, dim)
    wanted = items @ np.linalg.inv(matrix + damping * np.eye(dim))
    np.testing.assert_allclose(moment_of(records).solve(items, 0.1), wanted, rtol=1e-6, atol=1e-6)


def test_what_all_records_share_weighs_little_and_what_one_has_much() -> None:
    """Ten records along one axis, one of them along another too: by it an item is told apart, though it lies along both."""
    records = np.zeros((10, 4), np.float32)
    records[:, 0], records[3, 1] = 10.0, 1.0
    item = np.array([[5.0, 1.0, 0.0, 0.0]], np.float32)
    plain = (records @ item.T)[:, 0]
    assert plain[3] == pytest.approx(plain[0], rel=0.03)
    scores = records @ moment_of(records).solve(item, 1e-3)[0]
    assert scores[3] > 5 * abs(scores[0])


def test_of_records_without_a_gradient_there_is_nothing_to_take_out() -> None:
    assert not moment_of(np.zeros((3, 5), np.float32)).solve(features(2, 5, 1)).any()
