"""How far a model's own answers move by rounding alone: what a bound in nats has to allow a model whose logits are large.

For a small change d of the logits, KL of the next token is half the variance of d under the model (the terms of first order
cancel). Rounding moves each number by a share of itself, so d grows with that share and with the logits, and KL with the square
of both: a model of four times the logits loses sixteen times as much by the same rounding, and no bound in nats suits the two.
Where one is exceeded the model is therefore asked itself, with changes that are known to be no fault:

    rounding   every weight moved as far as rounding to its type moves it, up or down by chance
    runtime    the inputs of every product rounded as llama.cpp rounds them, and GELU read from a table of 16 bits, as ggml does

After `ggml_vec_gelu_f32` and the `vec_dot_type` of each type (https://github.com/ggml-org/ggml).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tuneful.export.gguf_check import expected_rows
from tuneful.export.gguf_tensors import GgufTensor
from tuneful.export.gguf_types import BLOCK, QUANTIZED, GgufType, rounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SEED = 7
_TABLE_ENDS = 10.0
"""ggml's table of GELU reaches from -10 to 10; below it is 0, above it the input itself."""


def move_at_random(model: PreTrainedModel, tensors: Sequence[GgufTensor]) -> None:
    """Give `model` the weights that were exported, each moved as far as rounding to its type moves it, up or down by chance."""
    state, generator = model.state_dict(), torch.Generator().manual_seed(_SEED)
    for tensor in tensors:
        if (parameter := state.get(tensor.weight_name)) is None:
            continue  # the table of stretched angles, which the model computes
        own = torch.cat([tensor.source_rows(*at) for at in tensor.stretches()])
        moved = torch.cat([expected_rows(tensor, *at) for at in tensor.stretches()]) - own
        signs = torch.randint(0, 2, moved.shape, generator=generator) * 2 - 1
        parameter.copy_((own + signs * moved).reshape(parameter.shape))


@contextlib.contextmanager
def rounding_as_llama_cpp(model: PreTrainedModel, to: GgufType) -> Iterator[None]:
    """Let `model` (float32) round what llama.cpp rounds as it computes with a file of type `to`."""
    from transformers.activations import GELUTanh, NewGELUActivation
    from transformers.pytorch_utils import Conv1D

    hooks = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and to != "f32":
            hooks.append(module.register_forward_pre_hook(lambda _, inputs: (rounded_inputs(inputs[0], to),)))
        elif isinstance(module, GELUTanh | NewGELUActivation):
            hooks.append(module.register_forward_hook(_from_table))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rounded_inputs(inputs: torch.Tensor, to: GgufType) -> torch.Tensor:
    """The inputs [..., size] of a product as llama.cpp multiplies them by weights of type `to`: blocks are of 8 bits."""
    if to not in QUANTIZED:
        return rounded(inputs, to)
    return rounded(inputs.contiguous(), "f16" if inputs.shape[-1] % BLOCK else "q8_0")


def _from_table(activation: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """GELU of an input that is rounded to float16, rounded to float16."""
    (given,) = inputs
    entry = activation.forward(given.half().float()).half().float()
    inside = torch.where(given <= -_TABLE_ENDS, torch.zeros_like(given), entry)
    return torch.where(given >= _TABLE_ENDS, given, inside)
