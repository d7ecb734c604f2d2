"""A file's records become a data set ready to train on: encoded, split, every row accounted for.

    Records -> Examples (or skipped, with the reason) -> train / validation / test

rows read = rows used + rows refused, asserted here and printed by the commands. A few thousand records stay in memory; more
go to a store on disk as they are read, and the next run that asks for the same finds them there (`store.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tuneful.config import Config, DataConfig
from tuneful.data.notes import merged
from tuneful.data.read import DataFile, DataStream, Record, SkippedRow, in_batches, stream_side
from tuneful.data.sources import sha256_of
from tuneful.data.split import SPLIT_VERSION, TEST, TRAIN, VALIDATION, nested_share, normal_prompt, split_sides
from tuneful.encoding.by_file import InputFile, count_files, input_files
from tuneful.encoding.chat_template import load_template
from tuneful.encoding.documents import in_chunks
from tuneful.encoding.encode import Encoder
from tuneful.encoding.left_out import LeftOut
from tuneful.encoding.show import as_shown_example, shown_record
from tuneful.encoding.store import Selected, Sizes, Store, StoreWriter, fingerprint
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import DataError
from tuneful.files import remove
from tuneful.runs.schema import (
    DataDocument,
    ReadingNote,
    SkippedPlace,
    Split,
    TokenCounts,
    as_row,
    read_strictly,
)
from tuneful.types import Conversation, Example, is_answered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SHOWN = 3
MAX_IN_MEMORY = 8192
"""Records that are held in memory, all their texts with them; a data set of more goes to disk."""

MAX_TOKENS_IN_MEMORY = 1 << 25
"""Tokens that are held in memory, half a gigabyte with their weights and texts; documents of more go to disk."""

_AT_ONCE = 1024  # records encoded in one batch
_MAX_LISTED = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """One side of the split: records, their examples, how long these are and where they were read, in the same order.

    `chunks` are the examples as steps take them: those of documents longer than `data.max_length` in several parts.
    Of a large data set the sequences make a record or an example when it is asked for, and another one at each asking.
    """

    records: Sequence[Record]
    examples: Sequence[Example]
    conversations: Sequence[Conversation]
    sizes: Sizes
    sources: Sequence[str]
    chunks: Sequence[Example]

    def __repr__(self) -> str:
        return f"Subset({len(self):,} records)"

    def __len__(self) -> int:
        """Number of records."""
        return len(self.examples)

    def take(self, indices: npt.NDArray[np.int64], config: DataConfig) -> Subset:
        """The records at `indices`, under the limits of `config`."""
        examples, sizes = Selected(self.examples.__getitem__, indices), self.sizes.take(indices)
        return Subset(
            Selected(self.records.__getitem__, indices),
            examples,
            Selected(self.conversations.__getitem__, indices),
            sizes,
            Selected(self.sources.__getitem__, indices),
            in_chunks(examples, sizes.num_tokens, config.max_length, config.chunk_overlap),
        )


@dataclass(frozen=True, slots=True)
class DataSource:
    """What was read: the names as they were given, the sha256 of the bytes, the formats found, and how rows were read."""

    name: str
    sha256: str
    format: str
    notes: tuple[ReadingNote, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A whole data set, divided. `refused` holds the rows that are in no subset, each with its reason.

    `special_token_texts` counts the texts that look like the template's structure in what the records say; `files` are those that
    it was divided from; `num_left_out` counts the training records that `data.train_share` leaves out.
    """

    file: DataSource
    train: Subset
    validation: Subset
    test: Subset
    refused: Sequence[SkippedRow]
    special_token_texts: Counter[str]
    files: tuple[InputFile, ...] = ()
    num_left_out: int = 0

    def __repr__(self) -> str:
        sides = ", ".join(f"{name}={len(getattr(self, name)):,}" for name in ("train", "validation", "test"))
        return f"Dataset({self.file.name!r}, {sides}, refused={len(self.refused):,})"

    @property
    def num_used(self) -> int:
        """Rows that are in a subset."""
        return len(self.train) + len(self.validation) + len(self.test)

    @property
    def num_read(self) -> int:
        """Rows of the file, and of those that were given for a side."""
        return self.num_used + self.num_left_out + len(self.refused)


def apart(subset: Subset, config: Config) -> tuple[Subset, Subset]:
    """The records of `subset` that a model is asked, whose answer is wanted, and its documents; unwanted answers are neither."""
    data = config.data
    has_documents = data.format == "text" or "text" in (data.formats or {}).values()
    if not has_documents and config.train.objective != "kto":
        return subset, subset.take(np.arange(0), data)
    kinds = np.array([(is_answered(one), one.is_document) for one in subset.conversations], dtype=np.bool_).reshape(
        -1, 2
    )
    asked, documents = map(np.flatnonzero, kinds.T)
    return subset.take(asked, data), subset.take(documents, data)


def make_encoder(text: TextEncoder, config: DataConfig) -> Encoder:
    """The encoder for training under `config`."""
    return Encoder(
        text,
        config.max_length,
        prompt_weight=config.resolved_prompt_weight,
        on_long=config.on_long,
        last_turn=config.train_turns == "last",
        train_reasoning=config.train_reasoning,
    )


def load_encoder(tokenizer: PreTrainedTokenizerBase, config: Config) -> Encoder:
    """The encoder of `tokenizer` under the template and limits of `config`; TemplateError where the two do not fit."""
    return make_encoder(TextEncoder(tokenizer, load_template(config.template, tokenizer)), config.data)


def prepare_data(file: DataFile | DataStream, encoder: Encoder, config: Config, cache: Path | None = None) -> Dataset:
    """Encode and split the records of `file`; DataError where nothing is left to train on.

    A stream of more than MAX_IN_MEMORY records goes to a store in the folder `cache`, if there is one. A side that has a
    file of its own (`data.validation_file`, `data.test_file`) is all of that file.
    """
    whole = _encoded(file, encoder, cache)
    sides = whole.sides(config)
    members = {side: np.flatnonzero(sides == side) for side in (TRAIN, VALIDATION, TEST)}
    num_divided = len(members[TRAIN])
    members[TRAIN] = members[TRAIN][nested_share(num_divided, config.data.train_share, config.train.seed)]
    subsets = {side: whole.subset(own, config.data) for side, own in members.items()}
    parts = [whole]
    for side, name in ((VALIDATION, config.data.validation_file), (TEST, config.data.test_file)):
        if name is not None:
            given = _encoded(stream_side(name, config.data, side, config.train.objective), encoder, cache)
            subsets[side] = given.subset(np.arange(len(given.sizes.num_tokens)), config.data)
            parts.append(given)
    notes = merged(*(part.file.notes for part in parts))
    dataset = Dataset(
        replace(whole.file, notes=notes),
        subsets[TRAIN],
        subsets[VALIDATION],
        subsets[TEST],
        whole.skipped if len(parts) == 1 else [row for part in parts for row in part.skipped],
        sum((part.special_token_texts for part in parts), Counter()),
        input_files(file) if isinstance(file, DataStream) else (),
        num_divided - len(members[TRAIN]),
    )
    assert dataset.num_read == sum(part.num_read for part in parts), "a row was lost between reading and splitting"
    return dataset


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    """All records of one file with their examples, in file order, and the rows that are skipped."""

    file: DataSource
    num_read: int
    records: Sequence[Record]
    examples: Sequence[Example]
    sizes: Sizes
    skipped: Sequence[SkippedRow]
    special_token_texts: Counter[str]
    store: Store | None = None

    def subset(self, indices: npt.NDArray[np.int64], config: DataConfig) -> Subset:
        """The records at `indices`."""
        sizes = self.sizes.take(indices)
        records, conversations, examples, sources = self._taken(indices)
        chunks = in_chunks(examples, sizes.num_tokens, config.max_length, config.chunk_overlap)
        return Subset(records, examples, conversations, sizes, sources, chunks)

    def _taken(
        self, indices: npt.NDArray[np.int64]
    ) -> tuple[Sequence[Record], Sequence[Conversation], Sequence[Example], Sequence[str]]:
        """The records at `indices`, and what belongs to each."""
        if (store := self.store) is not None:
            makers = (store.record, store.conversation, store.example, store.source)
            return tuple(Selected(make, indices) for make in makers)  # type: ignore[return-value]
        records = tuple(self.records[index] for index in indices)
        return (
            records,
            [one.conversation for one in records],
            tuple(self.examples[index] for index in indices),
            [one.source for one in records],
        )

    def sides(self, config: Config) -> npt.NDArray[np.int8]:
        """The side of each record; kept beside the store where there is one."""
        data, seed = config.data, config.split_seed

        def divide() -> npt.NDArray[np.int8]:
            prompts = (normal_prompt(record.conversation) for record in self.records)
            shares = {"test_share": data.test_share, "validation_share": data.validation_share}
            try:
                return split_sides(prompts, data.split, **shares, seed=seed)
            except DataError as error:
                if data.format != "text" or data.sample_by != "document":
                    raise
                hint = "data.sample_by=paragraph makes documents of what stands between blank lines"
                raise DataError(f"{error}. A file of plain text is one document; {hint}") from None

        if self.store is None:
            return divide()
        asked = json.dumps([SPLIT_VERSION, data.split, data.test_share, data.validation_share, seed])
        return self.store.array(f"sides-{hashlib.sha256(asked.encode()).hexdigest()[:16]}", divide)


def _encoded(file: DataFile | DataStream, encoder: Encoder, cache: Path | None) -> _Encoded:
    """The records of `file`: from the store of an earlier run, or encoded now; many go to a store of their own."""
    rows: Iterable[Record | SkippedRow] = file if isinstance(file, DataStream) else chain(file.refused, file.records)
    left_out = LeftOut(encoder)
    batches = _encode_in_batches(rows, encoder, left_out)
    sha256 = sha256_of(file.files) if isinstance(file, DataStream) and cache is not None else None
    if not isinstance(file, DataStream) or cache is None or sha256 is None:
        return _in_memory(file, _gathered(batches, math.inf, math.inf), left_out)
    folder = cache / fingerprint(file, sha256, encoder)
    with contextlib.suppress(DataError):  # damaged, or none yet: it is made again
        return _from_store(Store(folder), file.name)
    with contextlib.suppress(OSError):  # what cannot be removed, the writer names
        remove(folder)
    first = _gathered(batches, MAX_IN_MEMORY, MAX_TOKENS_IN_MEMORY)
    if len(first) <= MAX_IN_MEMORY and first.num_tokens <= MAX_TOKENS_IN_MEMORY:
        return _in_memory(file, first, left_out)
    all_batches = chain([first], batches)
    del first  # let go once it is written, like the others
    with StoreWriter(folder, encoder.text.vocab_size) as writer:
        return _from_store(_stored(file, sha256, all_batches, writer, left_out), file.name)


def _in_memory(file: DataFile | DataStream, batch: _Batch, left_out: LeftOut) -> _Encoded:
    _check_any_record(file, len(batch.records), batch.skipped)
    assert len(batch.records) == len(batch.examples)
    return _Encoded(
        DataSource(file.name, file.sha256, file.format, (*file.notes, *left_out.notes)),
        len(batch),
        batch.records,
        batch.examples,
        Sizes.of(batch.examples),
        batch.skipped,
        batch.special_token_texts,
    )


def _stored(file: DataStream, sha256: str, batches: Iterable[_Batch], writer: StoreWriter, left_out: LeftOut) -> Store:
    """The store of `batches`, each written when it comes and let go; the bytes of `file` had this `sha256` before."""
    num_records, skipped = 0, list[SkippedRow]()
    special_token_texts = Counter[str]()
    for batch in batches:
        writer.add(batch.records, batch.examples)
        writer.skip(batch.skipped)
        num_records += len(batch.records)
        skipped = skipped or batch.skipped[:1]
        special_token_texts += batch.special_token_texts
    _check_any_record(file, num_records, skipped)
    if file.sha256 != sha256:
        raise DataError(f"{file.name}: changed before it was read; wait until it is written, or read a copy")
    about = {
        "sha256": file.sha256,
        "format": file.format,
        "notes": [as_row(note) for note in (*file.notes, *left_out.notes)],
        "special_token_texts": special_token_texts,
    }
    return writer.finish(about)


def _from_store(store: Store, name: str) -> _Encoded:
    everything, skipped = np.arange(len(store)), np.arange(store.num_skipped)
    return _Encoded(
        DataSource(name, store.about["sha256"], store.about["format"], _stored_notes(store)),
        len(store) + store.num_skipped,
        Selected(store.record, everything),
        Selected(store.example, everything),
        store.sizes(),
        Selected(store.skipped_row, skipped),
        Counter(store.about["special_token_texts"]),
        store,
    )


def _stored_notes(store: Store) -> tuple[ReadingNote, ...]:
    return tuple(read_strictly(ReadingNote, row, str(store.folder)) for row in store.about["notes"])


@dataclass(slots=True, eq=False)
class _Batch:
    """Rows that were encoded together; `len` counts them all, `num_tokens` the tokens of their examples."""

    records: list[Record] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)
    special_token_texts: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0

    def __len__(self) -> int:
        return len(self.records) + len(self.skipped)

    def __iadd__(self, other: _Batch) -> _Batch:
        self.records += other.records
        self.examples += other.examples
        self.skipped += other.skipped
        self.special_token_texts += other.special_token_texts
        self.num_tokens += other.num_tokens
        return self


def _encode_in_batches(rows: Iterable[Record | SkippedRow], encoder: Encoder, left_out: LeftOut) -> Iterator[_Batch]:
    for chunk in in_batches(rows, _AT_ONCE):
        batch = _Batch()
        examples = iter(encoder.examples([row.conversation for row in chunk if isinstance(row, Record)]))
        for row in chunk:
            example = next(examples) if isinstance(row, Record) else ""
            if isinstance(row, SkippedRow):
                batch.skipped.append(row)
            elif isinstance(example, Example):
                batch.records.append(row)
                batch.examples.append(example)
                batch.num_tokens += len(example)
                batch.special_token_texts.update(encoder.text.count_special_tokens(row.conversation))
            else:
                batch.skipped.append(SkippedRow(row.source, example, row.raw))
        left_out.add(record.conversation for record in batch.records)
        yield batch


def _gathered(batches: Iterator[_Batch], max_rows: float, max_tokens: float) -> _Batch:
    """The next batches as one: all that are left, or as many as it takes to be over `max_rows` or `max_tokens`."""
    gathered = _Batch()
    for batch in batches:
        gathered += batch
        if len(gathered) > max_rows or gathered.num_tokens > max_tokens:
            break
    return gathered


def _check_any_record(file: DataFile | DataStream, num_records: int, skipped: Sequence[SkippedRow]) -> None:
    if not num_records:
        first = skipped[0]
        raise DataError(f"{file.name}: no record is left to use; the first skipped row: {first.source}: {first.reason}")


def describe(dataset: Dataset, encoder: Encoder, config: Config) -> DataDocument:
    """The data set in numbers: what data.json of a run folder holds, but for what a check finds in it."""
    train, sizes = dataset.train, dataset.train.sizes
    return DataDocument(
        source=dataset.file.name,
        sha256=dataset.file.sha256,
        rows_read=dataset.num_read,
        rows_used=dataset.num_used,
        rows_refused=len(dataset.refused),
        rows_left_out=dataset.num_left_out,
        refused=tuple(SkippedPlace(skipped.source, skipped.reason) for skipped in dataset.refused[:_MAX_LISTED]),
        split=Split(config.data.split, len(dataset.train), len(dataset.validation), len(dataset.test)),
        template=encoder.text.template.name,
        train_on="all" if config.data.format == "text" else config.data.train_on,
        prompt_weight=config.data.resolved_prompt_weight,
        max_length=config.data.max_length,
        num_cut=int(sizes.cut.sum()),
        num_input_cut=int((sizes.num_input_cut > 0).sum()),
        cut=tuple(dataset.train.records[index].source for index in _cut(sizes)[:_MAX_LISTED]),
        special_token_texts=dict(dataset.special_token_texts.most_common()),
        train_turns=config.data.train_turns,
        train_tokens=TokenCounts(record=int(sizes.num_tokens.sum()), trained=int(sizes.num_trained.sum())),
        reading=dataset.file.notes,
        shown=tuple(
            as_shown_example(shown_record(example, encoder.text, conversation))
            for example, conversation in _first_chunks(dataset.train)
        ),
        num_chunks=len(train.chunks) if len(train.chunks) > len(train) or config.data.format == "text" else None,
        files=count_files(dataset.files, _sources_of_files(dataset, config.data), config.data),
    )


def _first_chunks(train: Subset) -> Iterator[tuple[Example, Conversation | None]]:
    """What is shown of the training set, each with its conversation, but for parts of longer documents."""
    whole = len(train.chunks) == len(train)
    shown = train.chunks[:NUM_SHOWN]
    return zip(shown, train.conversations[:NUM_SHOWN] if whole else repeat(None, len(shown)), strict=True)


def _sources_of_files(dataset: Dataset, config: DataConfig) -> dict[str, Sequence[str]]:
    """The sources of the records on each side that were read from the files of DATA."""
    given = {"validation": config.validation_file, "test": config.test_file}
    sides = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: () if given.get(name) else side.sources for name, side in sides.items()}


def _cut(sizes: Sizes) -> list[int]:
    """Which examples are not all of their records."""
    return list(np.flatnonzero(sizes.cut | (sizes.num_input_cut > 0)).tolist())
