"""What a figure is published with: the machine, the versions, the commit, and whether the machine was at rest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

BUSY_LOAD = 0.5


def hardware() -> dict[str, object]:
    """Processor, cores, memory and system."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def available_bytes() -> int:
    """Memory that can be had without swapping; all of it where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def load_warning(load: float) -> str | None:
    """A warning if others are at work on the machine."""
    if load <= BUSY_LOAD:
        return None
    return f"the machine is busy (load average {load:.2f} before the start): these timings are not to be trusted"


def commit(folder: Path) -> str:
    """The commit that was measured, with `+` if the working tree differs from it."""
    try:
        git = ["git", "-C", str(folder)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def versions(python: Path) -> dict[str, str]:
    """The packages of an environment that bear on its speed, and its Python."""
    program = (
        "import importlib.metadata as m, json, platform\n"
        "names = 'torch transformers accelerate tokenizers trl datasets litgpt lightning tuneful'.split()\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': platform.python_version(), **{n: found[n] for n in names if n in found}}))\n"
    )
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
