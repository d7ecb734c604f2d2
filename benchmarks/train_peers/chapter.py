"""The loop of Raschka, Build a Large Language Model (From Scratch), chapter 7: padded, all logits, float32, plain AdamW.

What is kept of `custom_collate_fn` and `train_model_simple`: records padded with the end token, inputs and targets
shifted by one, logits of every position, mean cross-entropy over the targets that are not ignored,
`torch.optim.AdamW` with its defaults. What is added, so that every system does the same work: the prompt is masked
and the gradient clipped. The attention of the book's GPTModel multiplies, masks and normalizes in plain
operations: `eager`. Variant `sdpa` is the same loop with torch's fused attention, for sets whose eager attention
does not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from train_peers.worker import IGNORED, Batch, Job, open_job, pad, serve


def make_step(model: torch.nn.Module, job: Job, end_token: int) -> Callable[[Batch], float]:
    """The body of the book's inner loop as a function of a batch."""
    optimizer = torch.optim.AdamW(model.parameters(), **job.optimization.adamw())

    def run_step(batch: Batch) -> float:
        ids = torch.tensor(pad([record.ids for record in batch], end_token))
        labels = torch.tensor(pad([record.labels for record in batch], IGNORED))
        inputs, targets = ids[:, :-1], labels[:, 1:]
        optimizer.zero_grad()
        logits = model(inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.optimization.max_grad_norm)
        optimizer.step()
        return loss.item()

    return run_step


def main() -> None:
    job, channel = open_job()
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, attn_implementation=job.variant)
    model.train()
    end_token = job.batches[0][0].ids[-1]
    serve(job, channel, make_step(model, job, end_token), dtype="float32")


if __name__ == "__main__":
    main()
