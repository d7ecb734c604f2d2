"""gzip and zstd data become the bytes that were packed, a block at a time, so that a bomb unpacks no further than it is read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from tuneful.data.rows import first_line
from tuneful.errors import DataError
from tuneful.files import BLOCK_BYTES

Compression = Literal["gzip", "zstd"]

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def compression_of(first: bytes) -> Compression | None:
    """How data that begins with `first` is packed; None where it is not."""
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), None)


def unpacked(compression: Compression | None, first: bytes, rest: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The data `first` + `rest`, unpacked, in blocks; DataError, naming `name` and the byte, where it is damaged or cut off."""
    stored = _Stored(first, rest)
    if compression == "gzip":
        yield from _gunzipped(stored, name)
    elif compression == "zstd":
        yield from _unzstd(stored, name)
    else:
        yield from stored


class _Stored:
    """Blocks as they are stored, counted, and as the file that pyarrow reads from."""

    closed = False

    def __init__(self, first: bytes, rest: Iterator[bytes]) -> None:
        self._block, self._rest = first, rest
        self.num_given = 0

    def __iter__(self) -> Iterator[bytes]:
        for block in filter(None, chain([self._block], self._rest)):
            self.num_given += len(block)
            yield block

    def read(self, size: int) -> bytes:
        if not self._block:
            self._block = next(self._rest, b"")
        given, self._block = self._block[:size], self._block[size:]
        self.num_given += len(given)
        return given

    def close(self) -> None:
        self.closed = True


def _gunzipped(stored: _Stored, name: str) -> Iterator[bytes]:
    """The text of one gzip member after the other, never more than a block at once."""
    inflater = None
    for block in stored:
        while block:
            if inflater is None:
                block = block.lstrip(b"\0")  # what tape drives and block devices pad with
                if not block:
                    break
                inflater = zlib.decompressobj(wbits=31)
            try:
                plain = inflater.decompress(block, BLOCK_BYTES)
            except zlib.error as error:
                raise DataError(
                    f"{name}: damaged gzip data before byte {stored.num_given:,} ({error}); fetch or pack it again"
                ) from None
            if plain:
                yield plain
            block = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            inflater = None if inflater.eof else inflater
    if inflater is not None:
        raise DataError(f"{name}: the gzip data is cut off at byte {stored.num_given:,}; fetch or pack the file again")


def _unzstd(stored: _Stored, name: str) -> Iterator[bytes]:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), "zstd") as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: damaged or cut off zstd data before byte {stored.num_given:,} ({first_line(error)}); "
            "fetch or pack it again"
        ) from None
