"""UTF-16 text that says so by its first two bytes, as Excel's "Unicode text" does, becomes UTF-8; other bytes stay."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from tuneful.errors import DataError

_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_MARK_OF_32 = codecs.BOM_UTF32_LE
"""Begins as a mark of UTF-16 does."""


def as_utf8(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The text of `blocks` in UTF-8; DataError, naming `name`, where it begins with a mark of UTF-16 and is none."""
    head = b""
    while len(head) < len(_MARK_OF_32) and (block := next(blocks, None)) is not None:
        head += block
    encoding = next((one for mark, one in _MARKS.items() if head.startswith(mark)), None)
    if encoding is None or head.startswith(_MARK_OF_32):
        if head:
            yield head
        yield from blocks
        return
    decoder, num_bytes = codecs.getincrementaldecoder(encoding)(), 0
    head = head[2:]
    try:
        while head:
            num_bytes += len(head)
            if text := decoder.decode(head):
                yield text.encode()
            head = next(blocks, b"")
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise DataError(f"{name}: damaged UTF-16 text before byte {num_bytes + 2:,} ({error}); save it again") from None
