"""What a figure is published with: the machine, the versions, the commit, and whether the machine was at rest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

BUSY_LOAD = 0.5
_PACKAGES = (
    "torch transformers accelerate tokenizers trl peft datasets litgpt lightning unsloth unsloth_zoo bitsandbytes "
    "xllamacpp tuneful"
)
_NAMED = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "bf16", "sve")
_FLAGS = ("avx", "amx", "fma", "f16c", "asimd", "sve", "bf16", "i8mm")


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in (_cpuinfo("flags") or _cpuinfo("Features")).split() if flag.startswith(_FLAGS)],
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
        "import importlib.metadata as m, json, platform, sys\n"
        "names = sys.argv[1].split()\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': platform.python_version(), **{n: found[n] for n in names if n in found}}))\n"
    )
    done = subprocess.run([str(python), "-c", program, _PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def processor_seconds(process: int) -> float:
    """Processor time that a process has spent so far, 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Processor time that all processes of the machine have spent so far, 0 where the system does not say."""
    try:
        user, nice, system, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except (OSError, ValueError):
        return 0.0
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def hardware_line(found: dict[str, Any], num_threads: int) -> str:
    """The machine in a line, for the head of a table."""
    flags = [flag for flag in found["flags"] if flag in _NAMED]
    return (
        f"{found['processor']}, {found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB"
        f"{', ' + ' '.join(flags) if flags else ''}; {num_threads} threads"
    )


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
