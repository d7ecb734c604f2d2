"""`tuneful report RUN`: the page of a run folder, built anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: str | Path) -> Path:
    """Build report.html of the run folder `run` anew and return its path; DataError where the folder is no run folder."""
    from tuneful.report.build import build_report

    return build_report(Path(run))


def report_command(run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]) -> None:
    """Build report.html of a run folder anew."""
    from tuneful.console import to_stdout

    to_stdout(str(report(run_dir)))
