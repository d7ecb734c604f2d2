"""A run that is killed again and again ends in the same bits as one that is not.

    python benchmarks/kill.py [--kills 200] [--modes full,accumulated,...] [--signal KILL|TERM] [--output FILE.json]

What is run, when it is killed and what is compared stands in `tests/doubles/killed_runs.py`. Exit code 1 where anything
differs. About one and a half seconds a kill on one core.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from train_peers.machine import hardware

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.killed_runs import MODES, TWO_RANKS, Tally, campaign

from tuneful.runs.environment import describe_machine


def show(tallies: dict[str, Tally]) -> None:
    """Modes down, phases across."""
    phases = sorted({name for tally in tallies.values() for name in tally.kills})
    print(f"\n{'killed at':<36}" + "".join(f"{mode:>14}" for mode in tallies))
    for name in phases:
        print(f"{name:<36}" + "".join(f"{tally.kills[name]:>14}" for tally in tallies.values()))
    print(f"{'kills':<36}" + "".join(f"{tally.kills.total():>14}" for tally in tallies.values()))
    print(f"{'runs':<36}" + "".join(f"{tally.runs:>14}" for tally in tallies.values()))
    print(
        f"{'runs equal to one without a kill':<36}"
        + "".join(f"{tally.runs if not tally.different else 'NO':>14}" for tally in tallies.values())
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills in all, shared by the modes")
    parser.add_argument("--modes", default=",".join(MODES), help=f"any of {', '.join(MODES)}")
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL", help="SIGKILL or SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    arguments = parser.parse_args()

    number = signal.SIGKILL if arguments.signal == "KILL" else signal.SIGTERM
    modes, start = arguments.modes.split(","), time.monotonic()
    if unknown := [mode for mode in modes if mode not in MODES]:
        parser.error(f"--modes: unknown {unknown[0]!r}; there are {', '.join(MODES)}")
    if number is signal.SIGTERM:  # which torchrun sends to every rank
        modes = [mode for mode in modes if mode not in TWO_RANKS]
    tallies = campaign(arguments.kills, modes, number, arguments.seed, lambda line: print(line, flush=True))
    show(tallies)
    different = {mode: tally.different for mode, tally in tallies.items() if tally.different}
    print(
        f"\n{sum(tally.kills.total() for tally in tallies.values())} x SIG{arguments.signal}: "
        + ("every run ended in the same bits" if not different else f"DIFFERENT: {different}")
    )
    if number is signal.SIGTERM:
        print(f"slowest stop {max(tally.slowest_stop for tally in tallies.values()):.2f} s")
    if arguments.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "signal": arguments.signal,
            "seed": arguments.seed,
            "machine": hardware(),
            "packages": describe_machine()["packages"],
            "seconds": round(time.monotonic() - start, 1),
            "modes": {
                mode: {
                    "runs": one.runs,
                    "kills": dict(one.kills),
                    "different": one.different,
                    "slowest_stop_seconds": round(one.slowest_stop, 2),
                }
                for mode, one in tallies.items()
            },
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
