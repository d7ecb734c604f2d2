"""What each method costs and gives: `tuneful run` on the built-in model, once a method, everything else the same.

    python benchmarks/methods.py [full lora checkpointing frozen replay] [--steps 80] [--output FILE.json]

    full           all weights                                lora      an adapter beside every linear layer, r 16
    checkpointing  all weights, activations computed again    frozen    all weights above the lowest 20 of 30 layers
    narrow         all weights, on the number tasks of the starter records alone
    replay         the same with starter records of other kinds mixed in, one for each two

Each is a process of its own, whose largest resident memory is taken. Printed are the median time of a step, that memory,
the validation loss before and after, and ROUGE-L of the test answers before and after. `narrow` and `replay` are
also scored on test records of the other kinds, which neither has seen: what was forgotten.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tools, which are not installed
from tools.starter import make, numbers

from tuneful.config import Config
from tuneful.data.read import read_data
from tuneful.encoding.prepare import make_encoder
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.model.builtin import BUILTIN
from tuneful.model.load import load_model
from tuneful.runs.environment import describe_machine
from tuneful.runs.schema import Layout
from tuneful.train.loop import mean_loss
from tuneful.types import Example

ROOT = Path(__file__).parents[1]
METHODS: dict[str, list[str]] = {
    "full": [],
    "lora": ["train.method=lora"],
    "checkpointing": ["train.activation_checkpointing=true"],
    "frozen": ["train.freeze_layers=20"],
    "narrow": [],
    "replay": ["data.replay_ratio=0.5"],
}
COMMON = ["data.test_share=0.03", "data.validation_share=0.03", "generate.max_new_tokens=32", "report.general=none"]
NUM_OTHER = 100


@dataclass(frozen=True)
class Outcome:
    """One run in figures; `general_loss` (nats a target token, before and after) only where other kinds were scored."""

    method: str
    seconds_a_step: float
    peak_memory_bytes: int
    trainable_parameters: int
    validation_loss: tuple[float, float]
    rouge_l: tuple[float, float]
    seconds: float
    replay_loss: tuple[float, float] | None = None
    general_loss: tuple[float, float] | None = None


def run(method: str, steps: int, folder: Path) -> Outcome:
    """One run of the product in a process of its own."""
    data, settings = (
        "starter",
        [*METHODS[method], *COMMON, f"train.max_steps={steps}", f"train.eval_steps={steps}"],
    )
    if method in ("narrow", "replay"):
        task, other, unseen = _narrow_files(folder)
        data = str(task)
        settings += [f"data.replay={other}"] if method == "replay" else []
    output = folder / method
    command = [sys.executable, "-m", "tuneful.cli", "run", data, "--quiet", "--output", str(output), *settings]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row["validation_loss"] for row in rows if "validation_loss" in row]
    trained = [row for row in rows if "loss" in row]
    replayed = [row["replay_loss"] for row in trained if row.get("replay_loss") is not None]
    metrics = {row["name"]: row for row in json.loads((output / "comparison.json").read_text())["metrics"]}
    general = None
    if method in ("narrow", "replay"):
        examples = _examples(unseen)
        general = (_loss(BUILTIN, examples), _loss(str(output / "model"), examples))
    return Outcome(
        method=method,
        seconds_a_step=statistics.median(row["step_seconds"] for row in trained),
        peak_memory_bytes=usage.ru_maxrss * 1024,
        trainable_parameters=json.loads((output / "environment.json").read_text())["model"]["num_trainable"],
        validation_loss=(evaluated[0], min(evaluated)),
        rouge_l=(metrics["rouge_l"]["base"], metrics["rouge_l"]["tuned"]),
        seconds=seconds,
        replay_loss=(statistics.fmean(replayed[:5]), statistics.fmean(replayed[-5:])) if replayed else None,
        general_loss=general,
    )


def _narrow_files(folder: Path) -> tuple[Path, Path, Path]:
    """The number tasks; records of other kinds to replay; and others of those that are not trained on."""
    kinds = {record.kind for record in numbers.records(random.Random(0))}
    records = make.records()
    other = [record for record in records if record.kind not in kinds]
    sides = {
        "numbers": [record for record in records if record.kind in kinds],
        "others": other[NUM_OTHER:],
        "unseen": other[:NUM_OTHER],
    }
    for name, side in sides.items():
        shown = [{"instruction": one.instruction, "input": one.input, "output": one.output} for one in side]
        (folder / f"{name}.json").write_text(json.dumps(shown), encoding="utf-8")
    return folder / "numbers.json", folder / "others.json", folder / "unseen.json"


def _examples(file: Path) -> list[Example]:
    config, tokenizer = Config(), load_model(BUILTIN).tokenizer
    encoder = make_encoder(TextEncoder(tokenizer, find_template(config.template.name)), config.data)
    found = [encoder.example(record.conversation) for record in read_data(str(file)).records]
    return [example for example in found if isinstance(example, Example)]


def _loss(name: str, examples: list[Example]) -> float:
    loss = mean_loss(load_model(name).model, examples, Layout("trie", 4096))
    assert loss is not None
    return loss


def table(outcomes: list[Outcome]) -> str:
    """The outcomes, a line each."""
    lines = [f"{'':<14}{'s/step':>8}{'peak GB':>9}{'trained M':>11}{'val. loss':>16}{'ROUGE-L':>16}{'other kinds':>16}"]
    for one in outcomes:
        general = "" if one.general_loss is None else _way(one.general_loss)
        lines.append(
            f"{one.method:<14}{one.seconds_a_step:>8.2f}{one.peak_memory_bytes / 1e9:>9.2f}"
            f"{one.trainable_parameters / 1e6:>11.2f}{_way(one.validation_loss):>16}{_way(one.rouge_l):>16}{general:>16}"
        )
    return "\n".join(lines)


def _way(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3f} > {pair[1]:.3f}"


def main() -> int:
    """Run each method, print the table, write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if unknown := set(asked.methods) - set(METHODS):
        parser.error(f"no such method: {', '.join(sorted(unknown))}")
    outcomes, load = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for method in asked.methods or METHODS:
            outcomes.append(run(method, asked.steps, Path(folder)))
            print(table(outcomes[-1:]), flush=True)
    if asked.output:
        document: dict[str, Any] = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "program": "benchmarks/methods.py",
            "steps": asked.steps,
            "settings": COMMON,
            "load_before": load,
            "machine": describe_machine(),
            "runs": [asdict(outcome) for outcome in outcomes],
        }
        asked.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
