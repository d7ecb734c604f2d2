"""How fast this machine multiplies matrices and moves memory, measured between the systems' turns.

Matrix products: square ones of 2,048 and the model's own shapes at 1,024 rows, in bfloat16 and float32. Memory: the
triad `a = b + s * c` (12 bytes an element) and a fused AdamW update (28 bytes), over arrays far larger than the
caches. Each figure is the best of several blocks of at least 50 milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from train_peers.roofline import Shape
from train_peers.worker import open_job

NUM_BLOCKS = 4
BLOCK_SECONDS = 0.05
NUM_ELEMENTS = 32 * 2**20


def best_seconds(call: Callable[[], object]) -> float:
    """Seconds of one call, from the best block."""
    call()
    best = float("inf")
    for _ in range(NUM_BLOCKS):
        num_calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < BLOCK_SECONDS:
            call()
            num_calls += 1
        best = min(best, elapsed / num_calls)
    return best


def product_rates(shape: Shape) -> dict[str, float]:
    """Floating-point operations a second by "dtype rows x inner x columns"."""
    sizes = {
        (2048, 2048, 2048),
        (1024, shape.d_model, shape.d_attention),
        (1024, shape.d_model, shape.d_mlp),
        (1024, shape.d_mlp, shape.d_model),
        (1024, shape.d_model, shape.num_tokens),
    }
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        for rows, inner, columns in sorted(sizes):
            left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
            seconds = best_seconds(partial(F.linear, left, right))
            rates[f"{str(dtype).removeprefix('torch.')} {rows}x{inner}x{columns}"] = (
                2 * rows * inner * columns / seconds
            )
    return rates


def bandwidths() -> dict[str, float]:
    """Bytes a second of the triad and of AdamW."""
    first, second, out = (torch.ones(NUM_ELEMENTS) for _ in range(3))
    triad = best_seconds(lambda: torch.add(first, second, alpha=3.0, out=out))
    parameter = torch.nn.Parameter(first)
    parameter.grad = second
    adamw = best_seconds(torch.optim.AdamW([parameter], fused=True).step)
    return {"triad": 12 * NUM_ELEMENTS / triad, "fused AdamW": 28 * NUM_ELEMENTS / adamw}


def main() -> None:
    job, channel = open_job()
    shape = Shape.read(job.model)
    channel.ready()
    while True:
        channel.next_run()
        with torch.no_grad():
            channel.send(flops_per_second=product_rates(shape), bytes_per_second=bandwidths())


if __name__ == "__main__":
    main()
