"""A model answers every record of a file: rows are on disk as soon as they are known, and become the whole file at the end.

    answers.jsonl.partial     {"request": "9f2c..."}        what was asked for: the same request goes on, another is refused
                              {"index": 7, "row": {...}, "sha256": "41ab..."}    in the order in which they were finished
    answers.jsonl             the rows in their own order, written aside and renamed when the last one is known

A process that is killed leaves whole lines and perhaps half a line, which is dropped; so is a line that is not as it was written,
and its record is answered again. One process at a time may write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneful.config import GenerateConfig
from tuneful.encoding.encode import Encoder
from tuneful.errors import ConfigError
from tuneful.files import AppendLog, lock_output, unlock_output, write_rows
from tuneful.infer.generate import answer_each
from tuneful.runs.schema import AnswerRow, as_row, read_strictly
from tuneful.types import Answer, Conversation


def answer_all(
    model: PreTrainedModel,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    config: GenerateConfig,
    output: Path,
    *,
    seed: int,
    advance: Callable[[int], None],
) -> list[AnswerRow]:
    """The rows of `output`, which holds them when this returns; each is on disk as soon as it is known.

    Rows that a killed process left are taken; ConfigError where they are of another request.
    """
    with Journal(output, request_sha256(model, encoder, conversations, config, seed)) as journal:
        numbers = range(len(conversations))
        answer_rows(model, encoder, conversations, config, seed=seed, numbers=numbers, journal=journal, advance=advance)
        return journal.finish(len(conversations))


def answer_rows(
    model: PreTrainedModel,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    config: GenerateConfig,
    *,
    seed: int,
    numbers: Sequence[int],
    journal: Journal | None,
    advance: Callable[[int], None],
) -> dict[int, AnswerRow]:
    """The rows of the conversations with these `numbers`, by number; those that `journal` holds are not generated again."""
    rows = {number: journal.rows[number] for number in numbers if number in journal.rows} if journal else {}
    missing = [number for number in numbers if number not in rows]
    advance(len(rows))
    asked = [conversations[number] for number in missing]
    for at, given in answer_each(model, encoder, asked, config, seed=seed, numbers=missing):
        rows[missing[at]] = answer_row(given)
        if journal:
            journal.add(missing[at], rows[missing[at]])
        advance(1)
    return rows


def answer_row(answer: Answer) -> AnswerRow:
    """The row of an answer in its file."""
    return AnswerRow(answer.source, answer.prompt, answer.text, answer.finish_reason, len(answer.token_ids))


def request_sha256(
    model: PreTrainedModel, encoder: Encoder, conversations: Sequence[Conversation], config: GenerateConfig, seed: int
) -> str:
    """sha256 over what a request consists of: weights, prompts, settings and seed; not `batch_size`, which changes no answer."""
    prompts = [(encoder.prompt_ids(conversation), conversation.source) for conversation in conversations]
    request = json.dumps([_weights_sha256(model), config.model_dump(exclude={"batch_size"}), seed, prompts])
    return hashlib.sha256(request.encode()).hexdigest()


def _weights_sha256(model: PreTrainedModel) -> str:
    """sha256 over the weights in memory, with their names, precision and shapes."""
    digest = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Journal:
    """The rows of `output` that are known so far: `rows`, by their place in the file. A context manager.

    `request` names what is asked for; with `replace` the rows of another request are dropped. Raises ConfigError where another
    process writes the file, where it cannot be written, and without `replace` where it holds rows of another request.
    """

    def __init__(self, output: Path, request: str, *, replace: bool = False) -> None:
        self._output = output
        self._path = output.with_name(f"{output.name}.partial")
        self._lock = lock_output(output)
        try:
            self.rows = self._begin(request, replace)
        except BaseException:
            unlock_output(self._lock)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def add(self, index: int, row: AnswerRow) -> None:
        """Row `index` of the file is known; it survives the end of this process when this returns."""
        assert index not in self.rows, f"row {index} was known already"
        self.rows[index] = row
        entry = {"index": index, "row": as_row(row)}
        self._log.add({**entry, "sha256": _entry_sha256(entry)})

    def finish(self, num_rows: int) -> list[AnswerRow]:
        """Write the whole file, all of whose `num_rows` rows are known, and remove the journal; the rows."""
        assert sorted(self.rows) == list(range(num_rows)), "rows are missing"
        rows = [self.rows[index] for index in range(num_rows)]
        write_rows(self._output, map(as_row, rows))
        self.forget()
        return rows

    def forget(self) -> None:
        """Remove the journal, whose rows have been written elsewhere."""
        self._log.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what is known stays for the next process."""
        self._log.close()
        unlock_output(self._lock)

    def _begin(self, request: str, replace: bool) -> dict[int, AnswerRow]:
        """The rows that an earlier process left of this request; anything else in the file is dropped."""
        try:
            self._log = AppendLog(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        head, known = self._log.rows[:1], self._log.rows[1:]
        is_same = head == [{"request": request}]
        if head and not is_same and not replace:
            raise ConfigError(
                f"{self._path}: holds answers to another request (its model, data or settings differ); "
                "give another --output, or remove it"
            )
        whole = [entry for entry in known if _is_whole(entry)] if is_same else []
        if not is_same or self._log.damaged is not None or len(whole) < len(known):
            self._log.replace([{"request": request}, *whole])
        return {entry["index"]: read_strictly(AnswerRow, entry["row"], str(self._path)) for entry in whole}


def _entry_sha256(entry: Mapping[str, Any]) -> str:
    """The first 16 digits of the sha256 of an entry's index and row."""
    return hashlib.sha256(json.dumps([entry["index"], entry["row"]], sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is as it was written; one of an earlier version says nothing of it."""
    return {"index", "row"} <= entry.keys() and entry.get("sha256") in (None, _entry_sha256(entry))
