"""TRL's `SFTTrainer` on a CPU, at its best settings: bfloat16, no activation checkpointing, fused AdamW.

Words of a variant: `padded` or `padding-free` (records one after another in one row, attention kept apart by their
positions); `compiled` (torch.compile, by the trainer); `bf16-adapter` (the adapter in bfloat16 like its base, and
no autocast); `float32` (base and products in that, the fastest on processors without products in bfloat16); `huge-pages` (an
environment variable). `defaults` leaves precision and activation checkpointing as TRL ships them. The driver takes the fastest.
With an adapter the base is bfloat16 else. Records arrive tokenized and labelled; nothing is packed across batches.
"""

from __future__ import annotations

from trl import SFTConfig, SFTTrainer

from train_peers.stepping import rows, train_by_trl
from train_peers.worker import open_job


def main() -> None:
    job, channel = open_job()
    own = {"packing": False, "padding_free": "padding-free" in job.words}
    train_by_trl(job, channel, SFTTrainer, SFTConfig, rows(job.batches), **own)


if __name__ == "__main__":
    main()
