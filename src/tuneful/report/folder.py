"""Reads a run folder as it lies there: whole, without test answers, or broken off in the middle.

First stage of the report. Only `config.yaml` must be there, because it is what makes a folder a run; what else is
missing or unreadable is left out, and the unreadable is named in `Run.remarks`. Rows and documents are those of `runs/schema`,
read as far as they can be: a figure that nobody can read is NaN. Only the records of the data and the configuration stay
mappings, as their shape is the user's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tuneful.config.load import translated
from tuneful.errors import DataError
from tuneful.runs.schema import (
    AnswerRow,
    Calibration,
    Comparison,
    DataDocument,
    Environment,
    Evaluation,
    EvaluationDocument,
    Explanation,
    JudgeScore,
    Notice,
    PreferenceOutcome,
    RatingRow,
    RecordLoss,
    Step,
    TrainingSummary,
    check_sum,
    noted_sums,
    read_loosely,
    read_object,
    read_strictly,
)

Json = Mapping[str, Any]
Row = TypeVar("Row")
Numbered = TypeVar("Numbered", Step, Evaluation)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, read; a document that is not there is None. `remarks` are sentences about files that are there but could
    not be read whole."""

    path: Path
    config: Json
    environment: Environment | None
    data: DataDocument | None
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...]
    notices: tuple[Notice, ...]
    training: TrainingSummary | None
    base: tuple[AnswerRow, ...]
    tuned: tuple[AnswerRow, ...]
    test: tuple[Json, ...]
    comparison: Comparison | None
    scores: Mapping[str, tuple[JudgeScore, ...]] = field(default_factory=dict)
    calibration: Calibration | None = None
    judged: EvaluationDocument | None = None
    remarks: tuple[str, ...] = field(default=())
    records: tuple[RecordLoss, ...] = field(default=())
    ratings: tuple[RatingRow, ...] = field(default=())
    preference: PreferenceOutcome | None = None
    explained: Explanation | None = None

    def trained(self) -> list[Json]:
        """The rows of data/train.jsonl, read when they are asked for."""
        return _Reader(self.path, []).lines("data/train.jsonl")


def read_run(path: Path) -> Run:
    """Read the run folder at `path`; `DataError` where it is none."""
    config = _read_config(path)
    reader = _Reader(path, [], notes_sums="sha256" in _record(path))
    reader.check_sums()
    metrics = [row for row in reader.lines("metrics.jsonl") if isinstance(row.get("step"), int)]
    comparison = reader.document(Comparison, "comparison.json")
    return Run(
        path=path,
        config=config,
        environment=reader.document(Environment, "environment.json"),
        data=reader.document(DataDocument, "data.json"),
        steps=_in_order(read_loosely(Step, row) for row in metrics if "loss" in row),
        evaluations=_in_order(read_loosely(Evaluation, row) for row in metrics if "validation_loss" in row),
        notices=tuple(read_loosely(Notice, row) for row in metrics if "notice" in row),
        training=reader.document(TrainingSummary, "training.json"),
        preference=reader.document(PreferenceOutcome, "preferences.json"),
        base=reader.rows(AnswerRow, "answers/base.jsonl"),
        tuned=reader.rows(AnswerRow, "answers/tuned.jsonl"),
        test=tuple(reader.lines("data/test.jsonl")),
        comparison=comparison,
        scores={name: reader.rows(JudgeScore, f"scores/{name}.jsonl") for name in ("base", "tuned")},
        calibration=reader.document(Calibration, "calibration.json"),
        judged=reader.document(EvaluationDocument, "evaluation.json"),
        records=reader.rows(RecordLoss, "records.jsonl"),
        ratings=reader.rows(RatingRow, "ratings.jsonl"),
        explained=reader.document(Explanation, "explain.json"),
        remarks=tuple(reader.remarks),
    )


def text(record: Json, key: str) -> str:
    """What stands at `key` of a record, as text; empty where there is nothing."""
    value = record.get(key)
    return "" if value is None else str(value)


def rows(record: Json, key: str) -> list[Json]:
    """The mappings in the list at `key` of a record."""
    value = record.get(key)
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, Sequence) else []


# Files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads files of the run folder `path`; a sentence joins `remarks` for each that cannot be read whole.

    Where the run `notes_sums` it is of a version that leaves nothing out, and what is missing in a file is remarked on too.
    """

    path: Path
    remarks: list[str]
    notes_sums: bool = False

    def check_sums(self) -> None:
        """Remark on every finished file, but those of the model, that is not the one whose sha256 run.json names."""
        try:
            read_object(self.path / "run.json")
        except DataError as error:
            self.remarks.append(f"{error}. So nothing is known of what the run wrote into its other files.")
        for name, noted in noted_sums(self.path).items():
            if not name.startswith(("model/", "adapter/")):
                try:
                    check_sum(self.path / name, noted)
                except DataError as error:
                    self.remarks.append(f"{error}.")

    def document(self, kind: type[Row], name: str) -> Row | None:
        """The document in the file `name`; None where there is no file, or nothing in it that can be read."""
        file = self.path / name
        if not file.is_file():
            return None
        if (document := _object(file.read_bytes())) is None:
            self.remarks.append(f"{name} cannot be read as JSON; what it would say is left out.")
            return None
        self._is_whole(kind, document, name)
        try:
            return read_loosely(kind, document) if document else None
        except AssertionError:  # sums that a document promises and that somebody has edited
            self.remarks.append(f"{name} holds figures that cannot be together; it is left out.")
            return None

    def _is_whole(self, kind: type[Row], value: Json, name: str) -> bool:
        try:
            if self.notes_sums:
                read_strictly(kind, value, name)
        except DataError as error:
            self.remarks.append(f"{error}; what cannot be read is left out.")
            return False
        return True

    def rows(self, kind: type[Row], name: str) -> tuple[Row, ...]:
        """The rows of the JSONL file `name`."""
        lines = self.lines(name)
        all(self._is_whole(kind, row, f"{name}:{number}") for number, row in enumerate(lines, start=1))  # to the first
        return tuple(read_loosely(kind, row) for row in lines)

    def lines(self, name: str) -> list[Json]:
        """The objects of a JSONL file; lines that are none are left out (a killed run leaves half a last line)."""
        file = self.path / name
        if not file.is_file():
            return []
        objects = [_object(line) for line in file.read_bytes().split(b"\n") if line.strip()]
        found = [row for row in objects if row is not None]
        num_bad = len(objects) - len(found)
        if num_bad == 1 and objects[-1] is None:
            self.remarks.append(
                f"The last line of {name} is only half written, as a run leaves it when it is stopped; it is left out."
            )
        elif num_bad:
            lines = "line" if num_bad == 1 else "lines"
            self.remarks.append(f"{num_bad:,} {lines} of {name} cannot be read and are left out.")
        return found


def _record(path: Path) -> Json:
    try:
        return read_object(path / "run.json") or {}
    except DataError:
        return {}


def _object(content: bytes) -> Json | None:
    """The JSON object in `content`, bytes that are no UTF-8 replaced; None where there is none."""
    try:
        found = json.loads(content.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else None


def _read_config(path: Path) -> Json:
    where = path / "config.yaml"
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give the folder that `tuneful run` or `tuneful train` wrote.")
    if not where.is_file():
        raise DataError(
            f"{path}: not a run folder, it has no config.yaml. "
            "Give the folder that `tuneful run` or `tuneful train` wrote."
        )
    try:
        config = yaml.safe_load(where.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not readable as YAML ({' '.join(str(error).split())}). Restore the file.") from error
    if not isinstance(config, Mapping):
        raise DataError(f"{where}: expected sections with settings in them. Restore the file that the run wrote.")
    return translated(config)


def _in_order(found: Iterable[Numbered]) -> tuple[Numbered, ...]:
    """By step; where a resumed run wrote a step again, the later writing counts."""
    by_step = {entry.step: entry for entry in found}
    return tuple(by_step[step] for step in sorted(by_step))
