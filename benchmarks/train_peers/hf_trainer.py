"""transformers' `Trainer` as a careful user would set it up: bfloat16 autocast, padded batches, and `logits_to_keep`.

The collator pads; `compute_loss` passes a mask of the positions that predict a target, so the output head runs on
those rows only, and divides by the number of targets that the Trainer counts over the whole step. With an adapter the base
is bfloat16, and the word `bf16-adapter` makes the adapter so too, without autocast. `float32` computes everything in that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from train_peers.stepping import Stepper, arguments, compute_dtype, fused_adamw, rows, steppable, trainable_model
from train_peers.worker import IGNORED, open_job, pad


class TargetRowsTrainer(Trainer):
    """A Trainer that computes logits where there is something to predict."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        labels = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        predicts = labels != IGNORED
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            logits_to_keep=predicts,
            use_cache=False,
        )
        assert num_items_in_batch is not None
        loss = F.cross_entropy(outputs.logits.float(), labels[predicts], reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Right-padded ids, labels and attention mask."""
    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": torch.tensor(pad(ids, 0)),
        "labels": torch.tensor(pad([example["labels"] for example in examples], IGNORED)),
        "attention_mask": torch.tensor(pad([[1] * len(row) for row in ids], 0)),
    }


def main() -> None:
    job, channel = open_job()
    model = trainable_model(job)
    stepper = Stepper(channel, {"dtype": compute_dtype(job)})
    trainer = steppable(TargetRowsTrainer, stepper)(
        model=model,
        args=TrainingArguments(**arguments(job), remove_unused_columns=False),
        data_collator=collate,
        train_dataset=rows(job.batches),
        optimizers=(fused_adamw(model, job), None),
        callbacks=[stepper],
    )
    trainer.train()


if __name__ == "__main__":
    main()
