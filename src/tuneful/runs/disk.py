"""Room on the disk: what a run will write, and whether there is room for it before the first step is taken."""

from __future__ import annotations

from transformers import PreTrainedModel

from tuneful.batch.order import num_steps
from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.encoding.prepare import Dataset
from tuneful.errors import ConfigError
from tuneful.files import free_bytes
from tuneful.model.nf4_layers import num_weights
from tuneful.runs.folder import RunDir
from tuneful.train.checkpoint import checkpoint_bytes
from tuneful.train.optimizer import AdamW


def disk_bytes(model: PreTrainedModel, optimizer: AdamW, settings: Config, dataset: Dataset) -> tuple[int, int]:
    """What the run folder will take: (model, one checkpoint), in bytes, about."""
    weights = optimizer.weights()
    best = weights if settings.train.keep == "best" and len(dataset.validation) else {}
    is_adapter, bytes_a_weight = settings.train.method != "full", 2 if settings.model.save_dtype == "bfloat16" else 4
    adapter_bytes = 4 * sum(weight.numel() for weight in weights.values()) if is_adapter else 0
    is_merged = not is_adapter or settings.lora.merge
    merged_bytes = bytes_a_weight * num_weights(model) if is_merged else 0
    model_bytes = adapter_bytes + merged_bytes
    return model_bytes, checkpoint_bytes({"weights": weights, "optimizer": optimizer.moments(), "best": best})


def make_sure_of_room(
    folder: RunDir,
    settings: Config,
    model: PreTrainedModel,
    optimizer: AdamW,
    dataset: Dataset,
    epoch_length: int,
    terminal: Terminal,
) -> None:
    """ConfigError where the disk cannot hold the model and the checkpoints that `save_steps` asks for."""
    config = settings.train
    model_bytes, checkpoint = disk_bytes(model, optimizer, settings, dataset)
    total = num_steps(epoch_length, config.batch_size, config.num_train_epochs, config.max_steps)
    asked_for = min(total // config.save_steps, config.save_total_limit + 1) if config.save_steps else 0
    there = len(list(folder.checkpoints.glob("step-*")))
    needed, free = model_bytes + max(0, asked_for - there) * checkpoint, free_bytes(folder.path)
    said = (
        f"{free / 1e9:,.1f} GB of disk are free; the model takes {model_bytes / 1e9:,.1f} GB and a checkpoint up to "
        f"{checkpoint / 1e9:,.1f} GB"
    )
    if needed > free:
        raise ConfigError(
            f"{folder.path}: {said}, of which train.save_steps={config.save_steps} writes up to {asked_for}: "
            f"{needed / 1e9:,.1f} GB are needed. Make room, or give another --output"
            if asked_for
            else f"{folder.path}: {said}. Make room, or give another --output"
        )
    if needed + (config.save_total_limit + 1) * checkpoint > free and config.save_minutes:
        terminal.say(
            f"{said}, of which a long run keeps {config.save_total_limit} and writes one more: that may be too little",
            style="yellow",
        )
