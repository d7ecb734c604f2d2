"""Sweeps killed at random: the table is that of an uninterrupted one, and so is every weight.

`tuneful sweep` runs as a process of its own on a tiny random model, is killed with SIGKILL after a share of the time that a
whole one takes, and started again by the same command until it ends. Then sweep.json (but its times), every run's metrics (but
their seconds) and weights, and the comparison of the chosen one must be those of a sweep that nobody killed.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from tests.doubles.processes import Process, tuneful

MOST_KILLS = 5
"""Of one sweep."""
TIMES = ("started", "finished")
SETTINGS = (
    "train.learning_rate=1e-4,1e-3,3e-3,1e-2",
    "train.max_steps=12",
    "train.eval_steps=3",
    "train.save_steps=2",
    "train.batch_size=4",
    "model.dtype=float32",
    "data.test_share=0.15",
    "data.validation_share=0.2",
    "generate.max_new_tokens=3",
    "report.num_resamples=100",
    "report.general=none",
)


def rows() -> list[dict[str, str]]:
    """Records that a tiny model learns a little of."""
    words = ["red", "green", "blue", "pink", "grey", "gold", "teal", "rust"]
    return [{"instruction": f"Say {word} {num}.", "output": f"{word} {num}"} for word in words for num in range(4)]


def start(folder: Path, model: Path, name: str) -> Process:
    """A sweep into `folder`/`name`."""
    file = folder / "rows.json"
    if not file.exists():
        file.write_text(json.dumps(rows()), encoding="utf-8")
    return tuneful("sweep", str(file), "--model", str(model), "--output", str(folder / name), *SETTINGS, "--quiet")


def outcome(path: Path) -> dict[str, Any]:
    """What must be equal, part by part."""
    document = json.loads((path / "sweep.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"sweep.json": {key: value for key, value in document.items() if key not in TIMES}}
    for run in sorted((path / "runs").iterdir()):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
        found[f"{run.name} metrics"] = [{key: line[key] for key in line if key != "step_seconds"} for line in lines]
        for name in ("model/model.safetensors", "validation.jsonl", "comparison.json"):
            if (run / name).exists():
                found[f"{run.name} {name}"] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    return found


def campaign(folder: Path, model: Path, num_kills: int, seed: int) -> tuple[int, list[str]]:
    """(kills that fell, what differed after them) of sweeps that are killed `num_kills` times in all."""
    dice, kills, different = random.Random(seed), 0, list[str]()
    began = time.monotonic()
    process = start(folder, model, "straight")
    assert process.wait() == 0, process.error_so_far
    longest, wanted = time.monotonic() - began, outcome(folder / "straight")
    while kills < num_kills:
        left = min(MOST_KILLS, num_kills - kills)
        while True:
            process = start(folder, model, "killed")
            if left:
                deadline = time.monotonic() + dice.random() * longest
                while process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.001)
                if process.poll() is None:
                    process.kill()
                    process.wait()
                    kills, left = kills + 1, left - 1
                    continue
            code = process.wait()
            if code:
                different.append(f"exit code {code}: {process.error_so_far[-1000:]}")
            break
        found = outcome(folder / "killed")
        different += [part for part in wanted | found if found.get(part) != wanted.get(part)]
        shutil.rmtree(folder / "killed")
    return kills, different
