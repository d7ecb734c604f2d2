"""Answers files become rows beside the records that they answer.

Stands under `answered.py` and the judge's `items.py`. Two kinds of file: Tuneful's own (`answers/*.jsonl` of a run, or what
`tuneful generate --data` wrote) hold an answer and the `source` of its record, whose task and reference are looked up in the
run's data/test.jsonl or in the file that the source names; any other JSON or JSONL holds `instruction`, `input` and `output`
beside the answer, in a key of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.config import DataConfig, load_config
from tuneful.config.load import read_yaml
from tuneful.data.read import STARTER, Record, read_data
from tuneful.errors import DataError
from tuneful.files import read_lines
from tuneful.runs.schema import AnswerRow, FinishReason, check_sources, check_sum, load_rows, noted_sums, read_loosely
from tuneful.types import Conversation

ANSWER_KEYS = ("text", "model_response")
"""The keys of the answer in a file that is not Tuneful's, where none is named."""


_NEEDED = ("source", "text")


@dataclass(frozen=True, slots=True)
class AnsweredRecord:
    """An answer in a file, beside the record that it answers; `finish_reason` is "" where the file does not say."""

    source: str
    text: str
    record: Record
    finish_reason: FinishReason
    num_tokens: int | None

    @property
    def reference(self) -> str:
        """The answer that the record itself gives to its last turn."""
        return self.record.conversation.answered_turns[-1].response


def read_answer_rows(path: Path, config: DataConfig, answer_key: str | None = None) -> list[AnsweredRecord]:
    """The rows of the answers file `path`; `answer_key` names the key of the answer in a file that is not Tuneful's.

    `config` says how the records are read that the answers belong to; answers of a run are read by the run's own config.yaml.
    Raises DataError with file and line where a row has no answer, no task or no reference.
    """
    config = _of_its_run(path, config)
    if (
        (run := run_of(path)) is not None
        and answer_key is None
        and (given := load_rows(AnswerRow, path, _NEEDED)) is not None
    ):
        return _of_run(run, path, given, config)
    rows = _own_rows(path) if path.suffix == ".jsonl" and answer_key is None else None
    if rows is not None:
        return _joined(path, rows, config)
    return [_foreign(record, answer_key) for record in read_data(str(path), config).records]


def _jsonl_rows(path: Path) -> list[tuple[int, dict[str, Any]]] | None:
    """(line, row) of a JSONL file of objects; None where the file is missing, empty, or anything else."""
    try:
        lines = list(read_lines(path))
    except OSError:
        return None  # a caller that needs the file says what is wrong
    rows = [(line.number, line.row) for line in lines if line.row is not None]
    return rows if rows and len(rows) == len(lines) else None


def task_text(conversation: Conversation) -> str:
    """What was asked: instruction and input of the last turn, after the system text and the turns before it."""
    *before, last = conversation.turns
    parts = [conversation.system] if conversation.system else []
    for turn in before:
        parts += [f"User: {_asked(turn.instruction, turn.input)}", f"Assistant: {turn.response}"]
    asked = _asked(last.instruction, last.input)
    return "\n\n".join([*parts, f"User: {asked}" if before else asked])


def _asked(instruction: str, input_text: str) -> str:
    return f"{instruction}\n\n{input_text}" if instruction and input_text else instruction or input_text


def run_of(path: Path) -> Path | None:
    """The run folder whose answers the file `path` holds, RUN/answers/NAME.jsonl; None where it lies elsewhere."""
    run, data = path.parent.parent, path.parent.parent / "data"
    is_run = (
        (run / "run.json").is_file() or os.path.lexists(data / "test.jsonl") or data.is_symlink()
    )  # whole or damaged
    return run if path.parent.name == "answers" and is_run else None


def _of_its_run(path: Path, config: DataConfig) -> DataConfig:
    """The data configuration of the run that the file belongs to, else `config`."""
    run = run_of(path)
    if run is None or not (file := run / "config.yaml").is_file():
        return config
    check_unchanged(run, file, noted_sums(run))
    return load_config(begun_with=read_yaml(file)).data


def _own_rows(path: Path) -> list[tuple[int, dict[str, Any]]] | None:
    """(line, row) of an answers file of Tuneful's; None where the file is anything else."""
    rows = _jsonl_rows(path)
    is_own = all("instruction" not in row and {"source", "prompt", "text"} <= row.keys() for _, row in rows or ())
    return rows if is_own else None


def _of_run(run: Path, path: Path, rows: Sequence[AnswerRow], config: DataConfig) -> list[AnsweredRecord]:
    """The answers of a run beside the records of its test set, in whose order they are; DataError where they are not."""
    test, noted = run / "data" / "test.jsonl", noted_sums(run)
    for file in (test, path):
        check_unchanged(run, file, noted)
    records = read_data(str(test), config).records
    sources = [str(record.raw.get("source")) for record in records]
    known = set(sources)
    for number, row in enumerate(rows, start=1):
        if row.source not in known:
            raise _without_record(path, number, row.source)
    check_sources(rows, sources, path, str(test))
    return [
        AnsweredRecord(row.source, row.text, record, row.finish_reason, row.num_tokens)
        for row, record in zip(rows, records, strict=True)
    ]


def check_unchanged(run: Path, file: Path, noted: Mapping[str, str]) -> None:
    """DataError where a file of the folder `run` is not the one whose sha256 the run `noted`."""
    try:
        check_sum(file, noted.get(file.relative_to(run).as_posix()))
    except DataError as error:
        raise DataError(f"{error}. Restore it; answers of your own are read from outside a run folder") from None


def _joined(path: Path, rows: Sequence[tuple[int, dict[str, Any]]], config: DataConfig) -> list[AnsweredRecord]:
    """The answers with the records that they answer."""
    records = _records_by_source([str(row["source"]) for _, row in rows], config)
    joined = []
    for number, row in rows:
        source = str(row["source"])
        if source not in records:
            raise _without_record(path, number, source)
        if not isinstance(row["text"], str):
            raise DataError(f"{path}:{number}: `text` is {type(row['text']).__name__}, expected the answer")
        answer = read_loosely(AnswerRow, row)
        joined.append(AnsweredRecord(source, answer.text, records[source], answer.finish_reason, answer.num_tokens))
    return joined


def _without_record(path: Path, number: int, source: str) -> DataError:
    return DataError(f"{path}:{number}: the record {source} that it answers is nowhere to be found")


def _records_by_source(sources: Sequence[str], config: DataConfig) -> Mapping[str, Record]:
    """The records of the files that `sources` name."""
    found: dict[str, Record] = {}
    for file in dict.fromkeys(source.rpartition(":")[0] for source in sources):
        name = STARTER if file == "starter.json" and not Path(file).exists() else file
        found |= {record.source: record for record in read_data(name, config, on_error="skip").records}
    return found


def _foreign(record: Record, answer_key: str | None) -> AnsweredRecord:
    keys = ANSWER_KEYS if answer_key is None else (answer_key,)
    key = next((key for key in keys if key in record.raw), None)
    if key is None:
        wanted = " or ".join(f"`{key}`" for key in keys)
        names = ", ".join(f"`{name}`" for name in list(record.raw)[:8])
        raise DataError(
            f"{record.source}: no answer under {wanted}; name its key: --answer-key KEY (the row has {names})"
        )
    answer = record.raw[key]
    if not isinstance(answer, str):
        raise DataError(f"{record.source}: `{key}` is {type(answer).__name__}, expected the answer as text")
    known = read_loosely(AnswerRow, record.raw)
    return AnsweredRecord(record.source, answer, record, known.finish_reason, known.num_tokens)
