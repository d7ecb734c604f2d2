"""The folder of a sweep: sweep.json, sweep.html, and runs/ with a run folder for each point.

sweep.json is written aside and renamed after every leg, so that a sweep which is killed goes on from the last; what a run itself
has come to stands in its own folder, which is read here. One process at a time holds the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from tuneful.errors import ConfigError, DataError
from tuneful.files import read_lines, remove, write_json
from tuneful.runs.folder import METRICS, RECORD, TRAINING
from tuneful.runs.schema import (
    Evaluation,
    RungLoss,
    SweepDocument,
    TrainingSummary,
    ValidationLoss,
    as_row,
    check_sum,
    load_document,
    load_rows,
    noted_sums,
    read_strictly,
)
from tuneful.runs.validation import VALIDATION
from tuneful.sweep.grid import Grid

SWEEP, LOCK = "sweep.json", ".lock"


class SweepDir:
    """The folder `path` of one sweep, held until `close`; `document` is sweep.json, None in a new one.

    Raises ConfigError where the folder holds anything else, or another process works on it, DataError where sweep.json is
    damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path}: is a file; give another --output")
            if path.is_dir() and not (path / SWEEP).exists() and {one.name for one in path.iterdir()} - {LOCK}:
                raise ConfigError(f"{path}: already exists and holds no sweep; give another --output, or remove it")
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / LOCK, blocking=False)
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"{path}: another process works on this sweep; wait for it, or give another --output"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{error.filename or path}: cannot be used: {error.strerror or error}; give another --output"
            ) from None
        try:
            self.document = load_document(SweepDocument, path / SWEEP)
        except DataError as error:
            self.close()
            raise DataError(
                f"{error}. Restore it, or begin anew: give another --output, or remove the folder"
            ) from None
        self._is_new = self.document is None

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()

    def remove_if_not_begun(self) -> None:
        """Leave no folder behind a request that was refused before any run was begun."""
        if not self._is_new or any(self.path.glob(f"runs/*/{RECORD}")):
            return
        remove(self.path / "runs", self.path / SWEEP, self.path / LOCK)
        with contextlib.suppress(OSError):  # something else lies there
            self.path.rmdir()

    def write(self, document: SweepDocument) -> None:
        """sweep.json, whole."""
        self.document = document
        write_json(self.path / SWEEP, as_row(document))

    def run(self, name: str) -> Path:
        """The folder of one run."""
        return self.path / "runs" / name


def request_sha256(data: Sequence[str], grid: Grid, rungs: Sequence[float]) -> str:
    """sha256 over all that decides what a sweep becomes."""
    points = [[dict(point.settings), point.config.model_dump(mode="json")] for point in grid.points]
    return hashlib.sha256(json.dumps([list(data), points, list(rungs)], sort_keys=True).encode()).hexdigest()


def default_path(data: Sequence[str], request: str) -> Path:
    """Where a sweep goes when nothing is said: the same command has the same folder."""
    stem = re.sub(r"[^\w.-]+", "-", Path(data[0]).stem).strip("-") or "data"
    return Path("runs") / f"sweep-{stem}-{request[:8]}"


# What a run has come to


def rung_loss(path: Path, share: float, keep: str) -> RungLoss:
    """How well the run in `path` is doing, as its last evaluations say; `keep` is its `train.keep`."""
    found = [one for one in _evaluations(path) if one.step > 0]
    losses = [one.validation_loss for one in found if one.validation_loss is not None]
    loss = None if not losses else losses[-1] if keep == "last" else min(losses)
    return RungLoss(share, found[-1].step if found else 0, loss)


def kept_loss(path: Path) -> float | None:
    """The validation loss of the weights that the run in `path` has kept; None without a validation set."""
    summary = load_document(TrainingSummary, path / TRAINING)
    if summary is None:
        raise DataError(f"{path / TRAINING}: is missing; remove {path}, and the same command makes this run again")
    return summary.kept_validation_loss


def validation_losses(path: Path) -> list[tuple[float, float]] | None:
    """(loss, weight) of each validation record; None where the run did not write them. DataError where they are damaged."""
    rows = load_rows(ValidationLoss, path / VALIDATION)
    if rows is None:
        return None
    check_sum(path / VALIDATION, noted_sums(path).get(VALIDATION))
    return [(row.loss, row.weight) for row in rows]


def _evaluations(path: Path) -> list[Evaluation]:
    where = path / METRICS
    return [
        read_strictly(Evaluation, line.row, f"{where}:{line.number}: damaged")
        for line in read_lines(where)
        if line.row is not None and "validation_loss" in line.row
    ]
