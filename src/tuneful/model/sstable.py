"""A table of LevelDB's format: sorted keys with their values, in blocks that carry checksums. Read whole, and checked throughout.

    data block ...  index block  footer                 block:  entries  restarts  number of restarts | compression  checksum
    footer: two block handles, padding, magic           entry:  shared  unshared  value length  |  rest of the key  value

A key is written without what it shares with the one before it. The index block holds a handle (offset and size) for each data
block. After https://github.com/google/leveldb/blob/main/doc/table_format.md. TensorFlow's checkpoints keep their index so
(`model/tf_checkpoint.py`), a few kilobytes that it never compresses; the limits here are far above that, and keep a hostile file
from growing in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tuneful.model.crc32c import crc32c, masked

MAX_FILE_BYTES = 1 << 24
MAX_ENTRIES = 50_000
MAX_KEY_BYTES = 500

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER = struct.Struct("<BI")
_COMPRESSIONS = {1: "Snappy", 2: "Zstandard"}
_VARINT_BYTES = 10


class TableError(ValueError):
    """What is wrong with a table, in words that go after the name of its file."""


def read_table(file: Path) -> dict[bytes, bytes]:
    """All keys of the table in `file` with their values, in order. Raises TableError, OSError."""
    if file.stat().st_size > MAX_FILE_BYTES:
        raise TableError(f"it has more than {MAX_FILE_BYTES:,} bytes")
    data = file.read_bytes()
    found: dict[bytes, bytes] = {}
    last, end = b"", 0
    for number, (_, handle) in enumerate(_entries(_index_block(data))):
        offset, size = _handle(handle)
        if offset < end:
            raise TableError("its blocks overlap")
        end = offset + size
        for key, value in _entries(_block(data, offset, size)):
            if found and key <= last:
                raise TableError(f"the keys of block {number} are not in order")
            if len(found) == MAX_ENTRIES:
                raise TableError(f"it has more than {MAX_ENTRIES:,} entries")
            found[key] = value
            last = key
    return found


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number of seven bits a byte that begins at `at`, and where the next value stands. Raises TableError."""
    number = 0
    for place in range(_VARINT_BYTES):
        if at + place >= len(data):
            break
        byte = data[at + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if number >> 64:
                break
            return number, at + place + 1
    raise TableError("a number in it does not end")


def _index_block(data: bytes) -> bytes:
    footer = data[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise TableError("it does not end as a table does; it may be cut off")
    _, at = varint(footer, 0)
    _, at = varint(footer, at)  # the handle of the block about the blocks, which nobody uses
    return _block(data, *_handle(footer[at:]))


def _handle(data: bytes) -> tuple[int, int]:
    offset, at = varint(data, 0)
    return offset, varint(data, at)[0]


def _block(data: bytes, offset: int, size: int) -> bytes:
    """The content of a block: its checksum is right, and it is not compressed."""
    end = offset + size
    if end + _TRAILER.size > len(data) - _FOOTER_BYTES:
        raise TableError("a block lies outside of it")
    compression, crc = _TRAILER.unpack_from(data, end)
    if masked(crc32c(data[offset : end + 1])) != crc:
        raise TableError(f"the checksum of the block at byte {offset:,} is wrong")
    if compression:
        name = _COMPRESSIONS.get(compression, f"method {compression}")
        raise TableError(f"its blocks are compressed ({name}), which TensorFlow never does")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each entry of a block. Restarts are for searching; here only their room is taken off."""
    num_restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else 0
    end = len(block) - 4 - 4 * num_restarts
    if end < 0 or not num_restarts:
        raise TableError("a block of it has no restarts")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        num_new, at = varint(block, at)
        num_bytes, at = varint(block, at)
        stop = at + num_new + num_bytes
        if shared > len(key) or stop > end or shared + num_new > MAX_KEY_BYTES:
            raise TableError("an entry of it runs past its end")
        key = key[:shared] + block[at : at + num_new]
        yield key, block[at + num_new : stop]
        at = stop
