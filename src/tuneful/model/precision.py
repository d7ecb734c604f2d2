"""Where the model runs, and its compute dtype: the precision of its matrix products.

bfloat16 pays only where the processor multiplies bfloat16 natively: elsewhere they are emulated, tens of times
slower. So the processor is asked, and then timed once; the answer is kept in the cache. The GPU of an Apple processor (MPS) is
timed likewise, beside the processor: on a small model of a small Mac it is the slower of the two. It has no float64
(`in_float64`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tuneful.errors import ConfigError
from tuneful.files import cache_root, write_json
from tuneful.model.memory import drop_mapped_pages
from tuneful.model.onednn import multiplies_bfloat16
from tuneful.model.processor import processor_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPUTES_IN = "_tuneful_computes_in"
_ROWS, _INNER, _OUT = 512, 576, 1536
_WORTH = 1.2
"""How many times faster than float32 a bfloat16 matrix product must be before the loss of precision is worth it."""
_WORTH_MOVING = 1.5
"""How many times faster than on the processor a product on MPS must be: what is compiled for processors is slower there."""
_FINE = 1e-4
"""Seconds that a clock must tell apart to time a product of some milliseconds; that of Windows for threads does not."""
_CPU, _MPS = torch.device("cpu"), torch.device("mps")


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is a device, else MPS where it multiplies faster than the CPU, else the CPU.

    ConfigError for a device that is not there.
    """
    if wanted == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else _CPU if why_not_mps(cache_root()) else _MPS
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"`model.device`: {wanted!r}, but no CUDA device is visible; use `auto` or `cpu`")
    if wanted == "mps" and (reason := _no_mps()) is not None:
        raise ConfigError(f"`model.device`: 'mps', but {reason}; use `auto` or `cpu`")
    return torch.device(wanted)


def why_not_mps(cache: Path) -> str | None:
    """Why the GPU of this Mac is not what `auto` chooses, for people; None where it is. It is timed once (kept in `cache`)."""
    if (reason := _no_mps()) is not None:
        return reason
    speedup = _kept(cache / "mps.json", lambda: _seconds(_CPU) / _seconds(_MPS))
    return None if speedup >= _WORTH_MOVING else f"it multiplies {speedup:.1f} times as fast as the processor"


def _no_mps() -> str | None:
    if not torch.backends.mps.is_available():
        return (
            "there is no GPU of an Apple processor"
            if torch.backends.mps.is_built()
            else "this build of torch has no MPS"
        )
    return "several processes train together" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float64, on its device or, where that has no such numbers, on the host."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was told; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose_dtype(wanted: str, device: torch.device, cache: Path, *, adapts: bool = False) -> torch.dtype:
    """The compute dtype; `auto` asks the device, and times a CPU or MPS once (0.1 s, kept in `cache`). A GPU that multiplies no
    bfloat16 takes float16 where the training `adapts`, trains an adapter beside a model that stays, and float32 elsewhere."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type == "cuda":
        low = torch.float16 if adapts else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else low
    if device.type == "cpu" and not multiplies_bfloat16():
        return torch.float32
    file = cache / ("bfloat16.json" if device.type == "cpu" else f"{device.type}-bfloat16.json")
    timed = partial(_seconds_of_product, device=device, is_alone=device.type != "cpu")
    speedup = _kept(file, lambda: timed(torch.float32) / timed(torch.bfloat16))
    return torch.bfloat16 if speedup >= _WORTH else torch.float32


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


def computes_in(model: PreTrainedModel) -> torch.dtype:
    """The dtype that `model` multiplies in: that of its parameters, unless `say_computes_in` has said otherwise."""
    found: torch.dtype = vars(model).get(_COMPUTES_IN, None) or model.dtype
    return found


def say_computes_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """From now on `model` multiplies in `dtype`, whatever its parameters are held in: as a sharded one does."""
    vars(model)[_COMPUTES_IN] = dtype


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


def _kept(file: Path, measure: Callable[[], float]) -> float:
    """What `measure` gave on this processor with this torch, or gives now and `file` keeps."""
    key = f"{processor_name()} {torch.__version__} {torch.get_num_threads()} threads"
    try:
        kept = json.loads(file.read_bytes())
        if kept["key"] == key:
            return float(kept["speedup"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    speedup = measure()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"key": key, "speedup": round(speedup, 3)})
    except OSError:
        pass  # the next run measures again
    return speedup


def _seconds(device: torch.device) -> float:
    """Of a product in the faster of the two precisions that `device` has."""
    has_bfloat16 = device.type != "cpu" or multiplies_bfloat16()
    return min(_seconds_of_product(dtype, device) for dtype in (torch.float32, *[torch.bfloat16] * has_bfloat16))


def _seconds_of_product(
    dtype: torch.dtype, device: torch.device = _CPU, *, repeats: int = 9, is_alone: bool = True
) -> float:
    """Seconds of a product of a layer's shape, its end waited for; infinite where `device` does not have `dtype`.

    Of a processor that may not be alone, those that one thread of it works: on a busy machine threads wait for one another, so
    that the faster of two products may seem the slower one, for as long as the answer is kept.
    """
    seconds = []
    num_threads, clock = torch.get_num_threads(), time.perf_counter
    if not is_alone:
        torch.set_num_threads(1)
        clock = time.thread_time if time.get_clock_info("thread_time").resolution < _FINE else clock
    try:
        rows = torch.ones(_ROWS, _INNER, dtype=dtype, device=device)
        weight = torch.ones(_OUT, _INNER, dtype=dtype, device=device)
        for _ in range(repeats):
            start = clock()
            torch.nn.functional.linear(rows, weight)
            synchronize(device)
            seconds.append(clock() - start)
    except (RuntimeError, TypeError):  # macOS before 14 has no bfloat16
        return math.inf
    finally:
        torch.set_num_threads(num_threads)
    return min(seconds)
