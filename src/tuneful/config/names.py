"""Other names for our settings: those of other trainers, and those that a setting of ours had before."""

from __future__ import annotations

from collections.abc import Mapping

COLUMN_FIELDS = frozenset(
    (
        *("instruction", "prompt", "question", "input", "context", "system", "history"),
        *("output", "response", "completion", "answer", "messages", "conversations", "tools"),
        *("text", "chosen", "rejected", "label", "weight"),
    )
)
"""Fields of records, which are named in `data.columns` and are no keys of their own."""

PEERS: Mapping[str, Mapping[str, str]] = {
    "transformers' generate, OpenAI and vLLM": {
        "max_tokens": "generate.max_new_tokens",
        "max_completion_tokens": "generate.max_new_tokens",
        "stop_strings": "generate.stop",
        "repeat_penalty": "generate.repetition_penalty",
    },
    "axolotl": {
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
        "datasets": "data.train_file",
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
    },
    "LLaMA-Factory": {
        "formatting": "data.format",
        "dataset": "data.train_file",
        "cutoff_len": "data.max_length",
        "train_on_prompt": "data.train_on",
        "val_size": "data.validation_share",
        "eval_dataset": "data.validation_file",
        "mask_history": "data.train_turns",
        "finetuning_type": "train.method",
        "stage": "train.objective",
        "mix_strategy": "data.stopping_strategy",
        "lora_rank": "lora.r",
        "lora_target": "lora.target_modules",
        "freeze_trainable_layers": "train.freeze_layers",
        "disable_gradient_checkpointing": "train.activation_checkpointing",
    },
    "TRL and transformers": {
        "model_name_or_path": "model.name_or_path",
        "dataset_name": "data.train_file",
        "data_files": "data.train_file",
        "probabilities": "data.interleave_probs",
        "dataset_text_field": "data.columns",
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
    },
    "Preferences: axolotl, LLaMA-Factory, earlier TRL": {
        "rl": "train.objective",
        "rl_beta": "preference.beta",
        "dpo_beta": "preference.beta",
        "pref_beta": "preference.beta",
        "pref_loss": "preference.loss_type",
        "pref_ftx": "preference.loss_weights",
        "rpo_alpha": "preference.loss_weights",
        "orpo_alpha": "preference.beta",
        "dpo_label_smoothing": "preference.label_smoothing",
        "kto_desirable_weight": "preference.desirable_weight",
        "kto_undesirable_weight": "preference.undesirable_weight",
    },
    "LitGPT and torchtune": {
        "save_interval": "train.save_steps",
        "checkpoint_dir": "model.name_or_path",
        "column_map": "data.columns",
        "conversation_style": "data.format",
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
    },
    "alpaca_eval, FastChat and others that judge": {
        "annotators_config": "judge.model",
        "judge_model": "judge.model",
        "judge_file": "judge.prompts",
        "max_concurrency": "judge.concurrency",
        "max_workers": "judge.concurrency",
    },
}
"""Keys of other trainers, each with our name for it, by the trainer that is known for it."""

PEER_KEYS: Mapping[str, str] = {theirs: ours for keys in PEERS.values() for theirs, ours in keys.items()}
"""Keys of other trainers, each with our name for it."""

RENAMED_KEYS: Mapping[str, str] = {
    "data.shape": "data.format",
}
"""Keys that were ours once, each with the key that holds now."""

RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {
    "template.name": {"own": "tokenizer"},
}
"""Values that a key of ours took once, each with the value that holds now."""

RENAMED_METRICS: Mapping[str, str] = {
    "drift": "kl_to_base",
}
"""Metrics that had another name, as a condition of `report.gate` may hold it."""
