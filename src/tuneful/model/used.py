"""What of a machine is used and what is not, with the reason: what `tuneful doctor` tells whoever finds it slow.

Asks those who choose (`precision.py`, `native/`, `onednn.py`), so that what is said is what happens. No weights are loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from tuneful.model.native import describe, kernels
from tuneful.model.onednn import why_no_bfloat16
from tuneful.model.precision import choose_device, choose_dtype, why_not_mps


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the machine, whether it is `used`, and by what or why not."""

    name: str
    used: bool
    why: str


def parts_of_machine(cache: Path) -> list[Part]:
    """What computes, or could, and what it is used for under `model.device: auto` and `model.dtype: auto`."""
    device = choose_device("auto")
    dtype = choose_dtype("auto", device, cache)
    return [_cuda(), _mps(cache), *_processor(device, dtype), _threads()]


def _cuda() -> Part:
    if torch.cuda.is_available():
        return Part("CUDA", True, torch.cuda.get_device_name())
    built = torch.version.cuda is not None or torch.version.hip is not None
    return Part("CUDA", False, "no device is visible" if built else "this build of torch has no CUDA")


def _mps(cache: Path) -> Part:
    if torch.cuda.is_available():
        return Part("MPS", False, "CUDA is used")
    why = why_not_mps(cache)
    return Part("MPS", why is None, why or "it multiplies faster than the processor")


def _processor(device: torch.device, dtype: torch.dtype) -> list[Part]:
    """The parts that compute on a CPU."""
    if device.type != "cpu":
        elsewhere = f"the model computes on {device.type}"
        return [Part(name, False, elsewhere) for name in ("bfloat16", "oneDNN", "kernels")]
    onednn, compiled = torch.backends.mkldnn.is_available(), kernels(device, torch.float32) is not None
    low = dtype is torch.bfloat16
    slow = "it multiplies less than a fifth faster than float32"
    vectors = torch.backends.cpu.get_cpu_capability()
    return [
        Part("bfloat16", low, "products" if low else why_no_bfloat16() or slow),
        Part("oneDNN", onednn, "torch's products" if onednn else "this build of torch has none"),
        Part("matrix unit", *_matrix_unit(low and onednn)),
        Part(
            "vectors",
            vectors != "DEFAULT",
            f"{vectors}, in torch's operations" if vectors != "DEFAULT" else "none known",
        ),
        Part("kernels", compiled, describe()),
    ]


def _matrix_unit(has_products: bool) -> tuple[bool, str]:
    """Whether the tiles of AMX multiply bfloat16, and by whom."""
    has = torch.cpu.get_capabilities().get("amx_bf16", False)
    if not has:
        return False, "the processor has none that is known here (AMX)"
    return has_products, "AMX, in oneDNN's products" if has_products else "products are float32"


def _threads() -> Part:
    number, cores = torch.get_num_threads(), os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS")
    said = f"{number} of {cores} processors that the system counts" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
    return Part("threads", True, said)
