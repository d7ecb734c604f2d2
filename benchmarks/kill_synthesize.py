"""Synthesis killed at random: are the final files those of an uninterrupted run, and is anything asked twice?

    python benchmarks/kill_synthesize.py [--kills 50] [--seed 0] [--output FILE.json]

What is killed and compared stands in `tests/doubles/killed_synthesizing.py`; the kills are divided among the four kinds. Exit
code 1 where there is a complaint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.killed_synthesizing import KINDS, campaign

from tuneful.runs.environment import describe_machine


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    each = [arguments.kills // len(KINDS) + (number < arguments.kills % len(KINDS)) for number in range(len(KINDS))]
    rounds = [campaign(kills, kind, arguments.seed) for kills, kind in zip(each, KINDS, strict=True) if kills]
    for one in rounds:
        print(
            f"{one['kind']:12} {one['kills']} kills over {one['runs']} runs of {one['requests']} requests; "
            f"compared: {', '.join(one['files'])}; complaints: {len(one['complaints'])}"
        )
        for complaint in one["complaints"]:
            print(f"  {complaint}")
    if arguments.output:
        document = {"rounds": rounds, "machine": describe_machine()}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if any(one["complaints"] for one in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
