"""Logits become the next token: pure functions of the logits, the settings, what stands before, and a generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tuneful.config import GenerateConfig
from tuneful.errors import TunefulError


def next_tokens(
    logits: torch.Tensor,
    config: GenerateConfig,
    generators: Sequence[torch.Generator],
    contexts: Sequence[Sequence[int]] = (),
) -> torch.Tensor:
    """The next token of each row: int64 [rows] from logits [rows, vocabulary]; greedy where the temperature is 0.

    `contexts` are the ids that each row has so far, prompt included; only `repetition_penalty` looks at them. Sampling cuts
    to `top_k`, then to the likeliest tokens that hold `top_p` of the probability (Holtzman et al. 2020), then to those at
    least `min_p` times as likely as the likeliest (Nguyen et al. 2024). Each row draws from its own generator, so an answer
    does not depend on which prompts share its batch. TunefulError where a row's logits are not finite: there is no likeliest.
    """
    if config.repetition_penalty != 1:
        logits = _penalized(logits.float(), config.repetition_penalty, contexts)
    largest, chosen = _likeliest(logits)
    if not largest.isfinite().all():  # a NaN is the largest of its row
        raise TunefulError(
            "the model's logits are not finite, so it can answer nothing. Its weights may be damaged or have diverged, or need "
            "another precision (model.dtype=float32)"
        )
    if config.temperature == 0:
        return chosen
    probabilities = _cut(logits.float() / config.temperature, config).softmax(-1).cpu()
    drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(probabilities, generators, strict=True)]
    return torch.cat(drawn).to(logits.device)


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logit of each row, and the first token that has it; a NaN counts as the largest."""
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.float64):
        # `argmax` gives the same index, and takes one thread six times as long in bfloat16
        largest, chosen = logits.max(-1)
        return largest, chosen
    chosen = torch.from_numpy(logits.detach().numpy().argmax(-1))  # with vector instructions, which torch's has not
    return logits.gather(-1, chosen[:, None])[:, 0], chosen


def _penalized(logits: torch.Tensor, penalty: float, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits of tokens that occurred, divided by `penalty` where positive, multiplied where negative (Keskar et al. 2019)."""
    logits = logits.clone()
    for row, context in zip(logits, contexts, strict=True):
        seen = torch.tensor(sorted(set(context)), device=logits.device)
        row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    return logits


def _cut(logits: torch.Tensor, config: GenerateConfig) -> torch.Tensor:
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        kth = logits.topk(config.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if config.top_p < 1:
        ordered, index = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        spare = probabilities.cumsum(-1) - probabilities >= config.top_p  # the token that crosses top_p stays
        spare[:, 0] = False  # also where top_p is 0 in float32
        logits = logits.masked_fill(torch.zeros_like(spare).scatter(-1, index, spare), -torch.inf)
    if config.min_p > 0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < config.min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
    return logits
