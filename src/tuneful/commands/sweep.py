"""`tuneful sweep DATA KEY=V1,V2 ...`: runs of a grid, one chosen by validation loss and measured on the test set; a learning
curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import (
    ConfigFile,
    DataAndSettings,
    Gate,
    Json,
    Model,
    Quiet,
    chosen_data,
    data_and_settings,
    data_of,
    with_model,
    with_options,
)

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.data.in_memory import Data
    from tuneful.sweep.job import SweepResult


def sweep(
    data: Data | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    model: Any = None,
    config: Config | None = None,
    sample: int | None = None,
    sample_seed: int | None = None,
    halving: bool = True,
    jobs: int = 1,
    output: Path | None = None,
    terminal: Terminal | None = None,
) -> SweepResult:
    """Train a run for every combination of the values in `grid` (`{"lora.r": [8, 16]}`), choose one and measure it on the test
    set.

    `config` holds the other settings; one that is at its default follows `train.method` and `train.objective` where those are
    swept. `sample` draws so many points of the grid, by `sample_seed` (default: `train.seed`). Unless `halving` is False the
    worse half of the runs is stopped at each rung, by validation loss. At most `jobs` runs are trained at once, in processes.
    The folder `output` (default: one under runs/ named by the request) is a new one or that of the same sweep, which goes on.
    Raises InputError where the request or its input is wrong.
    """
    from tuneful.config import load_config
    from tuneful.sweep.grid import make_grid
    from tuneful.sweep.job import sweep_job

    names = data_of(data, config, "starter")
    sections = _not_at_default(with_model(config, model))
    points = make_grid(
        {key: [json.dumps(value) for value in values] for key, values in (grid or {}).items()},
        lambda settings: load_config(None, settings, begun_with=sections),
        sample=sample,
        seed=sample_seed,
    )
    names = (names,) if isinstance(names, str) else tuple(names)
    return sweep_job(names, points, halving=halving, num_jobs=jobs, output=output, terminal=terminal)


def sweep_command(
    arguments: DataAndSettings = None,
    model: Model = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="the folder of the sweep (default: one under runs/ named by what is asked for)"
        ),
    ] = None,
    config: ConfigFile = None,
    sample: Annotated[int | None, typer.Option(min=1, help="draw so many points of the grid")] = None,
    sample_seed: Annotated[int | None, typer.Option(help="seed of that draw (default: train.seed)")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs that are trained at once, each in a process")] = 1,
    no_halving: Annotated[
        bool, typer.Option("--no-halving", help="train every run to its end, not only the better half at each rung")
    ] = False,
    gate: Gate = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Runs of a grid: KEY=V1,V2 gives a setting several values. One is chosen by validation loss, and that one alone measured
    on the test set. The same command goes on with a sweep that was interrupted."""
    from tuneful.config import load_config
    from tuneful.console import Terminal, to_stdout
    from tuneful.evaluation.gate import check_met
    from tuneful.runs.schema import as_row
    from tuneful.sweep.grid import make_grid, read_settings
    from tuneful.sweep.job import sweep_job

    data, settings = data_and_settings(arguments)
    swept, others = read_settings(with_options(settings, {"model.name_or_path": model, "report.gate": gate}))
    points = make_grid(swept, lambda own: load_config(config, [*others, *own]), sample=sample, seed=sample_seed)
    names = chosen_data(data, points.points[0].config, config, command="sweep", default="starter")
    try:
        result = sweep_job(
            names, points, halving=not no_halving, num_jobs=jobs, output=output, terminal=Terminal(quiet=quiet)
        )
    except KeyboardInterrupt as interrupted:  # typer would make 130 of every one of them
        raise typer.Exit(getattr(interrupted, "exit_code", 130)) from None
    if as_json:
        to_stdout(json.dumps(as_row(result.document), indent=1))
    if result.gate:
        check_met(result.gate)


def _not_at_default(config: Config | None) -> dict[str, dict[str, Any]]:
    """The settings of `config` that are not what its method and objective have by default."""
    from tuneful.config import Config, TrainConfig

    if config is None:
        return {}
    train = TrainConfig(method=config.train.method, objective=config.train.objective)
    default = Config().model_dump() | {"train": train.model_dump()}
    named = {"method", "objective"}
    return {
        name: {key: value for key, value in section.items() if value != default[name][key] or key in named}
        for name, section in config.model_dump().items()
    }
