"""Every knob, in one place, validated before anything is read or loaded.

A configuration is a YAML file of sections, then `section.key=value` overrides from the command line. Keys carry the
names that the field uses (`learning_rate`, `num_train_epochs`, `max_grad_norm`); a key that another trainer spells
otherwise is refused with our name for it. Every key is read by something: `tests/house/test_config_is_obeyed.py`.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from tuneful.errors import ConfigError


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _only_a_switch_is_true_or_false(cls, value: Any, info: ValidationInfo) -> Any:
        switch = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bool) and not switch:
            raise ValueError(f"expected a number or a name, not {str(value).lower()}; where a name is meant, quote it")
        return value


class DataConfig(Section):
    """What is trained on."""

    split: Literal["grouped", "random", "ordered"] = Field(
        "grouped",
        description="how records are divided: `grouped` keeps records with the same prompt on one side, `random` shuffles "
        "single records, `ordered` cuts the file as it stands (train, test, validation: the chapter's order)",
    )
    validation_file: str | None = Field(
        None, description="a file of records for the validation loss; nothing of DATA is split off for it then"
    )
    test_file: str | None = Field(
        None, description="a file of records for the test answers; nothing of DATA is split off for it then"
    )
    test_share: float = Field(0.10, ge=0, lt=1, description="share of the records kept for the test answers")
    validation_share: float = Field(0.05, ge=0, lt=1, description="share of the records kept for the validation loss")
    train_on: Literal["response", "all"] = Field(
        "response", description="which tokens carry loss: the `response` and its end token, or `all` but the first"
    )
    prompt_weight: float | None = Field(
        None, ge=0, le=1, description="weight of a prompt token's loss, between `response` (0) and `all` (1)"
    )
    train_turns: Literal["all", "last"] = Field(
        "all", description="of a record with several turns, train every response or only the last one"
    )
    max_length: int = Field(1024, ge=2, description="most tokens a record may have, the end token included")
    on_long: Literal["refuse", "cut_response", "cut_input"] = Field(
        "refuse",
        description="a record over max_length is refused by name, or loses the end of its response (and its end token), or the "
        "end of the longest text that was asked, so that the whole response fits",
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="a row that cannot be used stops the run, or is skipped into refused.jsonl"
    )
    shape: Literal["auto", "alpaca", "messages", "sharegpt", "prompt-completion", "question-answer", "dolly"] = Field(
        "auto", description="how a record is written; `auto` tells each record by its keys"
    )
    columns: dict[str, str] | None = Field(
        None,
        description="where fields stand under other names, field to column: `{instruction: question, output: answer}`, or "
        "`instruction=question,output=answer`",
    )
    replay: str | None = Field(
        None,
        description="general records (a file, or `starter`) or text (`.txt`, passages between blank lines) mixed into training "
        "against forgetting",
    )
    replay_ratio: float | None = Field(
        None, gt=0, le=10, description="replayed records for each training record, on top of batch_size; 0.1 by default"
    )

    @field_validator("shape", mode="before")
    @classmethod
    def _text_is_no_shape(cls, value: Any) -> Any:
        if value == "text":
            raise ValueError("a finished text does not say which part of it is the response, the part to learn")
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _columns_are_pairs(cls, value: Any) -> Any:
        if value is None or value == {}:
            return None
        pairs = _pairs(value) if isinstance(value, str) else value
        if not isinstance(pairs, dict) or not all(
            isinstance(part, (str, int)) and not isinstance(part, bool) and str(part)
            for pair in pairs.items()
            for part in pair
        ):
            raise ValueError("expected fields and their columns, such as instruction=question,output=answer")
        return {str(field): str(column) for field, column in pairs.items()}

    @model_validator(mode="before")
    @classmethod
    def _a_given_side_is_not_split_off(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for side in ("validation", "test"):
            if values.get(f"{side}_file") is not None and values.setdefault(f"{side}_share", 0) != 0:
                raise ValueError(f"{side}_share has no say beside {side}_file; drop one of the two")
        return values

    @model_validator(mode="after")
    def _shares_leave_something_to_train(self) -> DataConfig:
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share and validation_share together must stay below 1")
        if self.prompt_weight is not None and self.train_on == "all" and self.prompt_weight != 1:
            raise ValueError("prompt_weight has no say under train_on: all (every weight is 1); drop one of the two")
        if self.replay_ratio is not None and self.replay is None:
            raise ValueError("replay_ratio says how much of data.replay is mixed in; name a file there, or drop it")
        return self

    @property
    def resolved_prompt_weight(self) -> float:
        """Weight of one prompt token in the loss, 0 to 1."""
        if self.prompt_weight is not None:
            return self.prompt_weight
        return 1.0 if self.train_on == "all" else 0.0

    @property
    def resolved_replay_ratio(self) -> float:
        """Replayed records for each training record; 0 where there is nothing to replay."""
        if self.replay is None:
            return 0.0
        return 0.1 if self.replay_ratio is None else self.replay_ratio


def _pairs(text: str) -> dict[str, str] | None:
    """`field=column,field=column` as a mapping; None where it is none, or names a field twice."""
    parts = [part.partition("=") for part in text.split(",")]
    pairs = {field.strip(): column.strip() for field, equals, column in parts if equals}
    return pairs if len(pairs) == len(parts) else None


class TemplateConfig(Section):
    """How a record becomes a prompt and a response."""

    name: Literal["alpaca", "alpaca-paired", "chatml", "phi-3", "own"] = Field(
        "alpaca",
        description="the prompt template; `own` is the chat template of the tokenizer, or that of `template.file`",
    )
    file: str | None = Field(None, description="a Jinja chat template of your own (template.name is `own` then)")

    @model_validator(mode="before")
    @classmethod
    def _a_file_is_a_template_of_ones_own(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("file") is None:
            return values
        if (name := values.get("name", "own")) != "own":
            raise ValueError(f"name: {name} and file are two templates; drop one of the two")
        return {**values, "name": "own"}


class ModelConfig(Section):
    """Which weights, and in which precision their products run."""

    name_or_path: str = Field(
        "smollm2-135m-instruct", description="a folder, a Hub id, a .gguf file, or the built-in smollm2-135m-instruct"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of matrix products; master weights are float32 always. `auto` takes bfloat16 where the "
        "processor multiplies it natively and a short timing agrees",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="`auto`, `cpu`, `cuda` or `cuda:N`")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="replaces every dropout of the model; above 0 each record is computed on its own"
    )


def _names_of(value: Any) -> Any:
    """A list of names as YAML gives it, or as it is typed: `a,b`."""
    return [name for part in value.split(",") if (name := part.strip())] if isinstance(value, str) else value


METHOD_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "full": {"learning_rate": 5e-5, "weight_decay": 0.1},
    "lora": {"learning_rate": 2e-4, "weight_decay": 0.0},
    "qlora": {"learning_rate": 2e-4, "weight_decay": 0.0},
}
"""What suits each method. full: the chapter's. lora, qlora: QLoRA's for models up to 13B (Dettmers et al. 2023, table 9); the
adapter starts at no change, and decay would pull it back there."""


METHOD_SOURCES: Mapping[str, str] = {
    "full": "the chapter's",
    "lora": "QLoRA's, for models up to 13B",
    "qlora": "QLoRA's, for models up to 13B",
}
"""Where the defaults of a method come from, in words for the terminal."""


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

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return _names_of(value) if value != "all-linear" else value


class TrainConfig(Section):
    """How the weights change."""

    method: Literal["full", "lora", "qlora"] = Field(
        "full",
        description="all weights, an adapter beside them (section `lora`), or an adapter beside weights in 4 bits (CUDA)",
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
    num_train_epochs: float = Field(2, gt=0, description="passes over the training records")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; overrides num_train_epochs")
    learning_rate: float = Field(
        5e-5, gt=0, description="peak learning rate of AdamW; where none is given 2e-4 for lora and qlora"
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
        None, ge=1, description="steps between validations; by default a tenth of the run, at least 1"
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
        return {**METHOD_DEFAULTS.get(str(values.get("method", "full")), {}), **values}

    @field_validator("report_to", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return _names_of(value)

    @field_validator("warmup_steps")
    @classmethod
    def _warmup_is_a_share_or_a_count(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("neither a share below 1 nor a whole number of steps")
        return value


class GenerateConfig(Section):
    """How the model answers."""

    max_new_tokens: int = Field(128, ge=1, description="most tokens an answer may have")
    temperature: float = Field(0.0, ge=0, description="0 is greedy; above, the sampling temperature")
    top_k: int | None = Field(None, ge=1, description="sample among the k likeliest tokens")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the likeliest tokens that hold this probability")
    min_p: float = Field(
        0.0, ge=0, le=1, description="sample among tokens at least this many times as likely as the likeliest"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="above 1, tokens that the prompt or the answer has already become less likely"
    )
    stop: tuple[str, ...] = Field((), description="texts that end an answer; neither they nor what follows is shown")
    batch_size: int = Field(64, ge=1, description="prompts answered at once; no answer changes but by rounding")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_text_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_stop_is_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text would stop every answer at once")
        return value


class JudgeConfig(Section):
    """Who grades the answers, and how it is asked. Judging is off until `judge.model` names a judge."""

    model: str | None = Field(
        None,
        description="`ollama/NAME` (at OLLAMA_HOST), `openai/MODEL` (at OPENAI_BASE_URL), `gguf:FILE` (llama.cpp inside this "
        "process) or `model:FOLDER` (transformers inside this process)",
    )
    protocol: Literal["score", "rubric", "pairwise"] = Field(
        "score",
        description="`score` asks for one number from 0 to 100, `rubric` for correctness, relevance, completeness and "
        "clarity, `pairwise` for the better of two answers, in both orders",
    )
    reply_format: Literal["auto", "json_schema", "text"] = Field(
        "auto",
        description="what the judge is held to: a JSON object that carries the code of its item, or plain text; `auto` is "
        "`text` for `model:FOLDER` and `json_schema` elsewhere. A rubric is an object either way",
    )
    prompts: str | None = Field(
        None, description="a folder whose score.txt, rubric.txt and pairwise.txt replace the built-in prompts"
    )
    concurrency: int = Field(4, ge=1, le=256, description="questions in flight at once")
    timeout_seconds: float = Field(300, gt=0, description="a reply that is not whole by then is none")
    max_retries: int = Field(4, ge=0, description="further tries after a failure that may pass")
    backoff_seconds: float = Field(
        0.5, ge=0, description="wait before the first retry; doubled for each further one, with jitter"
    )
    temperature: float | None = Field(0.0, ge=0, description="sampling temperature of the judge; none leaves it unsaid")
    seed: int | None = Field(123, ge=0, description="sampling seed of the judge; none leaves it unsaid")
    max_tokens: int = Field(512, ge=1, description="most tokens of a reply; one that needs more is unscored")
    num_ctx: int = Field(
        4096, ge=256, description="context of an `ollama/` or `gguf:` judge; a longer prompt is an error"
    )
    keep_alive: str = Field("10m", description="how long Ollama keeps the model in memory after a question")
    calibration_items: int = Field(
        30, ge=2, description="items that `--calibrate` probes the judge with, ten questions each"
    )


class ReportConfig(Section):
    """How base and tuned answers are compared."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence level of the intervals")
    num_resamples: int = Field(10_000, ge=100, description="resamples of the paired bootstrap, and draws of the test")
    gate: str = Field(
        "",
        description="conditions that the comparison has to meet, else the exit code is 3: `rouge_l>=0, forgetting<=0.05` "
        "(differences tuned - base; `.low`, `.high`, `.base` and `.tuned` name other figures)",
    )
    general: str = Field(
        "builtin",
        description="text on which forgetting is measured: `builtin` (sixty passages of general English), a text file, JSONL "
        "whose rows hold `text`, or `none`",
    )
    record_losses: Literal["seen", "all"] = Field(
        "seen",
        description="loss of each training record in records.jsonl: when training `seen` it, or `all`, with a pass over the "
        "training set before the first step and after the last",
    )


class Config(Section):
    """The whole configuration; `config.yaml` of a run folder is this, resolved."""

    data: DataConfig = Field(default_factory=DataConfig)
    template: TemplateConfig = Field(default_factory=TemplateConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    generate: GenerateConfig = Field(default_factory=GenerateConfig)
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @model_validator(mode="after")
    def _the_section_of_another_method_is_refused(self) -> Config:
        if self.train.method == "full" and self.lora != LoraConfig():
            raise ValueError("the section lora has no say under train.method: full; set train.method=lora, or drop it")
        return self


PEER_KEYS: Mapping[str, str] = {
    # transformers' generate, OpenAI and vLLM
    "max_tokens": "generate.max_new_tokens",
    "max_completion_tokens": "generate.max_new_tokens",
    "stop_strings": "generate.stop",
    "repeat_penalty": "generate.repetition_penalty",
    # axolotl
    "base_model": "model.name_or_path",
    "sequence_len": "data.max_length",
    "micro_batch_size": "train.batch_size",
    "num_epochs": "train.num_train_epochs",
    "lr_scheduler": "train.lr_scheduler_type",
    "train_on_inputs": "data.train_on",
    "val_set_size": "data.validation_share",
    "chat_template": "template.name",
    "saves_per_epoch": "train.save_steps",
    "early_stopping": "train.early_stopping_patience",
    "field_messages": "data.columns",
    "field_instruction": "data.columns",
    "field_input": "data.columns",
    "field_output": "data.columns",
    "message_property_mappings": "data.columns",
    "chat_template_jinja": "template.file",
    "excess_length_strategy": "data.on_long",
    "roles_to_train": "data.train_on",
    "test_datasets": "data.validation_file",
    "adapter": "train.method",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "lora_target_linear": "lora.target_modules",
    "peft_use_rslora": "lora.use_rslora",
    "peft_use_dora": "lora.use_dora",
    "gradient_checkpointing": "train.activation_checkpointing",
    "use_wandb": "train.report_to",
    # LLaMA-Factory
    "formatting": "data.shape",
    "cutoff_len": "data.max_length",
    "train_on_prompt": "data.train_on",
    "val_size": "data.validation_share",
    "eval_dataset": "data.validation_file",
    "mask_history": "data.train_turns",
    "finetuning_type": "train.method",
    "lora_rank": "lora.r",
    "lora_target": "lora.target_modules",
    "freeze_trainable_layers": "train.freeze_layers",
    "disable_gradient_checkpointing": "train.activation_checkpointing",
    # TRL and transformers
    "model_name_or_path": "model.name_or_path",
    "max_seq_length": "data.max_length",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "chat_template_path": "template.file",
    "completion_only_loss": "data.train_on",
    "assistant_only_loss": "data.train_on",
    "prompt_loss_weight": "data.prompt_weight",
    "load_best_model_at_end": "train.keep",
    "torch_dtype": "model.dtype",
    "warmup_ratio": "train.warmup_steps",
    "use_peft": "train.method",
    "load_in_4bit": "train.method",
    # LitGPT and torchtune
    "save_interval": "train.save_steps",
    "checkpoint_dir": "model.name_or_path",
    "column_map": "data.columns",
    "conversation_style": "data.shape",
    "global_batch_size": "train.batch_size",
    "lr_warmup_steps": "train.warmup_steps",
    "epochs": "train.num_train_epochs",
    "lr": "train.learning_rate",
    "max_norm": "train.max_grad_norm",
    "clip_grad_norm": "train.max_grad_norm",
    "mask_prompt": "data.train_on",
    "prompt_style": "template.name",
    "logger_name": "train.report_to",
    "enable_activation_checkpointing": "train.activation_checkpointing",
    "random_seed": "train.seed",
    # alpaca_eval, FastChat and others that judge
    "annotators_config": "judge.model",
    "judge_model": "judge.model",
    "judge_file": "judge.prompts",
    "max_concurrency": "judge.concurrency",
    "max_workers": "judge.concurrency",
}
"""Keys of other trainers, each with our name for it."""


def load_config(
    file: Path | None = None, overrides: Sequence[str] = (), *, begun_with: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of `file` (YAML; defaults where None) with `section.key=value` overrides on top.

    `begun_with` are the sections of an earlier run, in place of a file. Raises ConfigError naming the file or argument, the
    key and the mend.
    """
    values = _read_yaml(file) if file else copy.deepcopy(dict(begun_with or {}))
    where = dict.fromkeys(_dotted_keys(values), str(file or "the run's own configuration"))
    for override in overrides:
        dotted, value = _parse_override(override)
        section, key = dotted.split(".")
        values.setdefault(section, {})[key] = value
        where[dotted] = f"argument {override!r}"
    for dotted in where:
        _refuse_unknown(dotted, where[dotted])
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def dump_config(config: Config) -> str:
    """`config` as YAML, every key resolved."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def all_keys() -> list[str]:
    """Every dotted key there is, `train.batch_size` and so on, in order."""
    return [f"{name}.{key}" for name, section in Config().model_dump().items() for key in section]


def _read_yaml(file: Path) -> dict[str, dict[str, Any]]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected sections such as `train:`, found {type(values).__name__}")
    for name, section in values.items():
        if not isinstance(section, dict) or not section:
            _refuse_unknown(str(name), str(file))
            if section:
                raise ConfigError(f"{file}: `{name}` is a section and holds keys, found {section!r}")
    return {name: section or {} for name, section in values.items()}


def _dotted_keys(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{name}.{key}" for name, section in values.items() for key in section]


def _parse_override(override: str) -> tuple[str, Any]:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"argument {override!r}: expected section.key=value, such as train.learning_rate=1e-4")
    if dotted.count(".") != 1:
        _refuse_unknown(dotted, f"argument {override!r}")
        raise ConfigError(
            f"argument {override!r}: {dotted!r} is a section; name a key of it, such as train.batch_size=8"
        )
    try:
        return dotted, yaml.load(text, _Loader)
    except _YAML_ERRORS:
        return dotted, text


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number and a key stands once in its section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of `node`; ConstructorError where a key stands in it twice."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` stands twice in one section", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: a date or a number that cannot be


def _refuse_unknown(dotted: str, where: str) -> None:
    known = all_keys()
    if dotted in known or dotted in Config.model_fields:
        return
    key = dotted.rpartition(".")[2]
    if key in PEER_KEYS:
        raise ConfigError(f"{where}: unknown key `{dotted}`: here it is called `{PEER_KEYS[key]}`")
    same_name = [name for name in known if name.endswith(f".{key}")]
    guess = same_name or difflib.get_close_matches(dotted, known, n=1, cutoff=0.6)
    hint = f"did you mean `{guess[0]}`?" if guess else f"sections are {', '.join(Config.model_fields)}"
    raise ConfigError(f"{where}: unknown key `{dotted}`: {hint}")


def _explain(error: ValidationError, where: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        dotted = ".".join(str(part) for part in problem["loc"])
        place = where.get(dotted) or next((where[key] for key in where if key.startswith(dotted)), "configuration")
        found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
        lines.append(f"{place}: `{dotted}`: {problem['msg'].removeprefix('Value error, ')}{found}")
    return "\n".join(lines)


def reference() -> str:
    """Every key with its default and meaning, as the Markdown of docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Settings come from a YAML file (`--config`) and from `section.key=value` arguments, which win. This page is made from",
        "the code: `python -m tuneful.config > docs/configuration.md`.",
    ]
    for name, section in Config.model_fields.items():
        assert isinstance(section.annotation, type)
        lines += [
            "",
            f"## {name}",
            "",
            str(section.annotation.__doc__),
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for key, field in section.annotation.model_fields.items():
            default = _written(field.default)
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            among = f" (one of {', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
            lines.append(f"| `{name}.{key}` | `{default}` | {field.description}{among} |")
    return "\n".join(lines) + "\n"


def _written(default: Any) -> str:
    """A default as YAML writes it."""
    if default is None or isinstance(default, bool):
        return "none" if default is None else str(default).lower()
    return "[]" if default == () else str(default)


if __name__ == "__main__":
    print(reference(), end="")
