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
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tuneful.config import Config, dump_config
from tuneful.encoding.template import TEMPLATE_FILE
from tuneful.errors import ConfigError, DataError
from tuneful.files import as_json, json_line, read_rows, write_text
from tuneful.runs.schema import Process, RunRecord, as_row, read_strictly

RECORD = "run.json"
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
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / LOCK, blocking=False)
            self._lock.acquire()
        except Timeout:
            raise ConfigError(f"{path}: is in use{_by_whom(path)}; wait for it, or give another --output") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
        try:
            self.record = self._unfinished()
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
        self.record = replace(record, process=this_process())
        self.write_document(RECORD, self.record)

    def _unfinished(self) -> RunRecord | None:
        """run.json of the run that is to go on; None where there is none yet."""
        for leftover in self.path.rglob(".*.part"):
            leftover.unlink()
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
        metrics = self.path / "metrics.jsonl"
        return metrics.stat().st_size if metrics.exists() else 0

    def flush_metrics(self) -> int:
        """Put metrics.jsonl on the disk; its length in bytes."""
        if self._writes and (self.path / "metrics.jsonl").exists():
            with (self.path / "metrics.jsonl").open("ab") as file:
                os.fsync(file.fileno())
        return self.metrics_bytes

    def cut_metrics(self, num_bytes: int) -> None:
        """Drop the lines of metrics.jsonl that were written after its first `num_bytes` bytes."""
        if self._writes and self.metrics_bytes > num_bytes:
            os.truncate(self.path / "metrics.jsonl", num_bytes)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What a JSON document of the folder holds; None where it was not written yet."""
        file = self.path / name
        document: dict[str, Any] | None = json.loads(file.read_bytes()) if file.exists() else None
        return document

    def read_rows(self, name: str) -> list[dict[str, Any]] | None:
        """What the lines of a JSONL file of the folder hold; None where it was not written yet. DataError for half a line."""
        try:
            return read_rows(self.path / name)
        except ValueError as error:
            raise DataError(str(error)) from None

    def forget(self, *names: str) -> None:
        """Remove files of the folder that are to be made anew."""
        for name in names if self._writes else ():
            (self.path / name).unlink(missing_ok=True)

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

    def write_records(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """A JSONL file whose lines are records of the data, as they were read, such as `data/train.jsonl`."""
        self._write(name, map(json_line, records))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        if self._writes:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
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
    """run.json of the folder `path`, None where there is none; ConfigError where it cannot be read."""
    file = path / RECORD
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; give another --output, or remove the folder") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{file}: holds no run; give another --output, or remove the folder")
    try:
        return read_strictly(RunRecord, record, str(file))
    except DataError as error:
        raise ConfigError(f"{error}; give another --output, or remove the folder") from None


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
