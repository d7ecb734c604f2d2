"""Trackers: the figures of metrics.jsonl also go to where a team watches its runs (`train.report_to`).

The only door to tensorboard, trackio, wandb and mlflow. Each is imported when it is asked for and not before; what is not
installed is refused before anything is loaded. metrics.jsonl is written all the same: a tracker that fails in the middle of a
run is named once and left out from then on.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.errors import ConfigError, TunefulError

PROJECT = "tuneful"
Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Tracker:
    """Somewhere that takes figures: `log(step, figures)`, and `close` at the end."""

    name: str
    log: Callable[[int, Figures], None]
    close: Callable[[], None]


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError for the first tracker among `names` that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"`train.report_to`: {name} is not installed: pip install 'tuneful[{name}]'")


def open_trackers(names: Sequence[str], run: Path, settings: Mapping[str, Any]) -> Trackers:
    """The trackers `names` for the run folder `run`, told its `settings`; TunefulError where one cannot start."""
    openers = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}
    flat = {f"{section}.{key}": value for section, keys in settings.items() for key, value in keys.items()}
    opened = []
    for name in names:
        try:
            opened.append(openers[name](run, flat))
        except Exception as error:  # a server that is away, a login that is missing: the user gets one line
            raise TunefulError(
                f"{name} could not start: {error}. Fix that, or leave it out of train.report_to"
            ) from error
    return Trackers(opened)


class Trackers:
    """Those that are open. `log` returns a sentence for each that failed just now; it gets nothing more."""

    def __init__(self, opened: Sequence[Tracker]) -> None:
        self._open = list(opened)

    def log(self, row: Mapping[str, Any]) -> list[str]:
        """Hand on the numbers of one line of metrics.jsonl."""
        figures = {
            key: float(value)
            for key, value in row.items()
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        return self._each(lambda tracker: tracker.log(row["step"], figures))

    def close(self) -> list[str]:
        """Say that the run is over."""
        said = self._each(lambda tracker: tracker.close())
        self._open = []
        return said

    def _each(self, act: Callable[[Tracker], None]) -> list[str]:
        said = []
        for tracker in list(self._open):
            try:
                act(tracker)
            except Exception as error:  # training goes on without the service
                self._open.remove(tracker)
                said.append(f"{tracker.name} failed and gets no more figures: {error}. metrics.jsonl holds them all")
        return said


def _tensorboard(run: Path, settings: Mapping[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"))
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def log(step: int, figures: Figures) -> None:
        for key, value in figures.items():
            writer.add_scalar(key, value, step)

    return Tracker("tensorboard", log, writer.close)


def _trackio(run: Path, settings: Mapping[str, Any]) -> Tracker:
    import trackio

    trackio.init(project=PROJECT, name=run.name, config=dict(settings))
    return Tracker("trackio", lambda step, figures: trackio.log(dict(figures), step=step), trackio.finish)


def _wandb(run: Path, settings: Mapping[str, Any]) -> Tracker:
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    there = wandb.init(project=project, name=run.name, dir=str(run), config=dict(settings))
    return Tracker("wandb", lambda step, figures: there.log(dict(figures), step=step), there.finish)


def _mlflow(run: Path, settings: Mapping[str, Any]) -> Tracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    mlflow.start_run(run_name=run.name)
    mlflow.log_params({key: str(value) for key, value in settings.items()})
    return Tracker("mlflow", lambda step, figures: mlflow.log_metrics(dict(figures), step=step), mlflow.end_run)
