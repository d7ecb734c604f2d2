"""Do the intervals of checks, tests, judges and sweeps cover, and how often is a verdict false? By simulation.

    python benchmarks/simulations.py                       2,000 draws of each setting, about a quarter of an hour on one core
    python benchmarks/simulations.py --draws 200           a look
    python benchmarks/simulations.py --only "macro F1"     those whose name begins so, anew; the file keeps the others

What is drawn stands in `tests/doubles/simulated_scores.py` and `simulated_sweeps.py`; each draw goes through the statistics of
the product. `cover`: how often the 95 % interval holds the truth (asked: 93 to 97 %); `false`: how often the verdict is "better"
where nothing is (asked: under 5 %), or of a probed judge that one who guesses passes, or a good one fails; `right`: how often the
verdict is the true one. `coverage.py` does the same for the metrics of answers. Exit code 1 where one is not as
asked, by more than two standard errors of so many draws.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.simulated_scores import SCORES
from tests.doubles.simulated_sweeps import SWEEPS
from tests.doubles.simulations import Shown, shown

from tuneful.runs.environment import describe_machine

ERRORS = 2.0
"""Standard errors of so many draws that a share may be off."""
SIMULATIONS = (*SCORES, *SWEEPS)


def run(place: int, num_draws: int, num_resamples: int) -> Shown:
    """One simulation, by its place: what is sent to a process."""
    return shown(SIMULATIONS[place], num_draws, num_resamples)


def line(one: Shown) -> str:
    """One line of the table."""

    def share(value: float | None) -> str:
        return "      " if value is None else f"{value:>6.1%}"

    width = "       " if one.mean_width is None else f"{one.mean_width:>7.3f}"
    sign = " *" if one.faults(ERRORS) else ""
    return f"{one.name:<40} {one.setting:<58} {share(one.coverage)} {width} {share(one.false)} {share(one.true)}{sign}"


def main() -> int:
    """Simulate, print the table, write the JSON; 1 where something is not as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--only", default="", help="simulations whose name begins so")
    parser.add_argument("--output", type=Path, help="the JSON (default: benchmarks/results/simulations-DATE.json)")
    given = parser.parse_args()
    places = [place for place, one in enumerate(SIMULATIONS) if one.name.startswith(given.only)]
    start, load = time.perf_counter(), os.getloadavg()[0]
    print(f"{'simulated':<40} {'setting':<58} {'cover':>6} {'width':>7} {'false':>6} {'right':>6}")
    with ProcessPoolExecutor(given.jobs) as pool:
        found = []
        for one in pool.map(partial(run, num_draws=given.draws, num_resamples=given.resamples), places):
            found.append(one)
            print(line(one), flush=True)
    output = given.output or Path(__file__).parent / "results" / f"simulations-{date.today():%Y-%m-%d}.json"
    if given.only and output.exists():
        found = with_others(found, json.loads(output.read_text(encoding="utf-8"))["simulations"])
    faults = [fault for one in found for fault in one.faults(ERRORS)]
    print(summary(found, faults, time.perf_counter() - start))
    document = {
        "date": f"{date.today()}",
        "program": "benchmarks/simulations.py",
        "machine": describe_machine(),
        "load_before": load,
        "seconds": round(time.perf_counter() - start, 1),
        "num_resamples": given.resamples,
        "faults": faults,
        "simulations": [asdict(one) for one in found],
    }
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written: {output}")
    return 1 if faults else 0


def with_others(found: Sequence[Shown], rows: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """`found`, and of the simulations that were not drawn now what `rows` of an earlier file hold, in the usual order."""
    by_name = {(row["name"], row["setting"]): Shown(**row) for row in rows} | {
        (one.name, one.setting): one for one in found
    }
    return [
        replace(by_name[one.name, one.setting], asked_coverage=one.covers, asked_false=one.most_false)
        for one in SIMULATIONS
        if (one.name, one.setting) in by_name
    ]


def summary(found: Sequence[Shown], faults: Sequence[str], seconds: float) -> str:
    """The outermost figures, and what is not as asked."""
    covers = [one.coverage for one in found if one.coverage is not None]
    false = [one.false for one in found if one.false is not None and one.asked_false is not None]
    said = [f"{len(found)} simulations in {seconds:.0f} s"]
    said += [f"coverage {min(covers):.1%} to {max(covers):.1%}"] if covers else []
    said += [f"false verdicts at most {max(false):.1%}"] if false else []
    return "; ".join(said) + "".join(f"\nNOT as asked: {fault}" for fault in faults)


if __name__ == "__main__":
    sys.exit(main())
