"""A step of many GPUs on paper: bytes that each sends, seconds that computing and sending take. Nothing of it was measured.

    python benchmarks/many_devices.py          the table of docs/distributed.md

What is assumed stands in the constants. Computing counts multiplications alone. Sending is not overlapped with it: a share of the
computing that is below 100 % can be hidden behind the backward, which is two thirds of it. Rings (Patarasuk & Yuan 2009): of B
bytes over R ranks each sends B (R - 1) / R to gather or to scatter, twice that to sum everywhere, in R - 1 hops each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

NODES, TARGET_SHARE = 8_192, 0.25
"""Trie nodes that each GPU computes in a step, and the share of them that predict something."""
FLOPS = 445e12
"""Of a GPU a second: 45 % of the dense bfloat16 rate of an H100 or H200."""
MEMORY_BYTES, USED_SHARE = 80e9, 0.7
"""Of a GPU, and what model and optimizer may take of it (`train/distributed.py`)."""
GPUS_A_NODE, LINK, NETWORK = 8, 350e9, 40e9
"""Bytes a second: of a GPU within its node (NVLink), of a GPU to another node."""
HOP = 3e-6
"""Seconds that a hop of a ring takes, however little it carries."""
STATE, GRADIENT, COPY = 18, 4, 2
"""Bytes a parameter: all that full finetuning holds, the gradient in float32, the weights in bfloat16."""
NUM_GPUS = (8, 64, 512)


@dataclass(frozen=True)
class Shape:
    """A Llama 3 by its published sizes; `recomputes` where layers are computed again in the backward."""

    name: str
    hidden: int
    inner: int
    layers: int
    key_value: int
    vocabulary: int = 128_256
    tied: bool = False
    recomputes: bool = False

    @property
    def layer_parameters(self) -> int:
        """Of all layers, norms aside."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.key_value
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def parameters(self) -> int:
        """Of the whole model, norms aside."""
        return self.layer_parameters + (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def seconds(self) -> float:
        """A GPU's part of a step: two operations a weight forward, four backward."""
        layers = (8 if self.recomputes else 6) * self.layer_parameters * NODES
        head = 6 * self.vocabulary * self.hidden * NODES * TARGET_SHARE
        return (layers + head) / FLOPS


SHAPES = (
    Shape("1B", 2048, 8192, 16, 512, tied=True),
    Shape("8B", 4096, 14_336, 32, 1024),
    Shape("70B", 8192, 28_672, 80, 1024, recomputes=True),
)


@dataclass(frozen=True)
class Exchange:
    """What a GPU holds, what it sends in a step of one micro-batch, and how long that takes."""

    held_bytes: float
    sent_bytes: float
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether model and optimizer fit a GPU."""
        return self.held_bytes <= USED_SHARE * MEMORY_BYTES


def part(ranks: int) -> float:
    """Of B bytes, what each of `ranks` sends along a ring to gather or to scatter them."""
    return (ranks - 1) / ranks


def ddp(shape: Shape, gpus: int) -> Exchange:
    """Gradients summed everywhere, once: within nodes, then each GPU its part of them between nodes, and back."""
    size, on_node, nodes = GRADIENT * shape.parameters, min(gpus, GPUS_A_NODE), max(1, gpus // GPUS_A_NODE)
    within, between = 2 * part(on_node) * size, 2 * part(nodes) * size / on_node
    hops = 2 * (on_node - 1) + 2 * (nodes - 1)
    buckets = size / (64 << 20)
    seconds = within / LINK + between / NETWORK + hops * buckets * HOP
    return Exchange(STATE * shape.parameters, within + between, seconds)


def fsdp(shape: Shape, gpus: int, shard_ranks: int | None = None, micro_batches: int = 1) -> Exchange:
    """In each micro-batch layers are gathered twice and gradients scattered, among the `shard_ranks` (all) that share a copy; in
    the last the copies are summed."""
    ranks = shard_ranks or gpus
    copies = gpus // ranks
    shared = micro_batches * part(ranks) * (2 * COPY + GRADIENT) * shape.parameters
    summed = 2 * part(copies) * GRADIENT * shape.parameters / ranks
    rate = LINK if ranks <= GPUS_A_NODE else min(LINK, GPUS_A_NODE * NETWORK)
    hops = (shape.layers + 1) * (3 * micro_batches * (ranks - 1) + 2 * (copies - 1))
    return Exchange(STATE * shape.parameters / ranks, shared + summed, shared / rate + summed / NETWORK + hops * HOP)


def shard_ranks(shape: Shape, gpus: int) -> int:
    """The fewest whole nodes, or all, whose GPUs have room for a copy."""
    sizes = [size for size in (8, 16, 32, 64, 128, 256, 512) if size <= gpus]
    return next((size for size in sizes if fsdp(shape, gpus, size).fits), gpus)


def table() -> Iterator[str]:
    """The table, line by line."""
    yield "| model | GPUs | computing | `ddp` | `fsdp`, all ranks share | `fsdp`, copies |"
    yield "|---|---:|---:|---:|---:|---:|"
    for shape in SHAPES:
        for gpus in NUM_GPUS:
            ranks = shard_ranks(shape, gpus)
            copies = _cell(shape, fsdp(shape, gpus, ranks))
            cells = [
                shape.name,
                f"{gpus}",
                f"{shape.seconds:.2f} s",
                _cell(shape, ddp(shape, gpus)),
                _cell(shape, fsdp(shape, gpus)),
                f"{gpus // ranks} of {ranks}: {copies}" if ranks < gpus else "-",
            ]
            yield f"| {' | '.join(cells)} |"


def _cell(shape: Shape, exchange: Exchange) -> str:
    if not exchange.fits:
        return f"does not fit ({exchange.held_bytes / 1e9:,.0f} GB)"
    share = exchange.seconds / shape.seconds
    return f"{exchange.sent_bytes / 1e9:.1f} GB, {1000 * exchange.seconds:,.0f} ms ({share:.0%})"


def main() -> None:
    """Print the table."""
    print("\n".join(table()))


if __name__ == "__main__":
    main()
