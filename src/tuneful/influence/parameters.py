"""Which numbers of a model its records are compared by, and what AdamW would make of their gradients.

Of an adapter all that was trained. Of full finetuning matrices of the last layers, from the last one backwards, those that fit
into what is left of MAX_PARAMETERS (of a model of 1.5 billion weights that is attention alone): they see what the layers below
have made of a text, their backward is short, and gradients of everything would be hundreds of megabytes a record. Embedding and
output head are left out: their gradients say which tokens two texts share.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneful.errors import ModelError

MAX_PARAMETERS = 8_000_000
"""Numbers of full finetuning that are compared: 32 MB a record in float32, the last two layers of a model of 135 M."""


def last_matrices(model: PreTrainedModel, max_parameters: int = MAX_PARAMETERS) -> dict[str, torch.nn.Parameter]:
    """The trainable weights of linear layers, last first, each that fits into what is left of `max_parameters`; at least one.

    ModelError where there is none.
    """
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    matrices = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if type(module) in (torch.nn.Linear, Conv1D) and id(module.weight) not in ends and module.weight.requires_grad
    }
    if not matrices:
        raise ModelError(
            f"{type(model).__name__} has no linear layers of its own that were trained; nothing to compare by"
        )
    chosen: dict[str, torch.nn.Parameter] = {}
    left = max(max_parameters, min(one.numel() for one in matrices.values()))
    for name, weight in reversed(matrices.items()):
        if weight.numel() <= left:
            chosen[name], left = weight, left - weight.numel()
    return chosen


def trainable(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters of an adapter, all that is trainable beside its base."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def preconditioner(
    moments: Mapping[str, torch.Tensor],
    names: Mapping[str, torch.nn.Parameter],
    step: int,
    beta2: float,
    epsilon: float,
) -> dict[str, torch.Tensor]:
    """1 / sqrt(sqrt(v / (1 - beta2^step)) + epsilon) of each parameter; v is its second moment in `moments` after `step` steps.

    Gradients of two records, each times this, have the inner product that AdamW's step gives them: one is divided by
    sqrt(v) + epsilon when the weights move, and the other says what that does to a loss. What has had no gradient so far, as a
    matrix that another one holds at 0, weighs nothing: epsilon would make it everything.
    """
    scales = {}
    for name in names:
        second = moments[f"exp_avg_sq.{name}"]
        root = second.div(1 - beta2**step).sqrt_()
        scales[name] = torch.where(second > 0, (root + epsilon).rsqrt(), torch.zeros(()))
    return scales
