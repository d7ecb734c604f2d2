"""Where the model runs, and its compute dtype: the precision of its matrix products.

bfloat16 pays only where the processor multiplies bfloat16 natively: elsewhere they are emulated, tens of times
slower. So the processor is asked, and then timed once; the answer is kept in the cache.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tuneful.errors import ConfigError
from tuneful.files import write_json
from tuneful.model.memory import drop_mapped_pages
from tuneful.model.processor import processor_name

_ROWS, _INNER, _OUT = 512, 576, 1536
_WORTH = 1.2
"""How many times faster than float32 a bfloat16 matrix product must be before the loss of precision is worth it."""


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is a device, else the CPU; ConfigError for a device that is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"`model.device`: {wanted!r}, but no CUDA device is visible; use `auto` or `cpu`")
    return torch.device(wanted)


def choose_dtype(wanted: str, device: torch.device, cache: Path, *, adapts: bool = False) -> torch.dtype:
    """The compute dtype; `auto` asks the device, and times the CPU once (about 0.1 s, kept in `cache`). A GPU that multiplies no
    bfloat16 takes float16 where the training `adapts`, trains an adapter beside a model that stays, and float32 elsewhere."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type == "cuda":
        low = torch.float16 if adapts else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else low
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16 if _speedup_of_bfloat16(cache / "bfloat16.json") >= _WORTH else torch.float32


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Inside, products of float32 are those of float32 on every device, whatever a container or a library asked of torch: TF32
    has 10 bits, and two right ways differ in it by 1e-3."""
    kept = [(place, place.fp32_precision) for place in _FLOAT32_PRODUCTS]
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the newer of torch's two settings was set, and the older is at its default
        before = "highest"
    torch.set_float32_matmul_precision("highest")  # both of them; compilers read the older one
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for place, precision in kept:
            place.fp32_precision = precision


_FLOAT32_PRODUCTS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


def cast_parameters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Parameters in `dtype`, buffers as they are: position frequencies lose their meaning in bfloat16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def copy_parameters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Parameters copied to memory in `dtype` one by one, each dropped where it was: no file stays mapped."""
    for parameter in model.parameters():
        old = parameter.data
        parameter.data = old.to(dtype, copy=True) if old.is_floating_point() else old.clone()
        drop_mapped_pages(old)


@contextlib.contextmanager
def parameters_made_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, the parameters of models without memory (`meta`) are made in `dtype`, whatever the default: weights that are
    stored in it are then taken as they are. Buffers are made as ever, for they are computed and not loaded."""
    if dtype is None:
        yield
        return

    def made(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> Any:
        if parameter is None or not parameter.is_meta or parameter.dtype is not torch.float32:
            return None
        return torch.nn.Parameter(parameter.data.to(dtype), requires_grad=parameter.requires_grad)

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(made)
    try:
        yield
    finally:
        hook.remove()


def _speedup_of_bfloat16(file: Path) -> float:
    key = f"{processor_name()} {torch.__version__} {torch.get_num_threads()} threads"
    try:
        kept = json.loads(file.read_text())
        if kept["key"] == key:
            return float(kept["speedup"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    speedup = _seconds_of_product(torch.float32) / _seconds_of_product(torch.bfloat16)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"key": key, "speedup": round(speedup, 3)})
    except OSError:
        pass  # the next run measures again
    return speedup


def _seconds_of_product(dtype: torch.dtype, repeats: int = 9) -> float:
    rows = torch.ones(_ROWS, _INNER, dtype=dtype)
    weight = torch.ones(_OUT, _INNER, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
