"""Slices: a sharded model is filled with the rows that are this rank's, from wherever the whole tensors lie.

A rank of `fsdp` holds some rows of every parameter (`distributed.row_owners`). A model is made in files that are mapped into
memory (`load.mapped_model`), put without memory (`meta`), cut up by `shard`, and then each rank reads its own rows, in the number
format of the file where they stay as they are, and drops the pages. So no rank ever has more than its share of the model, and one
tensor's rows on the way. A checkpoint is read in the same manner, however many ranks wrote it (`SavedTensors`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tuneful.model.memory import drop_mapped_pages
from tuneful.model.precision import say_computes_in
from tuneful.model.stored import StoredTensor, read_safetensors_header
from tuneful.train.distributed import local, own_rows, reshard, settle, shard


def shard_by_slices(
    model: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    replicas: int = 1,
    *,
    frozen_dtype: torch.dtype | None = None,
) -> None:
    """Leave this rank its rows of every tensor of `model` on `device`, to be computed with in `dtype`; so do `replicas` ranks.

    What is trained becomes float32; what is frozen keeps its number format, or takes `frozen_dtype` where that is smaller. The
    parameters that `model` had are let go of, one after the other.
    """
    held, places = _without_weights(model, frozen_dtype)
    shard(model, dtype, replicas, device)
    say_computes_in(model, dtype)
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    for first, *others in places:
        for module, name in others:  # one matrix under two names stays one
            module._parameters[name] = first[0]._parameters[first[1]]
    fill(model, held)
    if not all(parameter.requires_grad for parameter in model.parameters()):
        settle(model)


@contextlib.contextmanager
def weights_seen_in(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the weights of `model`, which may lie in files, look as if they were in `dtype`: other numbers, and no memory.

    A new adapter takes the number format of what it stands beside, and is to begin as beside a model that was read in `dtype`.
    """
    kept = [(one, one.data) for one in model.parameters() if one.is_floating_point() and one.dtype is not dtype]
    for parameter, _ in kept:
        last = parameter.shape[-1] if parameter.ndim else 1
        parameter.data = torch.linspace(0.5, 1.5, last, dtype=dtype).expand(parameter.shape)
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _without_weights(
    model: PreTrainedModel, frozen_dtype: torch.dtype | None
) -> tuple[dict[str, torch.Tensor], list[list[tuple[torch.nn.Module, str]]]]:
    """Put parameters without memory in the place of those of `model`: what they held, by name, and where each of them stands."""
    held = {name: parameter.detach() for name, parameter in model.named_parameters()}
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    for found in places.values():
        module, name = found[0]
        made = _empty(getattr(module, name), frozen_dtype)
        for module, name in found:
            module._parameters[name] = made
    return held, list(places.values())


def _empty(parameter: torch.nn.Parameter, frozen_dtype: torch.dtype | None) -> torch.nn.Parameter:
    dtype = parameter.dtype
    if parameter.requires_grad:
        dtype = torch.promote_types(dtype, torch.float32)
    elif frozen_dtype is not None and parameter.is_floating_point() and frozen_dtype.itemsize < dtype.itemsize:
        dtype = frozen_dtype
    empty = torch.empty(parameter.shape, dtype=dtype, device="meta")
    return torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)


@torch.no_grad()
def fill(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give each parameter of `model` its rows of the whole tensor of its name in `tensors`."""
    for name, parameter in model.named_parameters():
        start, stop = own_rows(parameter)
        given = tensors[name]
        local(parameter).copy_(given[start:stop] if given.ndim else given)
        drop_mapped_pages(given)


def let_go(model: torch.nn.Module) -> None:
    """Free the memory of a sharded `model`, which is done with."""
    reshard(model)
    for parameter in model.parameters():
        local(parameter.data).untyped_storage().resize_(0)


@dataclass(frozen=True, slots=True)
class SavedRows:
    """Rows of a tensor in a file, from `start` to before `stop` of the whole tensor."""

    stored: StoredTensor
    start: int
    stop: int


class SavedTensors(Mapping[str, torch.Tensor]):
    """Tensors in files, in one piece or cut into rows, by name; each is read when it is asked for, whole or in part."""

    def __init__(self, shapes: Mapping[str, Sequence[int]], parts: Mapping[str, Sequence[SavedRows]]) -> None:
        self._shapes, self._parts = shapes, parts

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        return self.rows(name, 0, shape[0] if shape else 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The rows of one tensor from `start` to before `stop`; a tensor without dimensions is a row."""
        shape = self._shapes[name]
        a_row = torch.Size(shape[1:]).numel()
        pieces = [
            part.stored.read((first - part.start) * a_row, (last - part.start) * a_row)
            for part in self._parts[name]
            if (first := max(start, part.start)) < (last := min(stop, part.stop))
        ]
        whole = [stop - start, *shape[1:]] if shape else []
        return (torch.cat(pieces) if pieces else self._empty(name)).reshape(whole)

    def _empty(self, name: str) -> torch.Tensor:
        return self._parts[name][0].stored.read(0, 0)


def saved_whole(file: Path) -> SavedTensors:
    """The tensors of a safetensors file, each in one piece. OSError, ValueError."""
    stored = read_safetensors_header(file)
    parts = {name: [SavedRows(one, 0, one.shape[0] if one.shape else 1)] for name, one in stored.items()}
    return SavedTensors({name: one.shape for name, one in stored.items()}, parts)


def own_part(tensors: Mapping[str, torch.Tensor], name: str, like: torch.Tensor) -> torch.Tensor:
    """The rows of the whole tensor called `name` that are this rank's of the parameter `like`; no others are read."""
    start, stop = own_rows(like)
    if isinstance(tensors, SavedTensors):
        return tensors.rows(name, start, stop).reshape(local(like).shape)
    return tensors[name][start:stop] if like.ndim else tensors[name]
