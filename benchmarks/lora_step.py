"""What a step of an adapter costs beside a step of all weights: both by turns in one process, so that they share its weather.

    python benchmarks/lora_step.py [--records 8] [--steps 30] [--rank 16] [--output FILE.json]

Each step is a forward and backward of the same records of the starter set over the built-in model in bfloat16, and AdamW's
update. Printed are the median and the quartiles of the ratios of steps that followed one another, and both medians in seconds.
On a machine that others use, `OMP_NUM_THREADS=1` with `--processor-time` leaves out the time in which they ran.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from tuneful.config import Config
from tuneful.data.read import read_data
from tuneful.encoding.prepare import make_encoder
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.model.builtin import BUILTIN
from tuneful.model.load import load_model
from tuneful.runs.environment import describe_machine
from tuneful.runs.method import begin_method
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW
from tuneful.types import Example

CPU = torch.device("cpu")


def make_step(method: str, rank: int, num_records: int, clock: Callable[[], float]) -> Callable[[], float]:
    """A function that takes one step of training by `method` and gives its seconds by `clock`."""
    config = Config.model_validate({"train": {"method": method}, "lora": {"r": rank}})
    pretrained = load_model(BUILTIN)
    model = pretrained.model.train()
    begin_method(model, config, CPU)
    optimizer = AdamW(model, config.train, torch.bfloat16)
    encoder = make_encoder(TextEncoder(pretrained.tokenizer, find_template(config.template.name)), config.data)
    found = (encoder.example(record.conversation) for record in read_data("starter").records)
    examples = [example for example in found if isinstance(example, Example)][:num_records]

    def step() -> float:
        start = clock()
        loss = micro_batch_loss(model, examples, "trie")
        (loss.total / 100).backward()
        optimizer.step(1e-5)
        return clock() - start

    return step


def measure(asked: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the steps of both methods, taken by turns; the first ones, which fill caches, are left out."""
    clock = time.process_time if asked.processor_time else time.perf_counter
    steps = {method: make_step(method, asked.rank, asked.records, clock) for method in ("full", "lora")}
    seconds: dict[str, list[float]] = {method: [] for method in steps}
    for _ in range(asked.warm_up + asked.steps):
        for method, step in steps.items():
            seconds[method].append(step())
    return {method: taken[asked.warm_up :] for method, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="An adapter's step beside a full one.")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--output", type=Path)
    asked, load = parser.parse_args(), os.getloadavg()[0]
    seconds = measure(asked)
    ratios = [lora / full for lora, full in zip(seconds["lora"], seconds["full"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = {method: statistics.median(taken) for method, taken in seconds.items()}
    print(f"lora / full: {middle:.3f} [{low:.3f}, {high:.3f}]   seconds {medians}   load {load:.1f}")
    if asked.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "program": "benchmarks/lora_step.py",
            "records": asked.records,
            "rank": asked.rank,
            "clock": "processor" if asked.processor_time else "wall",
            "load_before": load,
            "machine": describe_machine(),
            "ratio": {"median": middle, "quartiles": [low, high]},
            "seconds": seconds,
        }
        asked.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
