"""Whole runs of the command line, killed again and again, must end in the same bits as one that nothing happened to.

Each run of a tiny random model (answers before, training, answers after) is cut off up to five times and begun again with
the same command until it ends by itself. Then its weights (sha256 of model.safetensors), every line of metrics.jsonl but
its seconds, its answers and its comparison must equal those of a run without a kill. With SIGTERM each stop must end in 10
seconds with exit code 143 (or, before anything began, by the signal itself) and leave no process.

Moments are drawn by chance: half of them anywhere in the time that a run takes, a quarter while a file or folder is being
written aside, and a quarter right after a line of metrics. Where a kill fell is told from what lies in the folder. Each
attempt is a process of its own, forked from one that has imported everything, because importing torch takes longer than the
run; so `campaign` wants a process without threads. About one and a half seconds a kill on one core.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tests.doubles.tiny import make_tiny_model

import tuneful.runs.job  # once, for all the processes that are forked
from tuneful import cli

assert tuneful
TWO_RANKS = {"2 ranks", "2 sharded"}
"""Modes of two processes. Either of them is killed; the other notices, or is killed too where it was not connected yet."""
NOTICED_SECONDS = 5.0
MOST_KILLS_A_RUN = 5
LONGEST_STOP_SECONDS = 10.0
COMMON = [
    "train.batch_size=5",
    "train.max_steps=24",
    "train.eval_steps=6",
    "train.save_steps=3",
    "train.learning_rate=3e-3",
    "data.test_share=0.15",
    "generate.max_new_tokens=4",
    "report.num_resamples=100",
    "report.general=none",
]
MODES = {
    "full": ["model.dtype=float32"],
    "bfloat16": ["model.dtype=bfloat16"],
    "accumulated": ["model.dtype=bfloat16", "train.micro_batch_tokens=40"],
    "dropout": ["model.dtype=float32", "model.dropout=0.1"],
    "last weights": ["model.dtype=float32", "train.keep=last", "train.batch_size=7"],
    "LoRA": ["model.dtype=float32", "train.method=lora"],
    "dpo": ["model.dtype=float32", "train.objective=dpo"],
    "dpo with LoRA": ["model.dtype=float32", "train.objective=dpo", "train.method=lora"],
    "kto": ["model.dtype=float32", "train.objective=kto"],
    "text": ["model.dtype=float32", "train.objective=text", "data.max_length=32", "data.chunk_overlap=8"],
    "2 ranks": ["model.dtype=float32", "train.strategy=ddp"],
    "2 sharded": ["model.dtype=float32", "train.strategy=fsdp"],
}
"""Thirty-odd training records in steps of five or seven: every run crosses several edges of an epoch."""
DATA = {"train.objective=dpo": "pairs.json", "train.objective=kto": "pairs.json", "train.objective=text": "text.json"}
"""What is trained on, where it is not data.json."""


@dataclass
class Tally:
    """What came of one mode."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    slowest_stop: float = 0.0


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and how runs are cut off."""

    folder: Path
    number: signal.Signals
    dice: random.Random

    def begin(self, run: Path, mode: str) -> int:
        """The command in a process of its own, which starts a second rank where the mode has two; its id."""
        objective = next((one for one in MODES[mode] if one.startswith("train.objective=")), "")
        data = self.folder / DATA.get(objective, "data.json")
        arguments = ["run", str(data), "--model", str(self.folder / "model"), "--output", str(run)]
        child = os.fork()
        if child:
            return child
        log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["tuneful", *arguments, *COMMON, *MODES[mode]]
        if mode in TWO_RANKS:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = str(listener.getsockname()[1])
            os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if os.fork() else "1"
        try:
            cli.main()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 0)
        os._exit(0)

    def make_model(self, texts: list[str]) -> None:
        """The tiny model, by a process of its own: what is forked later must not have threads that a fork would lose."""
        child = os.fork()
        if not child:
            make_tiny_model(self.folder / "model", texts)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def wait_for_the_moment(self, run: Path, child: int, longest: float) -> None:
        """Until the moment that the dice say, or until `child` has ended."""
        kind, share = self.dice.choice(["any", "any", "aside", "line"]), self.dice.random()
        deadline = time.monotonic() + (share if kind == "any" else 1) * longest
        wanted = self._num_lines(run) + self.dice.randint(1, 12)
        while time.monotonic() < deadline and not _has_ended(child):
            if kind == "aside" and _aside(run) and self.dice.random() < 0.1:  # not always the first of them
                return
            if kind == "line" and self._num_lines(run) >= wanted:
                return
            time.sleep(0.0005)

    def stop(self, child: int, mode: str) -> tuple[int, float, list[int]]:
        """Send the signal; (exit code, seconds until the end, processes that `child` left behind)."""
        start = time.monotonic()
        try:
            family = psutil.Process(child).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        os.kill(family[0].pid if mode in TWO_RANKS and family and self.dice.random() < 0.5 else child, self.number)
        if mode in TWO_RANKS:
            while not _has_ended(child) and time.monotonic() < start + NOTICED_SECONDS:
                time.sleep(0.01)
            for one in (process for process in (psutil.Process(child), *family) if process.is_running()):
                one.kill()  # as torchrun does with the ranks that are left
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, time.monotonic() - start, [one.pid for one in family if one.is_running()]

    @staticmethod
    def _num_lines(run: Path) -> int:
        try:
            return (run / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _is_finished(run: Path) -> bool:
    record = run / "run.json"
    return record.exists() and json.loads(record.read_bytes())["finished"] is not None


def _aside(run: Path) -> list[str]:
    """What is being written aside right now."""
    places = (run, run / "checkpoints", run / "answers", run / "data")
    return [name for place in places if place.is_dir() for name in os.listdir(place) if ".part" in name]


def phase(run: Path) -> str:
    """What a run was at when it was cut off, told from its folder."""
    aside = _aside(run)
    if any(name.startswith(".part-step") for name in aside):
        return "saving a checkpoint"
    if any(name.startswith(".part-model") for name in aside) or (
        (run / "model").exists() and not (run / "model" / "tuneful.json").exists()
    ):
        return "saving the model"
    if not (run / "run.json").exists() or not (run / "environment.json").exists():
        return "start"
    if (run / "model").exists():
        return "answers after, comparison, report"
    rows = (run / "metrics.jsonl").read_bytes().splitlines() if (run / "metrics.jsonl").exists() else []
    if not rows:
        return "first evaluation" if (run / "answers" / "base-references.jsonl").exists() else "answers before"
    try:
        last = json.loads(rows[-1])
    except ValueError:
        return "half a line of metrics"
    return "evaluation" if "loss" in last and last["step"] % 6 == 0 else "step"


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal, part by part."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    names = [
        "comparison.json",
        *(f"{of}/{name}.jsonl" for of in ("answers", "documents") for name in ("base", "tuned")),
    ]
    names += ["preferences.json", "reference.json"]
    weights = next(path for path in (run / "model" / "model.safetensors", run / "adapter") if path.exists())
    return {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "metrics": [{key: value for key, value in row.items() if key != "step_seconds"} for row in metrics],
        **{name: file.read_text(encoding="utf-8") for name in names if (file := run / name).exists()},
    }


def try_mode(bench: Bench, mode: str, num_kills: int, tell: Any) -> Tally:
    """Runs of one mode, killed `num_kills` times in all."""
    tally = Tally()
    straight = bench.folder / "straight"
    start = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(bench.begin(straight, mode), 0)[1])
    longest = time.monotonic() - start
    assert code == 0, (bench.folder / "log.txt").read_text()[-2000:]
    wanted = outcome(straight)
    shutil.rmtree(straight)
    while tally.kills.total() < num_kills:
        run, kills_left = bench.folder / "run", min(MOST_KILLS_A_RUN, num_kills - tally.kills.total())
        while True:
            child = bench.begin(run, mode)
            if kills_left:
                bench.wait_for_the_moment(run, child, longest)
            if not kills_left or _has_ended(child):
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert code == 0, f"exit code {code}: {(bench.folder / 'log.txt').read_text()[-2000:]}"
                break
            code, seconds, left = bench.stop(child, mode)
            if code == 0 or _is_finished(run):
                break  # it ended by itself in that moment
            kills_left -= 1
            tally.kills[phase(run)] += 1
            if bench.number is signal.SIGTERM:
                tally.slowest_stop = max(tally.slowest_stop, seconds)
                ended_right = code == 143 or (
                    code == -signal.SIGTERM and not (run / "run.json").exists()
                )  # before it began
                if not ended_right or left or seconds > LONGEST_STOP_SECONDS:
                    tally.different.append(f"stop: exit code {code} after {seconds:.1f} s, left {left}")
        found = outcome(run)
        tally.runs += 1
        tally.different += [part for part in wanted | found if found.get(part) != wanted.get(part)]
        shutil.rmtree(run)
        tell(f"{mode:<13} {tally.kills.total():>4} kills in {tally.runs} runs, {len(tally.different)} different")
    return tally


def campaign(
    num_kills: int, modes: Sequence[str], number: signal.Signals, seed: int, tell: Callable[[str], None]
) -> dict[str, Tally]:
    """What came of each mode, of `num_kills` kills shared by all."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not outlive a fork either
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), number, random.Random(seed))
        words = ["red", "green", "blue", "black", "white", "pink", "grey", "brown", "gold", "teal", "mauve", "rust"]
        rows = [{"instruction": f"Say {word} {num}.", "output": f"{word} {num}"} for word in words for num in range(4)]
        pairs = [{**row, "rejected": f"No {row['output']}."} for row in rows]
        texts = [{"text": " ".join(row["output"] for row in rows[at : at + 4])} for at in range(len(rows))]
        for name, content in (("data.json", rows), ("pairs.json", pairs), ("text.json", texts)):
            (bench.folder / name).write_text(json.dumps(content))
        bench.make_model([row["output"] for row in rows])
        tallies = {}
        for at, mode in enumerate(modes):
            share = num_kills * (at + 1) // len(modes) - num_kills * at // len(modes)
            tallies[mode] = try_mode(bench, mode, share, tell)
    return tallies
