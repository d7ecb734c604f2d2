"""TRL's `SFTTrainer` on a CPU, at its best settings: bfloat16 autocast, no activation checkpointing, fused AdamW.

Variants: `padded` and `padding_free` (records one after another in one row, attention kept apart by their
positions); the driver takes the faster. `defaults` leaves precision and activation checkpointing as TRL ships them.
Records arrive tokenized and labelled; nothing is packed across batches.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from train_peers.stepping import Stepper, arguments, fused_adamw, rows, steppable
from train_peers.worker import open_job


def main() -> None:
    job, channel = open_job()
    settings = {} if job.variant == "defaults" else {"bf16": True, "gradient_checkpointing": False}
    config = SFTConfig(
        **arguments(job),
        **settings,
        max_length=None,
        packing=False,
        padding_free=job.variant == "padding_free",
    )
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, attn_implementation="sdpa")
    stepper = Stepper(channel, {"dtype": "bfloat16", "gradient_checkpointing": config.gradient_checkpointing})
    trainer = steppable(SFTTrainer, stepper)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows(job.batches)),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        optimizers=(fused_adamw(model, job), None),
        callbacks=[stepper],
    )
    trainer.train()


if __name__ == "__main__":
    main()
