"""An adapter as it lies in peft's folder: the pairs of small matrices, and what each adds to a weight of the base.

For what merges or converts an adapter without loading a model: a weight is merged a few rows at a time, so that a base of any
size takes little memory. The formulas are peft's: W + scale B A with scale alpha / r, or alpha / sqrt(r) for rsLoRA
(Kalajdzievski 2023), and for DoRA (Liu et al. 2024) each output of that scaled to its learned magnitude.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tuneful.errors import ModelError
from tuneful.model.names import ADAPTER
from tuneful.model.stored import DTYPES, StoredTensor, stored_tensors

_PREFIX = "base_model.model."
_UNMERGEABLE = ("rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices", "lora_bias")


class Weight(Protocol):
    """A matrix [rows, columns], or a vector, which is a matrix of one row; read a few rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As the model has it: one number for a vector."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows from `start` to before `stop`, float32 [stop - start, columns]. OSError, ValueError."""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight as it lies in its file."""

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """As the model has it."""
        return self.stored.shape

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows from `start` to before `stop`, in float32."""
        num_columns = self.shape[-1]
        return self.stored.read(start * num_columns, stop * num_columns).float().reshape(-1, num_columns)


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """What an adapter adds to one weight: `scale` * high low, float32.

    low [r, inputs], high [outputs, r]; `magnitude` [outputs] is DoRA's. `is_transposed`: the weight is [inputs, outputs].
    """

    low: torch.Tensor
    high: torch.Tensor
    scale: float
    is_transposed: bool = False
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `low`."""
        return int(self.low.shape[0])

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape of the weight that it goes with."""
        outputs, inputs = int(self.high.shape[0]), int(self.low.shape[1])
        return (inputs, outputs) if self.is_transposed else (outputs, inputs)


@dataclass(frozen=True, slots=True)
class MergedWeight:
    """A weight of the base with its adapter merged."""

    base: Weight
    pair: LoraPair

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the base."""
        return self.base.shape

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The merged rows from `start` to before `stop`, in float32."""
        pair = self.pair
        if not pair.is_transposed:
            merged = self.base.rows(start, stop) + pair.scale * (pair.high[start:stop] @ pair.low)
            return merged if pair.magnitude is None else _scaled(merged, pair.magnitude[start:stop])
        if pair.magnitude is None:
            return self.base.rows(start, stop) + pair.scale * (pair.low[:, start:stop].T @ pair.high.T)
        whole = self.base.rows(0, self.shape[0]).T + pair.scale * (pair.high @ pair.low)
        return _scaled(whole, pair.magnitude).T[start:stop].contiguous()


def _scaled(merged: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    scale: torch.Tensor = magnitude / merged.norm(dim=1)
    return merged * scale[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class StoredAdapter:
    """The adapter of a folder: its pairs by the name of the weight that each goes with, as the base's model calls it."""

    folder: Path
    alpha: float
    uses_rslora: bool
    pairs: Mapping[str, LoraPair]

    @property
    def uses_dora(self) -> bool:
        """Whether an output is scaled to a learned magnitude."""
        return any(pair.magnitude is not None for pair in self.pairs.values())


def read_adapter(folder: Path) -> StoredAdapter:
    """The adapter in `folder`; ModelError where it is damaged, or of a kind that cannot be merged weight by weight."""
    try:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        tensors = {name: _read(tensor) for name, tensor in stored_tensors(folder).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: the adapter cannot be read: {error}; save or fetch it again") from error
    _check_kind(config, folder)
    pairs: dict[str, LoraPair] = {}
    read = set()
    for key in tensors:
        for ending, form in _FORMS.items():
            if key.endswith(ending):
                owner = key.removesuffix(ending)
                names = (key, owner + form.high, owner + ".lora_magnitude_vector")
                pairs[owner.removeprefix(_PREFIX) + ".weight"] = _pair(config, tensors, names, form, folder)
                read |= {*names}
    if odd := sorted(tensors.keys() - read):
        raise ModelError(
            f"{folder}: {odd[0]} is no part of a LoRA adapter that is known here; merge it with peft first"
        )
    return StoredAdapter(folder, float(config["lora_alpha"]), bool(config.get("use_rslora")), pairs)


@dataclass(frozen=True, slots=True)
class _Form:
    """How the two matrices of a kind of layer are stored."""

    high: str
    is_embedding: bool


_FORMS = {
    ".lora_A.weight": _Form(".lora_B.weight", False),
    ".lora_embedding_A": _Form(".lora_embedding_B", True),
}


def _pair(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    names: tuple[str, str, str],
    form: _Form,
    folder: Path,
) -> LoraPair:
    low, high = tensors[names[0]], tensors.get(names[1])
    if high is None or low.ndim != 2 or high.ndim != 2 or low.shape[0] != high.shape[1]:
        raise ModelError(f"{folder}: {names[0]} has no second matrix that fits it; save or fetch the adapter again")
    rank = low.shape[0]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    is_transposed = form.is_embedding or bool(config.get("fan_in_fan_out"))
    return LoraPair(low, high, scale, is_transposed, tensors.get(names[2]))


def _check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """ModelError for an adapter that is more than pairs of matrices."""
    if config.get("peft_type") != "LORA" or not isinstance(config.get("lora_alpha"), (int, float)):
        raise ModelError(
            f"{folder / ADAPTER}: a {config.get('peft_type')} adapter is not known here; merge it with peft"
        )
    named = [key for key in _UNMERGEABLE if config.get(key)]
    named += [] if config.get("bias", "none") == "none" else ["bias"]
    if named:
        raise ModelError(
            f"{folder / ADAPTER}: `{named[0]}` cannot be merged weight by weight; merge it with peft first"
        )


def _read(tensor: StoredTensor) -> torch.Tensor:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"numbers of type {tensor.dtype}")
    numbers = tensor.read(0, math.prod(tensor.shape)).float()
    return numbers.reshape(tensor.shape)
