"""Every run under a folder, as its files say: what it is, what became of it, in which settings the runs differ.

    find_runs -> read_run_folder -> ListedRun

Feeds `tuneful runs`: `table.py` chooses, orders and shows them, `leftovers.py` says what of them could go. Nothing is written, no
weight is read, and torch is not imported. A folder is a run where run.json says so; what is damaged in it is named, and what
else lies about is passed over. The trade: documents that the table shows are compared with their noted sha256, files of models
and data are only looked for, so that a hundred runs take seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from filelock import FileLock, Timeout

from tuneful.config import load_config
from tuneful.config.load import translated
from tuneful.errors import ConfigError, DataError
from tuneful.files import read_lines
from tuneful.runs.folder import LOCK, METRICS, RECORD, TRAINING, RunDir, read_record
from tuneful.runs.schema import (
    Comparison,
    Environment,
    MetricComparison,
    RunRecord,
    TrainingSummary,
    check_sum,
    load_document,
    read_object,
)

Document = TypeVar("Document")
State = Literal["finished", "running", "interrupted", "damaged"]

CHECKPOINT = re.compile(r"step-(\d+)")
"""The name of a whole checkpoint's folder."""
_MAX_FIGURE = 1e15  # no loss and no step is larger
_OURS = {"verb", "config", "training"}


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run as a line of the table; what it has not measured, or what cannot be read, is None."""

    name: Annotated[str, "its place below the folder that was listed"]
    path: Annotated[str, "its folder"]
    state: Annotated[State, "`finished`, `running`, `interrupted` or `damaged`"]
    note: Annotated[str, "where an interrupted run goes on, or what is damaged"] = ""
    verb: Annotated[str | None, "the command, `run` or `train`"] = None
    data: Annotated[tuple[str, ...], "the data, as it was named"] = ()
    model: Annotated[str | None, "the model that is trained, as it was named"] = None
    method: Annotated[str | None, "`train.method`"] = None
    objective: Annotated[str | None, "`train.objective`"] = None
    started: Annotated[str | None, "when the run was begun, UTC"] = None
    finished: Annotated[str | None, "when it was finished, UTC"] = None
    seconds: Annotated[float | None, "wall time of all its phases"] = None
    steps: Annotated[int | None, "optimizer steps taken"] = None
    planned_steps: Annotated[int | None, "optimizer steps planned"] = None
    base_validation_loss: Annotated[float | None, "validation loss before the first step, nats a token"] = None
    validation_loss: Annotated[
        float | None, "that of the weights that were kept; of a run that is not done, the last one"
    ] = None
    confidence: Annotated[float | None, "of the intervals, 0 to 1"] = None
    headline: Annotated[MetricComparison | None, "the metric that the run's verdict speaks of, tuned against base"] = (
        None
    )
    forgetting: Annotated[MetricComparison | None, "bits per byte of general text, tuned against base"] = None
    kl_to_base: Annotated[MetricComparison | None, "bits per token between tuned and base"] = None
    disk_bytes: Annotated[int, "what lies in the folder"] = 0
    checkpoint_bytes: Annotated[int, "of that, checkpoints"] = 0
    settings: Annotated[Mapping[str, Any], "every setting, by `section.key`"] = field(default_factory=dict)


def find_runs(folder: Path) -> list[Path]:
    """The run folders at and below `folder`, by name. A run is not searched for others; of links only those to a run count."""
    if is_run(folder):
        return [folder]
    found: list[Path] = []
    for place, folders, _ in os.walk(folder):
        inside = sorted(name for name in folders if not name.startswith("."))
        runs = {name for name in inside if is_run(Path(place, name))}
        found += [Path(place, name) for name in runs]
        folders[:] = [name for name in inside if name not in runs]
    return sorted(found)


def read_run_folder(path: Path, folder: Path, *, is_ours: bool = False) -> ListedRun:
    """What there is to know of the run in `path`, found below `folder`; `is_ours` where this process holds it.

    Never raises for what lies in it.
    """
    name = path.relative_to(folder).as_posix() if path != folder else path.name or str(path)
    disk_bytes, checkpoint_bytes = sizes(path)
    known: dict[str, Any] = {"disk_bytes": disk_bytes, "checkpoint_bytes": checkpoint_bytes}
    try:
        record = read_record(path)
        if record is None:
            raise ConfigError(f"{path / RECORD}: is missing")
    except (ConfigError, OSError) as error:
        return ListedRun(name, str(path), "damaged", _reason(error, path), **known)
    settings = settings_of(record)
    reader = _Documents(path, record)
    known |= {
        "verb": record.verb,
        "data": record.data,
        "model": _text(settings.get("model.name_or_path")),
        "method": _text(settings.get("train.method")),
        "objective": _text(settings.get("train.objective")),
        "started": record.started,
        "finished": record.finished,
        "settings": settings,
        **_measured(reader),
    }
    state, note = _state(path, record, reader.damage(), is_ours)
    return ListedRun(name, str(path), state, note, **known)


def settings_of(record: RunRecord) -> dict[str, Any]:
    """Every setting of a run by `section.key`, under the names that hold now; what is newer than the run is at its default."""
    try:
        sections: Mapping[str, Any] = load_config(begun_with=record.config).model_dump(mode="json")
    except ConfigError:  # of a version that knows other values
        sections = translated(record.config)
    return {
        f"{section}.{key}": value
        for section, keys in sections.items()
        if isinstance(keys, Mapping)
        for key, value in keys.items()
    }


def is_held(path: Path) -> bool:
    """Whether a process is at work on the run in `path`: whether its lock is held.

    To see that, the lock is taken and let go of, within microseconds: what goes on working is not hindered by it.
    """
    lock = path / LOCK
    if not lock.is_file() or lock.is_symlink():
        return False
    own = FileLock(lock, blocking=False)
    try:
        own.acquire()
    except Timeout:
        return True
    except OSError:  # somebody else's folder
        return False
    own.release()
    return False


def is_run(path: Path) -> bool:
    """Whether there is a run in `path`: run.json that a run wrote, or what is left of one without it."""
    file = path / RECORD
    if not os.path.lexists(file):
        return all(os.path.lexists(path / name) for name in ("config.yaml", METRICS))
    try:
        record = read_object(file)
    except DataError:
        return os.path.lexists(path / "config.yaml") or os.path.lexists(path / LOCK)
    return bool(record and _OURS & record.keys())


def newest_step(path: Path) -> int | None:
    """The step of the newest checkpoint that lies in a run, by its name; None where there is none."""
    with suppress(OSError):
        names = [one.name for one in (path / "checkpoints").iterdir() if (one / "manifest.json").is_file()]
        return max((int(found[1]) for name in names if (found := CHECKPOINT.fullmatch(name))), default=None)
    return None


def sizes(path: Path) -> tuple[int, int]:
    """Bytes of the files below `path`, and of those that are in its checkpoints. Links are not followed."""
    total = of_checkpoints = 0
    for place, _, names in os.walk(path):
        num_bytes = 0
        for name in names:
            with suppress(OSError):
                num_bytes += os.lstat(os.path.join(place, name)).st_size
        total += num_bytes
        if Path(place).relative_to(path).parts[:1] == ("checkpoints",):
            of_checkpoints += num_bytes
    return total, of_checkpoints


# What lies in a run


class _Documents:
    """Reads documents of the run in `path`: one that is damaged is None, and its reason kept."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self._path, self._record = path, record
        self._damage: list[str] = []

    def read(self, kind: type[Document], name: str) -> Document | None:
        """The document in the file `name`; None where there is none, or it cannot be believed."""
        try:
            document = load_document(kind, self._path / name)
            if document is not None:
                check_sum(self._path / name, self._record.files.get(name))
        except DataError as error:
            self._damage.append(_reason(error, self._path))
            return None
        return document

    def last(self, key: str) -> Any:
        """The last number under `key` in a line of metrics.jsonl."""
        found = None
        with suppress(OSError):
            for line in read_lines(self._path / METRICS):
                value = line.row.get(key) if line.row else None
                found = value if _is_figure(value) else found
        return found

    def damage(self) -> str:
        """What is wrong with the run, in words; empty for nothing."""
        if self._damage:
            return self._damage[0]
        missing = sorted(name for name in self._record.files if not (self._path / name).is_file())
        if self._record.finished and missing:
            more = f", and {len(missing) - 1} other files" if len(missing) > 1 else ""
            return f"{missing[0]}: is missing{more}"
        if self._record.finished and not RunDir.following(self._path, self._record).has_model:
            return "its trained model is missing"
        return ""


def _measured(reader: _Documents) -> dict[str, Any]:
    training = reader.read(TrainingSummary, TRAINING)
    comparison = reader.read(Comparison, "comparison.json")
    environment = reader.read(Environment, "environment.json")
    found: dict[str, Any] = {}
    if environment is not None:
        phases = environment.phase_seconds
        found["seconds"] = float(sum(taken for name, taken in phases.items() if name != "checkpoints"))
    if training is not None:
        kept = training.kept_validation_loss
        found |= {
            "steps": training.steps,
            "planned_steps": training.planned_steps,
            "base_validation_loss": training.base_validation_loss,
            "validation_loss": training.best_validation_loss if kept is None else kept,
        }
    else:
        step, loss = reader.last("step"), reader.last("validation_loss")
        found |= {"steps": None if step is None else int(step), "validation_loss": loss}
    if comparison is not None:
        found |= {
            "confidence": comparison.confidence,
            "headline": comparison.measured(comparison.headline),
            "forgetting": comparison.measured("forgetting"),
            "kl_to_base": comparison.measured("kl_to_base"),
        }
    return found


def _state(path: Path, record: RunRecord, damage: str, is_ours: bool) -> tuple[State, str]:
    if not record.finished and not is_ours and is_held(path):
        return "running", f"process {record.process.pid} on {record.process.host} since {record.process.since}"
    if damage:
        return "damaged", damage
    if record.finished:
        return "finished", ""
    if RunDir.following(path, record).has_model:
        return "interrupted", "can be resumed: the model is trained and saved"
    if (step := newest_step(path)) is not None:
        return "interrupted", f"can be resumed after step {step}"
    return "interrupted", "can be resumed, from the first step"


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MAX_FIGURE


def _reason(error: Exception, path: Path) -> str:
    """What is wrong, in one line, without the folder's own path and the advice of who would go on with the run."""
    text = str(error).replace(f"{path}{os.sep}", "").replace("damaged: ", "")
    return " ".join(text.partition(". Restore it")[0].split())


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
