"""Sweeps killed at random end in the table of one that nobody killed; and what a sweep costs beside single runs.

    python benchmarks/kill_sweep.py                               a tiny random model, 10 kills: minutes
    python benchmarks/kill_sweep.py --model builtin --steps 60    adapters of the built-in model, 8 runs of 60 steps
    python benchmarks/kill_sweep.py --time [--model builtin]      the sweep against `tuneful run` of each of its 8 points

What is killed and compared stands in `tests/doubles/killed_sweeps.py`. With `--time` nothing is killed: the sweep is made once,
then each of its points as a single `tuneful run` of the same settings, one process after the other, and the ratio of the times
is printed (asked: at most 0.8); the chosen run must have the weights and the comparison of the single one. Settings at the end
come on top. Exit code 1 where anything differs, or the ratio is larger.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.killed_sweeps import SETTINGS, Swept, campaign, rows
from tests.doubles.tiny import make_tiny_model

from tuneful.config import load_config
from tuneful.model.builtin import BUILTIN
from tuneful.runs.environment import describe_machine
from tuneful.sweep.grid import as_text, make_grid, read_settings

MOST = 0.8
GRID = ("train.learning_rate=2e-5,5e-5,1e-4,2e-4", "train.weight_decay=0,0.1")
REAL = (
    "train.learning_rate=5e-5,1e-4,2e-4,5e-4",
    "lora.r=8,16",
    "train.method=lora",
    "train.save_steps=10",
    "train.batch_size=8",
    "data.test_share=0.03",
    "data.validation_share=0.05",
    "generate.max_new_tokens=48",
    "report.general=none",
)


def swept(asked: argparse.Namespace, folder: Path) -> Swept:
    """The sweep that was asked for, in `folder`."""
    if asked.model == "builtin":
        settings = (*REAL, f"train.max_steps={asked.steps}", *asked.settings)
        return Swept(folder, ("starter", "--model", BUILTIN, *settings))
    others = [one for one in SETTINGS if not one.startswith(("train.learning_rate", "train.max_steps"))]
    texts = [text for row in rows() for text in row.values()]
    model = Path(asked.model) if asked.model != "tiny" else make_tiny_model(folder / "model", texts)
    return Swept.tiny(folder, model, (*GRID, *others, f"train.max_steps={asked.steps}", *asked.settings))


def timed(sweep: Swept, folder: Path) -> dict[str, Any]:
    """Seconds of the sweep and of each point as a single run, and which files of the chosen run differ from the single one's."""
    seconds = {"sweep": _seconds("sweep", *sweep.arguments, "--output", str(sweep.path), "--quiet")}
    print(f"sweep: {seconds['sweep']:.1f} s", flush=True)
    document = json.loads((sweep.path / "sweep.json").read_text(encoding="utf-8"))
    data, _, model, *settings = sweep.arguments
    grid, others = read_settings(settings)
    points = make_grid(grid, lambda own: load_config(None, [*others, *own]), sample=None, seed=None).points
    different = []
    for run, point in zip(document["runs"], points, strict=True):
        own = [f"{key}={as_text(value)}" for key, value in point.settings.items()]
        single = folder / "single" / run["name"]
        seconds[run["name"]] = _seconds(
            "run", data, "--model", model, *others, *own, "--output", str(single), "--quiet"
        )
        print(f"{run['name']}: {seconds[run['name']]:.1f} s", flush=True)
        if run["name"] == document["chosen"]:
            in_sweep = sweep.path / "runs" / run["name"]
            different += [name for name in _COMPARED if _content(single / name) != _content(in_sweep / name)]
    return {"seconds": seconds, "different": different}


_COMPARED = ("model/model.safetensors", "adapter/adapter_model.safetensors", "comparison.json")


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _seconds(*arguments: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tuneful", *arguments], check=True)
    return round(time.perf_counter() - begun, 1)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, builtin, or the folder of a model")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--time", action="store_true", help="measure instead of killing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        sweep, found = swept(asked, Path(name)), dict[str, Any]()
        if asked.time:
            found = timed(sweep, Path(name))
            single = sum(value for key, value in found["seconds"].items() if key != "sweep")
            found["ratio"] = ratio = round(found["seconds"]["sweep"] / single, 3)
            print(f"a sweep takes {ratio} of the time of its runs one by one ({single:.0f} s); asked: at most {MOST}")
            failed = bool(found["different"]) or ratio > MOST
        else:
            tally = campaign(sweep, asked.kills, asked.seed, lambda said: print(said, flush=True))
            found = {
                "uninterrupted_seconds": round(tally.seconds, 1),
                "kills": tally.kills,
                "sweeps": tally.num_sweeps,
                "compared": tally.compared,
                "different": tally.different,
            }
            print(f"{len(tally.kills)} kills of {tally.num_sweeps} sweeps; compared: {', '.join(tally.compared)}")
            failed = bool(tally.different)
    print(f"DIFFERENT: {found['different']}" if found["different"] else "nothing differs")
    if asked.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "program": "benchmarks/kill_sweep.py",
            "model": asked.model,
            "arguments": [one for one in sweep.arguments if name not in one],
            "steps": asked.steps,
            "seed": asked.seed,
            **found,
            "load_before": load,
            "machine": describe_machine(),
        }
        asked.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
