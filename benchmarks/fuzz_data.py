"""Does reading lose a row, or its temper? Thousands of damaged files, and every bomb and odd place we know of.

    python benchmarks/fuzz_data.py [--files 2000] [--seed 0] [--no-bombs] [--output FILE.json]

Files, bombs and what is checked stand in `tests/doubles/damaged_files.py`. Exit code 1 where anything fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.damaged_files import BOMBS, campaign, odd_places, run_bomb


def main() -> int:
    """Run the campaign; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-bombs", action="store_true")
    parser.add_argument("--bomb", action="append", choices=list(BOMBS), help="these bombs alone, by name")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    kinds, failures = campaign(options.files, options.seed)
    print(f"{sum(kinds.values())} files, {len(kinds)} mutations, {len(failures)} failures")
    for failure in failures[:20]:
        print(
            f"  file {failure.get('index')} ({failure.get('what')}, {failure.get('ending')}): {'; '.join(failure['problems'])}"
        )
    places, bombs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        places = dict(odd_places(Path(folder)))
    print(f"{len(places)} odd places, {sum(map(bool, places.values()))} failures")
    for name, problems in places.items():
        print("".join(f"  {name}: {problem}\n" for problem in problems), end="")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.bomb or ([] if options.no_bombs else BOMBS):
            bombs[name] = run_bomb(name, Path(folder))
            print(
                f"  {name:<40} {bombs[name].get('seconds', 0):5.2f} s {bombs[name].get('peak_mb', 0):5} MB  "
                + "; ".join(bombs[name]["problems"])
            )
    print(f"{len(bombs)} bombs, {sum(bool(bomb['problems']) for bomb in bombs.values())} failures")
    if options.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python", "benchmarks/fuzz_data.py", *sys.argv[1:]]),
            "files": sum(kinds.values()),
            "seed": options.seed,
            "mutations": dict(sorted(kinds.items())),
            "failures": failures,
            "odd_places": places,
            "bombs": bombs,
            "seconds": round(time.perf_counter() - begun),
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(bool(failures) or any(places.values()) or any(bomb["problems"] for bomb in bombs.values()))


if __name__ == "__main__":
    sys.exit(main())
