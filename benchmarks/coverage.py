"""How often do the intervals cover, and how often is "better" said of a model that is not?

    python benchmarks/coverage.py                    2,000 runs of each setting, about four minutes on two cores
    python benchmarks/coverage.py --runs 200         a look

Draws test sets from the populations of `tests/doubles/populations.py`, hands them to the statistics of the product, and
counts: `cover`, how often the 95 % interval holds the true difference (aim: 93 to 97 %); `false`, how often the verdict is
"better" where the true difference is nought (aim: under 5 %); `power`, how often it is "better" where it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed
from tests.doubles.populations import POPULATIONS, simulate, true_difference

from tuneful.runs.environment import describe_machine

SIZES = (20, 50, 130, 500)


def main() -> None:
    """Simulate every setting, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--only", choices=[population.name for population in POPULATIONS])
    parser.add_argument("--output", type=Path, help="the JSON (default: benchmarks/results/coverage-DATE.json)")
    given = parser.parse_args()
    start = time.perf_counter()
    settings = []
    print(
        f"{'population':<10} {'items':>5}  {'true':>8}  {'cover':>6}  {'plain':>6}  {'better':>6}  {'worse':>6}  {'width':>7}"
    )
    for population in POPULATIONS:
        if given.only not in (None, population.name):
            continue
        for effect in (0.0, population.effect):
            truth = true_difference(population, effect)
            for num_items in SIZES:
                one = simulate(population, num_items, effect, given.runs, given.resamples, truth)
                settings.append(one)
                print(
                    f"{one.population:<10} {one.num_items:>5}  {one.true_difference:>+8.3f}  {one.coverage:>6.1%}  "
                    f"{one.plain_coverage:>6.1%}  {one.better:>6.1%}  {one.worse:>6.1%}  {one.mean_width:>7.3f}",
                    flush=True,
                )
    false = [one.better for one in settings if one.effect == 0]
    usual = [one.coverage for one in settings if one.population != "rare"]
    seconds = time.perf_counter() - start
    print(
        f"coverage {min(usual):.1%} to {max(usual):.1%}, {np.mean([0.93 <= one <= 0.97 for one in usual]):.0%} of the settings "
        f'within 93 to 97 %; false "better" at most {max(false):.1%}; {seconds:.0f} s'
    )
    output = given.output or Path(__file__).parent / "results" / f"coverage-{date.today():%Y-%m-%d}.json"
    output.write_text(
        json.dumps(
            {
                "machine": describe_machine(),
                "seconds": round(seconds, 1),
                "num_resamples": given.resamples,
                "settings": [asdict(one) for one in settings],
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    print(f"written: {output}")


if __name__ == "__main__":
    main()
