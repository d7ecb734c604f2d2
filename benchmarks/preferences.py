"""How fast preferences are learned: Tuneful beside TRL, DPO of all weights. `make bench-preferences`.

    python benchmarks/preferences.py [--work pairs8,pairs32] [--systems tuneful,trl] [--model PATH] [--quick]

The starter's prompts, 1,100 of them, each with its answer and a worse one of about its length that mostly opens alike; 8 and 32
pairs a step. The reference's log-probabilities are given to both systems with the pairs: neither runs or holds a reference model.
Measured as `train.py` measures full finetuning: whole optimizer steps on the same token ids, systems by turns, held against
plain transformers in float32 first.
"""

from __future__ import annotations

import argparse
import sys

from tables import update
from train_peers import driver, works
from train_peers.systems import PREFERENCE_SYSTEMS

WORKS = [name for name, work in works.WORKS.items() if work.content == "pairs"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", default=",".join(WORKS), help=f"what to train on, of {','.join(WORKS)}")
    driver.add_options(parser, PREFERENCE_SYSTEMS, "tuneful,trl")
    rows = driver.read_rows()
    options = driver.check_options(parser, "preferences", PREFERENCE_SYSTEMS, rows)
    code = driver.run("preferences", options, rows)
    update(options.output)
    return code


if __name__ == "__main__":
    sys.exit(main())
