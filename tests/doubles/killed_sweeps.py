"""Sweeps killed at random: the table is that of an uninterrupted one, and so is every weight.

`tuneful sweep` runs as a process of its own, is killed with SIGKILL at moments spread over the time that a whole one takes, and
started again by the same command until it ends. Then sweep.json must be byte for byte that of a sweep that nobody killed, but for
its times; so must every run's metrics (but their seconds) and weights, and the comparison of the chosen one.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.doubles.processes import Process, tuneful

MOST_KILLS = 10
"""Of one sweep."""
_TIMES = re.compile(rb'"(?:started|finished)": "[^"]*"')
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


@dataclass(frozen=True, slots=True)
class Swept:
    """What is swept: the arguments after `tuneful sweep`, all but where it goes. By default a file of `rows`, in `folder`, and a
    tiny model."""

    folder: Path
    arguments: tuple[str, ...]

    @classmethod
    def tiny(cls, folder: Path, model: Path, settings: Sequence[str] = SETTINGS) -> Swept:
        """Four runs of a model that takes no time."""
        file = folder / "rows.json"
        file.write_text(json.dumps(rows()), encoding="utf-8")
        return cls(folder, (str(file), "--model", str(model), *settings))

    @property
    def path(self) -> Path:
        """Where every sweep is made, so that what is written of paths is the same."""
        return self.folder / "sweep"

    def start(self) -> Process:
        """Begin it, or go on."""
        return tuneful("sweep", *self.arguments, "--output", str(self.path), "--quiet")


def outcome(path: Path) -> dict[str, bytes]:
    """What must be equal, part by part."""
    found = {"sweep.json": _TIMES.sub(b"", (path / "sweep.json").read_bytes())}
    for run in sorted((path / "runs").iterdir()):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
        without = [{key: line[key] for key in line if key != "step_seconds"} for line in lines]
        found[f"{run.name} metrics"] = json.dumps(without).encode()
        for name in (
            "model/model.safetensors",
            "adapter/adapter_model.safetensors",
            "validation.jsonl",
            "comparison.json",
        ):
            if (run / name).exists():
                found[f"{run.name} {name}"] = hashlib.sha256((run / name).read_bytes()).digest()
    return found


@dataclass(slots=True)
class Tally:
    """What a campaign came to: seconds of the uninterrupted sweep, seconds after the start of a process at which each kill fell,
    sweeps that were killed, what they were compared by, and what differed."""

    seconds: float = 0.0
    kills: list[float] = field(default_factory=list)
    num_sweeps: int = 0
    compared: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def campaign(swept: Swept, num_kills: int, seed: int, say: Callable[[str], None] = lambda line: None) -> Tally:
    """Kill sweeps `num_kills` times in all, and compare what they end in with one that nobody killed."""
    dice, tally, began = random.Random(seed), Tally(), time.monotonic()
    process = swept.start()
    assert process.wait() == 0, process.error_so_far
    tally.seconds = time.monotonic() - began
    say(f"uninterrupted: {tally.seconds:.1f} s")
    wanted = outcome(swept.path)
    tally.compared = sorted(wanted)
    shutil.rmtree(swept.path)
    while len(tally.kills) < num_kills:
        left = min(MOST_KILLS, num_kills - len(tally.kills))
        moments = sorted(dice.random() * tally.seconds for _ in range(left))
        spans = [after - before for before, after in zip([0.0, *moments], moments, strict=False)]
        error = _killed(swept, spans, tally, say)
        tally.num_sweeps += 1
        if error:
            tally.different.append(error)
            break
        found = outcome(swept.path)
        tally.different += [part for part in wanted | found if found.get(part) != wanted.get(part)]
        shutil.rmtree(swept.path)
    return tally


def _killed(swept: Swept, spans: Sequence[float], tally: Tally, say: Callable[[str], None]) -> str | None:
    """One sweep, its processes killed after `spans` seconds each, the last one left to its end; what it says where it fails."""
    for span in spans:
        process, deadline = swept.start(), time.monotonic() + span
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        tally.kills.append(round(span, 3))
        say(f"killed {len(tally.kills)}, {span:.1f} s after its start")
    else:
        process = swept.start()
    code = process.wait()
    return f"exit code {code}: {process.error_so_far[-1000:]}" if code else None
