"""The processor: what it is called, and what of it may be used. Asked without loading torch, but for what it can.

`TUNEFUL_PROCESSOR` has Tuneful do as on a lesser machine, with words by commas: `avx512` (none of its bfloat16), `avx2`, `no-fma`
(AVX2 without fused sums), `sse2`, `no-openmp` (kernels on one thread), `no-compiler`. The kernels keep to it, and torch does
where the variable is set before torch is loaded (`tuneful/__init__.py`), so that the precision is chosen as it would be there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneful.errors import ConfigError

VARIABLE = "TUNEFUL_PROCESSOR"
X86_LEVELS: Mapping[str, frozenset[str]] = {
    "x86-64-v4-amx": frozenset({"avx512_bf16", "amx_tile", "amx_bf16"}),
    "x86-64-v4-bf16": frozenset({"avx512_bf16"}),
    "x86-64-v4": frozenset({"avx512_f", "avx512_cd", "avx512_bw", "avx512_dq", "avx512_vl"}),
    "x86-64-v3": frozenset({"fma3"}),
    "x86-64-v3-no-fma": frozenset({"avx2", "f16c", "bmi", "bmi2", "lzcnt"}),
    "x86-64": frozenset(),
}
"""Sets of instructions (`native/compiler.py`), each with what it asks for beyond the next, as torch names it."""
LESSER: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "avx512": (
        "x86-64-v4",
        {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    ),
    "avx2": (
        "x86-64-v3",
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ),
    "no-fma": (
        "x86-64-v3-no-fma",
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX", "MKL_ENABLE_INSTRUCTIONS": "AVX"},
    ),
    "sse2": (
        "x86-64",
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    ),
}
"""The words for a lesser processor, each below the one before: its set of instructions, and what tells torch the same."""
NO_OPENMP, NO_COMPILER = "no-openmp", "no-compiler"


@dataclass(frozen=True, slots=True)
class Processor:
    """What may be used.

    instructions    the set to compile for; None is all that the processor has
    runs            sets whose code runs here and is allowed, the largest first
    has_threads     whether kernels may run on several threads
    has_compiler    whether kernels may be compiled here
    """

    instructions: str | None
    runs: tuple[str, ...]
    has_threads: bool
    has_compiler: bool


def processor() -> Processor:
    """What may be used of the processor at hand. Raises ConfigError for a word of `TUNEFUL_PROCESSOR` that nobody knows."""
    return _processor(pretended())


@functools.cache
def _processor(words: tuple[str, ...]) -> Processor:
    import torch

    has = torch.cpu.get_capabilities()
    found = instructions_of(platform.machine(), {name for name, value in has.items() if value})
    least = lesser(words)
    if least is not None:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            raise ConfigError(f"`{VARIABLE}`: {', '.join(words)} is of x86, and this processor is {platform.machine()}")
        levels = tuple(X86_LEVELS)
        found = tuple(name for name in found if levels.index(name) >= levels.index(LESSER[least][0]))
    return Processor(
        instructions=None if least is None else found[0],
        runs=found,
        has_threads=NO_OPENMP not in words,
        has_compiler=NO_COMPILER not in words,
    )


def pretended() -> tuple[str, ...]:
    """The words of `TUNEFUL_PROCESSOR`. Raises ConfigError for one that nobody knows."""
    return _words(os.environ.get(VARIABLE, ""))


@functools.cache
def _words(given: str) -> tuple[str, ...]:
    words = tuple(word for word in given.replace(",", " ").split() if word)
    known = (*LESSER, NO_OPENMP, NO_COMPILER)
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(
            f"`{VARIABLE}`: {unknown[0]!r} is no lesser processor; known are {', '.join(known)}, by commas"
        )
    return words


def lesser(words: tuple[str, ...]) -> str | None:
    """The least of the processors that are named, or None."""
    return next((name for name in reversed(list(LESSER)) if name in words), None)


def instructions_of(machine: str, features: set[str]) -> tuple[str, ...]:
    """The sets of instructions that run on a machine of these features, the largest first; none on one that nobody knows."""
    if machine.lower() in ("aarch64", "arm64"):
        return ("armv8",)
    if machine.lower() not in ("x86_64", "amd64"):
        return ()
    names = list(X86_LEVELS)
    needed = [frozenset().union(*(X86_LEVELS[below] for below in names[place:])) for place in range(len(names))]
    return tuple(name for name, wanted in zip(names, needed, strict=True) if wanted <= features)


def settings_of_torch() -> Mapping[str, str]:
    """Environment variables by which torch's operations keep to the processor that is named, from before torch is loaded."""
    least = lesser(tuple(os.environ.get(VARIABLE, "").replace(",", " ").split()))
    return {} if least is None else LESSER[least][1]


def processor_name() -> str:
    """The processor as /proc/cpuinfo or macOS names it, or as Python knows it: on Linux that is no more than its architecture.

    One that is told to be a lesser one is another: what was timed on it is not taken for the other.
    """
    given = os.environ.get(VARIABLE, "")
    return _own_name() + (f" as {given}" if given else "")


def _own_name() -> str:
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
