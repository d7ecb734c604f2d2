"""QLoRA's base: linear weights in 4 bits, under an adapter in full precision (Dettmers et al. 2023).

Stands between loading and `add_adapter`; the only door to bitsandbytes, which a GPU computes with. A CPU has layers of our own
(`nf4_layers.py`). Either way weights are stored as NF4 with their scales quantized once more, 4.13 bits each, and turned back for
every matrix product: a quarter of bfloat16's memory for a slower step.
The output head, embeddings and norms stay as they are. The adapter learns to serve on the rounded weights, so it is those
that it is merged into (`round_to_4_bits`), not the ones that it never saw.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from tuneful.errors import ConfigError
from tuneful.model.nf4 import dequantize, quantize_nf4
from tuneful.model.nf4_layers import linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KIND = "nf4"


def check_4_bits(device: torch.device) -> None:
    """Raise ConfigError where `train.method: qlora` cannot be obeyed: on a CUDA device without bitsandbytes."""
    if device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("`train.method`: qlora on a GPU needs bitsandbytes: pip install 'tuneful[qlora]'")


def quantize(model: PreTrainedModel, device: torch.device) -> None:
    """Put `model` on `device`, a GPU, with the weights of its linear layers, but for the output head, in 4 bits. In place.

    ConfigError for layers that bitsandbytes has no stand-in for.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    found = [one for one in linear_layers(model) if type(one[-1]) is torch.nn.Linear]
    if not found:
        raise ConfigError(
            f"`train.method`: on a GPU qlora needs linear layers, and {type(model).__name__} has none; use train.method=lora"
        )
    for _, parent, own, linear in found:
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
    """Give the linear layers of `model` the values that a base in 4 bits on `device` computes with, in the precision that they
    have."""
    with torch.no_grad():
        for _, _, _, layer in linear_layers(model):
            is_linear = type(layer) is torch.nn.Linear
            if device.type != "cuda":
                weight = layer.weight if is_linear else layer.weight.T.contiguous()
                rounded = dequantize(quantize_nf4(weight))
                layer.weight.copy_(rounded if is_linear else rounded.T)
            elif is_linear:
                layer.weight.copy_(_rounded_by_bitsandbytes(layer.weight.to(device)))


def _rounded_by_bitsandbytes(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight, compress_statistics=True, quant_type=_KIND)
    rounded: torch.Tensor = dequantize_4bit(codes, state)
    return rounded
