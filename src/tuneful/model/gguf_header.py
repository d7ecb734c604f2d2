"""The header of a GGUF file: its metadata and the shapes of its tensors, read in less than a second and without the weights.

    magic  version  number of tensors  number of entries  |  entries: key, type, value  |  tensors: name, shape, type, offset

After https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3). Lists are passed over: a vocabulary is not
needed here. The `gguf` package reads every element of them, which takes seconds.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata by key (single values only), and the shape of every tensor by name, fastest dimension first."""

    metadata: Mapping[str, Value]
    shapes: Mapping[str, tuple[int, ...]]

    def text(self, key: str) -> str | None:
        """The text under `key`, None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value.strip() else None


def read_gguf_header(file: Path) -> GgufHeader:
    """The header of `file`; ModelError where it is no GGUF file, or one that is cut off."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, file).header()
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

    def __init__(self, data: mmap.mmap, file: Path) -> None:
        self._data, self._file, self._at = data, file, 0

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
        for _ in range(num_entries):
            key, value = self._string(), self._value(self._number(_KIND))
            if value is not None:
                metadata[key] = value
        return GgufHeader(metadata, dict(self._tensor() for _ in range(num_tensors)))

    def _tensor(self) -> tuple[str, tuple[int, ...]]:
        name = self._string()
        shape = tuple(self._number(_COUNT) for _ in range(self._number(_KIND)))
        self._at += _KIND.size + _COUNT.size  # its type, and where it lies
        return name, shape

    def _value(self, kind: int) -> Value | None:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            self._pass_array()
            return None
        (value,) = _FIXED[kind].unpack_from(self._data, self._at)
        self._at += _FIXED[kind].size
        found: Value = value
        return found

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
