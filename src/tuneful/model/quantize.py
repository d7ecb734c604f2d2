"""QLoRA's base: linear weights in 4 bits, under an adapter in full precision (Dettmers et al. 2023).

Stands between loading and `add_adapter`; the only door to bitsandbytes. Weights are stored as NF4 with their scales
quantized once more, 4.13 bits each, and turned back for every matrix product: a quarter of bfloat16's memory for a slower step.
The output head, embeddings and norms stay as they are. The adapter learns to serve on the rounded weights, so it is those
that it is merged into (`round_to_4_bits`), not the ones that it never saw.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tuneful.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KIND = "nf4"


def check_4_bits(device: torch.device) -> None:
    """Raise ConfigError where `train.method: qlora` cannot be obeyed: without a CUDA device, or without bitsandbytes."""
    if device.type != "cuda":
        raise ConfigError(
            f"`train.method`: qlora needs a CUDA device, and this run is on {device}; use train.method=lora, which gives the "
            "same kind of adapter"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("`train.method`: qlora needs bitsandbytes: pip install 'tuneful[qlora]'")


def quantize(model: PreTrainedModel, device: torch.device) -> None:
    """Put `model` on `device` with the weights of its linear layers, but for the output head, in 4 bits. In place."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent, own, linear in list(_linear_layers(model)):
        bias = linear.bias is not None
        layer = Linear4bit(linear.in_features, linear.out_features, bias, torch.float32, True, _KIND, device="meta")
        layer.weight = Params4bit(linear.weight.data, False, compress_statistics=True, quant_type=_KIND)
        layer.bias = linear.bias
        setattr(parent, own, layer.to(device))
    model.to(device)
    model.is_loaded_in_4bit = True  # by which peft knows


def compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let the 4-bit weights of `model` be turned into `dtype`, the compute dtype, for their matrix products."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype


def round_to_4_bits(model: PreTrainedModel, device: torch.device) -> None:
    """Give the linear layers of `model` the values that `quantize` would compute with, in the precision that they have."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    with torch.no_grad():
        for _, _, linear in _linear_layers(model):
            rounded, state = quantize_4bit(linear.weight.to(device), compress_statistics=True, quant_type=_KIND)
            linear.weight.copy_(dequantize_4bit(rounded, state))


def _linear_layers(model: PreTrainedModel) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    head = model.get_output_embeddings()
    for parent in model.modules():
        for own, child in parent.named_children():
            if type(child) is torch.nn.Linear and child is not head:
                yield parent, own, child
