"""The order of the phases: what `tuneful run`, `tuneful train` and `--dry-run` do, from the request to the report.

    set_up  prepare_engine  measure("base")  train  finish_training  save  measure("tuned")  compare  report

They stand in setup, measure and training.

A job owns one run folder. Every phase writes what it found before the next begins, and a job on the folder of an unfinished
run takes what it finds there: answers as they were given, the training from its newest whole checkpoint, the model where it
was saved.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tuneful.batch.order import num_steps
from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.errors import TunefulError
from tuneful.model.precision import choose_device
from tuneful.numbers import rough_duration
from tuneful.report.build import build_report
from tuneful.runs.card import rewrite_card
from tuneful.runs.estimate import Estimate, estimate_run, show_estimate
from tuneful.runs.measure import compare, has_measured, measure
from tuneful.runs.phases import in_words
from tuneful.runs.resume import digest_of
from tuneful.runs.schema import Comparison, GateOutcome
from tuneful.runs.setup import RunState, prepare_engine, set_up, write_environment
from tuneful.runs.training import finish_training, save, train
from tuneful.signals import Interrupted, receiving_signals
from tuneful.train.distributed import joined_group


@dataclass(frozen=True, slots=True)
class JobResult:
    """Where the run is, its report, its trained model (or adapter, where that alone is kept), and the comparison where there was
    a test set to compare on."""

    path: Path
    report: Path
    model: Path
    comparison: Comparison | None

    def __repr__(self) -> str:
        said = f", {self.comparison.sentence!r}" if self.comparison else ""
        return f"JobResult(path={str(self.path)!r}, report={str(self.report)!r}, model={str(self.model)!r}{said})"

    @property
    def gate(self) -> tuple[GateOutcome, ...]:
        """The result of each condition of `report.gate`; `evaluation.gate.check_met` raises where one is not met."""
        return (self.comparison.gate or ()) if self.comparison else ()


def run_job(
    verb: str,
    data: str | Sequence[str],
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
    allow_changed: Sequence[str] = (),
) -> JobResult:
    """The whole job (`verb` "run"), or without the answers before and after ("train"); arguments as for `tuneful.run`."""
    with _open_run(verb, data, config, output, terminal, allow_changed) as run:
        engine = prepare_engine(run)
        has_test = verb == "run" and has_measured(run)
        base = measure(run, engine, "base") if has_test else None
        train(run, engine)
        finish_training(engine)
        save(run, engine)
        if base is None:
            return _finish(run)
        comparison = compare(run, base, measure(run, engine, "tuned"))
        rewrite_card(run, comparison)
        return _finish(run, comparison)


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """How far `train_part` came: whether the training `is_whole`, of how many steps and training records, and which validation
    records it was evaluated on (`validation_sha256`, over their tokens and weights)."""

    is_whole: bool
    num_steps: int
    num_train: int
    num_validation: int
    validation_sha256: str


def train_part(
    data: str | Sequence[str],
    config: Config,
    output: Path,
    terminal: Terminal,
    pause_at: float,
    siblings: Sequence[Path] = (),
) -> TrainedPart:
    """The training of a `run_job("run", ...)` in the folder `output`, up to the first evaluation after `pause_at` of its steps
    (a share) or to its end; nothing is answered. The next call, or that `run_job`, goes on from there.

    `siblings` are folders of runs that may have computed the same before their first step.
    """
    with _open_run("run", data, config, output, terminal, ()) as run:
        run.siblings = tuple(siblings)
        engine = prepare_engine(run)
        if is_whole := train(run, engine, pause_at):
            finish_training(engine)
            save(run, engine)
        write_environment(run)
        train_config, validation = run.config.train, run.dataset.validation
        return TrainedPart(
            is_whole,
            num_steps(run.epoch_length, train_config.batch_size, train_config.num_train_epochs, train_config.max_steps),
            len(run.dataset.train),
            len(validation),
            digest_of(validation.examples),
        )


def estimate_job(
    verb: str,
    data: str | Sequence[str],
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
) -> Estimate:
    """What that job would take in steps, tokens, time, memory and disk, from two measured steps; nothing is left behind."""
    with TemporaryDirectory() as folder, _open_run(verb, data, config, Path(folder) / "run", terminal, ()) as run:
        engine = prepare_engine(run)
        estimate = estimate_run(run, engine, folder=output or Path("runs"))
        show_estimate(estimate, run.terminal)
        return estimate


@contextmanager
def _open_run(
    verb: str,
    data: str | Sequence[str],
    config: Config | None,
    output: Path | None,
    terminal: Terminal | None,
    allow_changed: Sequence[str],
) -> Iterator[RunState]:
    """A run that hears signals, lets go of its folder at the end, and says what a full disk means."""
    config = _naming_its_data(config or Config(), data)
    with receiving_signals() as signals, joined_group(choose_device(config.model.device)) as group:
        terminal = terminal if terminal and group.is_main else Terminal(quiet=True)
        run = set_up(data, config, output, terminal, signals, group, verb=verb, allow_changed=allow_changed)
        path = run.folder.path
        try:
            yield run
        except Interrupted:
            if not signals.second_signal:
                _report_interrupted(run)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TunefulError(
                f"{path}: the disk is full ({error.strerror}). What is finished is kept; make room, then: "
                f"tuneful {verb} --resume {shlex.quote(str(path))}"
            ) from None
        finally:
            run.folder.close()


def _naming_its_data(config: Config, data: str | Sequence[str]) -> Config:
    """`config`, and what it is used on: config.yaml alone begins the same run again."""
    names = (data,) if isinstance(data, str) else tuple(data)
    return config.model_copy(update={"data": config.data.model_copy(update={"train_file": names})})


def _finish(run: RunState, comparison: Comparison | None = None) -> JobResult:
    """Write what is left to write, build the report, and say where everything is."""
    finished = write_environment(run, finished=True)
    path, model = run.folder.path, run.folder.trained
    run.folder.note_finished("config.yaml", "environment.json", "data.json", "data", "comparison.json")
    report = Path(run.group.broadcast(str(build_report(path)) if run.group.is_main else None))
    run.folder.write_record(replace(run.folder.begun, finished=finished))
    run.terminal.heading("Written")
    run.terminal.facts({"report": str(report), "model": str(model), "run": str(path), "time": _time_in_words(run)})
    run.terminal.say()
    for command in _next_commands(run):
        run.terminal.say(f"  {command}", wrap=False)
    return JobResult(path, report, model, comparison)


def _time_in_words(run: RunState) -> str:
    """How long the phases took, and how long those were to take that could be estimated."""
    taken = {name: seconds for name, seconds in run.phase_seconds.items() if name != "checkpoints"}
    said = f"{rough_duration(sum(taken.values()))}: {in_words(taken)}"
    if not run.estimated_seconds:
        return said
    real, estimated = sum(taken.get(name, 0.0) for name in run.estimated_seconds), sum(run.estimated_seconds.values())
    return f"{said}. Training and what follows: {rough_duration(real)}, estimated {rough_duration(estimated)}"


def _next_commands(run: RunState) -> list[str]:
    """What is done next with a finished run: each line is to be copied."""
    path = str(run.folder.path)
    commands = [["chat", "--model", path], ["generate", "--model", path, "--prompt", "..."]]
    if run.verb == "run" and run.config.judge.model is None and len(run.asked):
        commands.append(["evaluate", path, "--judge", "ollama/NAME"])
    return [shlex.join(["tuneful", *command]) for command in commands]


def _report_interrupted(run: RunState) -> None:
    """Report what there is of a run that was interrupted, and say how to go on with it."""
    if run.folder.begun.choices is not None:
        write_environment(run)
        if run.group.is_main:
            build_report(run.folder.path)
    command = shlex.join(["tuneful", run.verb, "--resume", str(run.folder.path)])
    run.terminal.say(f"interrupted; go on with: {command}", style="yellow", wrap=False)
