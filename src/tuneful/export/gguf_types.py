"""The number formats of a GGUF file, and what rounding to each makes of a number: what files are read against.

A type of blocks keeps 32 numbers of a row as small integers with one scale in float16:

    q8_0   scale = largest |x| / 127,           integer = x / scale, rounded half away from zero
    q4_0   scale = (x of the largest |x|) / -8, integer = x / scale + 8.5, cut off, in 0 .. 15; it stands for integer - 8

After ggml's `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref` (https://github.com/ggml-org/ggml). Files are written by the
`gguf` package; this is arithmetic of our own, in torch, so that a fault of either shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
"""Number formats a GGUF file is written in."""

BLOCK = 32
"""Numbers of a row that share a scale in the types of blocks."""
TYPES: tuple[GgufType, ...] = ("f32", "f16", "bf16", "q8_0", "q4_0")
FILE_TYPES: Mapping[GgufType, int] = MappingProxyType({"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32})
"""`general.file_type`."""
STEPS: Mapping[GgufType, float] = MappingProxyType(
    {"f32": 1e-5, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127 + 2**-11, "q4_0": 1 / 8 + 2**-10}
)
"""How far a number may move in a type, as a share of the tensor's largest: half a step, and at its end in q4_0 a whole one, and
the rounding of the scale; in f32 what another order of summation brings where an adapter is merged."""
QUANTIZED: tuple[GgufType, ...] = ("q8_0", "q4_0")

_ENDS = ("token_embd.weight", "output.weight")
_ALWAYS_F32 = ("_norm.weight", "position_embd.weight", "rope_freqs.weight")
_HALF_AWAY = 0.5
_INT8_LARGEST = 127


def type_of(name: str, shape: tuple[int, ...], wanted: GgufType) -> GgufType:
    """The type that tensor `name` gets in a file of type `wanted`.

    Vectors and what llama.cpp wants in float32 are f32; rows that are no whole blocks are f16; embedding and output head of a
    q4_0 file are q8_0, for they lose most by four bits.
    """
    if len(shape) == 1 or name.endswith(_ALWAYS_F32):
        return "f32"
    if wanted in QUANTIZED and shape[-1] % BLOCK:
        return "f16"
    return "q8_0" if wanted == "q4_0" and name in _ENDS else wanted


def rounded(numbers: torch.Tensor, to: GgufType) -> torch.Tensor:
    """`numbers` (float32, rows of whole blocks where `to` is a type of blocks) as they come back out of a file, in float32."""
    if to == "f32":
        return numbers
    if to in ("f16", "bf16"):
        return numbers.to(torch.float16 if to == "f16" else torch.bfloat16).float()
    blocks = numbers.reshape(-1, BLOCK)
    found = _rounded_q8_0(blocks) if to == "q8_0" else _rounded_q4_0(blocks)
    return found.reshape(numbers.shape)


def _rounded_q8_0(blocks: torch.Tensor) -> torch.Tensor:
    scale = blocks.abs().amax(1, keepdim=True) / _INT8_LARGEST
    exact = (blocks * _inverse(scale)).double()  # float32 cannot add one half to each of its numbers
    integers = exact.sign() * (exact.abs() + _HALF_AWAY).floor()
    return integers.float() * scale.half().float()


def _rounded_q4_0(blocks: torch.Tensor) -> torch.Tensor:
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -8
    integers = (blocks * _inverse(scale) + 8.5).trunc().clamp(0, 15)
    return (integers - 8) * scale.half().float()


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
