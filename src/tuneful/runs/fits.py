"""Whether a run fits the memory at all: arithmetic over the headers of the model's files, before a weight is read.

What is counted is certain: weights, gradients, the moments of AdamW, copies that are kept, and the activations of the smallest
micro-batch. So what is refused here could not have ended well; what passes may still need more, which `--dry-run` measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tuneful.config import Config
from tuneful.errors import ConfigError
from tuneful.files import cache_root
from tuneful.model.checks import ignore
from tuneful.model.load import base_path
from tuneful.model.memory import available_bytes
from tuneful.model.names import is_adapter
from tuneful.model.nf4 import BYTES as NF4_BYTES
from tuneful.model.precision import choose_dtype
from tuneful.model.size import ModelSize, size_of
from tuneful.train.distributed import ProcessGroup
from tuneful.train.memory import MIN_TOKENS, bytes_a_token
from tuneful.train.placement import HeldModel, choose_group

_FLOAT32 = 4
BYTES_WHILE_MERGED = 4 * _FLOAT32
"""What merging a weight takes, of one matrix at a time: the base, what is added and the sum in float32; then all in float64."""


def weights_of(path: Path, notify: Callable[[str], None]) -> Path:
    """The folder or file that holds the weights of `path`: of an adapter, its base."""
    while is_adapter(path):
        path = base_path(path, notify)
    return path


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a phase of a run needs at least, by what they are for."""

    phase: str
    parts: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """All of them."""
        return sum(self.parts.values())


def check_fits(path: Path, name: str, config: Config, device: torch.device) -> None:
    """ConfigError where the model in `path`, called `name`, cannot be trained as `config` says in the memory there is."""
    size = size_of(path)
    if size is None or (config.train.method == "qlora" and device.type == "cuda"):
        return
    dtype = dtype_of(config, device)
    need, available = needed(size, config, dtype, device), available_bytes(device)
    if need.num_bytes <= available:
        return
    parts = ", ".join(f"{part} {_gb(num_bytes)}" for part, num_bytes in need.parts.items() if num_bytes)
    out = what_fits(size, config, device, available)
    raise ConfigError(
        f"{name}: {need.phase} needs at least {_gb(need.num_bytes)} GB of memory, and {_gb(available)} GB are available. "
        f"Of {size.num_parameters / 1e6:,.1f} M parameters, in GB: {parts}. {out}"
    )


def placed(group: ProcessGroup, config: Config, path: Path, held: torch.dtype, device: torch.device) -> ProcessGroup:
    """`group`, knowing how the model in `path` is to be held, by the headers of its files, before a weight is read.

    `held` is the number format of what is not trained beside an adapter.
    """
    train = config.train
    if group.size == 1:
        if train.shard_ranks is not None:
            raise ConfigError(
                f"`train.shard_ranks`: {train.shard_ranks}, and this is one process alone; start it through torchrun, or drop it"
            )
        return group
    if train.method == "qlora" and (train.strategy == "fsdp" or train.shard_ranks is not None):
        raise ConfigError(
            "`train.strategy`: fsdp, but a base in 4 bits is trained beside under ddp; use train.method=lora"
        )
    size = size_of(weights_of(path, ignore))
    if size is None or train.method == "qlora":  # in the first case whoever loads it says what is wrong
        return choose_group(group, HeldModel(0, 0, device), train.strategy, train.shard_ranks)
    if train.method == "full":
        trained = size.num_trainable(train.freeze_layers)
        model = HeldModel(trained, _FLOAT32 * (size.num_parameters - trained), device)
    else:
        trained = size.num_adapter_parameters(config.lora.r, train.freeze_layers)
        model = HeldModel(trained, size.num_parameters * held.itemsize, device)
    return choose_group(group, model, train.strategy, train.shard_ranks)


def what_fits(size: ModelSize, config: Config, device: torch.device, available: int) -> str:
    """A sentence: the settings with which `config`, which needs more, does with `available` bytes of `device`."""
    ways = [
        f"{setting} (at least {_gb(found.num_bytes)} GB)"
        for setting, other in _other_ways(config)
        if (found := needed(size, other, dtype_of(other, device), device)).num_bytes <= available
    ]
    return f"What fits: {', '.join(ways)}, or a smaller model" if ways else "A smaller model is needed, or more memory"


def dtype_of(config: Config, device: torch.device) -> torch.dtype:
    """What a run of `config` computes in."""
    return choose_dtype(config.model.dtype, device, cache_root(), adapts=config.train.method != "full")


def needed(size: ModelSize, config: Config, dtype: torch.dtype, device: torch.device) -> Need:
    """What the phase of a run that needs most needs of `device` at least, beyond what the process holds already."""
    return max(phases(size, config, dtype, device), key=lambda need: need.num_bytes)


def phases(size: ModelSize, config: Config, dtype: torch.dtype, device: torch.device) -> Iterator[Need]:
    """What each phase of a run that may need most needs of `device`: training, loading and saving."""
    train, all_weights = config.train, size.num_parameters
    is_full, is_low = train.method == "full", dtype.itemsize == 2
    trained = (
        size.num_trainable(train.freeze_layers)
        if is_full
        else size.num_adapter_parameters(config.lora.r, train.freeze_layers)
    )
    frozen = all_weights - trained if is_full else all_weights
    # Where the best weights lie, and where models are loaded and compared; MPS shares the memory of its host.
    on_host = device.type != "cuda"
    has_validation = bool(config.data.validation_share or config.data.validation_file)
    keeps_best = on_host and train.keep == "best" and has_validation
    in_4_bits = size.num_in_matrices if train.method == "qlora" else 0
    frozen_bytes = (frozen - in_4_bits) * (dtype.itemsize + (_FLOAT32 if is_full and is_low else 0))
    frozen_bytes += int(in_4_bits * NF4_BYTES)
    yield Need(
        "finetuning all weights" if is_full else f"{train.method} finetuning",
        {
            "weights": trained * _FLOAT32 + frozen_bytes,
            "their copies for products in 16 bits": trained * dtype.itemsize if is_low else 0,
            "gradients": trained * dtype.itemsize,
            "AdamW's moments": 2 * trained * _FLOAT32,
            "the best weights so far": trained * _FLOAT32 if keeps_best else 0,
            "activations": _activations(size, train.activation_checkpointing, dtype),
        },
    )
    if not on_host:
        return
    if is_full:
        yield Need("loading the model", {"weights in float32": all_weights * _FLOAT32})
        return
    held, widest = frozen_bytes, _FLOAT32 * max(map(math.prod, size.shapes.values()))
    yield Need("loading the model", {"weights": held, "the widest as it is stored": widest if is_low else 0})
    merged = BYTES_WHILE_MERGED * size.widest_matrix if config.lora.merge else 0
    yield Need("saving the model", {"weights": held, "the widest matrix while it is merged and compared": merged})


def _activations(size: ModelSize, computed_again: bool, dtype: torch.dtype) -> int:
    """Of the smallest micro-batch, where least is kept, without its logits: few of its tokens may have a target."""
    return MIN_TOKENS * bytes_a_token(
        *(size.hidden_size, size.inner_size, size.num_layers, 0, dtype), computed_again=computed_again, compiled=True
    )


def _other_ways(config: Config) -> Iterator[tuple[str, Config]]:
    """Settings that need less memory, each with the configuration that it makes of `config`."""
    train = config.train
    if train.keep == "best":
        yield "train.keep=last", with_settings(config, train={"keep": "last"})
    if config.model.dtype == "float32":
        yield "model.dtype=bfloat16", with_settings(config, model={"dtype": "bfloat16"})
    if train.method == "full":
        yield "train.method=lora", with_settings(config, train={"method": "lora"})
        yield (
            "train.method=lora model.dtype=bfloat16",
            with_settings(config, train={"method": "lora"}, model={"dtype": "bfloat16"}),
        )
    if train.method != "qlora":
        yield "train.method=qlora", with_settings(config, train={"method": "qlora"})


def with_settings(config: Config, **sections: Mapping[str, object]) -> Config:
    """`config` with keys of some sections changed."""
    changed = {name: getattr(config, name).model_copy(update=dict(keys)) for name, keys in sections.items()}
    return config.model_copy(update=changed)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f}"
