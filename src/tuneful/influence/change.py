"""Which tokens of an answer training brought about: those whose log-probability it raised, each by how much.

Most tokens of an answer are what any model would write there. Their gradients say what every record says, and hide those of the
few that the answer is about: of "The capital of Australia is Darwin." training moved one token by 10 nats and the others by 0.4
at most. So an answer is compared as the gradient of

    sum_t max(0, log p_after(t) - log p_before(t)) log p(t)        each token's own gradient, times what training raised it by

and the records that stand out are those which raised what rose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from tuneful.model.precision import in_float64
from tuneful.train.loss import micro_batch_loss
from tuneful.train.memory import out_of_memory_says
from tuneful.types import Example

Figures = npt.NDArray[np.float64]

LEAST = 0.1
"""Nats that training must have raised all tokens of an answer by, together: less may be the rounding of the weights alone."""


def target_log_probs(model: PreTrainedModel, examples: Sequence[Example]) -> list[Figures]:
    """Of each example the log-probabilities (nats) of its targets, in their order."""
    found = []
    for example in examples:
        with torch.no_grad(), out_of_memory_says([example]):
            loss = micro_batch_loss(model, [example], "padded")
        nll = in_float64(loss.target_nll).cpu().numpy()
        found.append(-nll[loss.record_targets[0]])
    return found


def counted_by(gains: Figures, example: Example) -> Example:
    """`example` with the weight of each target in proportion to its gain, none for one that fell; their sum stays.

    `gains` float64 [targets]. Where what rose is less than LEAST together all targets count as they did.
    """
    rose = np.maximum(gains, 0.0)
    if not rose.sum() >= LEAST:
        return example
    weights = np.zeros_like(example.weights)
    weights[example.weights > 0] = rose * (example.weights.sum(dtype=np.float64) / rose.sum())
    return replace(example, weights=weights)
