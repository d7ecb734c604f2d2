"""Answers files become rows beside the records that they answer.

Stands under `answered.py` and the judge's `items.py`. Two kinds of file: Tuneful's own (`answers/*.jsonl` of a run, or what
`tuneful generate --data` wrote) hold an answer and the `source` of its record, whose task and reference are looked up in the
run's data/test.jsonl or in the file that the source names; any other JSON or JSONL holds `instruction`, `input` and `output`
beside the answer, in a key of its own.

An answer is never its own reference. Which columns a record is read from is not asked of its format but tried: a column is part
of the reference, or of the task, where changing its text changes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.config import Config, DataConfig, load_config
from tuneful.config.load import read_yaml
from tuneful.data.formats import FormatReader
from tuneful.data.read import STARTER, Record, read_data, settings_of_side, stream_data
from tuneful.data.sources import STANDARD_INPUT
from tuneful.data.split import TEST
from tuneful.errors import DataError
from tuneful.files import read_lines
from tuneful.runs.schema import AnswerRow, FinishReason, check_sources, check_sum, load_rows, noted_sums, read_loosely
from tuneful.types import Conversation, answer_text, is_answered, question_text

ANSWER_KEYS = ("text", "model_response")
"""The keys of the answer in a file that is not Tuneful's, where none is named."""

_ANSWER_OF_A_MODEL = re.compile(r"model[ _-]?\w+[ _-](?:response|answer|output)", re.I)
_REFERENCE_FIELDS = ("output", "response", "completion", "answer")


_NEEDED = ("source", "text")


@dataclass(frozen=True, slots=True)
class AnsweredRecord:
    """An answer in a file, beside the record that it answers; `finish_reason` is "" where the file does not say.

    `has_reference` is False where the only answer of the record is the one that is to be measured.
    """

    source: str
    text: str
    record: Record
    finish_reason: FinishReason
    num_tokens: int | None
    has_reference: bool = True

    @property
    def reference(self) -> str:
        """The answer that the record itself gives to its last turn; "" where it has none."""
        return answer_text(self.record.conversation.answered_turns[-1]) if self.has_reference else ""


def read_answer_rows(
    path: Path, config: DataConfig, answer_key: str | None = None, *, needs_reference: bool = True
) -> list[AnsweredRecord]:
    """The rows of the answers file `path`; `answer_key` names the key of the answer in a file that is not Tuneful's.

    `config` says how the records are read that the answers belong to; answers of a run are read by the run's own config.yaml.
    Raises DataError with file and line where a row has no answer, no task, or, with `needs_reference`, no reference of its own.
    """
    if not path.exists() and str(path) != STANDARD_INPUT:
        raise DataError(f"{path}: no such file, and no such run. Give a run folder, or a file of answers")
    config, objective = _of_its_run(path, config)
    if (
        (run := run_of(path)) is not None
        and answer_key is None
        and (given := load_rows(AnswerRow, path, _NEEDED)) is not None
    ):
        return _of_run(run, path, given, config, objective)
    rows = _own_rows(path) if path.suffix == ".jsonl" and answer_key is None else None
    if rows is not None:
        return _joined(path, rows, config)
    records, reader = _foreign_records(path, config, answer_key, needs_reference=needs_reference)
    found = [_foreign(record, answer_key, reader, needs_reference=needs_reference) for record in records]
    if answer_key is None and all(_holds_its_record(row) for row in found):
        raise DataError(
            f"{found[0].source}: the text taken for the answer holds the whole record, its instruction and its reference; name "
            "the key of the answer: --answer-key KEY"
        )
    return found


def answer_keys_of(path: Path, config: DataConfig) -> tuple[str, ...]:
    """The keys of several answers to one task, such as `model 1 response` and `model 2 response`, in the first row of a file
    that is not Tuneful's; none where it holds a single answer."""
    if path.suffix == ".jsonl" and _own_rows(path) is not None:
        return ()
    raw = next(iter(stream_data(str(path), config.model_copy(update={"on_error": "skip"})))).raw
    if not isinstance(raw, dict) or any(key in raw for key in ANSWER_KEYS):
        return ()
    found = tuple(key for key, value in raw.items() if _ANSWER_OF_A_MODEL.fullmatch(key) and isinstance(value, str))
    return found if len(found) > 1 else ()


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
        said = {"User": _asked(question_text(turn), turn.input), "Assistant": answer_text(turn)}
        parts += [f"{role}: {text}" for role, text in said.items() if text]
    asked = _asked(question_text(last), last.input)
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


def _of_its_run(path: Path, config: DataConfig) -> tuple[DataConfig, str]:
    """The data configuration and the objective of the run that the file belongs to, else `config`, and `sft`."""
    run = run_of(path)
    found = config_of_run(run) if run is not None else None
    return (config, "sft") if found is None else (found.data, found.train.objective)


def config_of_run(run: Path) -> Config | None:
    """The configuration that a run was made with; None where its folder has none."""
    if not (file := run / "config.yaml").is_file():
        return None
    check_unchanged(run, file, noted_sums(run))
    return load_config(begun_with=read_yaml(file))


def _own_rows(path: Path) -> list[tuple[int, dict[str, Any]]] | None:
    """(line, row) of an answers file of Tuneful's; None where the file is anything else."""
    rows = _jsonl_rows(path)
    is_own = all("instruction" not in row and {"source", "prompt", "text"} <= row.keys() for _, row in rows or ())
    return rows if is_own else None


def _of_run(
    run: Path, path: Path, rows: Sequence[AnswerRow], config: DataConfig, objective: str
) -> list[AnsweredRecord]:
    """The answers of a run beside the records of its test set, in whose order they are; DataError where they are not."""
    test, noted = run / "data" / "test.jsonl", noted_sums(run)
    for file in (test, path):
        check_unchanged(run, file, noted)
    found = read_data(str(test), settings_of_side(config, TEST), objective=objective).records
    records = [record for record in found if is_answered(record.conversation)]
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
        own = settings_of_side(config, TEST)
        found |= {record.source: record for record in read_data(name, own, on_error="skip").records}
    return found


def _foreign_records(
    path: Path, config: DataConfig, answer_key: str | None, *, needs_reference: bool
) -> tuple[Sequence[Record], FormatReader]:
    """The records of a file that is not Tuneful's, and what reads them.

    Where no reference is needed, rows without one are read with the answer in its place, under each name that formats have
    for it.
    """
    aside = () if answer_key is None else (answer_key,)
    try:
        records = read_data(str(path), config, aside=aside).records
        return records, FormatReader(config.format, config.columns, aside=aside)
    except DataError:
        if needs_reference or config.columns is not None:
            raise
        for field in _REFERENCE_FIELDS:
            for key in ANSWER_KEYS if answer_key is None else (answer_key,):
                own = config.model_copy(update={"columns": {field: key}})
                with suppress(DataError):
                    return read_data(str(path), own).records, FormatReader(own.format, own.columns)
        raise


def _foreign(record: Record, answer_key: str | None, reader: FormatReader, *, needs_reference: bool) -> AnsweredRecord:
    """The answer in a row that is not Tuneful's; DataError where it has none, or where its record is read from it."""
    key = _answer_key(record, answer_key, reader)
    answer = record.raw[key]
    if not isinstance(answer, str):
        raise DataError(f"{record.source}: `{key}` is {type(answer).__name__}, expected the answer as text")
    is_reference, is_task = _used_by_record(record, key, reader)
    if is_task:
        raise DataError(f"{record.source}: `{key}` belongs to the task; name the key of the answer: --answer-key KEY")
    if is_reference and needs_reference:
        raise DataError(
            f"{record.source}: `{key}` is the answer, and the only reference of the row is read from it too: an answer is not "
            "measured against itself. Name the column of the reference, data.columns=output=COLUMN; a judge can do without: "
            "`tuneful evaluate` with judge.use_reference=false"
        )
    known = read_loosely(AnswerRow, record.raw)
    return AnsweredRecord(
        record.source, answer, record, known.finish_reason, known.num_tokens, has_reference=not is_reference
    )


def _answer_key(record: Record, answer_key: str | None, reader: FormatReader) -> str:
    """The key of the answer in a row; DataError where there is none, or more than one that could be meant."""
    keys = ANSWER_KEYS if answer_key is None else (answer_key,)
    found = [key for key in keys if key in record.raw]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{record.source}: holds an answer under {' and under '.join(f'`{key}`' for key in found)}; name the one that is "
            "meant: --answer-key KEY"
        )
    wanted = " or ".join(f"`{key}`" for key in keys)
    texts = [key for key, value in record.raw.items() if isinstance(value, str) and value]
    free = [key for key in texts if not any(_used_by_record(record, key, reader))]
    own = [key for key in texts if _used_by_record(record, key, reader)[0]]
    there_are = f" (the row has {', '.join(f'`{key}`' for key in free[:8])})" if free else ""
    advice = f"name its key: --answer-key KEY{there_are}"
    if own:
        advice += (
            f". Where `{own[0]}` is itself the answer of a model there is no reference, and a judge can do without: --answer-key "
            f"{own[0]} judge.use_reference=false"
        )
    raise DataError(f"{record.source}: no answer under {wanted}; {advice}")


def _used_by_record(record: Record, key: str, reader: FormatReader) -> tuple[bool, bool]:
    """Whether the reference, and whether the task, of a record is read from its column `key`: does changing it change them?"""
    changed = reader.read({**record.raw, key: f"{record.raw[key]} changed"}, record.source)
    if isinstance(changed, str):
        return False, False
    before, after = record.conversation, changed.conversation
    is_reference = answer_text(before.answered_turns[-1]) != answer_text(after.answered_turns[-1])
    return is_reference, task_text(before) != task_text(after)


def _holds_its_record(row: AnsweredRecord) -> bool:
    """Whether an answer is the text of its whole record: what was asked, and at its end the reference."""
    asked, reference = row.record.conversation.turns[-1].instruction.strip(), row.reference.strip()
    return bool(asked and reference) and asked in row.text and row.text.rstrip().endswith(reference)
