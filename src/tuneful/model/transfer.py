"""Arrays of a micro-batch on their way to a GPU: one pinned buffer, one copy, and nothing waits for it.

A copy from ordinary memory makes the host wait until the GPU has done all that was asked of it before; a copy from pinned
memory is queued like any other work. What a micro-batch brings (ids, positions, rows, weights; who sees whom) is some ten
thousand numbers, which travel as one buffer of int32. On a CPU there is nothing to carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]
_WORDS = {np.dtype(np.int32): (1, torch.int32), np.dtype(np.float64): (2, torch.float64)}
"""Of each type that travels: how many int32 one number takes, and how torch calls it."""


def on_device(device: torch.device, *arrays: Array, integers: torch.dtype = torch.int64) -> list[torch.Tensor]:
    """Each of `arrays`, int32 or float64, as a tensor of its shape on `device`; what was int32 is of `integers`, by default what
    torch takes as indices."""
    if device.type == "cuda":
        tensors = unpacked(packed(arrays).pin_memory().to(device, non_blocking=True), arrays)
    else:
        tensors = [torch.from_numpy(_as_held(array, device)).to(device) for array in arrays]
    return [one if one.is_floating_point() else one.to(integers) for one in tensors]


def _as_held(array: Array, device: torch.device) -> Array:
    """`array` in numbers that `device` has: MPS has no float64."""
    return array.astype(np.float32) if device.type == "mps" and array.dtype == np.float64 else array


def packed(arrays: Sequence[Array]) -> torch.Tensor:
    """The numbers of all `arrays` in one int32 [sum]; float64 first, so that each begins where one may."""
    return torch.from_numpy(np.concatenate([one.ravel().view(np.int32) for _, one in _in_order(arrays)]))


def unpacked(buffer: torch.Tensor, arrays: Sequence[Array]) -> list[torch.Tensor]:
    """Views of `buffer`, which holds what `packed(arrays)` gave, in the types, shapes and order of `arrays`."""
    found: dict[int, torch.Tensor] = {}
    start = 0
    for index, array in _in_order(arrays):
        num_words, dtype = _WORDS[array.dtype]
        stop = start + num_words * array.size
        found[index] = buffer[start:stop].view(dtype).view(array.shape)
        start = stop
    return [found[index] for index in range(len(arrays))]


def _in_order(arrays: Sequence[Array]) -> list[tuple[int, Array]]:
    """The arrays as they lie in the buffer, each with its place among those given."""
    return sorted(enumerate(arrays), key=lambda pair: -_WORDS[pair[1].dtype][0])
