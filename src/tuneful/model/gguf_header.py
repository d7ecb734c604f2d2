"""The header of a GGUF file: its metadata and the shapes of its tensors, read in less than a second and without the weights.

    magic  version  number of tensors  number of entries  |  entries: key, type, value  |  tensors: name, shape, type, offset

After https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3). Lists are passed over unless they are asked
for: a vocabulary is not needed to know a model. The `gguf` package makes an array of every element of them, which takes seconds.

Nothing is believed: what a header counts has to lie in the file, which is read and not mapped, so that one that shrinks
meanwhile is an error and not the end of the process; each tensor has to lie in the file, beside all others, as
long as its shape and type say. What reads the file after this (transformers) reads numbers that were found right here.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from tuneful.errors import ModelError

Value = str | int | float | bool

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FIXED = {kind: struct.Struct(f"<{code}") for kind, code in _FORMATS.items()}
_SOURCES = ("general.source.repo_url", "general.source.url", "general.repo_url", "general.url")
_ON_THE_HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?$")
_COUNT = struct.Struct("<Q")
_KIND = struct.Struct("<I")
_ALIGNMENT, _MAX_ALIGNMENT = 32, 1 << 20
_VERSIONS = (2, 3)
_DAMAGED = "cannot be read as a GGUF model: its header is damaged"
_BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34)}
_BLOCKS |= {10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)}
_BLOCKS |= {16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82)}
_BLOCKS |= {23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)}
_BLOCKS |= {34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18)}
"""Number of a type in ggml -> numbers a block, bytes a block. Those that are left out were taken back."""
_LEAST_TENSOR, _LEAST_ENTRY = 24, 13
"""Bytes of the shortest tensor and entry that can be described."""
_MAX_DIMENSIONS, _MAX_NAME, _SHOWN = 4, 256, 60
_MAX_ELEMENTS = 1 << 22
"""Of all lists together: a vocabulary of a quarter of a million tokens and its merges have a million and a half."""
_ELEMENTS_A_TOKEN, _SPARE_ELEMENTS = 16, 1 << 16
"""A token has a text, a score, a type, and two merges or so; what reads the file after this takes ten microseconds for each."""
_MAX_TAIL = 1 << 20
_SHORT = 1 << 12
"""What is passed over by reading it, which is faster."""


@dataclass(frozen=True, slots=True)
class GgufTensorInfo:
    """A tensor of the file: its shape, fastest dimension first, the number of its type, and the byte of the file it begins at."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata by key, what lists hold in `lists`, and every tensor by name."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensorInfo]
    lists: Mapping[str, Sequence[Value]] = field(default_factory=dict)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, fastest dimension first."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def text(self, key: str) -> str | None:
        """The text under `key`, None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value.strip() else None


def read_gguf_header(file: Path, *, with_lists: bool = False) -> GgufHeader:
    """The header of `file`; ModelError where it is no GGUF file, or one that is cut off."""
    try:
        if not file.is_file():
            raise ModelError(f"{file} cannot be read: it is no file")
        with file.open("rb") as stream:
            return _Reader(stream, file, with_lists).header()
    except ModelError:
        raise
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} {_DAMAGED} (a text is not UTF-8); fetch it again") from error
    except (struct.error, KeyError) as error:
        raise ModelError(f"{file} {_DAMAGED}; fetch it again") from error
    except ValueError as error:
        raise ModelError(f"{file} {_DAMAGED} ({error}); fetch it again") from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}") from error


def gguf_hub_id(file: Path) -> str | None:
    """The Hub id of the model that `file` was made from, where its header tells it."""
    header = read_gguf_header(file)
    for key in _SOURCES:
        if found := _ON_THE_HUB.match(header.text(key) or ""):
            return found[1]
    return None


class _Reader:
    """Reads a header front to back."""

    def __init__(self, stream: BinaryIO, file: Path, with_lists: bool) -> None:
        self._stream, self._file, self._with_lists = stream, file, with_lists
        self._at, self._num_bytes, self._num_elements = 0, file.stat().st_size, 0

    def header(self) -> GgufHeader:
        if self._bytes(4) != _MAGIC:
            raise ModelError(
                f"{self._file} cannot be read as a GGUF model: it does not begin with GGUF; fetch it again"
            )
        self._check_version(self._number(_KIND))
        num_tensors, num_entries = self._count(_LEAST_TENSOR), self._count(_LEAST_ENTRY)
        metadata: dict[str, Value] = {}
        lists: dict[str, Sequence[Value]] = {}
        for _ in range(num_entries):
            key, kind = self._string(), self._number(_KIND)
            if key in metadata or key in lists:
                raise ValueError(f"{key[:_SHOWN]!r} stands there twice")
            if kind != _ARRAY:
                metadata[key] = self._value(kind)
            else:
                lists[key] = self._list() if self._with_lists else self._pass_array()
        tensors: dict[str, GgufTensorInfo] = {}
        for _ in range(num_tensors):
            name, tensor = self._tensor()
            if name in tensors:
                raise ValueError(f"{name[:_SHOWN]!r} stands there twice")
            tensors[name] = tensor
        widest = max((max(one.shape, default=1) for one in tensors.values()), default=1)
        if self._num_elements > _ELEMENTS_A_TOKEN * widest + _SPARE_ELEMENTS:
            raise ValueError(f"its lists have {self._num_elements:,} elements, and its vocabulary {widest:,} at most")
        begin = -(-self._at // (alignment := _alignment(metadata))) * alignment
        moved = {name: replace(tensor, offset=begin + tensor.offset) for name, tensor in tensors.items()}
        _check_places(moved, begin, self._num_bytes)
        return GgufHeader(metadata, moved, lists if self._with_lists else {})

    def _check_version(self, version: int) -> None:
        if version in _VERSIONS:
            return
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "a big-endian file" if swapped in _VERSIONS else f"GGUF version {version}"
        raise ModelError(f"{self._file}: {what} is not known here; convert the model again")

    def _tensor(self) -> tuple[str, GgufTensorInfo]:
        """Name and place of a tensor, counted from where the numbers begin."""
        name = self._string()
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise ValueError(f"the name of a tensor is {name[:_SHOWN]!r}")
        if (num_dimensions := self._number(_KIND)) > _MAX_DIMENSIONS:
            raise ValueError(f"{name!r} has {num_dimensions:,} dimensions")
        shape = tuple(self._number(_COUNT) for _ in range(num_dimensions))
        kind, offset = self._number(_KIND), self._number(_COUNT)
        if kind not in _BLOCKS:
            raise ValueError(f"the numbers of {name!r} are of type {kind}, which is not known here")
        return name, GgufTensorInfo(shape, kind, offset)

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        (value,) = _FIXED[kind].unpack(self._bytes(_FIXED[kind].size))
        found: Value = value
        return found

    def _list(self) -> Sequence[Value]:
        kind, length = self._array_head()
        return [self._value(kind) for _ in range(length)]

    def _pass_array(self) -> Sequence[Value]:
        kind, length = self._array_head()
        if kind in _FIXED:
            self._pass(length * _FIXED[kind].size)
            return ()
        for _ in range(length):
            self._pass(self._number(_COUNT))
        return ()

    def _array_head(self) -> tuple[int, int]:
        """Type and number of elements of a list. One of lists has no use in a model, and is refused."""
        kind = self._number(_KIND)
        if kind == _ARRAY:
            raise ValueError("a list holds lists")
        length = self._count(_COUNT.size if kind == _STRING else _FIXED[kind].size)
        self._num_elements += length
        if self._num_elements > _MAX_ELEMENTS:
            raise ValueError(f"its lists have more than {_MAX_ELEMENTS:,} elements")
        return kind, length

    def _string(self) -> str:
        return self._bytes(self._count(1)).decode("utf-8")

    def _count(self, least_bytes: int) -> int:
        """How many of what takes at least `least_bytes` each follow: they have to lie in the file."""
        count = self._number(_COUNT)
        if count * least_bytes > self._num_bytes - self._at:
            raise ValueError(f"at byte {self._at:,} it counts {count:,}, which run past the end of the file")
        return count

    def _number(self, form: struct.Struct) -> int:
        (number,) = form.unpack(self._bytes(form.size))
        return int(number)

    def _bytes(self, length: int) -> bytes:
        self._at += length
        return self._stream.read(length)  # one that is too short for a number is an error of struct's

    def _pass(self, length: int) -> None:
        if length > self._num_bytes - self._at:
            raise ValueError("a list runs past the end of the file")
        if length < _SHORT:
            self._bytes(length)
            return
        self._at += length
        self._stream.seek(self._at)


def _alignment(metadata: Mapping[str, Value]) -> int:
    found = metadata.get("general.alignment", _ALIGNMENT)
    if type(found) is not int or not 0 < found <= _MAX_ALIGNMENT or found & (found - 1):
        raise ValueError(f"general.alignment is {str(found)[:_SHOWN]}, and has to be a power of two")
    return found


def _check_places(tensors: Mapping[str, GgufTensorInfo], begin: int, num_bytes: int) -> None:
    """ValueError unless each tensor lies in the file, behind the header and beside all others, with no great gap at its end."""
    at, last = begin, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, math.prod(item[1].shape))):
        if tensor.offset < at:
            raise ValueError(f"{name!r} begins within {last!r}")
        block, block_bytes = _BLOCKS[tensor.kind]
        if tensor.shape and tensor.shape[0] % block:
            raise ValueError(f"{name!r} has rows of {tensor.shape[0]:,} numbers, in blocks of {block}")
        at, last = tensor.offset + math.prod(tensor.shape) // block * block_bytes, name
    if at > num_bytes:
        raise ValueError(f"{last!r} runs past the end of the file; it is cut off")
    if num_bytes - at > _MAX_TAIL:
        raise ValueError(f"{num_bytes - at:,} bytes follow the last tensor")
