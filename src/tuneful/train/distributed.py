"""Several processes train as one: which records are a rank's own, and the sums over all ranks.

    torchrun --nproc-per-node 4 -m tuneful run my.json

Global batch, order, loss and schedule are those of one process. Every rank knows the records of the whole step, because
their order is a pure function; it computes its shard of them and divides by the target weight of the whole step, which
takes no message. What is exchanged is a sum: of gradients, in float32, and of a few numbers. Two ways to hold the model:

    ddp     every rank holds all of it; gradients are summed once a step               (Li et al. 2020)
    fsdp    every rank holds a shard of every tensor, with its part of the optimizer; layers are gathered when they are
            computed (`torch.distributed.fsdp.fully_shard`; Rajbhandari et al. 2020). With replicas (HSDP) the ranks of a node
            share one copy, and the nodes sum their gradients once a step

Whatever a rank raises is told to the others (`failures.py`). A single process is a group of one rank, where every sum is the
number itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from tuneful.batch.shares import share_examples
from tuneful.errors import ConfigError, PeerError
from tuneful.model.structure import decoder_layers
from tuneful.train.failures import FailureWatch
from tuneful.types import Example

Strategy = Literal["auto", "ddp", "fsdp"]
_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others: hours, in which one rank may work alone. One that fails says so; one that was killed is
noticed at once by its closed connection under gloo, and under NCCL by torchrun alone, which ends the others."""
BUCKET_BYTES = 64 << 20
"""Of gradients that are sent together: enough for a network's full rate, little beside a model."""
_BYTES_A_PARAMETER, _GRADIENT_BYTES = 18, 4
"""Of full finetuning: float32 master and two moments, a bfloat16 copy and its gradient, and the gradient in float32; the last."""
_USED_SHARE = 0.7
"""Of the free memory of a rank, what model and optimizer may take; activations take a third of what is free."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The ranks of one job, seen from one of them.

    `sharded` is true where each holds only a shard of the model: `replicas` copies of it are divided over as many sets of ranks
    that follow one another. Whole gradients wait for the last micro-batch of a step where it `keeps_gradients`. A target of the
    loss costs as much as `target_cost` tokens do in the layers.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    sharded: bool = False
    replicas: int = 1
    keeps_gradients: bool = False
    target_cost: float = 0.0

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    @property
    def strategy(self) -> str:
        """How the model is held, in words."""
        copies = f", {self.replicas} copies of {self.size // self.replicas} shards" if self.replicas > 1 else ""
        return f"fsdp{copies}" if self.sharded else "ddp"

    def shares(self, examples: Sequence[Example], layout: str) -> list[list[Example]]:
        """What each rank computes of `examples` under a layout: neighbours in token order, shares that take about as long.

        Every example is in exactly one share; one may be empty.
        """
        if self.size == 1:
            return [list(examples)]
        return share_examples(examples, self.size, layout, self.target_cost)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all ranks, in float64; the same on every rank."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=_messages_device())
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_of_shards(self, value: float) -> float:
        """The sum of each rank's `value`, a figure of its shard: of shards that several ranks hold alike, once."""
        return self.sum([value if self.rank < self.size // self.replicas else 0.0])[0]

    def begin_sum(self, tensor: torch.Tensor) -> Callable[[], object]:
        """`tensor` becomes, in place, the sum of those of all ranks, the same bits on each, once what is returned was called.

        Every rank begins the same sums in the same order.
        """
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        wait: Callable[[], object] = work.wait
        return wait

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
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with _peers_may_be_gone(rank):
        store, _, _ = next(rendezvous("env://", timeout=_TIMEOUT))
        # torchrun keeps one store for all its restarts: without a name of its own each would find the addresses of the dead.
        store = dist.PrefixStore(f"tuneful-{restarts}", store)  # type: ignore[attr-defined]
        watch = _failure_watch(f"tuneful-failures-{restarts}", rank, size)  # one may fail before another has met all
    try:
        with _peers_may_be_gone(rank, watch.heard):
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
            yield ProcessGroup(rank, size, local_rank)
    except Exception as error:
        watch.tell(str(error) or type(error).__name__, wait=not isinstance(error, PeerError))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        watch.stop()


def _failure_watch(name: str, rank: int, size: int) -> FailureWatch:
    """Failures are told in the store that the ranks met in, by another connection: this one may wait for hours."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    own = dist.TCPStore(host, port, is_master=False, timeout=timedelta(minutes=5))  # type: ignore[attr-defined]
    store = dist.PrefixStore(name, own)  # type: ignore[attr-defined]
    holds_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return FailureWatch(store, rank, size, holds_store=holds_store, leave_collectives=_leave_collectives)


def _leave_collectives() -> None:
    """What waits within a collective of NCCL gets an error; gloo's ends when the failed rank's connection is closed."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()


@dataclass(frozen=True, slots=True)
class ModelSize:
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


def choose_group(group: ProcessGroup, model: ModelSize, wanted: Strategy, shard_ranks: int | None) -> ProcessGroup:
    """`group`, knowing how `model` is held, the same on every rank: what the main rank chooses, and what all have room for."""
    sharded = choose_strategy(model, "fsdp" if shard_ranks is not None else wanted) == "fsdp"
    sharded, replicas = group.broadcast([sharded, choose_replicas(model, group.size, shard_ranks) if sharded else 1])
    keeps_gradients = sharded and all(group.gather([choose_keeps_gradients(model, group.size // replicas)]))
    return replace(group, sharded=sharded, replicas=replicas, keeps_gradients=keeps_gradients)


def choose_strategy(model: ModelSize, wanted: Strategy) -> Literal["ddp", "fsdp"]:
    """`ddp` where model, optimizer and two buckets of gradients fit with room to spare; or as `wanted`."""
    if wanted != "auto":
        return wanted
    return "ddp" if model.num_bytes + 2 * BUCKET_BYTES < model.room else "fsdp"


def choose_replicas(model: ModelSize, size: int, shard_ranks: int | None) -> int:
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


def choose_keeps_gradients(model: ModelSize, shard_ranks: int) -> bool:
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


def shard(model: PreTrainedModel, dtype: torch.dtype, replicas: int = 1) -> None:
    """Leave each rank a float32 shard of every tensor of `model`, `replicas` times; layers are gathered and computed in `dtype`.

    Gradients come back as shards too, in float32 and divided by the number of ranks: multiply the loss by that number to get
    their sum.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.promote_types(dtype, torch.float32))
    mesh = device_mesh(model.device, replicas)
    for layer in decoder_layers(model) or ():
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def device_mesh(device: torch.device, replicas: int) -> DeviceMesh:
    """All ranks, in `replicas` rows of those that share one copy of the model; one row is a plain list."""
    size = dist.get_world_size()
    if replicas == 1:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    mesh = init_device_mesh(device.type, (replicas, size // replicas), mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():
        dist.distributed_c10d._set_pg_timeout(_TIMEOUT, group)
    return mesh


def sum_in_backward(model: torch.nn.Module, group: ProcessGroup, *, last: bool) -> None:
    """Say before a backward of a sharded `model` what it sums: in the `last` one of a step all; in another nothing where the
    group `keeps_gradients`, else what the ranks that share a copy have."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last or not group.keeps_gradients)
    if not group.keeps_gradients:
        model.set_requires_all_reduce(last)


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
def _peers_may_be_gone(rank: int, heard: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """A broken connection, or none, becomes one message: what the rank that failed has said (`heard`), or that one is gone."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        gone = f"rank {rank}: another rank of the job is gone, its own message says why ({said[:120]})"
        raise PeerError(heard() or gone) from None


def _messages_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
