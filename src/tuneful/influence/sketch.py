"""A gradient of millions of numbers becomes a few thousand, and inner products stay what they were, about.

    sketch(g) = sum over blocks b of roll(signs_b * g_b, shift_b)        g cut into blocks of `dim`, signs random, shifts random

A matrix with one +1 or -1 for each number (the count sketch of Charikar, Chen & Farach-Colton 2002) whose places are drawn a
block at a time: nothing of the size of `dim` times the gradient is ever held, and a gradient is read once. The inner product of
two sketches is that of the gradients in the mean, with a standard deviation of at most sqrt(2 / dim) of the product of their
norms. Which signs and shifts a parameter has follows from the seed, its name's place and `dim` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tuneful.batch.order import derived_seed

# Legend of shapes: B records, P numbers of a parameter, D numbers of a sketch


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The signs [P] of one parameter, int8, and by how much each of its blocks is rolled."""

    signs: torch.Tensor
    shifts: tuple[int, ...]


class Sketch:
    """The sketch of parameters with so many numbers each, in `dim` numbers, under `seed`; on `device`."""

    def __init__(self, sizes: Mapping[str, int], dim: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.dim = dim
        self._parts = {
            name: _drawn(size, dim, derived_seed(seed, number), device)
            for number, (name, size) in enumerate(sizes.items())
        }

    def of(self, name: str, gradients: torch.Tensor) -> torch.Tensor:
        """The sketches [B, D] of the gradients [B, ...] of the parameter `name`: those of several parameters are added up."""
        part = self._parts[name]
        flat = gradients.reshape(len(gradients), -1) * part.signs
        total = flat.new_zeros(len(flat), self.dim)
        for block, shift in zip(flat.split(self.dim, dim=1), part.shifts, strict=True):
            before_end = min(block.shape[1], self.dim - shift)
            total[:, shift : shift + before_end] += block[:, :before_end]
            total[:, : block.shape[1] - before_end] += block[:, before_end:]
        return total


def _drawn(size: int, dim: int, seed: int, device: torch.device | str) -> _Part:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
    shifts = torch.randint(0, dim, (-(-size // dim),), generator=generator).tolist()
    return _Part(signs.to(device), tuple(shifts))
