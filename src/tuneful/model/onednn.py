"""oneDNN's operators in torch, which multiply bfloat16 on a processor that can, and lay weights out for it.

A torch that is built without oneDNN has none of them, and asking for one is an error: so are the wheels for macOS. This file is
their one door. Whoever packs or multiplies by packed weights asks `multiplies_bfloat16` first.
"""

from __future__ import annotations

import torch


def multiplies_bfloat16() -> bool:
    """Whether oneDNN is there, and the processor multiplies bfloat16 natively by it."""
    asks = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asks is not None and torch.backends.mkldnn.is_available() and bool(asks())


def why_no_bfloat16() -> str | None:
    """Why the processor's products are float32 here, for people; None where it multiplies bfloat16."""
    if multiplies_bfloat16():
        return None
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    return "the processor does not multiply bfloat16"


def packed(weight: torch.Tensor) -> torch.Tensor:
    """`weight` [O, I] in bfloat16 as the processor reads it: for `packed_linear` alone."""
    laid_out: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return laid_out


def packed_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`torch.nn.functional.linear` by a weight of `packed`."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product
