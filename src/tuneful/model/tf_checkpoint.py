"""A TensorFlow checkpoint without TensorFlow: where each variable lies, and its bytes once their checksum is right.

    checkpoint                          which checkpoint of the folder is meant: its prefix, here model.ckpt
    model.ckpt.index                    a table (model/sstable.py): name -> number format, shape, place, checksum
    model.ckpt.data-00000-of-00001      the numbers, one variable after the other; there may be several such files

The values of the table are protocol buffers: BundleHeaderProto under the empty key, BundleEntryProto under the others, of
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto. `model.ckpt.meta`, the program
that made it, is not read. Nothing is believed: a place has to lie in its file, beside all others, and hold as many bytes as its
shape says; files have to be files of this folder, and no links out of it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tuneful.errors import ModelError
from tuneful.model.crc32c import crc32c, masked
from tuneful.model.own_files import own_file
from tuneful.model.sstable import TableError, read_table, varint

BLOCK_BYTES = 1 << 23
"""How much of a variable is in memory at once."""

_STATE = "checkpoint"
_MAX_STATE_BYTES, _MAX_NAME = 1 << 20, 200
_CHOSEN = re.compile(rb'^\s*model_checkpoint_path:\s*"([^"\\]*)"', re.MULTILINE)
_DTYPES = {1: ("F32", 4), 2: ("F64", 8), 14: ("BF16", 2), 19: ("F16", 2)}
"""Number formats of weights: TensorFlow's number -> the word of safetensors, bytes a number."""
_MAX_SHARDS, _MAX_DIMENSIONS = 1_000, 8
_MAX_GAP = 1 << 12  # bytes before a variable, where they are written in pages
_NUMBER, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""How protocol buffers store a field."""


@dataclass(frozen=True, slots=True)
class TfVariable:
    """A variable of a checkpoint: its `num_bytes` begin at byte `offset` of `file`. `dtype` is in the words of safetensors,
    None for what no weight is stored in."""

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    file: Path
    offset: int
    num_bytes: int
    masked_crc: int

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, little-endian, in pieces; after the last one ModelError where their checksum is wrong. OSError."""
        crc, left = 0, self.num_bytes
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            while left:
                block = stream.read(min(left, BLOCK_BYTES))
                if not block:
                    raise ModelError(f"{self.file} ends within {self.name}; fetch it again")
                crc = crc32c(block, crc)
                left -= len(block)
                yield block
        if masked(crc) != self.masked_crc:
            raise ModelError(f"{self.file}: the checksum of {self.name} is wrong; fetch the file again")


@dataclass(frozen=True, slots=True)
class TfCheckpoint:
    """The variables of a checkpoint by name, and the files that hold them: the index first, then the numbers."""

    variables: Mapping[str, TfVariable]
    files: tuple[Path, ...]


def read_checkpoint(folder: Path) -> TfCheckpoint:
    """The checkpoint of `folder`, whose numbers are not read yet; ModelError where it is damaged."""
    prefix = _prefix(folder)
    index = own_file(folder, f"{prefix}.index")
    try:
        entries = read_table(index)
        num_shards = _num_shards(entries.pop(b"", b""))
        found = {key: _entry(value) for key, value in entries.items()}
    except (TableError, OSError) as error:
        raise ModelError(f"{index} cannot be read as the index of a checkpoint: {error}; fetch it again") from error
    shards = [own_file(folder, f"{prefix}.data-{shard:05}-of-{num_shards:05}") for shard in range(num_shards)]
    variables = [_variable(key, entry, shards, index) for key, entry in found.items()]
    _check_apart(variables, index)
    _check_filled(variables, shards)
    return TfCheckpoint({variable.name: variable for variable in variables}, (index, *shards))


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint of TensorFlow seems to lie in `folder`."""
    return (folder / _STATE).is_file() and any(folder.glob("*.index"))


def _prefix(folder: Path) -> str:
    """What the names of the checkpoint's files begin with: what `checkpoint` says, else the only index there is."""
    if os.path.lexists(folder / _STATE):
        text = own_file(folder, _STATE, _MAX_STATE_BYTES).read_bytes()
        if chosen := _CHOSEN.search(text):
            name = re.split(r"[/\\]", chosen[1].decode("utf-8", "replace"))[-1]  # it was made in another place
            if name.isprintable() and 0 < len(name) <= _MAX_NAME:
                return name
        raise ModelError(f'{folder / _STATE} names no checkpoint (model_checkpoint_path: "model.ckpt"); fetch it again')
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        raise ModelError(f"{folder} has no {_STATE}, which names the checkpoint; fetch the folder again")
    return found[0].name.removesuffix(".index")


# Entries of the index


@dataclass(frozen=True, slots=True)
class _Entry:
    """BundleEntryProto."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    num_bytes: int
    masked_crc: int
    is_sliced: bool


def _num_shards(header: bytes) -> int:
    fields = dict(_fields(header))
    if fields.get(2, 0):
        raise TableError("its numbers are big-endian; save it on a little-endian machine")
    num_shards = fields.get(1)
    if not isinstance(num_shards, int) or not 0 < num_shards <= _MAX_SHARDS:
        raise TableError("its header does not tell how many data files there are")
    return num_shards


def _entry(message: bytes) -> _Entry:
    fields = list(_fields(message))
    last = dict(fields)
    numbers = [last.get(field, 0) for field in (1, 3, 4, 5, 6)]
    if not all(isinstance(number, int) for number in numbers) or not isinstance(shape := last.get(2, b""), bytes):
        raise TableError("an entry of it is of another form")
    dtype, shard, offset, num_bytes, crc = (int(number) for number in numbers)
    return _Entry(dtype, _shape(shape), shard, offset, num_bytes, crc, any(field == 7 for field, _ in fields))


def _shape(message: bytes) -> tuple[int, ...]:
    """TensorShapeProto: a message for each dimension, whose first field is its size."""
    sizes = []
    for field, dimension in _fields(message):
        if field == 2 and isinstance(dimension, bytes):
            size = dict(_fields(dimension)).get(1, 0)
            sizes.append(size if isinstance(size, int) else -1)
    if len(sizes) > _MAX_DIMENSIONS or not all(0 <= size < 1 << 40 for size in sizes):
        raise TableError("a shape in it is absurd")
    return tuple(sizes)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer: an int, or bytes for texts and messages. Raises TableError."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == _NUMBER:
            number, at = varint(message, at)
            yield tag >> 3, number - (1 << 64) if number >> 63 else number
            continue
        if kind == _BYTES:
            length, at = varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise TableError("an entry of it is no protocol buffer")
        if at + length > len(message):
            raise TableError("an entry of it is cut off")
        value, at = message[at : at + length], at + length
        yield tag >> 3, value if kind == _BYTES else int.from_bytes(value, "little")


def _variable(key: bytes, entry: _Entry, shards: list[Path], index: Path) -> TfVariable:
    name = key.decode("utf-8", "backslashreplace")
    name = name if name.isprintable() else ascii(name)[1:-1]
    where = f"{index}: {name}"
    if entry.is_sliced:
        raise ModelError(f"{where} is stored in slices, which is not read here; save it unpartitioned")
    if not 0 <= entry.shard < len(shards):
        raise ModelError(f"{where} lies in data file {entry.shard} of {len(shards)}; fetch the folder again")
    file = shards[entry.shard]
    if min(entry.offset, entry.num_bytes) < 0 or entry.offset + entry.num_bytes > file.stat().st_size:
        raise ModelError(f"{where} lies outside of {file.name}, which may be cut off; fetch the folder again")
    dtype, width = _DTYPES.get(entry.dtype, (None, 0))
    if dtype is not None and width * math.prod(entry.shape) != entry.num_bytes:
        raise ModelError(
            f"{where} has {entry.num_bytes:,} bytes for the shape {list(entry.shape)}; fetch the folder again"
        )
    return TfVariable(name, dtype, entry.shape, file, entry.offset, entry.num_bytes, entry.masked_crc)


def _check_apart(variables: list[TfVariable], index: Path) -> None:
    places = sorted(
        (one.file.name, one.offset, one.offset + one.num_bytes, one.name) for one in variables if one.num_bytes
    )
    for (file, _, end, name), (other_file, start, _, other) in pairwise(places):
        if file == other_file and start < end:
            raise ModelError(f"{index}: {name} and {other} overlap in {file}; fetch the folder again")


def _check_filled(variables: list[TfVariable], shards: list[Path]) -> None:
    """ModelError where a data file is much larger than what it holds."""
    room = dict.fromkeys(shards, _MAX_GAP)
    for one in variables:
        room[one.file] += one.num_bytes + _MAX_GAP
    for file, most in room.items():
        if (found := file.stat().st_size) > most:
            raise ModelError(f"{file} has {found:,} bytes, far more than its variables; fetch the folder again")
