"""Files become conversations: the first room, where every row is used or skipped with its reason.

    name -> file (sources) -> rows (text_files, tables) -> conversations (formats) -> Record, or SkippedRow

Any number of files of records is one stream, read in bounded memory. A row that cannot be used stops the read, or, on
request, is skipped: read = used + refused, always.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from tuneful.config import DataConfig
from tuneful.data.by_file import keys_by_place
from tuneful.data.columns import is_pair, message_columns
from tuneful.data.documents import document_rows, is_plain_text
from tuneful.data.formats import RECORD_KEYS, FormatReader
from tuneful.data.notes import ReadingNotes
from tuneful.data.pairs import PREFERENCE_KEYS, PreferenceReader, open_reader
from tuneful.data.rows import Row
from tuneful.data.sources import STARTER, ByteStream, Place, find_files, joint_sha256
from tuneful.data.split import TEST
from tuneful.data.tables import is_table, table_rows
from tuneful.data.text_files import text_rows
from tuneful.errors import ConfigError, DataError
from tuneful.runs.schema import ReadingNote, SkippedRow
from tuneful.types import Conversation

_FIRST_ROWS = 10_000
"""Rows that are looked at before a model is loaded: a tenth of a second."""
_ANY = "any"
"""Stands in `data.format` for records of every format and documents together."""
_MAX_BATCH_CHARACTERS = 1 << 24
"""What the documents of a batch may hold, about: they are encoded at once."""

__all__ = ["STARTER", "DataFile", "DataStream", "Record", "SkippedRow", "read_data", "stream_data"]


@dataclass(frozen=True, slots=True)
class Record:
    """A row that can be used: as it was read (`raw`) and as it is meant (`conversation`)."""

    raw: dict[str, Any]
    conversation: Conversation

    def __repr__(self) -> str:
        return f"Record({self.source!r}, {', '.join(map(repr, self.raw))})"

    @property
    def source(self) -> str:
        """`file:line` of the row."""
        return self.conversation.source


@dataclass(frozen=True, slots=True)
class DataFile:
    """All that was read: `len(records) + len(refused)` is the number of rows.

    `sha256` is that of a file's bytes, or of those of several, one after the other; `format` names what was found,
    for people, and `notes` say what there is to know of how rows were read.
    """

    name: str
    sha256: str
    records: tuple[Record, ...]
    refused: tuple[SkippedRow, ...]
    format: str = ""
    notes: tuple[ReadingNote, ...] = ()

    def __repr__(self) -> str:
        return f"DataFile({self.name!r}, {self.format}, records={len(self.records):,}, refused={len(self.refused):,})"


def read_data(
    data: str | Sequence[str],
    config: DataConfig | None = None,
    *,
    objective: str = "sft",
    on_error: str | None = None,
    asks: bool = False,
    aside: Collection[str] = (),
) -> DataFile:
    """Read all of `data`, as `stream_data` does, into memory. `on_error` goes before that of `config`.

    With `asks` the answers to the records are wanted, and none is needed. The columns set `aside` hold answers of others.
    """
    config = config or DataConfig()
    if on_error is not None:
        config = config.model_copy(update={"on_error": on_error})
    stream = DataStream(data, config, objective=objective, asks=asks, aside=aside)
    records: list[Record] = []
    refused: list[SkippedRow] = []
    for row in stream:
        if isinstance(row, Record):
            records.append(row)
        else:
            refused.append(row)
    assert len(records) + len(refused) == stream.num_read, "a row was lost while reading"
    return DataFile(stream.name, stream.sha256, tuple(records), tuple(refused), stream.format, stream.notes)


def stream_data(data: str | Sequence[str], config: DataConfig, objective: str = "sft") -> DataStream:
    """The rows of `data`: a file, a pattern, a Hub id, `starter`, `-`, or several of them; pairs or labels where `objective`,
    that is train.objective, takes them.

    Raises DataError where a file is missing and ConfigError where `data.columns` suits no format; all else on the way.
    """
    return DataStream(data, config, objective=objective)


def settings_of_side(config: DataConfig, side: int) -> DataConfig:
    """How the file of a `side` (`data.validation_file`, `data.test_file`, a run's own data/test.jsonl) is read under `config`.

    What goes by file is of DATA. Where documents are trained, test records may be prompts with their answers as well; where they
    stand beside records, they may in any of these files.
    """
    has_both = side == TEST if config.format == "text" else "text" in (config.formats or {}).values()
    format = _ANY if has_both else config.format
    return config.model_copy(update={"weights": None, "interleave_probs": None, "formats": None, "format": format})


def stream_side(name: str, config: DataConfig, side: int, objective: str = "sft") -> DataStream:
    """The rows of the file that is all of a `side`."""
    return DataStream(name, settings_of_side(config, side), objective=objective)


class DataStream:
    """Iterating reads the files, in order, in bounded memory, and gives a Record or a SkippedRow for every row.

    With `data.on_error` "stop" the first row that cannot be used raises DataError; with "skip" it comes as a SkippedRow. A
    file that is missing, cut off, or so damaged that its rows cannot be told apart raises DataError either way, and so
    does data without one usable record. `sha256`, `num_read`, `format` and `notes` are whole once the iteration is over.
    `files` are read under `config`, each in one of `formats` with one of `weights`; `groups` are their keys in
    `data.interleave_probs`.
    """

    def __init__(
        self,
        data: str | Sequence[str],
        config: DataConfig,
        *,
        objective: str = "sft",
        asks: bool = False,
        aside: Collection[str] = (),
    ) -> None:
        self.objective = objective
        names = [data] if isinstance(data, str) else list(data)
        formats = config.formats or {}
        self.files = find_files(data, lambda name: formats.get(name, config.format) == "text")
        self.config = config
        own = keys_by_place(config.formats, "data.formats", names, self.files)
        self.formats = [config.format if key is None else formats[str(key)] for key in own]
        self.weights = _weights(config, names, self.files)
        self.groups = keys_by_place(config.interleave_probs, "data.interleave_probs", names, self.files)
        if config.interleave_probs is not None and None in self.groups:
            raise ConfigError(
                f"`data.interleave_probs` says nothing of {self.files[self.groups.index(None)].name}; name every file"
            )
        self._readers = {
            format: open_reader(
                format.replace(_ANY, "auto"), _columns_of(config, format), objective, asks=asks, aside=aside
            )
            for format in dict.fromkeys(self.formats)
        }
        self._text_reader = FormatReader("text", _columns_of(config, "text") if config.format == _ANY else None)
        self._skips = config.on_error == "skip"
        self.name = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        self.num_read = 0
        self._found_formats: Counter[str] = Counter()
        self._notes = ReadingNotes()
        self._digests: list[str] = []

    @property
    def sha256(self) -> str:
        """Of the bytes of one file as they are stored; of several, of the sha256 of each, one a line."""
        return joint_sha256(self._digests)

    @property
    def format(self) -> str:
        """What the records were found to be: `alpaca`, or `alpaca (900), messages (100)`."""
        if len(self._found_formats) == 1:
            return next(iter(self._found_formats))
        return ", ".join(f"{name} ({count:,})" for name, count in self._found_formats.most_common())

    @property
    def notes(self) -> tuple[ReadingNote, ...]:
        """What there is to know of how the rows were read."""
        return self._notes.notes(self._found_formats.total())

    def begin(self) -> None:
        """Read the first rows, so that what is wrong with them is told before a model is loaded.

        Standard input is left alone, because it can be read only once. Raises what iterating would.
        """
        if all(place.path is not None for place in self.files):
            deque(islice(self, _FIRST_ROWS), maxlen=0)

    def __iter__(self) -> Iterator[Record | SkippedRow]:
        self.num_read = 0
        self._found_formats.clear()
        self._notes.clear()
        self._digests.clear()
        first: SkippedRow | None = None
        for place, format, weight in zip(self.files, self.formats, self.weights, strict=True):
            reader = self._readers[format]
            with ByteStream(place) as stream:
                for source, value, fault in self._rows(stream, reader, format):
                    self.num_read += 1
                    found = fault or reader.read(value, source)
                    if format == _ANY and isinstance(found, str) and self._is_document(value, reader):
                        found = self._text_reader.read(value, source)
                    if not isinstance(found, str):
                        self._found_formats[found.format] += 1
                        self._notes.add(found.noted, source)
                        yield Record(value, weighed(found.conversation, weight))
                        continue
                    if not self._skips:
                        raise DataError(f"{source}: {found}. Fix the row, or pass data.on_error=skip to leave it out")
                    skipped = SkippedRow(source, found, value)
                    first = first or skipped
                    yield skipped
                stream.check_unchanged()
                self._digests.append(stream.sha256)
        if not self._found_formats:
            why = f"; the first skipped row: {first.source}: {first.reason}" if first else ""
            name = ", ".join(place.name for place in self.files[:3])
            raise DataError(f"{name}: no usable record in {self.num_read} row(s){why}")

    def _is_document(self, row: Any, reader: FormatReader | PreferenceReader) -> bool:
        """Whether a row holds a text under the name of a document's, and is of no format that `reader` knows."""
        if not isinstance(row, dict) or not isinstance(reader, FormatReader) or self._text_reader.plan(row) is None:
            return False
        return reader.plan(row) is None and not is_pair(row) and not message_columns(row)

    def _rows(self, stream: ByteStream, reader: FormatReader | PreferenceReader, format: str) -> Iterator[Row]:
        head = stream.peek(16)
        if stream.compression or not is_table(head):
            if format in ("text", _ANY) and is_plain_text(stream):
                return document_rows(stream, self.config.sample_by, (self.config.columns or {}).get("text", "text"))
            known = RECORD_KEYS | PREFERENCE_KEYS | ({"text"} if format == "text" else frozenset())
            return _apart(text_rows(stream, reader.columns, known), reader)
        if stream.path is None:
            raise DataError("stdin: byte 0: Parquet and Arrow are read from files only; save it and name the file")
        for _ in stream.blocks():  # for its hash: tables are read here and there
            pass
        return _apart(table_rows(head, stream.path, stream.name), reader)


def _apart(rows: Iterator[Row], reader: FormatReader | PreferenceReader) -> Iterator[Row]:
    """Under kto each pair is two rows from here on."""
    return reader.rows(rows) if isinstance(reader, PreferenceReader) else rows


def weighed(conversation: Conversation, weight: float) -> Conversation:
    """The conversation of a file whose records weigh `weight` in the loss; both sides of a pair."""
    if weight == 1:
        return conversation
    other = conversation.rejected and weighed(conversation.rejected, weight)
    return replace(conversation, weight=conversation.weight * weight, rejected=other)


def _weights(config: DataConfig, names: Sequence[str], places: Sequence[Place]) -> list[float]:
    """What the records of each place weigh by `data.weights`; those that it does not name weigh 1."""
    keys = keys_by_place(config.weights, "data.weights", names, places)
    return [1.0 if key is None else float(config.weights[key]) for key in keys]  # type: ignore[index]


def _columns_of(config: DataConfig, format: str) -> dict[str, str] | None:
    """The columns that concern what is read as `format`: of documents beside records, `text`."""
    if config.columns is None or (config.format != _ANY and not config.formats):
        return config.columns
    return {field: column for field, column in config.columns.items() if (field == "text") == (format == "text")}


def in_batches(rows: Iterable[Record | SkippedRow], most: int) -> Iterator[list[Record | SkippedRow]]:
    """The rows in lists of at most `most`, each of which is encoded at once; lists of long documents are shorter."""
    batch, num_characters = list[Record | SkippedRow](), 0
    for row in rows:
        batch.append(row)
        if isinstance(row, Record) and row.conversation.is_document:
            num_characters += len(row.conversation.turns[0].response)
        if len(batch) == most or num_characters > _MAX_BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
