"""What the processor is called. Stands apart from `precision.py` so that it can be asked without loading torch."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The processor as /proc/cpuinfo names it, or as Python knows it: on Linux that is no more than its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
