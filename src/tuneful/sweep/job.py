"""The order of a sweep: legs to each rung, the worse half stopped, the rest to the end; the choice, the verdict, the page.

    for each rung:  run_legs -> survivors        then:  choose -> choice_optimism, fit_power_law -> run_job (the chosen one alone)

Only the chosen run is measured on the test set, before and after its training: the base answers are made once, and no run is
chosen by what it is then judged by. Whatever is found is written before the next thing begins; the same command on the folder of
a sweep that was killed goes on from there, and every run in it in the bits that it would have had.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from tuneful.console import Terminal
from tuneful.errors import ConfigError, TunefulError
from tuneful.files import remove
from tuneful.numbers import plural
from tuneful.runs.folder import read_record
from tuneful.runs.job import TrainedPart, run_job
from tuneful.runs.schema import Comparison, GateOutcome, SweepDocument, SweepRun, load_document
from tuneful.signals import Interrupted, receiving_signals
from tuneful.sweep.choice import with_choice
from tuneful.sweep.folder import SweepDir, default_path, kept_loss, request_sha256, rung_loss
from tuneful.sweep.grid import Grid, Point, in_words
from tuneful.sweep.halving import MIN_RUNS, rungs_of, survivors
from tuneful.sweep.legs import Failed, Leg, Outcome, run_legs
from tuneful.sweep.page import build_sweep_page
from tuneful.sweep.words import loss_in_words, show_sweep

END = 1.0
"""The share of the steps of a whole training."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Where the sweep is, its page, what was found; the folder of the chosen run and its comparison on the test set, None where
    none could be chosen or there is no test set."""

    path: Path
    page: Path
    document: SweepDocument
    chosen: Path | None
    comparison: Comparison | None

    def __repr__(self) -> str:
        return f"SweepResult(path={str(self.path)!r}, chosen={self.document.chosen!r}, {self.document.verdict!r})"

    @property
    def gate(self) -> tuple[GateOutcome, ...]:
        """The result of each condition of `report.gate` for the chosen run."""
        return (self.comparison.gate or ()) if self.comparison else ()


def sweep_job(
    data: Sequence[str],
    grid: Grid,
    *,
    halving: bool = True,
    num_jobs: int = 1,
    output: Path | None = None,
    terminal: Terminal | None = None,
) -> SweepResult:
    """Train the points of `grid` on `data`, at most `num_jobs` at once, choose one and measure it on the test set.

    The folder `output` (default: one under runs/ named by the request) is a new one, or that of the same sweep, which goes on.
    Raises ConfigError where it holds another sweep, or where the runs cannot be compared by their validation loss.
    """
    _check_request(data, num_jobs)
    terminal = terminal or Terminal(quiet=True)
    rungs, reason = _rungs(grid, halving)
    request = request_sha256(data, grid, rungs)
    folder = SweepDir(output or default_path(data, request))
    try:
        sweep = _Sweep(folder, tuple(data), grid, num_jobs, terminal)
        _begin(sweep, request, rungs, reason)
        with receiving_signals():
            return _finish(sweep) if sweep.document.finished is None else _as_it_was(sweep)
    except Interrupted:
        terminal.say("interrupted; the same command goes on with the sweep", style="yellow")
        raise
    except TunefulError:
        folder.remove_if_not_begun()
        raise
    finally:
        folder.close()


@dataclass(frozen=True, slots=True)
class _Sweep:
    """What the parts of one sweep share."""

    folder: SweepDir
    data: tuple[str, ...]
    grid: Grid
    num_jobs: int
    terminal: Terminal

    @property
    def document(self) -> SweepDocument:
        assert self.folder.document is not None, "the sweep was not begun"
        return self.folder.document

    def point(self, run: SweepRun) -> Point:
        names = [one.name for one in self.document.runs]
        return self.grid.points[names.index(run.name)]

    def put(self, run: SweepRun) -> None:
        """Write down how far `run` is."""
        runs = tuple(run if one.name == run.name else one for one in self.document.runs)
        self.folder.write(replace(self.document, runs=runs))


def _check_request(data: Sequence[str], num_jobs: int) -> None:
    if num_jobs < 1:
        raise ConfigError(f"--jobs: {num_jobs} is less than 1")
    if "-" in data:
        raise ConfigError("a sweep reads its data once for every run, and standard input can be read once: give a file")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep is not started by torchrun; start it alone, with --jobs for several runs at once")


def _rungs(grid: Grid, halving: bool) -> tuple[tuple[float, ...], str | None]:
    """Where the worse half of the runs is stopped, and why nowhere."""
    data = [point.config.data for point in grid.points]
    if not halving:
        return (), "it was not to be (--no-halving)"
    if "data.train_share" in grid.keys:
        return (), "a learning curve takes every run to its end"
    if any(one.validation_share == 0 and one.validation_file is None for one in data):
        return (), "there is no validation set"
    found = rungs_of(len(grid.points))
    return found, None if found else f"there are fewer than {MIN_RUNS} runs"


def _begin(sweep: _Sweep, request: str, rungs: tuple[float, ...], reason: str | None) -> None:
    """sweep.json of a new sweep, or the check that the one that is there is this one."""
    folder, points = sweep.folder, sweep.grid.points
    if folder.document is None:
        width = max(2, len(str(len(points))))
        runs = tuple(
            SweepRun(f"run-{number:0{width}}", dict(point.settings), "waiting", None, (), None, None, None, None)
            for number, point in enumerate(points, start=1)
        )
        confidence = points[0].config.report.confidence
        keys, now = sweep.grid.keys, _now()
        document = SweepDocument(
            sweep.data,
            os.getcwd(),
            request,
            keys,
            sweep.grid.num_points,
            rungs,
            reason,
            confidence,
            now,
            None,
            runs,
        )
        folder.write(document)
    elif folder.document.request_sha256 != request:
        raise ConfigError(f"{folder.path}: holds another sweep, of other settings or data; give another --output")
    elif folder.document.finished is None:
        sweep.terminal.say(f"going on with the sweep in {folder.path}, begun {folder.document.started}")
    of_grid = "" if len(points) == sweep.grid.num_points else f" of a grid of {sweep.grid.num_points:,}"
    early = (
        f"the worse half is stopped after {' and '.join(f'{share:g}' for share in rungs)} of the steps"
        if rungs
        else f"no run is stopped early: {reason}"
    )
    sweep.terminal.heading("Sweep")
    sweep.terminal.facts({"runs": f"{len(points)}{of_grid}", "early stopping": early, "folder": str(folder.path)})


def _finish(sweep: _Sweep) -> SweepResult:
    for share in (*sweep.document.rungs, END):
        _train_to(sweep, share)
        if share < END:
            _stop_the_worse(sweep, share)
    runs = sweep.document.runs
    if all(run.state == "failed" for run in runs):
        raise TunefulError(f"no run of the sweep could be trained to its end; the first: {runs[0].reason}")
    if sweep.document.chosen is None:
        sweep.folder.write(with_choice(sweep.folder, sweep.grid))
    _measure_chosen(sweep)
    sweep.folder.write(replace(sweep.document, finished=_now()))
    return _shown(sweep)


def _as_it_was(sweep: _Sweep) -> SweepResult:
    sweep.terminal.say(
        f"this sweep was finished {sweep.document.finished}; for another on changed data give --output", style="yellow"
    )
    return _shown(sweep)


def _shown(sweep: _Sweep) -> SweepResult:
    page = build_sweep_page(sweep.folder.path, sweep.document)
    show_sweep(sweep.document, sweep.terminal)
    chosen = sweep.folder.run(sweep.document.chosen) if sweep.document.chosen else None
    sweep.terminal.facts({"page": str(page), **({"chosen": str(chosen)} if chosen else {})})
    comparison = load_document(Comparison, chosen / "comparison.json") if chosen else None
    return SweepResult(sweep.folder.path, page, sweep.document, chosen, comparison)


# Training


def _train_to(sweep: _Sweep, share: float) -> None:
    """Train every run that goes on to the rung at `share` of its steps, or to its end."""
    due = [run for run in sweep.document.runs if run.state in ("waiting", "paused") and not _has_reached(run, share)]
    name_of = {sweep.folder.run(run.name): run.name for run in due}
    siblings = tuple(sweep.folder.run(run.name) for run in sweep.document.runs)
    legs = [
        Leg(sweep.data, path, sweep.point(run).config, share, siblings) for run, path in zip(due, name_of, strict=True)
    ]
    if legs:
        whither = "to the end" if share == END else f"to {share:g} of the steps"
        sweep.terminal.heading(f"{plural(len(legs), 'run')} {whither}")
    with contextlib.closing(run_legs(legs, sweep.num_jobs)) as outcomes:
        for leg, outcome in outcomes:
            run = next(one for one in sweep.document.runs if one.name == name_of[leg.path])
            run = _after(run, leg, outcome)
            _check_comparable(sweep, run)
            sweep.put(run)
            sweep.terminal.say(f"  {run.name}  {in_words(run.settings)}  {_how_far(run)}")


def _has_reached(run: SweepRun, share: float) -> bool:
    return any(rung.share >= share for rung in run.rungs)


def _after(run: SweepRun, leg: Leg, outcome: Outcome) -> SweepRun:
    """`run` after that leg."""
    if isinstance(outcome, Failed):
        return replace(run, state="failed", reason=outcome.reason)
    part: TrainedPart = outcome
    run = replace(run, num_steps=part.num_steps, num_train=part.num_train, validation_sha256=part.validation_sha256)
    if leg.pause_at < END:
        rung = rung_loss(leg.path, leg.pause_at, leg.config.train.keep)
        run = replace(run, state="paused", rungs=(*run.rungs, rung))
    return replace(run, state="trained", validation_loss=kept_loss(leg.path)) if part.is_whole else run


def _check_comparable(sweep: _Sweep, run: SweepRun) -> None:
    """ConfigError where the validation records of `run` are not those of the others, token by token and weight by weight."""
    first = next((one for one in sweep.document.runs if one.validation_sha256 is not None), run)
    if run.validation_sha256 not in (None, first.validation_sha256):
        raise ConfigError(
            f"{run.name} ({in_words(run.settings)}) has other validation records, tokens or weights than {first.name} "
            f"({in_words(first.settings)}): their validation losses do not compare, so nothing can be chosen by them. Make "
            "single runs, and compare them with `tuneful compare`"
        )


def _how_far(run: SweepRun) -> str:
    if run.state == "failed":
        return f"failed: {run.reason}"
    if run.state == "trained":
        return f"validation loss {loss_in_words(run.validation_loss)}, {run.num_steps} steps"
    rung = run.rungs[-1]
    return f"validation loss {loss_in_words(rung.validation_loss)} after step {rung.step} of {run.num_steps}"


def _stop_the_worse(sweep: _Sweep, share: float) -> None:
    """Stop the runs that are in the worse half at this rung, and remove their checkpoints, which nobody goes on from."""
    here = [(run, _loss_at(run, share)) for run in sweep.document.runs if _was_there(run, share)]
    kept = {here[index][0].name for index in survivors([loss for _, loss in here])}
    worse = [run for run, _ in here if run.name not in kept and run.state == "paused"]
    for run in worse:
        sweep.put(replace(run, state="stopped", reason=f"in the worse half after {share:g} of the steps"))
    for run in sweep.document.runs:
        if run.state == "stopped":
            remove(sweep.folder.run(run.name) / "checkpoints")
    if worse:
        sweep.terminal.say(f"  stopped: {', '.join(run.name for run in worse)}", style="dim")


def _was_there(run: SweepRun, share: float) -> bool:
    """Whether `run` takes part in the comparison at this rung: it was paused there, or had been trained to its end before."""
    return run.state != "failed" and (_has_reached(run, share) or run.state == "trained")


def _loss_at(run: SweepRun, share: float) -> float | None:
    return next((rung.validation_loss for rung in run.rungs if rung.share == share), run.validation_loss)


# The test set


def _measure_chosen(sweep: _Sweep) -> None:
    """The chosen run, and no other, on the test set: answers before and after, comparison, report."""
    document = sweep.document
    run = next((one for one in document.runs if one.name == document.chosen), None)
    if run is None or document.verdict is not None:
        return
    path, config = sweep.folder.run(run.name), sweep.point(run).config
    record = read_record(path)
    if record is not None and record.finished:
        comparison = load_document(Comparison, path / "comparison.json")
    else:
        sweep.terminal.heading(f"The chosen run on the test set: {run.name}")
        comparison = run_job("run", sweep.data, config, path, sweep.terminal).comparison
    verdict = comparison.sentence if comparison is not None else None
    sweep.folder.write(replace(sweep.document, verdict=verdict))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
