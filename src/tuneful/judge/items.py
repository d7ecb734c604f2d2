"""Answers files become items to judge, whoever wrote them.

Two kinds of file. Our own (`answers/*.jsonl` of a run, or what `tuneful generate --data` wrote) hold an answer and the
`source` of its record: task and reference are looked up there, in the run's data/test.jsonl or in the file that the
source names. Any other JSON or JSONL holds `instruction`, `input` and `output` beside the answer, in a key of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.config import DataConfig
from tuneful.data.read import STARTER, Record, read_data
from tuneful.errors import DataError
from tuneful.judge.questions import Item
from tuneful.types import Conversation

ANSWER_KEYS = ("text", "model_response")
"""Where the answer of a foreign row is looked for when nobody says."""


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """The items of one answers file; `name` is the file's without its ending."""

    name: str
    items: tuple[Item, ...]


def read_answers(path: Path, config: DataConfig, answer_key: str | None = None) -> AnswerSet:
    """The items of the answers file `path`; `answer_key` names the key of the answer in a file that is not ours.

    `config` says how the records are read that the answers belong to.

    Raises DataError with file and line where a row has no answer, no task or no reference.
    """
    rows = _own_rows(path) if path.suffix == ".jsonl" else None
    if rows is not None and answer_key is None:
        items = _joined(path, rows, config)
    else:
        records = read_data(str(path), config).records
        items = [_foreign_item(record, answer_key) for record in records]
    return AnswerSet(path.stem, tuple(items))


def task_text(conversation: Conversation) -> str:
    """What was asked: instruction and input of the last turn, after whatever was said before it."""
    *before, last = conversation.turns
    parts = [conversation.system] if conversation.system else []
    for turn in before:
        parts += [f"User: {_asked(turn.instruction, turn.input)}", f"Assistant: {turn.response}"]
    asked = _asked(last.instruction, last.input)
    return "\n\n".join([*parts, f"User: {asked}" if before else asked])


def paired(items: Sequence[Item], rivals: Sequence[Item]) -> list[Item]:
    """`items`, each with the answer of the rival of the same source; DataError where one has none."""
    found = {rival.source: rival for rival in rivals}
    for item in items:
        if item.source not in found:
            raise DataError(f"{item.source}: only one of the two files answers it; a comparison needs both")
        if found[item.source].task != item.task:
            raise DataError(f"{item.source}: the two files hold different tasks under it")
    return [
        Item(item.source, item.task, item.reference, item.answer, rival=found[item.source].answer) for item in items
    ]


def _asked(instruction: str, input_text: str) -> str:
    return f"{instruction}\n\n{input_text}" if instruction and input_text else instruction or input_text


def _own_rows(path: Path) -> list[tuple[int, dict[str, Any]]] | None:
    """(line, row) of an answers file of ours; None where the file is something else."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None  # the reader of records says what is wrong
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(row, dict) or "instruction" in row or not {"source", "prompt", "text"} <= row.keys():
            return None
        rows.append((number, row))
    return rows or None


def _joined(path: Path, rows: Sequence[tuple[int, dict[str, Any]]], config: DataConfig) -> list[Item]:
    """Our answers with the records that they answer."""
    records = _records_by_source(path, [str(row["source"]) for _, row in rows], config)
    items = []
    for number, row in rows:
        source = str(row["source"])
        if source not in records:
            raise DataError(f"{path}:{number}: the record {source} that it answers is nowhere to be found")
        if not isinstance(row["text"], str):
            raise DataError(f"{path}:{number}: `text` is {type(row['text']).__name__}, expected the answer")
        conversation = records[source]
        items.append(Item(source, task_text(conversation), conversation.answered_turns[-1].response, row["text"]))
    return items


def _records_by_source(path: Path, sources: Sequence[str], config: DataConfig) -> Mapping[str, Conversation]:
    """The records of the run that `path` belongs to, or of the files that `sources` name."""
    test = path.parent.parent / "data" / "test.jsonl"
    if test.is_file():
        return {str(record.raw.get("source")): record.conversation for record in read_data(str(test), config).records}
    found: dict[str, Conversation] = {}
    for file in dict.fromkeys(source.rpartition(":")[0] for source in sources):
        name = STARTER if file == "starter.json" and not Path(file).exists() else file
        found |= {record.source: record.conversation for record in read_data(name, config, on_error="skip").records}
    return found


def _foreign_item(record: Record, answer_key: str | None) -> Item:
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
    conversation = record.conversation
    return Item(record.source, task_text(conversation), conversation.answered_turns[-1].response, answer)
