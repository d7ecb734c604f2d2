"""Does a command believe a damaged run folder, or fall over it? Hundreds of mutations of every file of it.

    python benchmarks/fuzz_runs.py [--num 500] [--seed 0] [--output FILE.json]

Mutations, commands and what is checked stand in `tests/doubles/damaged_runs.py`. Exit code 1 where anything fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.damaged_runs import campaign


def main() -> int:
    """Run the campaign; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    tally = campaign(options.num, options.seed, lambda line: print(line, flush=True))
    for name, count in sorted(tally.ended.items()):
        print(f"{count:>5}  {name}")
    print(f"{options.num} mutations, {len(tally.failures)} failures")
    if options.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python", "benchmarks/fuzz_runs.py", *sys.argv[1:]]),
            "mutations": options.num,
            "seed": options.seed,
            "ended": dict(sorted(tally.ended.items())),
            "failures": tally.failures,
            "seconds": round(time.perf_counter() - begun),
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
