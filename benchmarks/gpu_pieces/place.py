"""Where pieces are measured: the device, its clock, its memory, and what it could do at best."""

from __future__ import annotations

import gc
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_PACKAGES = ("torch", "triton", "transformers", "peft", "trl", "liger-kernel", "tuneful")


@dataclass(frozen=True)
class Piece:
    """One thing to be measured, by a name whose first parts are its group: a group shares a process."""

    name: str
    group: str
    measure: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """The device, and whether shapes are those of a smoke test."""

    kind: str
    tiny: bool = False

    @property
    def device(self) -> torch.device:
        """The first of its kind."""
        return torch.device(self.kind)

    def wait(self) -> None:
        """Returns when all that was asked of the device is done."""
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Give back what the last piece held, and count the peak of memory anew."""
        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """The most memory since `forget`."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.kind == "cuda" else None

    def is_broken(self) -> bool:
        """Whether the device answers no more, as after an access outside of its memory."""
        try:
            self.wait()
        except RuntimeError:
            return True
        return False

    def timed(self, call: Callable[[], Any], repeats: int = 7) -> tuple[float, float]:
        """Seconds of the first call, in which things are compiled, and the median of `repeats` more."""
        seconds = []
        for _ in range(1 + repeats):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            seconds.append(time.perf_counter() - start)
        return seconds[0], statistics.median(seconds[1:])


def facts(place: Place) -> Piece:
    """The device, the versions, and two rates: products of bfloat16, and copies."""
    return Piece("facts", "facts", lambda: _facts(place))


def _facts(place: Place) -> dict[str, Any]:
    size = 256 if place.tiny else 8192
    one = torch.ones(size, size, dtype=torch.bfloat16, device=place.device)
    _, product = place.timed(lambda: one @ one)
    _, copy = place.timed(one.clone)
    name = torch.cuda.get_device_name() if place.kind == "cuda" else "cpu"
    return {
        "device": name,
        "capability": list(torch.cuda.get_device_capability()) if place.kind == "cuda" else None,
        "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if place.kind == "cuda" else None,
        "versions": {one: _version(one) for one in _PACKAGES},
        "flops": 2 * size**3 / product,
        "bytes_per_second": 2 * one.nbytes / copy,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
