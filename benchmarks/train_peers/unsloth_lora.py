"""Unsloth's CPU backend as its users call it: `FastLanguageModel` with the adapter, and the `SFTTrainer` that it patches.

Words of a variant: `plain` (no activation checkpointing), `checkpointing` (as shipped), `compiled` (its own switch for compiled
layers), `huge-pages` (an environment variable). It turns packing and padding-free off by itself, and computes the
loss in chunks of the target rows. The base is bfloat16, not quantized, like everyone's here.
"""

from __future__ import annotations

import os
from pathlib import Path

from train_peers.worker import open_job


def main() -> None:
    job, channel = open_job()
    assert job.adapter is not None, "this system trains adapters"
    os.environ["UNSLOTH_CPU_COMPILE"] = "1" if "compiled" in job.words else "0"
    os.chdir(_made(job.scratch))  # Unsloth writes a folder of compiled code where it stands

    import unsloth  # before transformers and trl, which it patches
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from train_peers.stepping import Stepper, arguments, fused_adamw, rows, steppable

    checkpointing = "checkpointing" in job.words
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(job.adapter),
        max_seq_length=2048,
        load_in_4bit=False,
        use_gradient_checkpointing="unsloth" if checkpointing else False,
        local_files_only=True,
    )
    config = SFTConfig(**arguments(job), max_length=None, packing=False, gradient_checkpointing=checkpointing)
    stepper = Stepper(channel, {"dtype": "bfloat16", "gradient_checkpointing": config.gradient_checkpointing})
    trainer = steppable(SFTTrainer, stepper)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows(job.batches)),
        processing_class=tokenizer,
        optimizers=(fused_adamw(model, job), None),
        callbacks=[stepper],
    )
    trainer.train()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
