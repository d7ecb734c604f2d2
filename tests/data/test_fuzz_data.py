"""A short run of the fuzz of reading; the long one is `python benchmarks/fuzz_data.py --files 2000`."""

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz_data.py"


def test_damaged_files_lose_no_row_and_raise_nothing_but_one_message() -> None:
    command = [sys.executable, str(FUZZ), "--files", "80", "--seed", "7", "--bomb", "a line of 200 MB"]
    done = subprocess.run([*command, "--bomb", "gzip of a 4 GB line"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "80 files" in done.stdout
    assert "2 bombs, 0 failures" in done.stdout
