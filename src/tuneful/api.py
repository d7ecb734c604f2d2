"""The Python entry points: what the command line does, as functions.

from tuneful import api
result = api.run("my.json")
print(result.report, result.comparison)
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.errors import TunefulError
from tuneful.foretell import Forecast, foretell, show
from tuneful.interruption import Interrupted, receiving_signals
from tuneful.job import Job, JobResult
from tuneful.model.precision import choose_device
from tuneful.report.build import build_report
from tuneful.train.distributed import joined_world

__all__ = ["dry_run", "report", "run", "train"]


def run(
    data: str | Sequence[str] = "starter",
    *,
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
    allow_changed: Sequence[str] = (),
) -> JobResult:
    """The whole job: read, split, answers before, finetune, answers after, compare, report.

    `data` is a file, a pattern, a Hub id, `starter`, or several of them; `output` a folder that does not exist yet
    (default: a new one under runs/), or that of an unfinished run, which then goes on where it stopped; settings named in
    `allow_changed` may differ from those it was begun with. Raises InputError, before anything is trained, where the
    request or its input is wrong; Interrupted on SIGINT and SIGTERM.
    """
    with _job("run", data, config, output, terminal, allow_changed) as job:
        job.prepare_training()
        if not len(job.dataset.test):
            job.train()
            job.save()
            return job.finish()
        base, general_base = job.answer_test_set("base"), job.measure_general("base")
        job.train()
        job.save()
        tuned, general_tuned = job.answer_test_set("tuned"), job.measure_general("tuned")
        return job.finish(job.compare(*job.judge(base, tuned), general_base, general_tuned))


def train(
    data: str | Sequence[str],
    *,
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
    allow_changed: Sequence[str] = (),
) -> JobResult:
    """Finetune and save; the test records are set aside and not answered. Arguments and errors as for `run`."""
    with _job("train", data, config, output, terminal, allow_changed) as job:
        job.prepare_training()
        job.train()
        job.save()
        return job.finish()


def dry_run(
    verb: str,
    data: str | Sequence[str] = "starter",
    *,
    config: Config | None = None,
    output: Path | None = None,
    terminal: Terminal | None = None,
) -> Forecast:
    """What `run` or `train` (`verb`) would take in steps, tokens, time, memory and disk, from two measured steps.

    Nothing is left behind; `output` is where the run would be written. Errors as for `run`.
    """
    with TemporaryDirectory() as folder, _job(verb, data, config, Path(folder) / "run", terminal, ()) as job:
        job.prepare_training()
        forecast = foretell(job, answers=verb == "run", folder=output or Path("runs"))
        show(forecast, job)
        return forecast


def report(run_dir: Path) -> Path:
    """Build report.html of a run folder anew and return its path; DataError where the folder is no run folder."""
    return build_report(run_dir)


@contextmanager
def _job(
    verb: str,
    data: str | Sequence[str],
    config: Config | None,
    output: Path | None,
    terminal: Terminal | None,
    allow_changed: Sequence[str],
) -> Iterator[Job]:
    """A job that hears signals, lets go of its folder at the end, and says what a full disk means."""
    config = config or Config()
    with receiving_signals() as signals, joined_world(choose_device(config.model.device)) as world:
        terminal = terminal if terminal and world.is_main else Terminal(quiet=True)
        job = Job(data, config, output, terminal, signals, world, verb=verb, allow_changed=allow_changed)
        try:
            yield job
        except Interrupted:
            if not signals.insisted:
                job.interrupted()
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TunefulError(
                f"{job.run.path}: the disk is full ({error.strerror}). What is finished is kept; make room, then: "
                f"tuneful {verb} --resume {job.run.path}"
            ) from None
        finally:
            job.close()
