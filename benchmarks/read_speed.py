"""How fast, and in how much memory, are files read? JSONL of 1 GB; CSV, a JSON array and Parquet of 100 MB.

    python benchmarks/read_speed.py [--megabytes 1000] [--other-megabytes 100] [--repeats 3] [--output FILE.json]

Each file is read in a process of its own by `stream_data`, every record made and let go, on one core; MB/s are bytes of the
file over processor seconds of the read, imports left out, and the memory is the peak of the whole process. Records have
an instruction, in two of three cases an input, and an answer of 10 to 110 words, some of them not ASCII; a block of 20,000
different records is repeated until the size is reached.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from train_peers.machine import BUSY_LOAD, commit, hardware, load_warning

CHILD = """
import json, sys, time
from tuneful.config import DataConfig
from tuneful.data.read import Record, stream_data
stream = stream_data(sys.argv[1], DataConfig())
begun, clock = time.process_time(), time.perf_counter()
num = sum(isinstance(row, Record) for row in stream)
seconds, waited = time.process_time() - begun, time.perf_counter() - clock
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
assert num == stream.num_read
print(json.dumps({"records": num, "processor_seconds": seconds, "wall_seconds": waited, "peak_mb": round(peak)}))
"""


def make_rows(num: int) -> list[dict[str, str]]:
    """`num` different records."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    words += ['"quoted"', "línea", "日本", "naïve"]

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    return [
        {
            "instruction": text(5, 20),
            "input": text(3, 20) if number % 3 else "",
            "output": f"{text(10, 90)}\n{text(1, 20)}",
        }
        for number in range(num)
    ]


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, list(rows[0]), lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def as_items(rows: list[dict[str, str]]) -> bytes:
    return b",\n".join(json.dumps(row, ensure_ascii=False, indent=2).encode() for row in rows)


def write_text(path: Path, head: bytes, block: bytes, between: bytes, tail: bytes, num_bytes: int) -> None:
    """`block` again and again until there are `num_bytes`."""
    with path.open("wb") as file:
        file.write(head + block)
        while file.tell() < num_bytes:
            file.write(between + block)
        file.write(tail)


def write_parquet(path: Path, rows: list[dict[str, str]], num_bytes: int) -> None:
    table = pa.Table.from_pylist(rows)
    with pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as writer:
        while path.stat().st_size < num_bytes:
            writer.write_table(table, row_group_size=10_000)


def measure(path: Path, write: Callable[[Path], None], repeats: int) -> dict[str, Any]:
    """Read what `write` makes, `repeats` times; the fastest and the largest."""
    write(path)
    size = path.stat().st_size
    runs = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    path.unlink()
    best = min(runs, key=lambda run: run["processor_seconds"])
    peak = max(run["peak_mb"] for run in runs)
    return {"bytes": size, "mb_per_second": round(size / 1e6 / best["processor_seconds"], 1), **best, "peak_mb": peak}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--other-megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if warning := load_warning(load):
        print(f"warning: {warning}; processor seconds are still those of the read", file=sys.stderr)
    rows = make_rows(20_000)
    most, other = options.megabytes * 10**6, options.other_megabytes * 10**6
    lines, cells, items = as_jsonl(rows), as_csv(rows), as_items(rows)
    works: dict[str, Callable[[Path], None]] = {
        "data.jsonl": lambda path: write_text(path, b"", lines, b"", b"", most),
        "data.csv": lambda path: write_text(path, b"instruction,input,output\n", cells, b"", b"", other),
        "data.json": lambda path: write_text(path, b"[\n", items, b",\n", b"\n]\n", other),
        "data.parquet": lambda path: write_parquet(path, rows, other),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in works.items():
            found[name] = one = measure(Path(folder) / name, write, options.repeats)
            print(
                f"{name:<14} {one['bytes'] / 1e6:7,.0f} MB  {one['records']:9,} records  {one['mb_per_second']:6.1f} MB/s  "
                f"{one['peak_mb']:4} MB at most"
            )
    if options.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python", "benchmarks/read_speed.py", *sys.argv[1:]]),
            "commit": commit(Path(__file__).parents[1]),
            "hardware": hardware(),
            "load_before": load,
            "busy": load > BUSY_LOAD,
            "python": sys.version.split()[0],
            "pyarrow": pa.__version__,
            "files": found,
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
