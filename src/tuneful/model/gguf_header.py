"""The header of a GGUF file: its metadata and the shapes of its tensors, read in less than a second and without the weights.

    magic  version  number of tensors  number of entries  |  entries: key, type, value  |  tensors: name, shape, type, offset

After https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3). Lists are passed over unless they are asked
for: a vocabulary is not needed to know a model. The `gguf` package makes an array of every element of them, which takes seconds.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
_ALIGNMENT = 32


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
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, file, with_lists).header()
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as a GGUF model: its header is damaged; fetch it again") from error
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
    """Reads a header front to back; `at` is where the next value stands."""

    def __init__(self, data: mmap.mmap, file: Path, with_lists: bool) -> None:
        self._data, self._file, self._with_lists, self._at = data, file, with_lists, 0

    def header(self) -> GgufHeader:
        if self._data[:4] != _MAGIC:
            raise ModelError(
                f"{self._file} cannot be read as a GGUF model: it does not begin with GGUF; fetch it again"
            )
        self._at = 4
        if (version := self._number(_KIND)) not in (2, 3):
            raise ModelError(f"{self._file}: GGUF version {version} is not known here; convert the model again")
        num_tensors, num_entries = self._number(_COUNT), self._number(_COUNT)
        metadata: dict[str, Value] = {}
        lists: dict[str, Sequence[Value]] = {}
        for _ in range(num_entries):
            key, kind = self._string(), self._number(_KIND)
            if kind != _ARRAY:
                metadata[key] = self._value(kind)
            elif self._with_lists:
                lists[key] = self._list()
            else:
                self._pass_array()
        tensors = dict(self._tensor() for _ in range(num_tensors))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        assert isinstance(alignment, int)
        begin = -(-self._at // alignment) * alignment
        moved = {name: replace(tensor, offset=begin + tensor.offset) for name, tensor in tensors.items()}
        return GgufHeader(metadata, moved, lists)

    def _tensor(self) -> tuple[str, GgufTensorInfo]:
        """Name and place of a tensor, counted from where the numbers begin."""
        name = self._string()
        shape = tuple(self._number(_COUNT) for _ in range(self._number(_KIND)))
        return name, GgufTensorInfo(shape, self._number(_KIND), self._number(_COUNT))

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        (value,) = _FIXED[kind].unpack_from(self._data, self._at)
        self._at += _FIXED[kind].size
        found: Value = value
        return found

    def _list(self) -> Sequence[Value]:
        kind, length = self._number(_KIND), self._number(_COUNT)
        if length > len(self._data) - self._at:
            raise ValueError("a list runs past the end of the file")
        return [self._value(kind) for _ in range(length)]

    def _pass_array(self) -> None:
        kind, length = self._number(_KIND), self._number(_COUNT)
        if kind in _FIXED:
            self._at += length * _FIXED[kind].size
            return
        for _ in range(length):
            if kind == _ARRAY:
                self._pass_array()
            else:
                num_bytes = self._number(_COUNT)  # which moves on, too
                self._at += num_bytes

    def _string(self) -> str:
        length = self._number(_COUNT)
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("a text runs past the end of the file")
        return self._data[start : self._at].decode("utf-8")

    def _number(self, form: struct.Struct) -> int:
        (number,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return int(number)
