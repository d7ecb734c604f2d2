"""The two sides of a run, `base` and `tuned`: the model as one of them, its answers, and the rows that an earlier process left.

Stands under `measure.py` and `standard_tests.py`, which say what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from tuneful.encoding.encode import Encoder
from tuneful.errors import DataError
from tuneful.infer.file import Journal, answer_rows, request_sha256
from tuneful.model.lora import without_adapter
from tuneful.model.memory import small_copies
from tuneful.runs.schema import AnswerRow, as_row, check_sources, read_rows
from tuneful.runs.setup import RunState
from tuneful.types import Conversation

Row = TypeVar("Row")


@contextmanager
def answering_as(run: RunState, name: str) -> Iterator[None]:
    """Inside, the model answers as the `base` that it came as, without its adapter; or as the `tuned` one."""
    as_it_came = run.pretrained.adapter is not None  # with an adapter, which is trained only after this
    with small_copies(), without_adapter(run.method.adapter if name == "base" and not as_it_came else None):
        yield


def answer_and_write(
    run: RunState,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    file: str,
    label: str,
    write: Callable[[list[AnswerRow]], None],
) -> list[AnswerRow]:
    """The model's answers to `conversations`, every rank giving its share, once `write` has made them `file` of the folder; until
    then they are kept beside it as they come."""
    own = _own_share(run, len(conversations))
    with (
        _journal(run, encoder, conversations, file) as journal,
        run.terminal.progress(label, len(own), "answers") as advance,
    ):
        given = answer_rows(
            run.model,
            encoder,
            conversations,
            run.config.generate,
            seed=run.config.train.seed,
            numbers=own,
            journal=journal,
            advance=advance,
        )
        gathered = dict(run.group.gather([[number, as_row(row)] for number, row in given.items()]))
        rows = read_rows(AnswerRow, [gathered[number] for number in sorted(gathered)], run.folder.path / file)
        write(rows)
        if journal is not None:
            journal.forget()
    return rows


def written(run: RunState, kind: type[Row], name: str, sources: Sequence[str] | None = None) -> list[Row] | None:
    """The rows of a file of the folder, the same on every rank; None where it was not written yet, or is damaged and has to be
    made again. `sources` are those that its rows speak of, in order."""
    own = _whole_rows(run, kind, name, sources) if run.group.is_main else None
    rows = run.group.broadcast(None if own is None else list(map(as_row, own)))
    return None if rows is None else read_rows(kind, rows, run.folder.path / name)


def _whole_rows(run: RunState, kind: type[Row], name: str, sources: Sequence[str] | None) -> list[Row] | None:
    try:
        rows = run.folder.read_rows(kind, name)
        if rows is not None and sources is not None:
            check_sources(rows, sources, run.folder.path / name)
    except DataError as error:
        run.warn([f"{error}. It is made again"])
        return None
    return rows


def _own_share(run: RunState, num_asked: int) -> list[int]:
    """Which of so many this rank answers: its share, or all of them where all ranks compute each layer together."""
    everything = range(num_asked)
    return list(everything if run.group.sharded else everything[run.group.rank :: run.group.size])


def _journal(
    run: RunState, encoder: Encoder, conversations: Sequence[Conversation], file: str
) -> AbstractContextManager[Journal | None]:
    """Where this rank's answers are kept as they come; nowhere where all ranks have to give each answer together."""
    if run.group.sharded:
        return nullcontext()
    output = run.folder.path / file
    if run.group.size > 1:
        output = output.with_name(f"{output.stem}-{run.group.rank}-of-{run.group.size}{output.suffix}")
    request = request_sha256(run.model, encoder, conversations, run.config.generate, run.config.train.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    return Journal(output, request, replace=True)
