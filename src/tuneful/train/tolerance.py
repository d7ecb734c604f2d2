"""How far two right ways of computing the same records may be apart: rounding, by the dtype that computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tuneful.model.precision import computes_in
from tuneful.types import Example

LOSS_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest relative difference of a loss of many targets. transformers' norms are of float32 in a model of float64 too; a loss of
bfloat16 is a mean over many logits, each rounded to 2^-9 of itself."""

_NATS_A_TARGET = 2.0**-4
"""By how many nats the loss of one target may differ in 16 bits, times the root of the number of layers: a layer rounds twice, to
2^-9 of what it gives, so logits of the size of 16 are off by 16 x 2^-9 x sqrt(2 L), and two ways differ by sqrt(2) times that. A
label of three tokens was 0.45 nats off on thirty layers, where 0.59 are allowed, its gradient a third of what is allowed."""

GRADIENT_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest norm of the difference of the two gradients, as a share of the gradient's."""

_ROUNDING_A_LAYER = 0.025
"""The same in 16 bits, of one layer: each rounds what it gives and what it sends back, and the roundings of several add up as
errors that know nothing of one another do, with the root of their number. Two ways that are both right differ by 0.004 to 0.022
on three layers, 0.045 on thirty (LOG.md)."""


def loss_tolerance(model: PreTrainedModel, examples: Sequence[Example], loss: float) -> float:
    """How far the summed loss (nats) of `examples`, which is `loss`, may be off: a share of it, or in 16 bits, where few targets
    leave little to average over, what each may be off, added up as errors that know nothing of one another."""
    dtype = computes_in(model)
    share = LOSS_TOLERANCE[dtype] * abs(loss)
    if dtype.itemsize > 2:
        return share
    weights = math.sqrt(sum(float((one.weights.astype(float) ** 2).sum()) for one in examples))
    return max(share, _NATS_A_TARGET * math.sqrt(_num_layers(model)) * weights)


def gradient_tolerance(model: PreTrainedModel) -> float:
    """How far two right gradients may be apart in the precision of `model`, as a share of their norm."""
    return GRADIENT_TOLERANCE.get(computes_in(model), _ROUNDING_A_LAYER * math.sqrt(_num_layers(model)))


def _num_layers(model: PreTrainedModel) -> int:
    return getattr(model.config.get_text_config(), "num_hidden_layers", None) or 1
