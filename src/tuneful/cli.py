"""The command line: one thin function a verb; everything heavy is imported inside them, so `--help` answers at once.

Exit codes: 0 done, 1 failed, 2 the request or its input is wrong, 3 a gate was not met, 130/143 interrupted after saving.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import tuneful
from tuneful.commands.arguments import (
    ConfigFile,
    Gate,
    Json,
    Model,
    Quiet,
    configuration,
    data_and_settings,
    with_options,
)
from tuneful.commands.chat import chat
from tuneful.commands.check import check
from tuneful.commands.compare import compare
from tuneful.commands.evaluate import evaluate
from tuneful.commands.generate import generate
from tuneful.errors import ConfigError, InputError, TunefulError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.job import JobResult

app = typer.Typer(
    name="tuneful",
    help="Instruction finetuning that shows its work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataAndSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA... KEY=VALUE...",
        help="files of records (JSON, JSONL, CSV, Parquet, Arrow; `-` is standard input), patterns, a Hub id, or `starter`; "
        "then settings, such as train.learning_rate=1e-4",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(help="the run folder to make (default: a new one under runs/); an unfinished one goes on"),
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
    typer.Option("--dry-run", help="foretell steps, tokens, time, memory and disk from two steps, and write nothing"),
]


app.command()(generate)
app.command()(chat)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show a traceback with an error")] = False,
) -> None:
    """Instruction finetuning that shows its work."""
    if version:
        print(f"tuneful {tuneful.__version__}")
        raise typer.Exit


@app.command()
def run(
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
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole job: check, split, answer, train, answer again, compare, report."""
    arguments = with_options(arguments, {"report.gate": gate, "report.general": general, "judge.model": judge})
    request = _request(arguments, model, output, config, resume, default="starter")
    _work("run", *request, allow_changed, dry_run, as_json, quiet)


@app.command()
def train(
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


@app.command()
def show(
    arguments: DataAndSettings = None,
    model: Model = None,
    config: ConfigFile = None,
    rows: Annotated[int, typer.Option(min=1, help="how many records to show")] = 3,
    start: Annotated[int, typer.Option(min=1, help="the record to begin with, counted from 1")] = 1,
    text: Annotated[bool, typer.Option("--text", help="the rendered text alone; needs no tokenizer")] = False,
    html: Annotated[Path | None, typer.Option(help="write them as a page to this file instead")] = None,
    as_json: Json = False,
) -> None:
    """The exact tokens and weights of some records."""
    from tuneful import showing

    data, overrides = data_and_settings(arguments)
    settings = configuration(config, overrides, {"model.name_or_path": model})
    showing.show_records(data or ["starter"], settings, start=start, rows=rows, text=text, as_json=as_json, html=html)


app.command()(evaluate)
app.command()(compare)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]) -> None:
    """Build report.html of a run folder anew."""
    from tuneful.console import to_stdout
    from tuneful.report.build import build_report

    to_stdout(str(build_report(run_dir)))


app.command()(check)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine offers, and whether Tuneful can work on it."""
    from tuneful import doctor as examination
    from tuneful.console import Terminal, to_stdout

    findings = examination.examine()
    if as_json:
        to_stdout(json.dumps(findings, indent=1))
    else:
        examination.show(findings, Terminal(stderr=False))


def main() -> None:
    """Entry point of the `tuneful` command."""
    debug = "--debug" in sys.argv
    _prepare_process()
    try:
        arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
        sys.exit(app(prog_name="tuneful", standalone_mode=False, args=arguments))
    except TunefulError as error:
        _fail(error, error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own, about an argument
            if not error.format_message():  # no argument at all: the help was shown
                sys.exit(error.exit_code)
            _fail(_usage_error(error), int(error.exit_code), debug)
        _fail(error, 1, debug)


def _prepare_process() -> None:
    """Settings that only count before torch is loaded: large buffers in huge pages, no telemetry."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no reason to fail


def _usage_error(error: Any) -> InputError:
    """Typer's own complaint about an argument, said our way."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tuneful"
    return InputError(f"{str(error.format_message()).rstrip('.')}; see {command} --help")


def _fail(error: Exception, exit_code: int, debug: bool) -> NoReturn:
    if debug:
        raise error
    lines = str(error) or type(error).__name__
    if not isinstance(error, TunefulError):
        lines = f"{type(error).__name__}: {lines}\n(this looks like a defect of Tuneful: --debug shows where)"
    print(f"error: {lines}", file=sys.stderr)
    sys.exit(exit_code)


def _work(
    verb: str,
    data: list[str],
    config: Config,
    output: Path | None,
    allow_changed: list[str] | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from tuneful import api
    from tuneful.console import Terminal, to_stdout

    terminal = Terminal(quiet=quiet)
    try:
        if dry_run:
            forecast = api.dry_run(verb, data, config=config, output=output, terminal=terminal)
            if as_json:
                to_stdout(json.dumps(asdict(forecast), indent=1))
            return
        result: JobResult = getattr(api, verb)(
            data, config=config, output=output, terminal=terminal, allow_changed=allow_changed or ()
        )
    except KeyboardInterrupt as interrupted:  # typer would make 130 of every one of them
        raise typer.Exit(getattr(interrupted, "exit_code", 130)) from None
    if as_json:
        to_stdout(json.dumps(_as_document(result), indent=1))
    if result.gate:
        from tuneful.judge.gate import refuse_unmet

        refuse_unmet(result.gate)


def _as_document(result: JobResult) -> dict[str, Any]:
    from tuneful.judge.compare import as_dict

    document = {name: str(value) for name, value in asdict(result).items() if isinstance(value, Path)}
    return {**document, "comparison": as_dict(result.comparison) if result.comparison else None}


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
        if config is not None:
            raise ConfigError(
                "--resume brings its own configuration; give single settings, such as train.save_steps=100"
            )
        return _unfinished(data, overrides, model)
    if not data:
        if default is None:
            raise InputError("Missing argument 'DATA'; see tuneful train --help")
        data = [default]
    if resume and output is not None and not output.exists():
        raise ConfigError(f"{output}: there is no run to resume; drop --resume to begin one")
    return data, configuration(config, overrides, {"model.name_or_path": model}), output


def _unfinished(runs: list[str], overrides: list[str], model: str | None) -> tuple[list[str], Config, Path]:
    """The request that began the run in the folder that is named, with its paths meant as they were then."""
    from tuneful.config import load_config
    from tuneful.rundir import newest_unfinished, read_record

    if len(runs) > 1:
        raise ConfigError(f"--resume takes one run folder, not {len(runs)}: {', '.join(runs)}")
    path = (Path(runs[0]) if runs else newest_unfinished(Path("runs"))).absolute()
    record = read_record(path)
    if record is None:
        raise ConfigError(f"{path}: there is no run to resume")
    if Path(record["folder"]).is_dir():
        os.chdir(record["folder"])
    return (
        record["data"],
        load_config(None, with_options(overrides, {"model.name_or_path": model}), begun_with=record["config"]),
        path,
    )


if __name__ == "__main__":
    main()
