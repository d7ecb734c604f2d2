"""The Python entry points: what the command line does, as functions.

from tuneful import api
result = api.run("my.json")
print(result.report, result.comparison)
"""

from __future__ import annotations

from pathlib import Path

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.job import Job, JobResult
from tuneful.report.build import build_report

__all__ = ["report", "run", "train"]


def run(
    data: str = "starter", *, config: Config | None = None, output: Path | None = None, terminal: Terminal | None = None
) -> JobResult:
    """The whole job: read, split, answers before, finetune, answers after, compare, report.

    `data` is a file or `starter`; `output` a folder that does not exist yet (default: a new one under runs/). Raises
    InputError, before anything is trained, where the request or its input is wrong.
    """
    job = Job(data, config or Config(), output, terminal or Terminal(quiet=True))
    job.show_data()
    job.prepare_training()
    if not len(job.dataset.test):
        job.train()
        job.save()
        return job.finish()
    base = job.answer_test_set("base")
    job.train()
    job.save()
    tuned = job.answer_test_set("tuned")
    return job.finish(job.compare(base, tuned))


def train(
    data: str, *, config: Config | None = None, output: Path | None = None, terminal: Terminal | None = None
) -> JobResult:
    """Finetune and save; the test records are set aside and not answered. Arguments and errors as for `run`."""
    job = Job(data, config or Config(), output, terminal or Terminal(quiet=True))
    job.show_data()
    job.prepare_training()
    job.train()
    job.save()
    return job.finish()


def report(run_dir: Path) -> Path:
    """Build report.html of a run folder anew and return its path; DataError where the folder is no run folder."""
    return build_report(run_dir)
