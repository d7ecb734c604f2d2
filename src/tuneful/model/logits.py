"""The logits of a prompt, and how far those of two models are apart: how merging and exporting check what they made.

Whoever compares decides what is close enough, and against which scale: here are only the numbers. Generation and training check
other things, one step of a cache and a loss with its gradient, and do so where they compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prompt_logits(model: PreTrainedModel, prompt: Sequence[int]) -> torch.Tensor:
    """The logits [1, N, vocabulary] of the N tokens of `prompt`, in the dtype of `model` and without gradients."""
    input_ids = torch.tensor([list(prompt)], device=model.device)
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False
        ).logits
    return logits


def largest_difference(logits: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """The largest absolute difference of a logit from its `reference`, and the largest absolute value of a reference."""
    logits, reference = logits.float(), reference.float()
    return float((logits - reference).abs().max()), float(reference.abs().max())
