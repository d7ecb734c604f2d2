"""NF4: a matrix in 4 bits a number, the 16 levels of a normal distribution times the largest number of each block of 64.

As QLoRA defines it (Dettmers et al. 2023) and bitsandbytes stores it, bit for bit: two codes a byte, the first in its upper half;
the blocks' largest numbers are quantized once more, less their mean, to 8 bits in blocks of 256 (dynamic tree quantization,
Dettmers et al. 2022). That is 4.13 bits a number. Their mean is taken in float64 and rounded, so that it does not depend on
the number of threads; bitsandbytes sums it in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tuneful.model.native import KINDS, Nf4, kernels

BLOCK = 64
"""Numbers that share a scale: the largest of them, whatever its sign."""
SCALE_BLOCK = 256
"""Scales that share one of their own."""
BYTES = (4 + 8 / BLOCK + 32 / BLOCK / SCALE_BLOCK) / 8
"""What a number takes."""
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""What the codes 0 to 15 stand for, of the largest number of their block: table of QLoRA, appendix E."""
_STRETCH = BLOCK << 14
"""Numbers that are worked on at once, so that what is needed besides stays small."""
_LEAST_SCALE = 1e-38


@dataclass(frozen=True, slots=True, eq=False)
class NF4:
    """A tensor of `shape`, of n numbers in b = ceil(n / 64) blocks.

    codes        uint8 [ceil(n / 2)], two numbers each
    scale_codes  uint8 [b]: scale = level(code) * scale_scales[block // 256] + mean_scale
    scale_scales float32 [ceil(b / 256)]
    mean_scale   float32 []
    """

    codes: torch.Tensor
    scale_codes: torch.Tensor
    scale_scales: torch.Tensor
    mean_scale: torch.Tensor
    shape: tuple[int, ...]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What it consists of, by name."""
        return {name: getattr(self, name) for name in ("codes", "scale_codes", "scale_scales", "mean_scale")}

    def scales(self) -> torch.Tensor:
        """The scale of each block, float32 [b]."""
        each = self.scale_scales.repeat_interleave(SCALE_BLOCK)[: self.scale_codes.numel()]
        return _scale_levels().to(each.device)[self.scale_codes.int()] * each + self.mean_scale


def quantize_nf4(tensor: torch.Tensor) -> NF4:
    """`tensor`, of any floating-point dtype and shape, in 4 bits; ValueError where a number is not finite.

    The levels are looked for in float32; a number halfway between two becomes the lower one.
    """
    flat, n = tensor.detach().reshape(-1), tensor.numel()
    codes = torch.empty(-(-n // 2), dtype=torch.uint8, device=flat.device)
    scales = torch.empty(-(-n // BLOCK), dtype=torch.float32, device=flat.device)
    for start in range(0, n, _STRETCH):
        stop = min(start + _STRETCH, n)
        found, largest = _quantized(flat[start:stop].float())
        codes[start // 2 : -(-stop // 2)] = found
        scales[start // BLOCK : -(-stop // BLOCK)] = largest
    if not scales.isfinite().all():
        raise ValueError("holds numbers that are not finite")
    mean = scales.double().mean().float() if n else torch.zeros((), device=flat.device)
    return NF4(codes, *_quantized_scales(scales - mean), mean, tuple(tensor.shape))


def dequantize(nf4: NF4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers that `nf4` stands for: level * scale in float32, rounded once to `dtype`."""
    n = math.prod(nf4.shape)
    output = torch.empty(nf4.shape, dtype=dtype, device=nf4.codes.device)
    library = kernels(output.device, dtype) if dtype in (torch.float32, torch.bfloat16) else None
    if library is not None:
        library.dequantize_nf4(torch.get_num_threads(), KINDS[dtype], n, compiled(nf4), output.data_ptr())
        return output
    flat, scales, levels = output.view(-1), nf4.scales(), _levels().to(output.device)
    for start in range(0, n, _STRETCH):
        stop = min(start + _STRETCH, n)
        codes = nf4.codes[start // 2 : -(-stop // 2)].int()
        numbers = levels[torch.stack([codes >> 4, codes & 15], dim=1).view(-1)][: stop - start]
        for part, scale in zip(_blocks(numbers), _of_blocks(scales, start, stop), strict=True):
            part *= scale
        flat[start:stop] = numbers
    return output


def compiled(nf4: NF4) -> Nf4:
    """`nf4` as the kernels read it; the caller keeps it."""
    return Nf4(
        *(tensor.data_ptr() for tensor in nf4.tensors.values()), _levels().data_ptr(), _scale_levels().data_ptr()
    )


def _quantized(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, two a byte, and the largest of each block, of float32 `numbers` that begin with a block."""
    largest, scaled = [], []
    for part in _blocks(numbers):
        scale = part.abs().amax(-1, keepdim=True)
        is_whole = part.shape[-1] == BLOCK
        # As bitsandbytes does: times the reciprocal, but a last block that is not whole is divided.
        bounded = scale.clamp(min=_LEAST_SCALE)
        scaled.append((part * (1.0 / bounded) if is_whole else part / bounded).reshape(-1))
        largest.append((scale if is_whole else bounded).reshape(-1))
    return _codes(torch.cat(scaled)), torch.cat(largest)


def _codes(scaled: torch.Tensor) -> torch.Tensor:
    """The nearest levels of float32 numbers from -1 to 1, two codes a byte."""
    levels = _levels()
    between, n = (levels[:-1] + levels[1:]) / 2, scaled.numel()
    if (library := kernels(scaled.device, scaled.dtype)) is not None:
        codes = torch.empty(-(-n // 2), dtype=torch.uint8)
        library.nf4_codes(torch.get_num_threads(), n, scaled.data_ptr(), between.data_ptr(), codes.data_ptr())
        return codes
    codes = torch.bucketize(scaled, between.to(scaled.device), out_int32=True).to(torch.uint8)
    if n % 2:
        codes = torch.cat([codes, codes.new_full((1,), LEVELS.index(0.0))])
    return codes[::2] << 4 | codes[1::2]


def _blocks(numbers: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of them: the whole blocks [b, 64], then what is left [1, fewer than 64]; of either only what there is."""
    whole = numbers.numel() // BLOCK * BLOCK
    if whole:
        yield numbers[:whole].view(-1, BLOCK)
    if whole < numbers.numel():
        yield numbers[whole:].view(1, -1)


def _of_blocks(scales: torch.Tensor, start: int, stop: int) -> Iterator[torch.Tensor]:
    """The scales of the numbers from `start` to `stop` as `_blocks` gives those: [b, 1], then [1, 1]."""
    whole = stop // BLOCK
    if start // BLOCK < whole:
        yield scales[start // BLOCK : whole].view(-1, 1)
    if stop % BLOCK:
        yield scales[whole].view(1, 1)


def _quantized_scales(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest levels of `scales`, as codes, and the largest of each block of 256; the lower of two that are as near."""
    levels, count = _scale_levels().to(scales.device), scales.numel()
    padded = torch.nn.functional.pad(scales, (0, -count % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    largest = padded.abs().amax(-1)
    scaled = (padded / largest.clamp(min=_LEAST_SCALE).unsqueeze(-1)).clamp(-1, 1)
    above = torch.searchsorted(levels, scaled.contiguous(), right=True).clamp(1, len(levels) - 1)
    is_above = levels[above] - scaled < scaled - levels[above - 1]
    codes = torch.where(is_above, above, above - 1).to(torch.uint8)
    return codes.view(-1)[:count].clone(), largest


@functools.cache
def _levels() -> torch.Tensor:
    return torch.tensor(LEVELS)


@functools.cache
def _scale_levels() -> torch.Tensor:
    """The 256 levels of dynamic tree quantization, rising: for each of seven powers of ten the middles between 2^i + 1 equally
    spaced bounds, with either sign; and 0 and 1."""
    levels = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (exponent - 6)
        levels += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(levels))
