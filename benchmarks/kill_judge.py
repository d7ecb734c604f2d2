"""Judging killed at random: are the final files those of an uninterrupted evaluation, and is anything judged twice?

    python benchmarks/kill_judge.py [--kills 50] [--items 60] [--seed 0] [--output FILE.json]

What is killed and compared stands in `tests/doubles/killed_judging.py`. Exit code 1 where there is a complaint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.killed_judging import campaign

from tuneful.runs.environment import describe_machine


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = campaign(arguments.kills, arguments.items, arguments.seed)
    print(
        f"{found['kills']} kills over {found['evaluations']} evaluations of {found['items']} items, between "
        f"{found['kill_seconds'][0]} and {found['kill_seconds'][1]} s of {found['uninterrupted_seconds']} s\n"
        f"compared: {', '.join(found['files'])}\ncomplaints: {len(found['complaints'])}"
    )
    for complaint in found["complaints"]:
        print(f"  {complaint}")
    if arguments.output:
        document = {**found, "machine": describe_machine()}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if found["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
