"""A million records: how long encoding takes, what a second run waits for, and how much memory training on them needs.

    .venv/bin/python benchmarks/store_scale.py                         # 1,000,000 records, about 15 minutes on 2 cores
    .venv/bin/python benchmarks/store_scale.py --records 20000

Writes a JSONL file of Alpaca-style records made of English words at random, then runs three processes and measures each from the
outside (peak resident memory of the process, wall time): the first encodes and divides, the second finds what the first
left, the third trains a random two-layer Llama for 20 steps. The tokenizer is the built-in model's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SPLITS = ("random", "grouped")


def main() -> None:
    """Run the phases and write results/store_scale-DATE.json."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--records", type=int, default=1_000_000)
    arguments.add_argument("--split", choices=SPLITS, default="random")
    arguments.add_argument("--output", type=Path, default=None)
    arguments.add_argument(
        "--folder", type=Path, default=None, help="where the files go, and stay; else they are removed"
    )
    arguments.add_argument("--phase", choices=("encode", "train"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.phase:
        print(json.dumps(encode(given) if given.phase == "encode" else train(given)))
        return
    folder = given.folder or Path(tempfile.mkdtemp(prefix="store-scale-"))
    try:
        measure(given, folder)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)


def measure(given: argparse.Namespace, folder: Path) -> None:
    """All phases in processes of their own, their figures printed and written."""
    file = folder / "records.jsonl"
    if not file.exists():
        write_records(file, given.records)
    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "num_records": given.records,
        "split": given.split,
        "file_bytes": file.stat().st_size,
    }
    for name, phase in (("first", "encode"), ("cached", "encode"), ("train", "train")):
        found[name] = in_a_process(phase, given, folder)
        print(name, json.dumps(found[name]), flush=True)
    found["store_bytes"] = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    output = given.output or RESULTS / f"store_scale-{found['date'][:10]}.json"
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(output)


def in_a_process(phase: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one phase, with the wall time of its process from start to end and the peak of its memory."""
    command = [sys.executable, __file__, "--phase", phase, "--records", str(given.records)]
    command += ["--split", given.split, "--folder", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    return {**figures, "process_seconds": round(time.perf_counter() - start, 2)}


def write_records(file: Path, num_records: int) -> None:
    """Records of some 60 tokens: no two prompts alike, answers of random words."""
    rng = random.Random(0)
    from tuneful.data.sources import STARTER_FILE

    words = sorted({word for word in STARTER_FILE.read_text(encoding="utf-8").split() if word.isalpha()})
    with file.open("w", encoding="utf-8") as lines:
        for number in range(num_records):
            row = {
                "instruction": f"Sum up note {number} about {' '.join(rng.choices(words, k=8))}.",
                "input": " ".join(rng.choices(words, k=rng.choice((0, 0, 12)))),
                "output": " ".join(rng.choices(words, k=rng.randint(3, 20))),
            }
            lines.write(json.dumps(row) + "\n")


def prepared(given: argparse.Namespace) -> tuple[Any, Any, Any, dict[str, float]]:
    """The data set, its encoder and configuration, and the seconds that its parts took."""
    from tuneful.config import load_config
    from tuneful.data.read import stream_data
    from tuneful.encoding.chat_template import load_template
    from tuneful.encoding.prepare import make_encoder, prepare_data
    from tuneful.encoding.tokens import TextEncoder
    from tuneful.model.builtin import BUILTIN
    from tuneful.model.load import load_tokenizer, resolve_model

    settings = [f"data.split={given.split}", "train.batch_size=8", "train.max_steps=20", "data.validation_share=0.001"]
    config = load_config(None, [*settings, "data.test_share=0.001"])
    tokenizer = load_tokenizer(resolve_model(BUILTIN))
    encoder = make_encoder(TextEncoder(tokenizer, load_template(config.template, tokenizer)), config.data)
    start = time.perf_counter()
    stream = stream_data(str(given.folder / "records.jsonl"), config.data)
    dataset = prepare_data(stream, encoder, config, given.folder / "cache")
    return dataset, encoder, config, {"prepare_seconds": round(time.perf_counter() - start, 2)}


def encode(given: argparse.Namespace) -> dict[str, Any]:
    """Read, encode and divide, or find that done."""
    dataset, _, _, seconds = prepared(given)
    return {
        **seconds,
        "train": len(dataset.train),
        "validation": len(dataset.validation),
        "test": len(dataset.test),
        "train_tokens": int(dataset.train.sizes.num_tokens.sum()),
        **peak(),
    }


def train(given: argparse.Namespace) -> dict[str, Any]:
    """Twenty steps of a random two-layer Llama."""
    dataset, encoder, config, seconds = prepared(given)
    before = peak()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuneful.runs.schema import Step
    from tuneful.train.layout import choose_layout
    from tuneful.train.loop import Training
    from tuneful.train.optimizer import AdamW

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=encoder.text.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    layout = choose_layout(model, dataset.train.examples, config.train, torch.float32)
    optimizer = AdamW(model, config.train, torch.float32)
    start = time.perf_counter()
    events = Training(model, optimizer, dataset.train.examples, dataset.validation.examples, config.train, layout).run()
    steps = [event for event in events if isinstance(event, Step)]
    return {
        **seconds,
        "before_torch": before,
        "steps": len(steps),
        "first_loss": steps[0].loss,
        "last_loss": steps[-1].loss,
        "mean_step_seconds": round(sum(step.step_seconds for step in steps) / len(steps), 4),
        "training_seconds": round(time.perf_counter() - start, 2),
        **peak(),
    }


def peak() -> dict[str, float]:
    """The most memory that this process has held, mapped files included, and the processor time it has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "peak_rss_mb": round(used.ru_maxrss / 1024, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
    }


if __name__ == "__main__":
    main()
