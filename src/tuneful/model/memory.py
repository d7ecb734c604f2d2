"""Freed memory is kept for the next step instead of being given back and fetched anew.

glibc maps every large buffer afresh and unmaps it when it is freed, so each step of training pays a page fault for every
4 KiB of its activations and gradients. Kept on the heap (in huge pages, where `THP_MEM_ALLOC_ENABLE=1` was set before torch
was loaded), the same buffers serve every step: a tenth of a small CPU step while each operation of a layer
had buffers of its own, nothing that could be measured where a layer has one (LOG.md). Elsewhere than on glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>
_TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed buffers; whether it understood."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: _TOP_PAD_BYTES}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
