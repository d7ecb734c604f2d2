"""A device of Apple's kind (MPS) that is none: tensors say that they lie there, the processor computes them, and what that device
refuses is refused.

    no float64, complex128 or uint16 on it                as MPS has none
    an operation takes tensors of the device alone        scalars of the host excepted, and indices of `tensor[...]`
    nothing of it is read but by way of the host          no data_ptr, no numpy

A tensor on it wraps one of the host. The wrapper is of C++'s device `meta`, so that nothing but this file can compute it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps", 0)
REFUSED = {torch.float64, torch.complex128, torch.uint16}
_ops = torch.ops.aten
_TAKE_INDICES_OF_THE_HOST = {
    _ops.index.Tensor,
    _ops.index_put.default,
    _ops.index_put_.default,
    _ops._index_put_impl_.default,
}
_CROSS = {_ops._to_copy.default, _ops.copy_.default}


class Pretended(torch.Tensor):
    """A tensor on the device; `held` is what it is computed by."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        if held.dtype in REFUSED:
            raise TypeError(f"Cannot convert a MPS Tensor to {held.dtype}: the MPS framework doesn't support it")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("meta"),
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    is_meta = False
    is_mps = True

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        assert isinstance(other, Pretended), "a tensor of the host was to become one of the device"
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held = other.held

    def data_ptr(self) -> int:
        raise AssertionError("memory of the device was to be read by the host")

    def tolist(self) -> list[Any]:
        return self.held.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees what makes tensors on the device out of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What `func` gives, on the device where its arguments lie there or it is told to make it there."""
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    there = [one for one in given if isinstance(one, Pretended)]
    asked = kwargs.get("device")
    told = (
        None if asked is None else torch.device(asked).type in ("mps", "meta")
    )  # C++ asks for what it takes the device to be
    if there and func not in _CROSS | _TAKE_INDICES_OF_THE_HOST:
        strangers = [one for one in given if not isinstance(one, Pretended) and one.dim()]
        assert not strangers, (
            f"{func}: tensors of the host among those of the device: {[one.shape for one in strangers]}"
        )
    if told:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func._schema.is_mutable:
        changed = kwargs.get("out", args[0])
        return found if found is None else changed
    on_device = bool(there) if told is None else told
    return tree_map(lambda one: Pretended(one) if isinstance(one, torch.Tensor) else one, found) if on_device else found


def _held(one: Any) -> Any:
    return one.held if isinstance(one, Pretended) else one


@contextlib.contextmanager
def pretended_device(patch: pytest.MonkeyPatch, num_bytes: int = 8 << 30) -> Iterator[torch.device]:
    """The device, with so much memory, for as long as the block lasts."""
    patch.setattr(torch.backends.mps, "is_available", lambda: True)
    patch.setattr(torch.mps, "recommended_max_memory", lambda: num_bytes)
    patch.setattr(torch.mps, "driver_allocated_memory", lambda: 1 << 20)
    patch.setattr(torch.mps, "synchronize", lambda: None)
    patch.setattr(torch.mps, "empty_cache", lambda: None)
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # or matrices that are tied would be two
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(
        True
    )  # `torch.tensor(numbers, device=...)` makes them on the host and moves them
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
        torch._C._set_only_lift_cpu_tensors(lifts)
