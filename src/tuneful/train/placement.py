"""How ranks hold a model: whole or in shards, in how many copies; and where gradients wait. By its size, before a weight is read.

Stands between the headers of a model's files and `distributed.py`, whose group then knows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import psutil
import torch
from transformers import PreTrainedModel

from tuneful.errors import ConfigError
from tuneful.train.distributed import BUCKET_BYTES, ProcessGroup

Strategy = Literal["auto", "ddp", "fsdp"]
_BYTES_A_PARAMETER, _GRADIENT_BYTES = 18, 4
"""Of full finetuning: float32 master and two moments, a bfloat16 copy and its gradient, and the gradient in float32; the last."""
_USED_SHARE = 0.7
"""Of the free memory of a rank, what model and optimizer may take; activations take a third of what is free."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model that is to be held: how many parameters are trained, the bytes of those that are not, and on which device."""

    num_trained: int
    frozen_bytes: int
    device: torch.device

    @property
    def num_bytes(self) -> int:
        """What model and optimizer take where they are not sharded."""
        return self.num_trained * _BYTES_A_PARAMETER + self.frozen_bytes

    @property
    def room(self) -> float:
        """Bytes of this rank's part of the free memory that model and optimizer may take."""
        if self.device.type == "cuda":
            return _USED_SHARE * float(torch.cuda.mem_get_info(self.device)[0])
        return _USED_SHARE * psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def choose_group(group: ProcessGroup, model: HeldModel, wanted: Strategy, shard_ranks: int | None) -> ProcessGroup:
    """`group`, knowing how `model` is held, the same on every rank: what the main rank chooses, and what all have room for."""
    sharded = choose_strategy(model, "fsdp" if shard_ranks is not None else wanted) == "fsdp"
    sharded, replicas = group.broadcast([sharded, choose_replicas(model, group.size, shard_ranks) if sharded else 1])
    keeps_gradients = sharded and all(group.gather([choose_keeps_gradients(model, group.size // replicas)]))
    return replace(group, sharded=sharded, replicas=replicas, keeps_gradients=keeps_gradients)


def choose_strategy(model: HeldModel, wanted: Strategy) -> Literal["ddp", "fsdp"]:
    """`ddp` where model, optimizer and two buckets of gradients fit with room to spare; or as `wanted`."""
    if wanted != "auto":
        return wanted
    return "ddp" if model.num_bytes + 2 * BUCKET_BYTES < model.room else "fsdp"


def choose_replicas(model: HeldModel, size: int, shard_ranks: int | None) -> int:
    """How many copies of a sharded model `size` ranks hold: one for every `shard_ranks` of them.

    Where that is not given, one a node, if its ranks have room for it, else one. ConfigError where ranks cannot be divided so.
    """
    if shard_ranks is not None:
        if size % shard_ranks:
            raise ConfigError(f"`train.shard_ranks`: {size} ranks cannot be divided into sets of {shard_ranks}")
        return size // shard_ranks
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fits = on_node > 1 and size % on_node == 0 and model.num_bytes / on_node < model.room
    return size // on_node if fits else 1


def choose_keeps_gradients(model: HeldModel, shard_ranks: int) -> bool:
    """Whether a rank has room for whole gradients in float32 beside its shard, one of `shard_ranks`: then they are summed once a
    step, else in every micro-batch."""
    return model.num_bytes / shard_ranks + _GRADIENT_BYTES * model.num_trained < model.room


def target_cost(model: PreTrainedModel) -> float:
    """What a target costs in the output head, in tokens through the layers of a Llama-like model: by their multiplications."""
    config = model.config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    inner = max(inner) if isinstance(inner, (list, tuple)) else inner
    return float(config.vocab_size / (config.num_hidden_layers * (4 * hidden + 3 * inner)))
