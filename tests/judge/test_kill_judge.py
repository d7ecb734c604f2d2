"""A short campaign of kills during judging; the long one is `python benchmarks/kill_judge.py --kills 50`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_killed_evaluation_ends_as_one_that_was_not():
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_judge.py"), "--kills", "3", "--items", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout
    assert "complaints: 0" in done.stdout
    assert "out/judge/replies.jsonl, out/scores/answers.jsonl" in done.stdout
