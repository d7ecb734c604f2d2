"""A LoRA adapter as a GGUF file, for llama.cpp to put on the GGUF of its base (`--lora`).

    blk.0.attn_q.weight.lora_a  [r, inputs]      blk.0.attn_q.weight.lora_b  [outputs, r]      adapter.lora.alpha

llama.cpp scales by alpha / r, whatever the adapter was trained with, so alpha is written such that this is the scale of training:
for rsLoRA, alpha times the root of r. Rows that are moved in the base are moved in B, and a weight that is transposed there needs
none of it in [inputs, outputs]. DoRA scales each output of the sum, which the file has no words for: it has to be merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tuneful.errors import ModelError
from tuneful.export.gguf_shapes import Value, head_sizes, shape_of
from tuneful.export.gguf_tensors import GgufTensor, change_of, tensor_names
from tuneful.export.source import Source
from tuneful.model.names import hub_id
from tuneful.model.stored_adapter import LoraPair, StoredAdapter

_ENDS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix of the adapter, in memory: it is small."""

    numbers: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.numbers.shape)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.numbers[start:stop].contiguous()


def adapter_keys(source: Source, title: str) -> dict[str, Value]:
    """The keys of the file but `general.architecture`."""
    adapter = adapter_of(source)
    keys: dict[str, Value] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.name": title,
        "adapter.lora.alpha": written_alpha(adapter),
    }
    if base := hub_id(source.base.name):
        keys |= {"general.base_model.count": 1, "general.base_model.0.name": base}
    return keys


def written_alpha(adapter: StoredAdapter) -> float:
    """The alpha that makes llama.cpp's alpha / r the scale of training, for all pairs."""
    found = {pair.scale * pair.rank for pair in adapter.pairs.values()}
    if max(found) - min(found) > 1e-6 * max(found):
        raise ModelError(
            f"{adapter.folder}: its matrices are of several ranks, which one alpha cannot scale; export it --to gguf"
        )
    return float(max(found))


def adapter_tensors(source: Source) -> list[GgufTensor]:
    """Both matrices of each pair, in float32; ModelError for an adapter that llama.cpp cannot apply."""
    shape = shape_of(source.architecture)
    names, head_dim = tensor_names(source.architecture, shape), head_sizes(source.architecture)[2]
    tensors = []
    for name, pair in adapter_of(source).pairs.items():
        if name.endswith(_ENDS):
            raise ModelError(
                f"{name}: llama.cpp applies no adapter to an embedding or output head; export it --to gguf, merged"
            )
        target = names.get_name(name, try_suffixes=(".weight",))
        change, unit = change_of(name, shape, head_dim)
        if target is None or (change == "transposed") is not pair.is_transposed:
            raise ModelError(
                f"{name}: a {shape.name} model has no such tensor in llama.cpp; export it --to huggingface"
            )
        moved = change == "rows of a head"
        tensors.append(GgufTensor(f"{target}.lora_a", "f32", f"{name} (A)", _Matrix(pair.low)))
        second = ("rows of a head", unit) if moved else ("as it is", 1)
        tensors.append(GgufTensor(f"{target}.lora_b", "f32", f"{name} (B)", _Matrix(pair.high), *second))  # type: ignore[arg-type]
    return tensors


def adapter_of(source: Source) -> StoredAdapter:
    """The adapter of `source`; ModelError where there is none, or one that has to be merged."""
    if source.adapter is None:
        raise ModelError(f"{source.name}: is no adapter, nor a run that keeps one; train with train.method=lora")
    if source.adapter.uses_dora:
        raise ModelError(
            f"{source.name}: DoRA scales each output of base and adapter together, which no GGUF adapter can say; export it --to "
            "gguf, merged"
        )
    return source.adapter


def scale_fault(adapter: StoredAdapter, keys: Mapping[str, object], ranks: Mapping[str, int]) -> str | None:
    """What is wrong with the scale that llama.cpp makes of the file's keys: alpha by the rank that it reads off a tensor."""
    alpha = keys.get("adapter.lora.alpha")
    pair: LoraPair = next(iter(adapter.pairs.values()))
    rank = next(iter(ranks.values()), 0)
    found = float(alpha) / rank if isinstance(alpha, float) and rank else 0.0
    if abs(found / pair.scale - 1) > 1e-6:
        kind = " (rsLoRA: alpha by the root of the rank)" if adapter.uses_rslora else ""
        return f"adapter.lora.alpha makes llama.cpp scale by {found:.6g}, and training scaled by {pair.scale:.6g}{kind}"
    return None
