"""Tuneful's own engine as a system of the benchmark, with a switch for each technique (the ablation ladder)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from train_peers.worker import Batch, Optimization, open_job, serve

SWITCHES = {
    "sharing": "each distinct prefix computed once",
    "target_rows": "output head on the rows that predict a target only",
    "last_layer_trim": "queries and MLP of the last layer on those rows only",
    "bfloat16": "products in bfloat16 from a shadow of the float32 weights",
    "fused_optimizer": "clipping and AdamW in one pass over the parameters",
}


def make_stepper(
    model_folder: Path, dtype: str, switches: dict[str, bool], optimization: Optimization
) -> Callable[[Batch], float]:
    """A function that runs one optimizer step on a batch and returns the loss before the update.

    `dtype` is that of the matrix products, "bfloat16" or "float32"; `switches` names every technique of SWITCHES.
    """
    raise SystemExit("engine not wired")


def main() -> None:
    job, channel = open_job()
    dtype = job.variant if job.switches["bfloat16"] else "float32"
    run_step = make_stepper(job.model, dtype, job.switches, job.optimization)
    serve(job, channel, run_step, dtype=dtype)


if __name__ == "__main__":
    main()
