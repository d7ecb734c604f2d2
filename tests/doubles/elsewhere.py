"""Stand-ins for machines that this one is not: names, operators and modules that another system or build does not have."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch


def without_onednn(patch: pytest.MonkeyPatch) -> None:
    """As in a torch that is built without oneDNN: a namespace of operators in which there are none."""
    patch.setattr(torch.ops, "mkldnn", torch._ops._OpNamespace("mkldnn_that_is_not_there"))
    patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


NOT_ON_WINDOWS = (
    "pread",
    "pwrite",
    "killpg",
    "fork",
    "getuid",
    "geteuid",
    "sysconf",
    "sched_getaffinity",
    "getloadavg",
)
"""Functions of `os` that Windows does not have, and a Mac some of."""


def as_on_windows(patch: pytest.MonkeyPatch) -> None:
    """As on Windows, as far as names go: no functions of POSIX, no `resource`, `fcntl` or `pwd`, no `/proc`."""
    for name in NOT_ON_WINDOWS:
        patch.delattr(os, name, raising=False)
    for module in ("resource", "fcntl", "pwd", "grp", "termios"):
        patch.setitem(sys.modules, module, None)
    patch.setattr("tuneful.model.processor.Path", lambda *_: SimpleNamespace(read_text=_not_there))
    patch.setattr("tuneful.model.memory._OWN_CGROUP", SimpleNamespace(read_text=_not_there))


def _not_there(*_: object, **__: object) -> str:
    raise FileNotFoundError
