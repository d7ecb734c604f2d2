"""TRL's `SFTTrainer` on a CPU, at its best settings: bfloat16, no activation checkpointing, fused AdamW.

Words of a variant: `padded` or `padding-free` (records one after another in one row, attention kept apart by their
positions); `compiled` (torch.compile, by the trainer); `bf16-adapter` (the adapter in bfloat16 like its base, and
no autocast); `huge-pages` (an environment variable). `defaults` leaves precision and activation checkpointing as TRL
ships them. The driver takes the fastest. With an adapter the base is bfloat16. Records arrive tokenized and labelled;
nothing is packed across batches.
"""

from __future__ import annotations

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from train_peers.stepping import Stepper, arguments, fused_adamw, rows, steppable, trainable_model
from train_peers.worker import open_job


def main() -> None:
    job, channel = open_job()
    settings = arguments(job)
    if "defaults" in job.words:
        del settings["bf16"]
    else:
        settings["gradient_checkpointing"] = False
    config = SFTConfig(**settings, max_length=None, packing=False, padding_free="padding-free" in job.words)
    model = trainable_model(job)
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
