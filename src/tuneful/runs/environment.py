"""What a run ran on and with: the facts that are needed to repeat it, and that `tuneful doctor` prints."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import tuneful
from tuneful.model.memory import shared_bytes
from tuneful.model.processor import processor_name
from tuneful.runs.schema import Choices

if TYPE_CHECKING:
    import torch

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "gguf", "peft", "pyarrow", "numpy", "psutil", "filelock"),
    *("huggingface_hub", "typer", "rich", "pydantic", "PyYAML", "jinja2", "httpx2"),
)
"""What Tuneful depends on, by the names of pyproject.toml and in their order."""


def describe_machine() -> dict[str, Any]:
    """Versions, processor, cores and memory, as environment.json holds them."""
    return {
        "tuneful": tuneful.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory that this process held so far: what torch had on a GPU, else its resident memory; None where unknown."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024) + shared_bytes(device)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def changed_machine(choices: Choices, num_threads: int, kernels: str) -> list[str]:
    """A warning for each of threads and kernels that a run goes on with, but was not begun with: its last bits may differ."""
    conditions = {
        f"{choices.num_threads} threads": f"{num_threads} threads",
        f"{choices.kernels} kernels": f"{kernels} kernels",
    }
    return [
        f"begun with {begun}, going on with {now}: the same training, but not bit for bit"
        for begun, now in conditions.items()
        if begun != now
    ]
