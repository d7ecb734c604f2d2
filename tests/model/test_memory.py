"""What becomes of memory that is freed: kept for the next step, or the system's again."""

from __future__ import annotations

import psutil
import torch

from tuneful.model.memory import give_back_freed_memory, keep_freed_memory, stop_keeping_freed_memory

MIB = 1 << 20
SIZES = (64, 32, 48)


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def use_and_free() -> None:
    for size in SIZES:
        torch.ones(size * MIB, dtype=torch.uint8)


def test_what_is_freed_stays_with_the_process_until_it_is_to_go_back() -> None:
    if not keep_freed_memory():  # another C library than glibc: it does as it always does
        stop_keeping_freed_memory()
        return
    give_back_freed_memory()
    before = resident()
    use_and_free()
    assert resident() - before > 32 * MIB
    stop_keeping_freed_memory()
    assert resident() - before < 16 * MIB
    use_and_free()
    assert resident() - before < 16 * MIB
    keep_freed_memory()
    use_and_free()
    assert resident() - before > 32 * MIB
    give_back_freed_memory()
    assert resident() - before < 16 * MIB
