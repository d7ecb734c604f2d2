"""The same bits in every run, on a GPU too: what a training computes between two checkpoints depends on nothing but its input.

Some operations of a GPU add up with atomics, in whatever order the threads come. torch takes others where it is asked to, and
says where it has none. A CPU needs nothing of this: there every sum has its order.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, torch takes on a GPU those of its operations whose order is fixed. Where it has none (the padded layout's
    attention, layers of some families) it takes what there is: such a run goes on as the same training, not bit for bit."""
    if device.type != "cuda":
        yield
        return
    with _deterministic(warn_only=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(deterministic|CUBLAS_WORKSPACE_CONFIG)")
        yield


@contextlib.contextmanager
def strictly_repeatable() -> Iterator[None]:
    """Inside, an operation that has no fixed order is an error. FlashAttention's backward has one, and takes it only so."""
    with _deterministic(warn_only=False):
        yield


def reserve_workspace(device: torch.device) -> None:
    """Ask cuBLAS for the workspace of a fixed size without which its products differ; to be called before the first of them."""
    if device.type == "cuda":
        os.environ.setdefault(_WORKSPACE, ":4096:8")


@contextlib.contextmanager
def _deterministic(*, warn_only: bool) -> Iterator[None]:
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    memory.fill_uninitialized_memory = False  # every element is written before it is read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = fills
