"""A judge server that does everything wrong: is any item lost, any score wrong, any call late?

    python benchmarks/hostile_judge.py [--replies 20000] [--seed 0] [--output FILE.json]

The server and its ways to misbehave are those of `tests/doubles/hostile_judge.py`. Exit code 1 where an item is missing,
scored wrongly, scored or unscored against the ledger, where a call outlives its deadline, or where a redirect was followed.
An honest reply that came late on a busy machine is told apart and counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.hostile_judge import campaign

from tuneful.runs.environment import describe_machine


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = campaign(arguments.replies, arguments.seed)
    print(
        f"\n{found['replies']:,} replies in {found['num_behaviours']} ways to {found['items']:,} items: "
        f"{found['scored']:,} scored + {found['unscored']:,} unscored = {found['items']:,}\n"
        f"late on this machine: {found['late']}; slowest call {found['slowest_call_seconds']} s of "
        f"{found['deadline_seconds']} s allowed; {found['seconds']} s in all\n"
        f"complaints: {len(found['complaints'])}"
    )
    for complaint in found["complaints"][:20]:
        print(f"  {complaint}")
    if arguments.output:
        document = {**found, "machine": describe_machine()}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if found["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
