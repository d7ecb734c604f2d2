"""The logits of a prompt, and how far those of two models are apart: how merging and exporting check what they made.

Whoever compares decides what is close enough, and against which scale: here are only the numbers. Generation and training check
other things, one step of a cache and a loss with its gradient, and do so where they compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tuneful.model.forward import compute_logits

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


def some_logits(model: PreTrainedModel, prompt: Sequence[int], num_tokens: int = 16) -> torch.Tensor:
    """Of `prompt_logits` those of at most so many tokens [1, M, vocabulary], from the first to the last at equal distances: the
    logits of all would take more memory than anything else where models are compared layer by layer."""
    count = min(num_tokens, len(prompt))
    rows = torch.linspace(0, len(prompt) - 1, count).round().long().to(model.device)
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.inference_mode():
        return compute_logits(model, rows, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def largest_difference(logits: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """The largest absolute difference of a logit from its `reference`, and the largest absolute value of a reference."""
    logits, reference = logits.float(), reference.float()
    return float((logits - reference).abs().max()), float(reference.abs().max())
