"""Synthesis killed at random: the final files are those of an uninterrupted run, and nothing is asked twice.

`tuneful synthesize` runs as a process of its own against a loopback teacher that takes its time, is killed with SIGKILL at a
moment drawn from the whole length of a run, and started again until it ends. The rows and the file of requests must then be byte
for byte those of a run that nobody killed, and no request may have been made more often than it was in flight when a kill came.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.doubles.judge_server import MODEL, serving
from tests.doubles.processes import Process, tuneful
from tests.doubles.teacher import Teacher

CONCURRENCY = 4
KINDS = {
    "instructions": ["seeds.jsonl", "--num", "30"],
    "responses": ["seeds.jsonl", "--samples", "2", "--best-by-judge", "--num", "12"],
    "reflections": ["seeds.jsonl"],
    "pairs": ["seeds.jsonl", "--model", f"ollama/{MODEL}", "--samples", "2", "judge.protocol=pairwise", "--num", "8"],
}


def start(folder: Path, kind: str, origin: str) -> Process:
    """A run of a kind into `folder`/out."""
    data, *options = KINDS[kind]
    files = [str(folder / data), "--output", str(folder / "out" / "made.jsonl")]
    teacher = ["--teacher", f"ollama/{MODEL}", "--kind", kind, "--quiet", f"judge.concurrency={CONCURRENCY}"]
    return tuneful("synthesize", *files, *teacher, *options, env={"OLLAMA_HOST": origin})


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its lock."""
    found = sorted((folder / "out").iterdir())
    return {file.name: file.read_bytes() for file in found if not file.name.endswith(".lock")}


def campaign(num_kills: int, kind: str, seed: int, latency_seconds: float = 0.03) -> dict[str, Any]:
    """Runs of a kind killed `num_kills` times in all, each held against one that was not."""
    dice, complaints, kills, ends = random.Random(seed), list[str](), 0, 0
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {"instruction": f"Say how {what} is made, in step {n}.", "input": "", "output": f"It takes {n} steps."}
            for n, what in enumerate(["bread", "glass", "paper", "soap", "wine"] * 4)
        ]
        (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        teacher = Teacher(latency_seconds=latency_seconds)
        with serving(teacher.behave) as origin:
            for _ in range(2):  # the first one waits for the server of processes, and its length says nothing
                shutil.rmtree(folder / "out", ignore_errors=True)
                (folder / "out").mkdir()
                teacher.asked.clear()
                started = time.monotonic()
                assert start(folder, kind, origin).wait() == 0
                length = time.monotonic() - started
            wanted, num_requests = files_of(folder), sum(teacher.asked.values())
            assert max(teacher.asked.values()) == 1, "two requests that are the same"
            while kills < num_kills:
                shutil.rmtree(folder / "out")
                (folder / "out").mkdir()
                teacher.asked.clear()
                killed_here = 0
                while True:
                    process = start(folder, kind, origin)
                    try:
                        code = process.wait(timeout=dice.uniform(0.1, 0.9) * length if kills < num_kills else None)
                    except TimeoutError:
                        process.kill()
                        process.wait()
                        kills, killed_here, code = kills + 1, killed_here + 1, 0
                        if "made.jsonl" not in files_of(folder) or "made.jsonl.partial" in files_of(folder):
                            continue  # what was killed had work to do
                    break
                ends += 1
                if code:
                    complaints.append(f"run {ends} ended with {code}")
                if files_of(folder) != wanted:
                    differ = [file for file, content in files_of(folder).items() if wanted.get(file) != content]
                    complaints.append(f"run {ends} after {killed_here} kills: other files: {', '.join(differ)}")
                repeated = sum(teacher.asked.values()) - num_requests
                if repeated > killed_here * CONCURRENCY:
                    complaints.append(f"run {ends}: {repeated} requests repeated after {killed_here} kills")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kind": kind,
        "kills": kills,
        "runs": ends,
        "requests": num_requests,
        "files": sorted(wanted),
        "uninterrupted_seconds": round(length, 2),
        "complaints": complaints,
    }
