"""An adapter is merged tensor by tensor: what the merged model holds, each tensor computed when it is asked for, and checked.

Stands under the export, which writes the tensors one after the other. A base that is in memory in bfloat16 is read from its own
file where that holds more than bfloat16 does, so what is shipped is the adapter on the base as it came; the copy in memory shows
that the file is still the one that was trained on. A base in 4 bits (`nf4_layers.py`) is the values that its codes stand for:
beside those the adapter learned. The arithmetic is float32 and peft's own (`merge` of its layers), and `check_merged` compares it
with base + scale B A, DoRA's magnitudes included, in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tuneful.errors import ExportError
from tuneful.model.memory import drop_mapped_pages
from tuneful.model.nf4 import dequantize
from tuneful.model.nf4_layers import NF4_LAYERS, NF4Conv1D, plain_layer, quantized_of
from tuneful.model.stored import DTYPES, StoredTensor, stored_tensors, stretches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MERGED_TOLERANCE = 1e-6
"""Largest difference of a merged weight from the formula in float64, as a share of the tensor's largest, before it is rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class MergedTensor:
    """A tensor of the merged model: `held` is the base's in memory, `stored` the same in its file where that holds more, `layer`
    peft's layer where it has an adapter. Tensors that are one matrix have the same `held`; of one that a layer
    of `NF4_LAYERS` holds, `in_4_bits`, it has the shape alone."""

    name: str
    held: torch.Tensor
    stored: StoredTensor | None
    layer: Any | None
    in_4_bits: Any | None = None

    @property
    def matrix(self) -> int:
        """The same number for tensors that are one matrix; 0 where no other is."""
        return self.held.data_ptr()

    def pieces(self) -> Iterator[torch.Tensor]:
        """Its numbers one after the other, in float32 where they are floating-point: in pieces, or whole where it is merged."""
        yield from self._base() if self.layer is None else [_merged(self.layer, self._whole_base())]

    def expected(self) -> torch.Tensor | None:
        """What the formula gives, in float64; None where there is no adapter."""
        return None if self.layer is None else _by_formula(self.layer, self._whole_base().double())

    def _whole_base(self) -> torch.Tensor:
        return torch.cat(list(self._base())).reshape(self.held.shape)

    def _base(self) -> Iterator[torch.Tensor]:
        held = (self.held if self.in_4_bits is None else dequantized_weight(self.in_4_bits)).detach().reshape(-1)
        for start, stop in stretches(held.numel()):
            known = held[start:stop].cpu()
            if self.stored is None:
                yield known.float() if known.is_floating_point() else known
                continue
            read = self.stored.read(start, stop)
            if not torch.equal(read.to(known.dtype), known):
                raise ExportError(
                    f"{self.stored.file} is not what the run was begun with: {self.name} has changed. The adapter is kept; put "
                    "the base back and resume the run"
                )
            yield read.float()


def merged_tensors(model: PreTrainedModel, base: Path | None) -> list[MergedTensor] | None:
    """All tensors of `model`, which holds an adapter, merged into its base; `base` is the folder that the base came from.

    None where memory holds less than the base was given with and no file of `base` tells the rest. The names are those of the
    model without its adapter.
    """
    held, owners = _held(model)
    return _found(model, held, owners, list(held), base)


@torch.no_grad()
def merge_layers(model: PreTrainedModel, base: Path | None) -> bool:
    """Merge the adapter of every layer of `model` into its weight, in place: in float32, rounded once to what memory holds,
    or, where that is 4 bits, to what is computed with: the layer is a plain one then.

    False where memory holds less than the base was given with and no file of `base` tells the rest: nothing is changed then. The
    adapters still stand there, and have to be taken off. Raises ExportError where a sum is not finite.
    """
    held, owners = _held(model)
    tensors = _found(model, held, owners, list(owners), base)
    for tensor in tensors or ():
        assert tensor.layer is not None
        (merged,) = tensor.pieces()
        if tensor.in_4_bits is None:
            tensor.held.copy_(merged)
        else:
            tensor.layer.base_layer = plain_layer(tensor.in_4_bits, merged.to(tensor.in_4_bits.compute_dtype))
    return tensors is not None


@contextlib.contextmanager
def computed_as_merged(
    tensors: Sequence[MergedTensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Inside, each layer that has an adapter, or is held in 4 bits, computes with the one weight of `tensors` that becomes of it,
    after `change` (float32, in and out). To be used inside `widened`: one weight is in memory at a time."""
    layers = [(tensor.in_4_bits if tensor.layer is None else tensor.layer, tensor) for tensor in tensors]
    replaced = {id(layer): (layer, tensor) for layer, tensor in layers if layer is not None}
    for layer, tensor in replaced.values():
        vars(layer)["forward"] = _product_of(tensor, change)
    try:
        yield
    finally:
        for layer, _ in replaced.values():
            del vars(layer)["forward"]


def _product_of(tensor: MergedTensor, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The forward of the layer of `tensor` with its weight merged."""

    def product(inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():
            weight = torch.cat(list(tensor.pieces())).reshape(tensor.held.shape)
            weight = change(weight).to(inputs.device)
            drop_mapped_pages(tensor.held)
        if tensor.in_4_bits is not None:
            found: torch.Tensor = plain_layer(tensor.in_4_bits, weight)(inputs)
        else:
            assert tensor.layer is not None
            found = torch.func.functional_call(tensor.layer.base_layer, {"weight": weight}, (inputs,))
        return found

    return product


def _held(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All tensors of `model` by their names without an adapter, and the layers of peft's whose weight has one."""
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
    held, owners = {}, {}
    for name, tensor in model.state_dict().items():
        owner = next((path for path in layers if name.startswith(f"{path}.")), None)
        if owner is not None:
            inside = name.removeprefix(f"{owner}.")
            if not inside.startswith("base_layer."):
                continue  # of the adapter
            name = f"{owner}.{inside.removeprefix('base_layer.')}"
            if inside == "base_layer.weight":
                owners[name] = layers[owner]
        held[name] = tensor
    for name, module in _nf4_matrices(model).items():
        held[name] = dequantized_weight(module, "meta")
        if (owner := name.removesuffix(".weight")) in layers:
            owners[name] = layers[owner]
    return held, owners


def _nf4_matrices(model: PreTrainedModel) -> dict[str, Any]:
    """The layers of `NF4_LAYERS` in `model`, by the names that their weights have without an adapter."""
    return {
        f"{path.removesuffix('.base_layer')}.weight": module
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, NF4_LAYERS)
    }


def _found(
    model: PreTrainedModel,
    held: Mapping[str, torch.Tensor],
    owners: Mapping[str, Any],
    names: Sequence[str],
    base: Path | None,
) -> list[MergedTensor] | None:
    """The tensors called `names`; None where memory holds less of one than the base was given with, and no file tells more."""
    stored = stored_tensors(base) if base is not None else {}
    prefix, in_4_bits = str(model.base_model_prefix), _nf4_matrices(model)
    found = []
    for name in names:
        tensor = held[name]
        is_low = tensor.dtype in (torch.bfloat16, torch.float16)
        more = _stored(name, tensor, held, stored, prefix) if is_low else None
        if is_low and more is None:
            return None
        exact = more is None or getattr(torch, DTYPES[more.dtype]) is tensor.dtype
        found.append(MergedTensor(name, tensor, None if exact else more, owners.get(name), in_4_bits.get(name)))
    return found


def check_merged(name: str, written: torch.Tensor, expected: torch.Tensor) -> None:
    """ExportError where `written` is not `expected` up to float32's arithmetic and one rounding to the dtype of `written`."""
    wanted, found = expected.reshape(-1), written.reshape(-1)
    least = MERGED_TOLERANCE * torch.maximum(wanted.max(), -wanted.min())
    for start, stop in stretches(wanted.numel()):  # whole, each number in float64 would be there five times
        part = wanted[start:stop]
        rounding = torch.finfo(written.dtype).eps / 2 * part.abs() + least
        difference = (found[start:stop].double() - part).abs()
        if not bool((difference <= rounding).all()):
            raise ExportError(
                f"{name}: merged it differs from base + scale B A by {difference.max().item():.3g}; the adapter is kept, the "
                "merged model is not"
            )


def _stored(
    name: str,
    tensor: torch.Tensor,
    held: Mapping[str, torch.Tensor],
    stored: Mapping[str, StoredTensor],
    prefix: str,
) -> StoredTensor | None:
    """The same tensor in its file, under one of the names that it, or one that is the same matrix, has there."""
    names = [name, *(other for other, one in held.items() if one.data_ptr() == tensor.data_ptr())]
    for one in [form for own in names for form in (own, own.removeprefix(f"{prefix}."), f"{prefix}.{own}")]:
        found = stored.get(one)
        if found is not None and found.shape == tuple(tensor.shape) and found.dtype in DTYPES:
            return found
    return None


@torch.no_grad()
def _merged(layer: Any, base: torch.Tensor) -> torch.Tensor:
    """The weight of `layer` with its adapter merged into `base`; the layer is left as it was."""
    kept = layer.base_layer
    layer.base_layer = torch.nn.Module()
    layer.base_layer.weight = torch.nn.Parameter(
        base.to(next(chain(kept.parameters(), kept.buffers())).device), requires_grad=False
    )
    try:
        layer.merge(safe_merge=True)
        merged: torch.Tensor = layer.base_layer.weight.data
        return merged.cpu()
    except ValueError as error:  # numbers that are not finite
        raise ExportError(f"the adapter cannot be merged: {error}") from error
    finally:
        layer.base_layer = kept
        layer.merged_adapters.clear()


def dequantized_weight(layer: Any, device: str | None = None) -> torch.Tensor:
    """The weight of one of `NF4_LAYERS` in float32, laid out as that of the layer it stands for; on `meta` its shape alone."""
    quantized = quantized_of(layer)
    weight = dequantize(quantized) if device is None else torch.empty(quantized.shape, device=device)
    return weight.T if isinstance(layer, NF4Conv1D) else weight


@torch.no_grad()
def _by_formula(layer: Any, base: torch.Tensor) -> torch.Tensor:
    """base + scale B A, with DoRA's magnitudes, in float64: in the memory of `base`."""
    (name,) = layer.active_adapters
    if name in layer.lora_A:
        low, high = layer.lora_A[name].weight, layer.lora_B[name].weight
        is_transposed = bool(layer.fan_in_fan_out)
    else:  # an embedding's
        low, high, is_transposed = layer.lora_embedding_A[name], layer.lora_embedding_B[name], True
    weight = base.T if is_transposed else base
    merged = weight.addmm_(high.cpu().double(), low.cpu().double(), alpha=float(layer.scaling[name]))
    if name in layer.lora_A and name in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[name].weight.cpu().double()
        merged.mul_((magnitude / merged.norm(dim=1)).reshape(-1, 1))
    found: torch.Tensor = merged.T if is_transposed else merged
    return found
