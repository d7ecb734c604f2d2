"""Tensors as they lie in the safetensors files of a folder: found by their headers, read a stretch at a time.

For what looks at weights without loading a model: its size, the precision it is stored in, and merging from file to file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STRETCH = 1 << 22
"""How many numbers are read, or worked on, at once."""
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What safetensors calls the number formats of weights, and torch."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor of `shape` lies: its numbers begin at byte `offset` of `file`. `dtype` is in the words of safetensors."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Its numbers from `start` to before `stop`, counted through all dimensions, one after the other. OSError, ValueError."""
        import torch

        dtype = getattr(torch, DTYPES[self.dtype])
        content = bytearray((stop - start) * dtype.itemsize)
        with self.file.open("rb") as stream:
            stream.seek(self.offset + start * dtype.itemsize)
            if stream.readinto(content) != len(content):
                raise ValueError(f"{self.file} ends too early")
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def stretches(num_numbers: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each stretch of that many numbers."""
    for start in range(0, num_numbers, STRETCH):
        yield start, min(start + STRETCH, num_numbers)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the safetensors files of `folder`, by name, from their headers: a length, then JSON. OSError, ValueError."""
    single, found = folder / "model.safetensors", {}
    for file in [single] if single.is_file() else sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                shape, (start, _) = tuple(tensor["shape"]), tensor["data_offsets"]
                found[name] = StoredTensor(file, tensor["dtype"], shape, 8 + length + start)
    return found


def stored_dtype(folder: Path) -> str | None:
    """The number format, in torch's words, of most weights of `folder` where bfloat16 is; else of all; None where it is none."""
    sizes: dict[str, int] = {}
    for tensor in stored_tensors(folder).values():
        if tensor.dtype in DTYPES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    most = max(sizes, key=lambda name: sizes[name], default=None)
    return DTYPES[most] if most is not None and (most == "BF16" or len(sizes) == 1) else None
