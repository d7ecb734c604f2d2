"""The judge of the gate: plain transformers in float32, one record at a time, nothing padded and nothing shared.

It trains like the others, so its first loss is what every system has to compute from the starting weights, and its
next losses show whether a system also clips and updates alike. It is never timed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from train_peers.worker import BETA, Batch, Job, Record, open_job, serve


def make_step(model: torch.nn.Module, job: Job) -> Callable[[Batch], float]:
    """One step of AdamW on the summed loss of the records, divided once by the number of targets, or of pairs (DPO)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, **job.optimization.adamw())

    def run_step(batch: Batch) -> float:
        num_targets = sum(record.num_targets for record in batch)
        optimizer.zero_grad()
        total = 0.0
        for record in batch:
            if record.reference is None:
                loss = -_logp(model, record) / num_targets
            else:
                moved = [_logp(model, side) - known for side, known in zip(record.sides, record.reference, strict=True)]
                loss = -F.logsigmoid(BETA * (moved[0] - moved[1])) / len(batch)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.optimization.max_grad_norm)
        optimizer.step()
        return total

    return run_step


def _logp(model: torch.nn.Module, record: Record) -> torch.Tensor:
    """The summed log-probability of the targets."""
    ids = torch.tensor(record.ids)
    logits = model(ids[None, :-1], use_cache=False).logits[0, record.num_prompt - 1 :]
    return -F.cross_entropy(logits, ids[record.num_prompt :], reduction="sum")


def main() -> None:
    job, channel = open_job()
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, attn_implementation="sdpa")
    if job.adapter:
        model = PeftModel.from_pretrained(model, job.adapter, is_trainable=True)
    model.train()
    serve(job, channel, make_step(model, job), dtype="float32")


if __name__ == "__main__":
    main()
