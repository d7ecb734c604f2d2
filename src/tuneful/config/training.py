"""The settings of training: the method, its adapter, and every figure of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneful.config.preference import PREFERENCE_OBJECTIVES
from tuneful.config.schema import Section, names_of

METHOD_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "full": {"learning_rate": 5e-5, "weight_decay": 0.1},
    "lora": {"learning_rate": 2e-4, "weight_decay": 0.0},
    "qlora": {"learning_rate": 2e-4, "weight_decay": 0.0},
}
"""What suits each method. full: those of Raschka, Build a Large Language Model (From Scratch), chapter 7. lora and qlora: QLoRA's
for models up to 13B (Dettmers et al. 2023, table 9); the adapter starts at no change, and decay would pull it back there."""


_METHOD_SOURCES: Mapping[str, str] = {
    "full": "the book's",
    "lora": "QLoRA's, for models up to 13B",
    "qlora": "QLoRA's, for models up to 13B",
}
"""Where the defaults of a method come from, in words for the terminal."""

_OF_PREFERENCES: Mapping[str, float] = {"full": 5e-6, "lora": 2e-5, "qlora": 2e-5}
"""The learning rate of each method under preferences, in one epoch: of full finetuning that of the DPO notebook
beside the book's chapter 7, of an adapter the most that is common. At ten times as much answers begin to repeat themselves."""


def train_defaults(method: str, objective: str) -> Mapping[str, float]:
    """What suits a method under an objective: learning rate, weight decay and, where it is not two, epochs."""
    defaults = METHOD_DEFAULTS.get(method, {})
    if objective not in PREFERENCE_OBJECTIVES or method not in _OF_PREFERENCES:
        return defaults
    return {**defaults, "learning_rate": _OF_PREFERENCES[method], "num_train_epochs": 1}


def default_source(key: str, method: str, objective: str) -> str:
    """Where the default of a setting of training comes from, in words."""
    if objective in PREFERENCE_OBJECTIVES and key == "learning_rate":
        return f"the default of {method} under {objective}, a tenth of sft's"
    return f"the default of {method}, {_METHOD_SOURCES[method]}"


class LoraConfig(Section):
    """The adapter of `train.method: lora` and `qlora`."""

    r: int = Field(16, ge=1, description="rank: width of the pair of matrices beside each layer")
    alpha: float = Field(32, gt=0, description="the adapter's output is scaled by alpha / r")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the adapter's input; above 0 each record is computed on its own"
    )
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="which layers get an adapter: `all-linear` (all but the output head), or names such as `[q_proj, v_proj]`",
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) (Kalajdzievski 2023)")
    use_dora: bool = Field(False, description="learn each weight's length apart from its direction (Liu et al. 2024)")
    create_new_adapter: bool = Field(
        False,
        description="where `model.name_or_path` is an adapter: merge it into its base, and train a new one on that; else that "
        "adapter goes on being trained",
    )
    merge: bool = Field(
        True, description="save the adapter merged into its base too, as a model of its own; else the adapter alone"
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return names_of(value) if value != "all-linear" else value


class TrainConfig(Section):
    """How the weights change."""

    objective: Literal["sft", "dpo", "orpo", "simpo", "cpo", "kto", "text"] = Field(
        "sft",
        description="what is descended: the loss of the responses (`sft`), a loss of preference pairs (`dpo`, `orpo`, `simpo`, "
        "`cpo`; section `preference`), of answers that are wanted or not (`kto`), or of whole documents (`text`)",
    )
    method: Literal["full", "lora", "qlora"] = Field(
        "full",
        description="all weights, an adapter beside them (section `lora`), or an adapter beside weights in 4 bits",
    )
    freeze_layers: int = Field(
        0,
        ge=0,
        description="the lowest layers, and the embedding with them, stay as they are; an adapter is put above them",
    )
    activation_checkpointing: bool = Field(
        False,
        description="compute each layer again in the backward instead of keeping it: less memory, a third more time",
    )
    batch_size: int = Field(8, ge=1, description="records in one optimizer step")
    num_train_epochs: float = Field(
        2, gt=0, description="passes over the training records; where none is given 1 for preferences"
    )
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; overrides num_train_epochs")
    learning_rate: float = Field(
        5e-5,
        gt=0,
        description="peak learning rate of AdamW; where none is given 2e-4 for lora and qlora, and for preferences a tenth: "
        "5e-6, and 2e-5 for lora and qlora",
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="shape of the learning rate after the warmup"
    )
    warmup_steps: float = Field(
        0.03, ge=0, description="steps of linear warmup; a value below 1 is a share of all steps"
    )
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="decoupled weight decay, norms and biases exempt; where none is given 0 for lora and qlora",
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's second moment")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are scaled down to this norm; 0 turns clipping off")
    eval_steps: int | None = Field(
        None,
        ge=1,
        description="steps between validations; by default a tenth of the run, or more by `train.eval_share`",
    )
    eval_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="share of the training's time that validations may take where train.eval_steps does not say how often; one "
        "before the first step and one after the last there are always",
    )
    sample_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the training's time that sample answers at validations may take; one at the last there is always, "
        "unless this is 0",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="which weights the run ends with: those of the lowest validation loss, or those of the last step",
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="evaluations in a row without a lower validation loss after which training stops"
    )
    save_steps: int | None = Field(None, ge=1, description="steps between checkpoints; by default only time counts")
    save_minutes: float | None = Field(
        10.0,
        gt=0,
        description="minutes of training between checkpoints; a shorter run writes none unless it is stopped",
    )
    save_total_limit: int = Field(2, ge=2, description="checkpoints that are kept, the newest ones")
    seed: int = Field(0, ge=0, lt=1 << 31, description="seed of the split, the data order and sampling")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="most trie nodes computed at once; by default chosen from the device. Changes no result"
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="under torchrun, what each rank holds: the whole model (`ddp`), or a slice of every tensor (`fsdp`); "
        "`auto` goes by memory. Changes no result",
    )
    shard_ranks: int | None = Field(
        None,
        ge=2,
        description="under `fsdp`, how many ranks share one copy of the model; by default those of a node where they have room "
        "for it, else all. Changes no result",
    )
    layout: Literal["trie", "unshared", "padded"] = Field(
        "trie",
        description="how a micro-batch is laid out: shared prefixes computed once, each record a branch of its own, or the "
        "classical padded batch. Changes no result",
    )
    report_to: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = Field(
        (), description="trackers that get the lines of metrics.jsonl too, such as `[tensorboard, wandb]`"
    )

    @model_validator(mode="before")
    @classmethod
    def _what_suits_the_method(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**train_defaults(str(values.get("method", "full")), str(values.get("objective", "sft"))), **values}

    @model_validator(mode="after")
    def _copies_are_of_shards(self) -> TrainConfig:
        if self.shard_ranks is not None and self.strategy == "ddp":
            raise ValueError("shard_ranks is for fsdp: under ddp each rank holds the whole model")
        return self

    @field_validator("report_to", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return names_of(value)

    @field_validator("warmup_steps")
    @classmethod
    def _warmup_is_a_share_or_a_count(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("neither a share below 1 nor a whole number of steps")
        return value
