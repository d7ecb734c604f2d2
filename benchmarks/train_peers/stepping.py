"""How a transformers `Trainer`, which wants to run to its end, is made to take a few steps at a time.

A callback stops the loop at the end of a step, reports, and sleeps until the driver asks for more. A step's seconds
run from the end of the step before it (or the driver's word to go on) to its own end, so fetching and collating the
batch, the trainer's bookkeeping, the clipping and the optimizer are all inside, and the sleep is not.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback

from train_peers.worker import Batch, Channel, Job, Step


class Stepper(TrainerCallback):
    """Runs the trainer between two words of the driver."""

    def __init__(self, channel: Channel, facts: dict[str, Any]) -> None:
        self._channel = channel
        self._facts = facts
        self._steps: list[Step] = []
        self._wanted = 0
        self._start = 0.0
        self.loss: torch.Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._channel.ready(**self._facts)
        self._await()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.loss is not None, "the trainer ended a step without a loss"
        loss = float(self.loss)
        end = time.perf_counter()
        self._steps.append(Step(end - self._start, loss))
        self._start = end
        if len(self._steps) == self._wanted:
            self._channel.report(self._steps)
            self._await()

    def _await(self) -> None:
        self._steps = []
        self._wanted = self._channel.next_run()
        self._start = time.perf_counter()


def steppable(trainer_class: type[Trainer], stepper: Stepper) -> type[Trainer]:
    """`trainer_class` with a look at the loss of each step, which the trainer itself only keeps as a running mean."""

    class Steppable(trainer_class):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            stepper.loss = super().training_step(*args, **kwargs)
            return stepper.loss

    return Steppable


def train_by_trl(
    job: Job,
    channel: Channel,
    trainer_class: type[Trainer],
    config_class: Any,
    examples: list[dict[str, Any]],
    **own: Any,
) -> None:
    """Steps of a trainer of TRL's on `examples`, at its best settings, or with the word `defaults` at its own."""
    from datasets import Dataset

    settings = arguments(job)
    if "defaults" in job.words:
        del settings["bf16"]
    else:
        settings["gradient_checkpointing"] = False
    config = config_class(**settings, max_length=None, **own)
    model = trainable_model(job)
    stepper = Stepper(channel, {"dtype": compute_dtype(job), "gradient_checkpointing": config.gradient_checkpointing})
    steppable(trainer_class, stepper)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        optimizers=(fused_adamw(model, job), None),
        callbacks=[stepper],
    ).train()


def trainable_model(job: Job) -> Any:
    """The float32 model, or the base with peft's adapter beside it.

    The base is in bfloat16, in float32 with the word `float32`; the adapter is in float32, in bfloat16 with `bf16-adapter`.
    """
    dtype = torch.bfloat16 if job.adapter and "float32" not in job.words else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, attn_implementation="sdpa")
    if job.adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(
        model, job.adapter, is_trainable=True, autocast_adapter_dtype="bf16-adapter" not in job.words
    )


def compute_dtype(job: Job) -> str:
    """The precision of the products, by the words of the variant."""
    return "float32" if "float32" in job.words else "bfloat16"


def fused_adamw(model: torch.nn.Module, job: Job) -> torch.optim.AdamW:
    """AdamW over all that is trained; a trainer left alone would exempt norms from the decay, unlike the others."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, fused=True, **job.optimization.adamw())


def rows(batches: list[Batch]) -> list[dict[str, list[int]]]:
    """The batches one after another, tokenized and labelled, so that a sequential sampler deals them out again."""
    return [{"input_ids": record.ids, "labels": record.labels} for batch in batches for record in batch]


def arguments(job: Job) -> dict[str, Any]:
    """The settings of `TrainingArguments` that every trainer here shares: this work, and nothing beside it."""
    return {
        "output_dir": str(job.scratch),
        "bf16": not {"bf16-adapter", "float32"} & set(job.words),
        "torch_compile": "compiled" in job.words,
        "use_cpu": True,
        "per_device_train_batch_size": len(job.batches[0]),
        "max_steps": len(job.batches),
        "learning_rate": job.optimization.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": job.optimization.max_grad_norm,
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
