"""What a test may need of the machine, and what this one lacks: no test stands aside without a word.

A test that needs one of `PATHS` is marked `@needs(name)`, or calls `require(name)` in its fixture; where the machine lacks it
the test is skipped with a reason of one form, and `conftest.py` counts them and lists at the end what could not be run. A skip
for any other reason is a failure.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

REASON = re.compile(r"needs (?P<name>[\w-]+): (?P<why>.+)", re.DOTALL)
LEFT_OUT = os.environ.get("TUNEFUL_NATIVE") == "0"
"""Whoever started the tests wants those of torch's operations; a test may set the variable for itself."""
INSTALL = "TUNEFUL_INSTALL"
"""Set to constraints of pip (`torch==2.13.0`), it has the tests that install a wheel fetch what the wheel depends on."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Need:
    """What is run where a machine has it, and a function that says why this one has not, or None where it has."""

    what: str
    lacks: Callable[[], str | None]


def _gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def _bitsandbytes() -> str | None:
    return None if importlib.util.find_spec("bitsandbytes") else "bitsandbytes is not installed"


def _hatchling() -> str | None:
    return None if importlib.util.find_spec("hatchling") else "hatchling is not installed"


def _index() -> str | None:
    return (
        None
        if os.environ.get(INSTALL)
        else f"it fetches 1 GB: {INSTALL}=torch==2.13.0, or another constraint, has it run"
    )


def _compiler() -> str | None:
    from tuneful.model.native.compiler import NotCompiledError
    from tuneful.model.native.library import compiler

    if LEFT_OUT:
        return "TUNEFUL_NATIVE=0 leaves them out"
    try:
        compiler()
    except NotCompiledError as reason:
        return str(reason)
    return None


def _compiled_products() -> str | None:
    import torch

    from tuneful.model import native

    found = native.kernels(torch.device("cpu"), torch.bfloat16)
    if found is None:
        return _compiler()  # with a compiler they were to be compiled, and the test is red
    return (
        None
        if found.has_matrix_products()
        else "this processor has no dot product of bfloat16, or a matrix unit besides"
    )


def sanitizer_libraries() -> list[str]:
    """The libraries of the compiler's sanitizers, which a process loads first; paths that do not exist where it has none."""
    from tuneful.model.native.compiler import run
    from tuneful.model.native.library import compiler

    names = ("libasan.so", "libubsan.so")
    return [run([compiler().path, f"-print-file-name={name}"]).strip() for name in names]


def _sanitizers() -> str | None:
    if (why := _compiler()) is not None:
        return why
    there = all(os.path.isabs(path) for path in sanitizer_libraries())
    return None if there else "the compiler has no libraries of sanitizers (libasan, libubsan)"


def _bfloat16() -> str | None:
    from tuneful.model.onednn import why_no_bfloat16

    return why_no_bfloat16()


def _amx() -> str | None:
    return None if "amx_bf16" in _flags() else "this processor has no matrix unit (AMX)"


def _x86() -> str | None:
    return None if platform.machine() in ("x86_64", "AMD64") else f"this processor is {platform.machine()}"


def _arm() -> str | None:
    if not shutil.which("aarch64-linux-gnu-gcc"):
        return "no compiler for ARM (Debian: gcc-aarch64-linux-gnu)"
    there = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    return None if there else "no emulator of ARM (Debian: qemu-user-static)"


def _posix() -> str | None:
    return None if os.name == "posix" else f"this system is {os.name}"


def _system_filter() -> str | None:
    from tuneful.evaluation.check_worker import has_system_filter

    return (
        None if has_system_filter() else f"{platform.system()} on {platform.machine()} has no filter that is known here"
    )


def _chromium() -> str | None:
    return None if browser_path() else "no Chromium on the PATH (`make browser` installs one)"


PATHS: Mapping[str, Need] = {
    "gpu": Need("training and answering on a GPU", _gpu),
    "bitsandbytes": Need("qlora: a base of 4 bits", _bitsandbytes),
    "hatchling": Need("wheels that carry kernels, built here", _hatchling),
    "index": Need("a wheel installed with the oldest and the newest dependencies", _index),
    "compiler": Need("the kernels compiled for this machine", _compiler),
    "compiled-products": Need("compiled products and decoder layers in bfloat16", _compiled_products),
    "sanitizers": Need("the kernels where each access to memory is checked", _sanitizers),
    "bfloat16": Need("torch's own products of bfloat16", _bfloat16),
    "amx": Need("torch's products by a matrix unit", _amx),
    "x86": Need("kernels for x86 with shorter vectors", _x86),
    "arm": Need("kernels for ARM, emulated", _arm),
    "posix": Need("paths and modes of POSIX", _posix),
    "system-filter": Need("functions of one's own that the system refuses processes and network", _system_filter),
    "chromium": Need("the report in a browser", _chromium),
}


@cache
def lacks(name: str) -> str | None:
    """Why this machine cannot run what needs `name`; None where it can."""
    return PATHS[name].lacks()


def browser_path() -> str | None:
    """A Chromium on the PATH."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def needs(name: str) -> pytest.MarkDecorator:
    """Marks a test that stands aside where the machine lacks `name`, a key of `PATHS`."""
    assert name in PATHS, name
    return pytest.mark.needs(name)


def require(name: str) -> None:
    """Have the test stand aside where the machine lacks `name`."""
    if why := lacks(name):
        pytest.skip(f"needs {name}: {why}")


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def explained(report: Report) -> Report:
    """`report`; a failure where it is of a skip that `require` did not make."""
    if report.skipped and not REASON.search(reason_of(report)):
        report.longrepr = f"skipped: {reason_of(report)}\nA test stands aside by `needs` of tests/machine.py alone."
        report.outcome = "failed"
    return report


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test or a file was skipped, or was expected to fail."""
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)


def summary(lacking: Mapping[str, str], reasons: Iterable[str]) -> list[str]:
    """What could not be run, a line each: the need, what it is for, why, and how many tests stood aside."""
    names = [found["name"] for reason in reasons if (found := REASON.search(reason))]
    lines = []
    for name, why in lacking.items():
        number = names.count(name)
        aside = f"{number} test{'s' * (number > 1)} stood aside" if number else "none of these tests asks for it"
        lines.append(f"{name}: {PATHS[name].what}; {why}: {aside}")
    here = [name for name in PATHS if name not in lacking]
    return [*lines, f"run here: {', '.join(here)}"]


def _flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), []))
