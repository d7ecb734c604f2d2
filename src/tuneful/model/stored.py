"""Tensors as they lie in the safetensors files of a folder: found by their headers, read a stretch at a time.

For what looks at weights without loading a model: its size, the precision it is stored in, and merging from file to file.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from tuneful.errors import ModelError
from tuneful.model.own_files import own_file, parse_object, read_document

if TYPE_CHECKING:
    import torch

STRETCH = 1 << 22
"""How many numbers are read, or worked on, at once."""
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What safetensors calls the number formats of weights, and torch."""
INDEX = "model.safetensors.index.json"
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16}
_BITS |= {"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "U32": 32, "I32": 32, "F32": 32}
_BITS |= {"U64": 64, "I64": 64, "F64": 64, "C64": 64}
"""Bits of a number of each format that safetensors knows."""
_MAX_HEADER_BYTES = 1 << 25
"""That of a file of a hundred thousand tensors has a third of that."""
_MAX_DIMENSIONS, _MAX_NAME, _MAX_NAMED = 16, 1_000, 5


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor of `shape` lies: its numbers begin at byte `offset` of `file`. `dtype` is in the words of safetensors."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """The length of its numbers in the file."""
        return -(-math.prod(self.shape) * _BITS[self.dtype] // 8)

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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`: a model's only one, those of its index, else all. ModelError where one is missing."""
    single, index = folder / "model.safetensors", folder / INDEX
    if os.path.lexists(single):
        return [own_file(folder, single.name)]
    if not index.is_file():
        return [own_file(folder, file.name) for file in sorted(folder.glob("*.safetensors"))]
    places = read_document(index).get("weight_map")
    if not isinstance(places, dict) or not all(_is_name(shard) for shard in places.values()) or not places:
        raise ModelError(f"{index} is no index of weights: `weight_map` names no files; fetch it again")
    shards = sorted(set(places.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise ModelError(
            f"{folder} lacks {', '.join(missing[:_MAX_NAMED])}{more}, which {index.name} lists: fetch the folder again"
        )
    return [own_file(folder, shard) for shard in shards]


def _is_name(shard: Any) -> bool:
    return isinstance(shard, str) and len(shard) < 256 and shard.isprintable() and shard == Path(shard).name != ""


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the safetensors files of `folder`, by name, from their headers. OSError, ValueError."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        found |= read_safetensors_header(file)
    return found


def read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name: a length, then JSON, then numbers without a gap between them. OSError, ValueError.

    What it says has to be true of the file: each tensor has as many bytes as its shape asks for, none lies in another, and all
    of them fill the file. A file that is still the same is not read again: its size is asked for, then its precision, then its
    weights are loaded, and a header of 50,000 tensors takes half a second.
    """
    status = file.stat()
    return dict(_header(file, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)))


@functools.lru_cache(maxsize=8)
def _header(file: Path, same: tuple[int, int, int, int]) -> dict[str, StoredTensor]:
    num_bytes = same[2]
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"{file.name} has {num_bytes:,} bytes, and its header claims {length:,} of them")
        header = parse_object(stream.read(length), max_depth=None)  # each tensor is looked at below
    header.pop("__metadata__", None)
    found = {name: _tensor(file, name, about, 8 + length) for name, about in header.items()}
    at = 8 + length
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if tensor.offset != at:
            raise ValueError(f"{file.name}: {name[:200]!r} does not begin where the tensor before it ends")
        at += tensor.num_bytes
    if at != num_bytes:
        raise ValueError(f"{file.name} has {num_bytes:,} bytes, and its header describes {at:,}")
    return found


def _tensor(file: Path, name: str, about: Any, begin: int) -> StoredTensor:
    if not name.isprintable() or len(name) > _MAX_NAME:
        raise ValueError(f"{file.name}: the name of a tensor is {name[:40]!r}")
    told: dict[str, Any] = about if isinstance(about, dict) else {}
    found: tuple[Any, Any, Any] = (told.get("dtype"), told.get("shape"), told.get("data_offsets"))
    dtype, shape, place = found
    is_told = isinstance(dtype, str) and dtype in _BITS and _are_counts(shape) and _are_counts(place)
    if not is_told or len(shape) > _MAX_DIMENSIONS or len(place) != 2:
        raise ValueError(f"{file.name}: what the header says of {name!r} describes no tensor")
    tensor = StoredTensor(file, dtype, tuple(shape), begin + place[0])
    if place[1] - place[0] != tensor.num_bytes:
        raise ValueError(f"{file.name}: {name!r} of shape {shape} in {dtype} has {place[1] - place[0]:,} bytes")
    return tensor


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def stored_dtype(folder: Path) -> str | None:
    """The number format, in torch's words, of most weights of `folder` where bfloat16 is; else of all; None where it is none."""
    sizes: dict[str, int] = {}
    for tensor in stored_tensors(folder).values():
        if tensor.dtype in DTYPES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    most = max(sizes, key=lambda name: sizes[name], default=None)
    return DTYPES[most] if most is not None and (most == "BF16" or len(sizes) == 1) else None
