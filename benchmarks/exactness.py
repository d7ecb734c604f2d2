"""Is a whole run of the trie engine the padded run? Both train the built-in model in float32; their losses are compared.

    python benchmarks/exactness.py [--steps 50] [--batch-size 8] [--output FILE.json]

The oracle is the classical loop of `tests/doubles/padded_loop.py`, on the records of the starter set. The loss of each step
must differ by at most 1e-4 nats: exit code 1 beyond that. About three seconds a step on two cores, twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.padded_loop import TOLERANCE, compare

from tuneful.config import Config, TrainConfig
from tuneful.data.read import STARTER, read_data
from tuneful.encoding.prepare import make_encoder, prepare_data
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.model.builtin import BUILTIN
from tuneful.model.load import load_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of each run")
    parser.add_argument("--batch-size", type=int, default=8, help="records in a step")
    parser.add_argument("--model", default=BUILTIN, help="a folder, a Hub id, or the built-in model")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    arguments = parser.parse_args()

    config = Config(train=TrainConfig(max_steps=arguments.steps, batch_size=arguments.batch_size, eval_steps=10**6))
    tokenizer = load_model(arguments.model).tokenizer
    encoder = make_encoder(TextEncoder(tokenizer, find_template(config.template.name)), config.data)
    examples = prepare_data(read_data(STARTER), encoder, config).train.examples
    result = compare(
        lambda: load_model(arguments.model).model.float(), examples, config.train, lambda line: print(line, flush=True)
    )
    exact = result.largest_difference <= TOLERANCE
    print(
        f"largest difference of a step's loss: {result.largest_difference:.3g} over {arguments.steps} steps "
        f"({'within' if exact else 'beyond'} {TOLERANCE:g})"
    )
    if arguments.output:
        figures = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": arguments.model,
            "batch_size": arguments.batch_size,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tolerance": TOLERANCE,
            **asdict(result),
        }
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
