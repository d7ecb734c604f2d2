"""What the processor is called. Stands apart from `precision.py` so that it can be asked without loading torch."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from pathlib import Path


def processor_name() -> str:
    """The processor as /proc/cpuinfo or macOS names it, or as Python knows it: on Linux that is no more than its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=5, check=True).stdout.strip()
    return platform.processor() or platform.machine()
