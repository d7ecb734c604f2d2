"""How fast adapters are trained: Tuneful, its peers, and beside them Tuneful's full step. `make bench-lora`.

    python benchmarks/lora.py [--work starter8,starter32] [--systems tuneful,trl] [--model PATH] [--rank 16] [--quick]

LoRA beside all linear layers of a base in bfloat16, measured as `train.py` measures full finetuning: whole optimizer steps on the
same batches of token ids from the same adapter, systems by turns, held against plain transformers and peft in float32 first.
`tuneful-full` is Tuneful's step of all weights on the same batches: its ratio is the inverse of what an adapter's step costs.

`--model qwen2-1.5b` makes a model of that shape with random weights (3.1 GB beside the environments), `--model PATH` takes any
folder in Hugging Face's layout or a GGUF file; with 1.5 billion weights `--repeats 4 --steps 2 --systems tuneful,trl` is enough.
"""

from __future__ import annotations

import argparse
import sys

from tables import update
from train_peers import driver, works
from train_peers.systems import LORA_SYSTEMS

DEFAULT_SYSTEMS = "tuneful,tuneful-full,trl,hf-trainer,unsloth"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", default="starter8,starter32", help=f"what to train on, of {','.join(works.WORKS)}")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter's matrices; even")
    driver.add_options(parser, LORA_SYSTEMS, DEFAULT_SYSTEMS)
    rows = driver.read_rows()
    options = driver.check_options(parser, "lora", LORA_SYSTEMS, rows)
    code = driver.run("lora", options, rows)
    update(options.output)
    return code


if __name__ == "__main__":
    sys.exit(main())
