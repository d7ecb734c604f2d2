"""Judging killed at random: the final files are those of an uninterrupted evaluation, and nothing is judged twice.

`tuneful evaluate` runs as a process of its own against a loopback judge that takes its time, is killed with SIGKILL at a
moment drawn from the whole length of an evaluation, and started again until it ends. Scores, evaluation.json and the kept
replies must then be byte for byte those of an evaluation that nobody killed, and no question may have been asked more
often than it was in flight when a kill came.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.doubles.judge_server import MODEL, Request, head, honest_body, said, serving, tags, true_score
from tests.doubles.processes import complaints

CONCURRENCY = 4
LATENCY_SECONDS = 0.03


@dataclass
class Judge:
    """An honest judge that takes its time; it counts how often each item was asked about."""

    asked: Counter[int] = field(default_factory=Counter)

    async def behave(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """One request."""
        if request.method == "GET":
            body = tags()
        else:
            self.asked[request.item] += 1
            await asyncio.sleep(LATENCY_SECONDS)
            body = honest_body(request.wire, said(request, true_score(request.item)))
        writer.write(head(200, length=len(body)) + body)
        await writer.drain()


def start(folder: Path, origin: str) -> subprocess.Popen[bytes]:
    """An evaluation of answers.jsonl into `folder`/out."""
    arguments = ["evaluate", "answers.jsonl", "--judge", f"ollama/{MODEL}", "--output", "out", "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-m", "tuneful.cli", *arguments, f"judge.concurrency={CONCURRENCY}", "judge.num_probes=0"],
        cwd=folder,
        env={**os.environ, "OLLAMA_HOST": origin},
    )


def files_of(folder: Path) -> dict[str, str]:
    """Every file of an evaluation but its lock, and its checksum."""
    found = (file for file in sorted((folder / "out").rglob("*")) if file.is_file() and not file.name.endswith(".lock"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def campaign(num_kills: int, num_items: int, seed: int) -> dict[str, Any]:
    """Evaluations killed `num_kills` times in all, each held against one that was not."""
    dice, found, kills, ends = random.Random(seed), list[str](), 0, 0
    moments: list[float] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {"instruction": f"Item number {n}.", "input": "", "output": f"{n}", "text": f"it is {n}"}
            for n in range(num_items)
        ]
        (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        judge = Judge()
        with serving(judge.behave) as origin:
            started = time.monotonic()
            assert start(folder, origin).wait() == 0
            length = time.monotonic() - started
            wanted = files_of(folder)
            while kills < num_kills:
                shutil.rmtree(folder / "out")
                judge.asked.clear()
                killed_here = 0
                while True:
                    process = start(folder, origin)
                    moment = dice.uniform(0.2, 1.0) * length if kills < num_kills else None
                    try:
                        code = process.wait(timeout=moment)
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        process.wait()
                        kills, killed_here = kills + 1, killed_here + 1
                        moments.append(moment or 0.0)
                        continue
                    break
                ends += 1
                run, repeated = f"evaluation {ends} after {killed_here} kills", sum(judge.asked.values()) - num_items
                found += complaints(run, code, files_of(folder), wanted, repeated, killed_here * CONCURRENCY)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kills": kills,
        "evaluations": ends,
        "items": num_items,
        "files": sorted(wanted),
        "uninterrupted_seconds": round(length, 2),
        "kill_seconds": [round(moment, 2) for moment in (min(moments), max(moments))],
        "complaints": found,
    }
