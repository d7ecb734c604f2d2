"""A sketch is a small matrix that is never made: its inner products are those of the gradients, as sharp as promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tuneful.influence.sketch import Sketch

SIZES = {"a": 5_000, "b": 1_300, "c": 7}


def gradients(seed: int, num: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(num, size, generator=generator, dtype=torch.float64) for name, size in SIZES.items()}


def sketched(sketch: Sketch, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum((sketch.of(name, own) for name, own in given.items()), torch.zeros(()))


def test_a_sketch_is_linear_and_each_number_of_a_gradient_goes_to_one_place_with_a_sign() -> None:
    sketch = Sketch({"a": 10}, 4, 0)
    columns = sketch.of("a", torch.eye(10, dtype=torch.float64))
    assert (columns.abs().sum(1) == 1).all()
    assert set(columns[columns != 0].tolist()) <= {-1.0, 1.0}
    for block in (columns[0:4], columns[4:8], columns[8:10]):  # no two numbers of a block meet
        assert (block.abs().sum(0) <= 1).all()
    given = torch.arange(20, dtype=torch.float64).reshape(2, 10)
    assert torch.equal(sketch.of("a", given), given @ columns)
    assert torch.equal(sketch.of("a", given.reshape(2, 2, 5)), given @ columns)


def test_the_inner_product_is_right_in_the_mean_and_as_sharp_as_promised() -> None:
    given, dim = gradients(3), 256
    flat = torch.cat(list(given.values()), 1)
    wanted, lengths = float(flat[0] @ flat[1]), float(flat[0].norm() * flat[1].norm())
    found = [float(one[0] @ one[1]) for seed in range(300) for one in [sketched(Sketch(SIZES, dim, seed), given)]]
    errors = (np.array(found) - wanted) / lengths
    spread = math.sqrt(2 / dim)
    assert abs(errors.mean()) < 4 * spread / math.sqrt(300)
    assert 0.5 * spread < errors.std() < 1.15 * spread


def test_gradients_that_are_large_in_the_same_columns_do_not_meet_more_often_than_others() -> None:
    """A matrix of rows of 64 whose first column dominates, in 64 numbers: without shifts all of it would share a place."""
    given = torch.zeros(2, 100, 64, dtype=torch.float64)
    given[:, :, 0] = torch.randn(2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = float(given[0].norm() * given[1].norm())
    wanted = float((given[0] * given[1]).sum())
    errors = [
        (float(one[0] @ one[1]) - wanted) / lengths
        for seed in range(200)
        for one in [Sketch({"a": 6400}, 64, seed).of("a", given)]
    ]
    assert np.std(errors) < 1.15 * math.sqrt(2 / 64)


@pytest.mark.parametrize("dim", [1, 7, 8_192])
def test_any_number_of_places_will_do_and_the_same_seed_gives_the_same_sketch(dim: int) -> None:
    given = gradients(1)
    one, again, other = (sketched(Sketch(SIZES, dim, seed), given) for seed in (5, 5, 6))
    assert one.shape == (2, dim)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
