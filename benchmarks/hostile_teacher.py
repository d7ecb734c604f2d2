"""A teacher whose replies are hostile: is every request accounted for, and are rows made of honest replies only?

    python benchmarks/hostile_teacher.py [--replies 2000] [--seed 0] [--output FILE.json]

The replies and the oracle stand in `tests/doubles/hostile_teacher.py`. Exit code 1 where there is a complaint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.hostile_teacher import campaign

from tuneful.runs.environment import describe_machine


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = campaign(arguments.replies, arguments.seed)
    print(
        f"{found['requests']:,} replies of {found['num_behaviours']} kinds in {found['runs']} runs, {found['seconds']} s; "
        f"complaints: {len(found['complaints'])}"
    )
    for complaint in found["complaints"]:
        print(f"  {complaint}")
    if arguments.output:
        document = {**found, "machine": describe_machine()}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if found["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
