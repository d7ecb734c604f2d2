"""Several processes train as one: which records are a rank's own, and the sums over all ranks.

    torchrun --nproc-per-node 4 -m tuneful run my.json

Global batch, order, loss and schedule are those of one process. Every rank knows the records of the whole step, because
their order is a pure function; it computes its shard of them and divides by the target weight of the whole step, which
takes no message. What is exchanged is a sum: of gradients, in float32, and of a few numbers. Two ways to hold the model:

    ddp     every rank holds all of it; gradients are summed once a step               (Li et al. 2020)
    fsdp    every rank holds a shard of every tensor, with its part of the optimizer; layers are gathered when they are
            computed (`torch.distributed.fsdp.fully_shard`; Rajbhandari et al. 2020)

A single process is a group of one rank, where every sum is the number itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from tuneful.batch.trie import token_order
from tuneful.errors import ConfigError, TunefulError
from tuneful.model.structure import decoder_layers
from tuneful.types import Example, sides_of

Strategy = Literal["auto", "ddp", "fsdp"]
_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others. A rank that died is noticed at once, by its closed connection; this is for the
hours in which one rank works alone."""
_BYTES_A_PARAMETER = 18
"""Of full finetuning: float32 master and two moments, a bfloat16 copy and its gradient, and the gradient in float32."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The ranks of one job, seen from one of them. `sharded` is true where each holds only a shard of the model."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def shard(self, examples: Sequence[Example], rank: int | None = None) -> list[Example]:
        """The examples that `rank` (this one, if not said) computes: neighbours in token order, about as many tokens each.

        Every example is in exactly one shard; a shard may be empty where there are more ranks than examples.
        """
        if self.size == 1:
            return list(examples)
        ordered = sorted(examples, key=token_order)
        lengths = np.array([sum(map(len, sides_of(example))) for example in ordered], dtype=np.float64)
        middles = np.cumsum(lengths) - lengths / 2
        owners = np.floor(middles * self.size / max(lengths.sum(), 1)).astype(int)
        wanted = self.rank if rank is None else rank
        return [example for example, owner in zip(ordered, owners, strict=True) if owner == wanted]

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all ranks, in float64; the same on every rank."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=_messages_device())
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_gradients(self, gradients: Iterable[torch.Tensor]) -> None:
        """Each tensor becomes, in place, the sum of its namesakes on all ranks; the same bits on every rank."""
        if self.size == 1:
            return
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()

    def gather(self, rows: Sequence[Any]) -> list[Any]:
        """What all ranks bring, rank by rank; `rows` are plain values, which travel as JSON."""
        if self.size == 1:
            return list(rows)
        own = torch.tensor(list(json.dumps(list(rows)).encode()), dtype=torch.uint8, device=_messages_device())
        sizes = [int(size) for size in self._collected(torch.tensor([len(own)], device=own.device))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=own.device)
        padded[: len(own)] = own
        parts = self._collected(padded)
        return [
            row
            for part, size in zip(parts, sizes, strict=True)
            for row in json.loads(bytes(part[:size].cpu().numpy().tobytes()))
        ]

    def broadcast(self, value: Any) -> Any:
        """The main rank's `value`, a plain one; what the others bring does not matter."""
        return self.gather([value] if self.is_main else [])[0]

    def own_device(self, device: torch.device) -> torch.device:
        """The device of this rank: with several ranks on a node, each has a GPU of its own."""
        return torch.device("cuda", self.local_rank) if self.size > 1 and device.type == "cuda" else device

    def wait(self) -> None:
        """Returns when every rank has come here."""
        self.sum([0.0])

    def _collected(self, own: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return parts


SINGLE_PROCESS = ProcessGroup()
"""The group of a process that trains alone."""


@contextmanager
def joined_group(device: torch.device) -> Iterator[ProcessGroup]:
    """The group that `torchrun` has set up around this process, or that of one rank; left at the end of the block.

    Raises ConfigError where the environment names a rank but not the whole of the group.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but {error} is not as torchrun sets it; start through torchrun"
        ) from None
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    with _peers_may_be_gone(rank):
        store, _, _ = next(rendezvous("env://", timeout=_TIMEOUT))
        # torchrun keeps one store for all its restarts: without a name of its own each would find the addresses of the dead.
        store = dist.PrefixStore(f"tuneful-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        with _peers_may_be_gone(rank):
            yield ProcessGroup(rank, size, local_rank)
    finally:
        dist.destroy_process_group()


def choose_strategy(model: PreTrainedModel, wanted: Strategy) -> Literal["ddp", "fsdp"]:
    """`ddp` where model and optimizer fit into this rank's part of the free memory with room to spare; or as `wanted`."""
    if wanted != "auto":
        return wanted
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return "ddp" if trained * _BYTES_A_PARAMETER + frozen * 4 < 0.7 * free else "fsdp"


def shard(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Leave each rank a float32 shard of every tensor of `model`, computed in `dtype` where layers are gathered.

    Gradients come back as shards too, in float32 and divided by the number of ranks: multiply the loss by that number to get
    their sum.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.promote_types(dtype, torch.float32))
    for layer in decoder_layers(model) or ():
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether `shard` was applied to `model`. Its parameters cannot tell: while layers are gathered, they are full tensors."""
    return isinstance(model, FSDPModule)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of `tensor` that lies on this rank: all of it, where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of `tensor`, gathered where it is sharded; every rank has to call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a full `tensor` that this rank holds of `like`, a parameter of its shape; all of it if not sharded."""
    if not isinstance(like, DTensor):
        return tensor
    sharded = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return sharded.to_local()


def sharded_like(like: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """This rank's `part` of a tensor that is sharded as the parameter `like` is; `part` itself if that is not sharded."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


def load_full_state_dict(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Give each parameter of `model` the tensor of its name in `weights`, or this rank's shard of it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local(parameter).copy_(local_shard(weights[name], parameter))


def on_main_first(group: ProcessGroup, make: Callable[[], Any]) -> Any:
    """`make()` on the main rank, then on the others: a download or a cache is filled once and then found."""
    made = make() if group.is_main else None
    group.wait()
    return made if group.is_main else make()


@contextmanager
def _peers_may_be_gone(rank: int) -> Iterator[None]:
    """A broken connection, or none, becomes one message: another rank ended, and its own message says why."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise TunefulError(
            f"rank {rank}: another rank of the job is gone, its own message says why ({said[:120]})"
        ) from None


def _messages_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
