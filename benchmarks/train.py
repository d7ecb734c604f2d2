"""How fast instruction finetuning is: Tuneful, its peers, and the roofline that the hardware sets. `make bench-train`.

    python benchmarks/train.py [--work starter8,mixed8] [--systems tuneful,trl] [--before CHECKOUT] [--ladder] [--quick]

**What is measured.** Whole optimizer steps of full finetuning on the CPU (collating, forward, loss, backward,
clipping, AdamW) from the same starting weights on the same batches of token ids with the same hyperparameters. Each
system is a process of its own; one works while the others sleep, in the order ABBA, for several rounds. The first
steps are warm-up and never timed: eight, or three where systems do not fit into memory together and start afresh each round.

**The gate** (`train_peers/gate.py`). A system is timed if its first three losses are the reference's; the benchmark ends with
exit code 1 if none of a system's settings passes. Of the settings of a system that pass, the fastest in a short pilot go on.

**What is not measured.** Tokenizing, loading, saving, evaluation; convergence; GPUs. Throughput counts the tokens
of the records as given, so padding earns nothing and sharing costs nothing. The roofline is explained in
`train_peers/roofline.py`; it is the same for every system, whatever its precision.

Peers are installed into `.bench/venv-*`, or into the folder that `TUNEFUL_BENCH_ENVIRONMENTS` names, on first use; one that
cannot be had is reported, and the rest goes on. `lora.py` does the same for adapters.
"""

from __future__ import annotations

import argparse
import sys

from tables import update
from train_peers import driver, works
from train_peers.systems import FULL_SYSTEMS

DEFAULT_SYSTEMS = "tuneful,trl,hf-trainer,litgpt,chapter"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    names = ",".join(works.WORKS)
    parser.add_argument("--work", default=names, help=f"what to train on, of {names}")
    parser.add_argument("--ladder", action="store_true", help="also run Tuneful with each technique switched off alone")
    driver.add_options(parser, FULL_SYSTEMS, DEFAULT_SYSTEMS)
    rows = driver.read_rows()
    options = driver.check_options(parser, "train", FULL_SYSTEMS, rows)
    code = driver.run("train", options, rows)
    update(options.output)
    return code


if __name__ == "__main__":
    sys.exit(main())
