"""`tuneful run` and `tuneful train`: the whole job from a raw file to a report, or its middle alone; and `--dry-run` of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import (
    Checks,
    ConfigFile,
    DataAndSettings,
    Gate,
    Json,
    Model,
    Quiet,
    chosen_data,
    configuration,
    data_and_settings,
    data_of,
    with_model,
    with_options,
)
from tuneful.errors import ConfigError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.console import Terminal
    from tuneful.data.in_memory import Data
    from tuneful.runs.estimate import Estimate
    from tuneful.runs.job import JobResult

Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="the run folder to make (default: a new one under runs/); an unfinished one goes on"
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="go on with an unfinished run: RUN in place of DATA (default: the newest in runs/)"),
]
AllowChanged = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY", help="a setting, or `data` or `model`, that may differ from what a resumed run began with"
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="estimate steps, tokens, time, memory and disk from two steps, and write nothing"),
]


def run(
    data: Data | None = None,
    *,
    model: Any = None,
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
    allow_changed: Sequence[str] = (),
) -> JobResult:
    """The whole job: read, split, answers before, finetune, answers after, compare, report.

    `data` is a file, a pattern, a Hub id, `starter`, or several of them; or the records: a list of dicts, a data frame, a
    data set of `datasets`. Where it is not given it is what `config` names (`data.train_file`), or without either `starter`.
    `model` is a name, a folder, or (model, tokenizer) of transformers, and stands in place of the one that `config` names.
    `output` is a folder that does not exist yet (default: a new one under runs/), or that of an unfinished run, which then goes
    on where it stopped; settings named in `allow_changed` may differ from those it was begun with. Raises InputError, before
    anything is trained, where the request or its input is wrong; Interrupted on SIGINT and SIGTERM.
    """
    from tuneful.runs.job import run_job

    return run_job("run", data_of(data, config, "starter"), with_model(config, model), output, terminal, allow_changed)


def train(
    data: Data | None = None,
    *,
    model: Any = None,
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
    allow_changed: Sequence[str] = (),
) -> JobResult:
    """Finetune and save; the test records are set aside and not answered. Arguments and errors as for `run`."""
    from tuneful.runs.job import run_job

    return run_job("train", data_of(data, config), with_model(config, model), output, terminal, allow_changed)


def dry_run(
    verb: str,
    data: Data | None = None,
    *,
    model: Any = None,
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
) -> Estimate:
    """What `run` or `train` (`verb`) would take in steps, tokens, time, memory and disk, from two measured steps.

    Nothing is left behind; `output` is where the run would be written. Errors as for `run`.
    """
    from tuneful.runs.job import estimate_job

    return estimate_job(verb, data_of(data, config, "starter"), with_model(config, model), output, terminal)


def run_command(
    arguments: DataAndSettings = None,
    model: Model = None,
    output: Output = None,
    config: ConfigFile = None,
    resume: Resume = False,
    allow_changed: AllowChanged = None,
    gate: Gate = None,
    judge: Annotated[
        str | None, typer.Option(help="who grades the answers: ollama/NAME, openai/MODEL, gguf:FILE or model:FOLDER")
    ] = None,
    general: Annotated[
        str | None, typer.Option(help="text on which forgetting is measured: a file, `builtin` or `none`")
    ] = None,
    checks: Checks = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole job: check, split, answer, train, answer again, compare, report."""
    arguments = with_options(
        arguments, {"report.gate": gate, "report.general": general, "judge.model": judge, "evaluation.checks": checks}
    )
    request = _request(arguments, model, output, config, resume, default="starter")
    _work("run", *request, allow_changed, dry_run, as_json, quiet)


def train_command(
    arguments: DataAndSettings = None,
    model: Model = None,
    output: Output = None,
    config: ConfigFile = None,
    resume: Resume = False,
    allow_changed: AllowChanged = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Finetune and save, without answering the test set."""
    request = _request(arguments, model, output, config, resume, default=None)
    _work("train", *request, allow_changed, dry_run, as_json, quiet)


def _work(
    verb: str,
    data: list[str],
    config: Config,
    output: Path | None,
    allow_changed: list[str] | None,
    is_dry: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from tuneful.console import Terminal, to_stdout

    terminal = Terminal(quiet=quiet)
    try:
        if is_dry:
            from tuneful.runs.estimate import show_estimate

            estimate = dry_run(verb, data, config=config, output=output, terminal=terminal)
            if as_json:
                to_stdout(json.dumps(asdict(estimate), indent=1))
            elif quiet:  # the estimate is what was asked for, not a word on the way to it
                show_estimate(estimate, Terminal(stderr=False))
            return
        work = run if verb == "run" else train
        result = work(data, config=config, output=output, terminal=terminal, allow_changed=allow_changed or ())
    except KeyboardInterrupt as interrupted:  # typer would make 130 of every one of them
        raise typer.Exit(getattr(interrupted, "exit_code", 130)) from None
    if as_json:
        to_stdout(json.dumps(_as_document(result), indent=1))
    if result.gate:
        from tuneful.evaluation.gate import check_met

        check_met(result.gate)


def _as_document(result: JobResult) -> dict[str, Any]:
    from tuneful.runs.schema import as_row

    places = {"path": str(result.path), "report": str(result.report), "model": str(result.model)}
    comparison = result.comparison  # its figures alone: comparison.json lists the items behind them
    figures = replace(comparison, sentence=None, items=None, gate=None) if comparison else None
    return {**places, "comparison": as_row(figures) if figures else None}


def _request(
    arguments: list[str] | None,
    model: str | None,
    output: Path | None,
    config: Path | None,
    resume: bool,
    *,
    default: str | None,
) -> tuple[list[str], Config, Path | None]:
    """(data, configuration, run folder) of what is asked for; with --resume, of the unfinished run that is named."""
    data, overrides = data_and_settings(arguments)
    if resume and output is None:
        from tuneful.runs.resume import unfinished_request

        if config is not None:
            raise ConfigError(
                "--resume brings its own configuration; give single settings, such as train.save_steps=100"
            )
        return unfinished_request(data, with_options(overrides, {"model.name_or_path": model}))
    if resume and output is not None and not output.exists():
        raise ConfigError(f"{output}: there is no run to resume; drop --resume to begin one")
    settings = configuration(config, overrides, {"model.name_or_path": model})
    return chosen_data(data, settings, config, command="train", default=default), settings, output
