"""Synthesis killed at random: the final files are those of an uninterrupted run, and nothing is asked twice.

`tuneful synthesize` runs as a process of its own against a loopback teacher, is killed with SIGKILL after a number of requests
that is drawn from all that it makes, or while its result is checked, and started again until it ends. The rows and the file of
requests must then be byte for byte those of a run that nobody killed, and no request may have been made more often than it was
in flight when a kill came.
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
from tests.doubles.processes import Process, complaints, tuneful
from tests.doubles.teacher import Teacher

CONCURRENCY = 4
_MOST_KILLS = 3  # of one run, so that there are several
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


def killed(process: Process, teacher: Teacher, moment: int, rows: Path) -> int | None:
    """Kill a run once the teacher has been asked `moment` times, or, for more than it is asked, once `rows` are there.

    The exit code where the run had ended before, else None.
    """
    while process.poll() is None:
        if sum(teacher.asked.values()) >= moment or rows.exists():
            process.kill()
            process.wait()
            return None
        time.sleep(0.002)
    return process.returncode


def campaign(num_kills: int, kind: str, seed: int, latency_seconds: float = 0.01) -> dict[str, Any]:
    """Runs of a kind killed `num_kills` times in all, each held against one that was not."""
    dice, found, kills, ends = random.Random(seed), list[str](), 0, 0
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {"instruction": f"Say how {what} is made, in step {n}.", "input": "", "output": f"It takes {n} steps."}
            for n, what in enumerate(["bread", "glass", "paper", "soap", "wine"] * 4)
        ]
        (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        teacher = Teacher(latency_seconds=latency_seconds)
        with serving(teacher.behave) as origin:
            (folder / "out").mkdir()
            assert start(folder, kind, origin).wait() == 0
            wanted, num_requests = files_of(folder), sum(teacher.asked.values())
            assert max(teacher.asked.values()) == 1, "two requests that are the same"
            while kills < num_kills:
                shutil.rmtree(folder / "out")
                (folder / "out").mkdir()
                teacher.asked.clear()
                killed_here, code = 0, None
                while code is None:
                    process = start(folder, kind, origin)
                    if kills == num_kills or killed_here == _MOST_KILLS:
                        code = process.wait()
                        continue
                    asked = sum(teacher.asked.values())
                    code = killed(
                        process, teacher, dice.randint(asked, num_requests + 4), folder / "out" / "made.jsonl"
                    )
                    if code is None:
                        kills, killed_here = kills + 1, killed_here + 1
                        if "made.jsonl" in files_of(folder) and "made.jsonl.partial" not in files_of(folder):
                            code = 0  # what was killed had no work to do any more
                ends += 1
                run, repeated = f"run {ends} after {killed_here} kills", sum(teacher.asked.values()) - num_requests
                found += complaints(run, code, files_of(folder), wanted, repeated, killed_here * CONCURRENCY)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kind": kind,
        "kills": kills,
        "runs": ends,
        "requests": num_requests,
        "files": sorted(wanted),
        "complaints": found,
    }
