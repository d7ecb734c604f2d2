"""The classical training loop, written out with nothing of the engine in it: what the engine's own run must equal.

A padded batch, transformers' own attention, torch's cross-entropy, clipping and AdamW. Both see the same records in the same
order. Losses are taken before each update, so the comparison of step n covers the n - 1 updates before it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from tuneful.batch.collate import pad_examples
from tuneful.batch.order import all_steps
from tuneful.config import TrainConfig
from tuneful.runs.schema import Layout, Step
from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW, learning_rate
from tuneful.types import Example

TOLERANCE = 1e-4
ENGINE = Layout("trie", 4096)


@dataclass(frozen=True)
class Result:
    """The losses of both runs, a step each, and their largest difference (nats)."""

    trie: list[float]
    padded: list[float]
    largest_difference: float
    seconds: dict[str, float]


def trie_losses(model: PreTrainedModel, examples: Sequence[Example], config: TrainConfig) -> Iterator[float]:
    """The loss of each step of the engine's own run."""
    optimizer = AdamW(model, config, torch.float32)
    for event in Training(model, optimizer, examples, [], config, ENGINE).run():
        if isinstance(event, Step):
            yield event.loss


def padded_losses(model: PreTrainedModel, examples: Sequence[Example], config: TrainConfig) -> Iterator[float]:
    """The loss of each step of the classical loop."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=config.adam_epsilon, foreach=False, fused=False)
    order = list(all_steps(len(examples), config.batch_size, config.seed, config.num_train_epochs, config.max_steps))
    for step, indices in enumerate(order, start=1):
        inputs, targets, weights = pad_examples([examples[index] for index in indices], pad_token_id=0)
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, len(order))
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def compare(
    make_model: Callable[[], PreTrainedModel],
    examples: Sequence[Example],
    config: TrainConfig,
    tell: Callable[[str], None] = lambda text: None,
) -> Result:
    """Run both, one after the other, each from weights of `make_model`."""
    losses: dict[str, list[float]] = {"trie": [], "padded": []}
    seconds = {}
    for name, run in (("trie", trie_losses), ("padded", padded_losses)):
        start = time.perf_counter()
        for loss in run(make_model(), examples, config):
            losses[name].append(loss)
            tell(f"{name:<7} step {len(losses[name]):>3}   loss {loss:.6f}")
        seconds[name] = round(time.perf_counter() - start, 1)
        gc.collect()  # the first model and its moments go before the second comes
    difference = max(abs(one - other) for one, other in zip(losses["trie"], losses["padded"], strict=True))
    return Result(losses["trie"], losses["padded"], difference, seconds)
