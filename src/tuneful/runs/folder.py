"""A run folder: everything a run was and found, in files that others read.

    config.yaml  run.json  environment.json  data.json  data/{train,validation,test,refused}.jsonl  metrics.jsonl
    checkpoints/step-000117/  records.jsonl  answers/{base,tuned}.jsonl  general/{base,tuned}.jsonl  comparison.json
    model/  adapter/  report.html

Whole files are written aside and renamed, so that a reader, or the next run after a kill, never meets half of one: a file
that is there is finished, and a run that goes on takes it as it is. `metrics.jsonl` grows line by line, and is cut back to
the checkpoint that is resumed from. `run.json` says what was asked for and what is being trained; one process at a time
holds the folder, by a lock that the system lets go of when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from tuneful.config import Config, dump_config
from tuneful.encoding.template import TEMPLATE_FILE
from tuneful.errors import ConfigError, DataError
from tuneful.files import as_json, json_line, remove, write_text
from tuneful.runs.integrity import check_places, record_sha256, sums_of
from tuneful.runs.schema import (
    Process,
    RunRecord,
    TrainingSummary,
    as_row,
    check_sum,
    load_document,
    load_rows,
    read_object,
    read_strictly,
)

Row = TypeVar("Row")

RECORD, METRICS, RECORDS, TRAINING = "run.json", "metrics.jsonl", "records.jsonl", "training.json"
MADE_AGAIN = ("answers/", "general/", "documents/", "tests/", "reference.json")
"""Files that a run makes again where they are damaged."""

LOCK = ".lock"


class RunDir:
    """The folder `path` of one run, held until `close`.

    `record` is what run.json said of a run that is not finished yet, and None for a new one. Raises ConfigError where the
    folder holds anything else, is held by another process, or cannot be written. `following` makes the folder of a rank that
    is not the main one: it reads, writes nothing, and has the main rank's `record`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writes = True
        self.record: RunRecord | None = None
        try:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path}: is a file; give another --output")
            if path.exists() and not {LOCK, RECORD} & set(os.listdir(path)) and any(path.iterdir()):
                raise ConfigError(f"{path}: already exists and is not empty; give another --output, or remove it")
            check_places(path)
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / LOCK, blocking=False)
            self._lock.acquire()
        except Timeout:
            raise ConfigError(f"{path}: is in use{_by_whom(path)}; wait for it, or give another --output") from None
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            self.record = self._unfinished()
        except OSError as error:
            self.close()
            raise _unusable(path, error) from None
        except BaseException:
            self.close()
            raise

    @classmethod
    def following(cls, path: Path, record: RunRecord | None) -> RunDir:
        """The folder of a run that another rank holds."""
        run = cls.__new__(cls)
        run.path, run.record, run._writes = path, record, False
        return run

    def close(self) -> None:
        """Let go of the folder."""
        if self._writes:
            self._lock.release()

    def remove_if_empty(self) -> None:
        """Leave no empty folder behind a request that was refused; the folder is let go of."""
        with contextlib.suppress(OSError):
            if self._writes and os.listdir(self.path) == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
        self.close()

    @property
    def begun(self) -> RunRecord:
        """`record` of a run that was begun, by this process or an earlier one."""
        assert self.record is not None, "the run was not begun"
        return self.record

    def write_record(self, record: RunRecord) -> None:
        """run.json: what was asked for, what is being trained, and which process is at it."""
        record = replace(record, process=this_process(), sha256=None)
        self.record = replace(record, sha256=record_sha256(as_row(record)))
        self.write_document(RECORD, self.record)

    def note_finished(self, *places: str) -> None:
        """The files at `places`, and in those that are folders, are finished: run.json names their sha256 from here on."""
        if self._writes:
            self.write_record(replace(self.begun, files={**self.begun.files, **dict(sums_of(self.path, places))}))

    def _unfinished(self) -> RunRecord | None:
        """run.json of the run that is to go on; None where there is none yet."""
        remove(*self.path.rglob(".*.part"))
        record = read_record(self.path)
        if record is None:
            if others := sorted(set(os.listdir(self.path)) - {LOCK}):
                raise ConfigError(
                    f"{self.path}: holds {others[0]} but no {RECORD}; give another --output, or remove it"
                )
            return None
        if record.finished:
            raise ConfigError(
                f"{self.path}: already exists and holds a finished run; give another --output, or remove it"
            )
        return record

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def metrics_bytes(self) -> int:
        """How long metrics.jsonl is; 0 where there is none."""
        metrics = self.path / METRICS
        return metrics.stat().st_size if metrics.exists() else 0

    def flush_metrics(self) -> tuple[int, str | None]:
        """Put metrics.jsonl on the disk; its length in bytes, and their sha256."""
        if not self._writes or not (self.path / METRICS).exists():
            return self.metrics_bytes, None
        with (self.path / METRICS).open("rb+") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256")
        return self.metrics_bytes, digest.hexdigest()

    def cut_metrics(self, num_bytes: int, sha256: str | None = None) -> bool:
        """Drop the lines of metrics.jsonl that were written after its first `num_bytes` bytes, which have this `sha256`.

        False where there is no such file though lines were written: they are lost. DataError where the bytes are others.
        """
        metrics = self.path / METRICS
        if not self._writes:
            return True
        if not metrics.exists():
            return num_bytes == 0
        with metrics.open("rb") as file:
            begin = file.read(num_bytes)
        if len(begin) < num_bytes or (sha256 is not None and hashlib.sha256(begin).hexdigest() != sha256):
            raise DataError(
                f"{metrics}: damaged: its first {num_bytes:,} bytes are not what the run wrote before its newest checkpoint; "
                "restore it, or remove it to go on without those lines"
            )
        os.truncate(metrics, num_bytes)
        return True

    def read_document(self, kind: type[Row], name: str) -> Row | None:
        """The document in the JSON file `name`, None where it was not written yet; DataError where it is damaged."""
        document = load_document(kind, self.path / name)
        if document is not None:
            check_sum(self.path / name, self._noted(name))
        return document

    def read_rows(self, kind: type[Row], name: str) -> list[Row] | None:
        """The rows of the JSONL file `name`, None where it was not written yet; DataError where it is damaged."""
        rows = load_rows(kind, self.path / name)
        if rows is not None:
            check_sum(self.path / name, self._noted(name))
        return rows

    def check_trained(self) -> list[str]:
        """What is left of a training that was done and saved: DataError where it is damaged, sentences of what is missing.

        Not of what is made again.
        """
        again = f"remove {self.model}: the training goes on from its newest checkpoint, and the model is saved again"
        try:
            if self.read_document(TrainingSummary, TRAINING) is None:
                raise DataError(f"{self.path / TRAINING}: is missing")
            for name in self.begun.files:
                if name.startswith(("model/", "adapter/")):
                    check_sum(self.path / name, self._noted(name))
        except DataError as error:
            raise DataError(f"{error}; {again}") from None
        missing = [name for name in (METRICS, RECORDS) if self._noted(name) and not (self.path / name).exists()]
        for name in {METRICS, RECORDS} - {*missing}:
            try:
                check_sum(self.path / name, self._noted(name))
            except DataError as error:
                raise DataError(f"{error}; restore it, or remove it to go on without it") from None
        return [f"{self.path / name} is missing: the report will lack what it said" for name in missing]

    def _noted(self, name: str) -> str | None:
        return self.begun.files.get(name)

    def forget(self, *names: str) -> None:
        """Remove files of the folder that are to be made anew."""
        for name in names if self._writes else ():
            (self.path / name).unlink(missing_ok=True)
        if self.record is not None:
            kept = {name: digest for name, digest in self.record.files.items() if name not in names}
            self.record = replace(self.record, files=kept)

    @property
    def model(self) -> Path:
        """Where the trained model goes."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """Where the adapter goes that is merged in the model."""
        return self.path / "adapter"

    @property
    def trained(self) -> Path:
        """Where the result of the training goes: `model`, or `adapter` where that alone is kept (`lora.merge: false`)."""
        config = self.record.config if self.record else {}
        is_adapter = config.get("train", {}).get("method", "full") != "full"
        return self.model if not is_adapter or config.get("lora", {}).get("merge", True) else self.adapter

    @property
    def has_model(self) -> bool:
        """Whether the result of the training is there, whole and compared: its template is named last."""
        return (self.trained / TEMPLATE_FILE).is_file()

    def write_config(self, config: Config) -> None:
        """config.yaml, every key resolved."""
        self._write("config.yaml", dump_config(config))

    def write_document(self, name: str, document: object) -> None:
        """A JSON document of the folder, such as `data.json`."""
        self._write(name, as_json(as_row(document), indent=1) + "\n")

    def write_rows(self, name: str, rows: Iterable[object]) -> None:
        """A JSONL file of the folder, such as `answers/base.jsonl`."""
        self.write_records(name, map(as_row, rows))

    def write_finished(self, name: str, rows: Iterable[object]) -> None:
        """The same, of what the run does not make again where it finds it as it was."""
        self.write_rows(name, rows)
        self.note_finished(name)

    def write_records(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """A JSONL file whose lines are records of the data, as they were read, such as `data/train.jsonl`."""
        self._write(name, map(json_line, records))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        if self._writes:
            with (self.path / METRICS).open("a", encoding="utf-8", newline="\n") as file:
                file.write(json_line(row))

    def _write(self, name: str, text: str | Iterable[str]) -> None:
        if self._writes:
            (self.path / name).parent.mkdir(exist_ok=True)
            write_text(self.path / name, text)


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting, or what a file holds, that is not what the run was begun with."""

    key: str
    before: Any
    now: Any


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Where two descriptions of a training (key to value) differ, in the order of their keys."""
    return [
        Difference(key, before[key], now[key])
        for key in now
        if key in before and before[key] != now[key]  # a key that came with a newer version was at its default
    ]


def this_process() -> Process:
    """This process, as run.json names it."""
    return Process(os.getpid(), platform.node(), f"{datetime.now():%Y-%m-%d %H:%M:%S}")


def read_record(path: Path) -> RunRecord | None:
    """run.json of the folder `path`, None where there is none; ConfigError where it is damaged."""
    file = path / RECORD
    try:
        row = read_object(file)
        if row is None:
            return None
        record = read_strictly(RunRecord, row, f"{file}: damaged")
        if record.sha256 is not None and record.sha256 != record_sha256(row):
            raise DataError(f"{file}: damaged: it is not what the run wrote there (its sha256 differs)")
        _check_time(record.started, file)
    except DataError as error:
        raise ConfigError(f"{error}. Restore it, or begin anew: give another --output, or remove the folder") from None
    return record


def _check_time(text: str, file: Path) -> None:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"{file}: damaged: `started`: expected a time, found {text!r}") from None


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{error.filename or path}: cannot be used: {error.strerror or error}; give another --output")


def newest_unfinished(runs: Path) -> Path:
    """The run folder below `runs` that was begun last and is not finished; ConfigError where there is none."""
    found = [
        (record.started, file.parent)
        for file in runs.glob(f"*/{RECORD}")
        if (record := read_record(file.parent)) is not None and not record.finished
    ]
    if not found:
        raise ConfigError(f"{runs}: no unfinished run to resume; name its folder: --resume RUN")
    return max(found)[1]


def _by_whom(path: Path) -> str:
    with contextlib.suppress(ConfigError):
        if record := read_record(path):
            process = record.process
            return f" by process {process.pid} on {process.host} since {process.since}"
    return " by another process"


def new_run_path(data: str | Sequence[str], now: datetime) -> Path:
    """Where a run goes when nothing is said: runs/<data>-<date>-<time>, counted up where that exists.

    Of several names of data the first gives its name.
    """
    stem = re.sub(r"[^\w.-]+", "-", Path(data if isinstance(data, str) else data[0]).stem).strip("-") or "data"
    path = Path("runs") / f"{stem}-{now:%Y%m%d-%H%M%S}"
    count = 2
    while path.exists():
        path = path.with_name(f"{stem}-{now:%Y%m%d-%H%M%S}-{count}")
        count += 1
    return path
