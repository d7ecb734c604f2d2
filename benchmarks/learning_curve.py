"""Does the learning curve say what more data brings? The starter data cut at a half, against the truth at the whole.

    python benchmarks/learning_curve.py [--seeds 2] [--folder DIR] [--output FILE] [key=value ...]

One `tuneful sweep` of `data.train_share` and `train.seed` trains an adapter of the built-in model on SHARES of the starter data,
each record once. The curve is then fitted to the shares up to a half alone, as the product fits it, and its interval for twice
the records is held against what the whole data brought: the mean loss at a half less the mean loss at the whole.

The interval is for the expected gain on all validation records like these; the measured gain has the noise of its seeds. So it is
`held` where the two overlap, the measured one being widened by twice its standard error. Exit code 1 where it is not. The same
command goes on with a sweep that was interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import tuneful
from tuneful.config import load_config
from tuneful.console import Terminal
from tuneful.files import write_json
from tuneful.runs.environment import describe_machine
from tuneful.runs.schema import SweepRun
from tuneful.sweep.choice import SHARE, learning_curve
from tuneful.sweep.folder import validation_losses
from tuneful.sweep.job import SweepResult

ROOT = Path(__file__).parents[1]
SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)
SETTINGS = (
    "train.method=lora",
    "train.num_train_epochs=1",
    "data.test_share=0",
    "data.validation_share=0.1",
    "train.eval_steps=1000000",
    "report.general=none",
)


def held_out(result: SweepResult, cut: float = 0.5) -> dict[str, Any]:
    """What the runs up to the share `cut` say of twice as many records, and what these brought."""
    runs = result.document.runs
    known = [run for run in runs if run.settings[SHARE] <= cut]
    losses = {run.name: rows for run in known if (rows := validation_losses(result.path / "runs" / run.name))}
    curve = learning_curve({}, known, losses, result.document.confidence)
    (gain,) = (one for one in curve.gains if one.factor == 2)
    half, whole = (_losses(runs, share) for share in (cut, 2 * cut))
    error = float(np.sqrt(sum(np.var(one, ddof=1) / len(one) for one in (half, whole)))) if len(half) > 1 else 0.0
    measured = float(np.mean(half) - np.mean(whole))
    return {
        "curve": asdict(curve),
        "predicted": {"gain": gain.gain, "low": gain.low, "high": gain.high},
        "measured": {"gain": measured, "error": error},
        "held": gain.low - 2 * error <= measured <= gain.high + 2 * error,
    }


def _losses(runs: Sequence[SweepRun], share: float) -> list[float]:
    return [run.validation_loss for run in runs if run.settings[SHARE] == share and run.validation_loss is not None]


def main() -> int:
    """Sweep, fit, compare; 1 where the interval does not hold what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="starter")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="of the sweep (default: .bench/learning-curve-HASH)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    settings = [*SETTINGS, *asked.settings]
    request = {"data": asked.data, "seeds": asked.seeds, "shares": list(SHARES), "settings": settings}
    name = f"learning-curve-{hashlib.sha256(json.dumps(request).encode()).hexdigest()[:8]}"
    begun, load = time.perf_counter(), os.getloadavg()[0]
    result = tuneful.sweep(
        asked.data,
        {SHARE: SHARES, "train.seed": list(range(1, asked.seeds + 1))},
        config=load_config(None, settings),
        output=asked.folder or ROOT / ".bench" / name,
        terminal=Terminal(),
    )
    found = held_out(result)
    predicted, measured = found["predicted"], found["measured"]
    print(
        f"from {min(SHARES):g} to 0.5 of the data: twice the records would lower the loss by {predicted['gain']:.4f} "
        f"[{predicted['low']:.4f}, {predicted['high']:.4f}]; they did by {measured['gain']:.4f} "
        f"(standard error {measured['error']:.4f}): {'held' if found['held'] else 'NOT held'}"
    )
    if asked.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "program": "benchmarks/learning_curve.py",
            **request,
            "runs": [
                {"settings": run.settings, "num_train": run.num_train, "validation_loss": run.validation_loss}
                for run in result.document.runs
            ],
            **found,
            "seconds": round(time.perf_counter() - begun, 1),
            "load_before": load,
            "machine": describe_machine(),
        }
        write_json(asked.output, document)
    return 0 if found["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
