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
from typing import TYPE_CHECKING, Any

import torch

from tuneful.errors import ConfigError
from tuneful.files import write_json
from tuneful.model.memory import drop_mapped_pages
from tuneful.model.processor import processor_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPUTES_IN = "_tuneful_computes_in"
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


def choose_dtype(wanted: str, device: torch.device, cache: Path) -> torch.dtype:
    """The compute dtype, float32 or bfloat16; `auto` asks the device, and times the CPU once (about 0.1 s, kept in `cache`)."""
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16 if _speedup_of_bfloat16(cache / "bfloat16.json") >= _WORTH else torch.float32


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
