"""How fast this machine computes the matrix products of a model: a short measurement with matrices of its shapes.

    training    2 operations a weight of a matrix and a token forward, 2 for the gradient of what went in, and 2 for that of the
                weight where it is trained: 6 in full finetuning, 4 beside a frozen base
    answering   2 operations a weight and a token; with one prompt the time is that of reading the weights

Products are most of a step and not all of it: what attention, norms, the optimizer and sampling take is left out.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass

import torch

from tuneful.model.precision import synchronize
from tuneful.model.size import ModelSize

_LEAST, _TRAINED_ROWS, _MAX_SHAPES = 3, 128, 4
_MAX_PRODUCTS, _MAX_NUMBERS = 1 << 28, 1 << 24
"""How many multiplications a product that is timed has at most, so that even a busy machine computes it without a break; and how
many numbers its matrix has: more than a cache holds, where the time of answering is that of reading them."""
ANSWERED_TOGETHER = 16
"""Prompts that are answered together, in the second figure of answering."""


@dataclass(frozen=True, slots=True)
class ProductSpeed:
    """Tokens a second at which the products of a model alone are computed."""

    full: float
    lora: float
    answering_one: float
    answering_together: float


def measure_products(
    size: ModelSize, num_active: int, dtype: torch.dtype, device: torch.device, seconds: float = 0.5
) -> ProductSpeed:
    """Measure for about `seconds`, with the shapes of most of the weights of `size`, of which a token meets `num_active`."""
    shapes = _common_shapes(size)
    share = seconds / (3 * max(1, len(shapes)))
    per_weight = {
        rows: _seconds_a_weight(shapes, rows, dtype, device, share) for rows in (_TRAINED_ROWS, 1, ANSWERED_TOGETHER)
    }
    forward = num_active * per_weight[_TRAINED_ROWS] / _TRAINED_ROWS
    return ProductSpeed(
        full=1 / (3 * forward),
        lora=1 / (2 * forward),
        answering_one=1 / (num_active * per_weight[1]),
        answering_together=ANSWERED_TOGETHER / (num_active * per_weight[ANSWERED_TOGETHER]),
    )


def _common_shapes(size: ModelSize) -> list[tuple[int, int]]:
    weights: Counter[tuple[int, int]] = Counter()
    for shape in size.shapes.values():
        if len(shape) > 1:
            weights[math.prod(shape[:-1]), shape[-1]] += math.prod(shape)
    return [shape for shape, _ in weights.most_common(_MAX_SHAPES)]


def _seconds_a_weight(
    shapes: list[tuple[int, int]], num_rows: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> float:
    """Seconds of a product of `num_rows` rows for each weight of its matrix, over all the shapes."""
    timed = [_timed_shape(shape, num_rows) for shape in shapes]
    taken = [_seconds_of_product(shape, num_rows, dtype, device, seconds) for shape in timed]
    return sum(taken) / sum(map(math.prod, timed))


def _timed_shape(shape: tuple[int, int], num_rows: int) -> tuple[int, int]:
    """`shape` with as many rows as are timed; where answers are, as if several matrices of a layer stood on one another."""
    outputs, inputs = shape
    inputs = min(inputs, _MAX_NUMBERS)
    most = max(1, min(_MAX_NUMBERS, _MAX_PRODUCTS // num_rows) // inputs)
    return (min(outputs, most) if num_rows > ANSWERED_TOGETHER else most), inputs


def _seconds_of_product(
    shape: tuple[int, int], num_rows: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> float:
    weight = torch.ones(shape, dtype=dtype, device=device)
    rows = torch.ones(num_rows, shape[1], dtype=dtype, device=device)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        torch.nn.functional.linear(rows, weight)  # the first one is slower
        while len(taken) < _LEAST or time.perf_counter() < end:
            start = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return min(taken)
