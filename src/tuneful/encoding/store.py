"""Encoded records on disk: a data set of any size is trained without holding it in memory.

    <cache>/tokens/<fingerprint>/   token_ids, weights as runs, prompt lengths, sources, rows; one file a column; about.json

Token ids are mapped into memory and rows are read when they are asked for, so a million records cost their offsets: 60 bytes
each. Weights come in runs (context, response), 12 bytes or so where a float a token would be 400.

The fingerprint is over everything that decides what stands in the columns: the bytes and names of the files, how they are
read, template, tokenizer, limits, and ENCODING_VERSION, which stands for the code. So a store is written once and never
changed: whole columns are written aside, flushed and renamed, of two writers of the same store the second is thrown away, and
what a killed one left behind, or was not opened for a month, goes. A store is hashed when it is opened: damage is made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import tokenizers

from tuneful.data.read import DataStream, Record, SkippedRow
from tuneful.encoding.encode import Encoder
from tuneful.errors import DataError
from tuneful.files import ByteRanges, flush_entry, read_object, rename, sha256_of, write_text, written
from tuneful.types import Conversation, Example, IntArray, ToolCall, ToolResult, Turn, sides_of

Item = TypeVar("Item", covariant=True)
Indices = npt.NDArray[np.int64]

ENCODING_VERSION = 3
"""Raise it with every change by which the same rows under the same settings come to other tokens, weights or columns; no
store of the version before is read then. (A test holds the tokens of some records to it.)"""

ABOUT = "about.json"
_COLUMNS = {
    "token_ids": "int32",
    "token_ends": "int64",
    "run_lengths": "int32",
    "run_weights": "float32",
    "run_ends": "int64",
    "num_prompt_tokens": "int32",
    "num_trained": "int32",
    "num_input_cut": "int32",
    "cut": "bool",
    "num_rejected": "int32",
    "rejected_cut": "bool",
    "label": "int8",
    "sources": "uint8",
    "source_ends": "int64",
    "rows": "uint8",
    "row_ends": "int64",
    "skipped": "uint8",
    "skipped_ends": "int64",
}
_READ_WHEN_ASKED = ("rows", "skipped")  # large and seldom wanted: never mapped
_DIGEST_BYTES = 32
_DAY = 86_400.0
_UNUSED_DAYS = 30


@dataclass(frozen=True, slots=True, eq=False)
class Sizes:
    """How long the examples are, each int32 [N]: tokens, tokens before the first response, trained tokens, tokens cut from
    what was asked; and bool [N] whether the response was cut. Of a pair the prompt counts once and both sides' tokens do."""

    num_tokens: IntArray
    num_prompt_tokens: IntArray
    num_trained: IntArray
    num_input_cut: IntArray
    cut: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Sizes:
        """The sizes of `examples`, in order."""
        return cls(
            np.array([len(example) + _num_rejected(example) for example in examples], dtype=np.int32),
            np.array([example.num_prompt_tokens for example in examples], dtype=np.int32),
            np.array(
                [sum(np.count_nonzero(side.weights) for side in sides_of(example)) for example in examples], np.int32
            ),
            np.array([example.num_input_cut for example in examples], dtype=np.int32),
            np.array([any(side.cut for side in sides_of(example)) for example in examples], dtype=np.bool_),
        )

    def take(self, indices: Indices) -> Sizes:
        """The sizes of the examples at `indices`."""
        return Sizes(
            self.num_tokens[indices],
            self.num_prompt_tokens[indices],
            self.num_trained[indices],
            self.num_input_cut[indices],
            self.cut[indices],
        )


def _num_rejected(example: Example) -> int:
    """Tokens of the rejected side behind the prompt; 0 where there is none."""
    return len(example.rejected) - example.num_prompt_tokens if example.rejected is not None else 0


def _laid_out(values: Sequence[npt.NDArray[Any]], num_prompt_tokens: int) -> npt.NDArray[Any]:
    """The tokens, or weights, of a record's sides one behind the other, the prompt once."""
    return np.concatenate([values[0], *(side[num_prompt_tokens:] for side in values[1:])])


class Selected(Sequence[Item]):
    """The items at `indices` of something that makes an item when it is asked for it. Each asking makes another."""

    def __init__(self, get: Callable[[int], Item], indices: Indices) -> None:
        self._get, self._indices = get, indices

    def __len__(self) -> int:
        """Number of items."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Selected[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Selected[Item]:
        """The item at `index`, or those of a slice, still to be made."""
        if isinstance(index, slice):
            return Selected(self._get, self._indices[index])
        return self._get(int(self._indices[index]))


class Store:
    """The columns of a folder that a StoreWriter wrote; `about` is what it was finished with.

    Raises DataError where a file of it is missing or is not what was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            document = read_object(folder / ABOUT)
            damaged = [ABOUT] if document.pop("sha256") != _digest(document) else []
            self.about: Mapping[str, Any] = document["about"]
            damaged += [name for name, sha256 in document["sums"].items() if sha256_of(folder / name) != sha256]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: damaged ({error}); remove it, it will be made again") from None
        if damaged:
            raise DataError(f"{folder}: damaged ({', '.join(damaged)}); remove it, it will be made again")
        types = {name: dtype for name, (dtype, _) in document["columns"].items()}
        self._columns = {
            name: _mapped(folder / name, dtype) for name, dtype in types.items() if name not in _READ_WHEN_ASKED
        }
        self._texts = {name: ByteRanges(folder / name) for name in _READ_WHEN_ASKED}
        with contextlib.suppress(OSError):
            os.utime(folder / ABOUT)

    def __len__(self) -> int:
        """Number of records."""
        return len(self._columns["token_ends"])

    @property
    def num_skipped(self) -> int:
        """Number of skipped rows."""
        return len(self._columns["skipped_ends"])

    def sizes(self) -> Sizes:
        """The sizes of all examples."""
        tokens = np.diff(self._columns["token_ends"], prepend=0).astype(np.int32)
        num_prompt, num_trained, num_cut = (
            np.array(self._columns[name]) for name in ("num_prompt_tokens", "num_trained", "num_input_cut")
        )
        return Sizes(tokens, num_prompt, num_trained, num_cut, self._columns["cut"] | self._columns["rejected_cut"])

    def example(self, index: int) -> Example:
        """The example of record `index`."""
        columns = self._columns
        tokens, runs = self._span("token_ends", index), self._span("run_ends", index)
        token_ids = columns["token_ids"][tokens].astype(np.int32)
        weights = np.repeat(columns["run_weights"][runs], columns["run_lengths"][runs])
        num_rejected, label = int(columns["num_rejected"][index]), int(columns["label"][index])
        first = Example(
            token_ids[: len(token_ids) - num_rejected],
            weights[: len(token_ids) - num_rejected],
            int(columns["num_prompt_tokens"][index]),
            self.source(index),
            bool(columns["cut"][index]),
            int(columns["num_input_cut"][index]),
            label=None if label < 0 else bool(label),
        )
        if not num_rejected:
            return first
        own = np.r_[: first.num_prompt_tokens, len(first) : len(token_ids)]
        cut = bool(columns["rejected_cut"][index])
        return replace(first, rejected=replace(first, token_ids=token_ids[own], weights=weights[own], cut=cut))

    def record(self, index: int) -> Record:
        """Record `index`, as it was read and as it is meant."""
        source, weight, system, turns, raw, *others = self._read("rows", "row_ends", index)
        rejected, label, tools, is_document = others or (None, None, "", False)
        conversation = Conversation(
            system, tuple(map(_turn, turns)), source, weight, label=label, tools=tools, is_document=is_document
        )
        if rejected is not None:
            other = replace(conversation, turns=tuple(map(_turn, rejected)))
            conversation = replace(conversation, rejected=other)
        return Record(raw, conversation)

    def source(self, index: int) -> str:
        """Where record `index` was read."""
        span = self._span("source_ends", index)
        return self._columns["sources"][span].tobytes().decode("utf-8", "surrogatepass")

    def conversation(self, index: int) -> Conversation:
        """Record `index` as it is meant."""
        return self.record(index).conversation

    def skipped_row(self, index: int) -> SkippedRow:
        """Skipped row `index`, in file order."""
        return SkippedRow(*self._read("skipped", "skipped_ends", index))

    def array(self, name: str, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The array kept under `name` beside the columns; made, and kept, where it is not there yet."""
        path = self.folder / name
        with contextlib.suppress(OSError, ValueError, EOFError):
            kept = path.read_bytes()
            if hashlib.sha256(kept[_DIGEST_BYTES:]).digest() == kept[:_DIGEST_BYTES]:
                return np.asarray(np.load(io.BytesIO(kept[_DIGEST_BYTES:]), allow_pickle=False))
        made, content = make(), io.BytesIO()
        np.save(content, made)
        with (
            contextlib.suppress(OSError),
            written(path, binary=True) as file,
        ):  # kept to save time; it can be made again
            file.write(hashlib.sha256(content.getvalue()).digest() + content.getvalue())
        return made

    def _span(self, ends: str, index: int) -> slice:
        column = self._columns[ends]
        return slice(int(column[index - 1]) if index else 0, int(column[index]))

    def _read(self, name: str, ends: str, index: int) -> Any:
        span = self._span(ends, index)
        return json.loads(self._texts[name].read(span.start, span.stop).decode("utf-8", "surrogatepass"))


class StoreWriter:
    """Writes a Store column by column: `add` and `skip` in file order, then `finish`.

    A context manager; what is not finished is removed. `vocab_size` decides how wide a token id is.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder = folder
        self._aside = folder.with_name(f".part-{os.getpid()}-{secrets.token_hex(4)}")
        self._types = {**_COLUMNS, "token_ids": "uint16" if vocab_size <= 1 << 16 else "int32"}
        with _written(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_old(folder.parent)
            self._aside.mkdir()
            self._files = {name: (self._aside / name).open("wb") for name in self._types}
        self._ends = dict.fromkeys(self._types, 0)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, records: Sequence[Record], examples: Sequence[Example]) -> None:
        """Some more records, each with its example; DataError where the disk refuses."""
        if not records:
            return
        with _written(self.folder):
            sizes = Sizes.of(examples)
            token_ids, weights = (
                np.concatenate(
                    [
                        _laid_out([getattr(side, name) for side in sides_of(one)], one.num_prompt_tokens)
                        for one in examples
                    ]
                )
                for name in ("token_ids", "weights")
            )
            self._put("token_ids", token_ids)
            self._put_ends("token_ends", sizes.num_tokens)
            self._put_runs(weights, sizes.num_tokens)
            for name in ("num_prompt_tokens", "num_trained", "num_input_cut"):
                self._put(name, getattr(sizes, name))
            self._put("cut", np.array([example.cut for example in examples]))
            self._put("num_rejected", np.array([_num_rejected(example) for example in examples]))
            self._put(
                "rejected_cut",
                np.array([example.rejected is not None and example.rejected.cut for example in examples]),
            )
            self._put("label", np.array([-1 if example.label is None else int(example.label) for example in examples]))
            self._put_texts("sources", "source_ends", [record.source for record in records])
            self._put_texts("rows", "row_ends", [_as_json(_row(record)) for record in records])

    def skip(self, rows: Sequence[SkippedRow]) -> None:
        """Some more rows that are skipped; DataError where the disk refuses."""
        with _written(self.folder):
            self._put_texts("skipped", "skipped_ends", [_as_json([row.source, row.reason, row.raw]) for row in rows])

    def finish(self, about: Mapping[str, Any]) -> Store:
        """Put the folder in its place and open it; where another writer was faster, its folder is the store."""
        with _written(self.folder):
            for file in self._files.values():
                file.close()
            columns = {name: (dtype, (self._aside / name).stat().st_size) for name, dtype in self._types.items()}
            sums = {name: sha256_of(self._aside / name) for name in self._types}
            document = {"about": about, "columns": columns, "sums": sums}
            write_text(self._aside / ABOUT, json.dumps({**document, "sha256": _digest(document)}))
            for path in (*(self._aside / name for name in self._types), self._aside):
                flush_entry(path)
            try:
                rename(self._aside, self.folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        return Store(self.folder)

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        self._files[name].write(values.astype(self._types[name]).tobytes())

    def _put_ends(self, name: str, lengths: npt.NDArray[Any]) -> None:
        ends = self._ends[name] + np.cumsum(lengths, dtype=np.int64)
        self._put(name, ends)
        self._ends[name] = int(ends[-1])

    def _put_texts(self, name: str, ends: str, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        if encoded:
            self._files[name].write(b"".join(encoded))
            self._put_ends(ends, np.array([len(text) for text in encoded]))

    def _put_runs(self, weights: npt.NDArray[np.float32], lengths: IntArray) -> None:
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        begins = np.concatenate(([True], weights[1:] != weights[:-1]))
        begins[starts] = True
        first = np.flatnonzero(begins)
        self._put("run_lengths", np.diff(first, append=len(weights)))
        self._put("run_weights", weights[first])
        self._put_ends("run_ends", np.add.reduceat(begins.astype(np.int64), starts))


def fingerprint(stream: DataStream, data_sha256: str, encoder: Encoder) -> str:
    """sha256 of all that decides what the records of `stream`, whose files have this sha256, encode to."""
    config, names = stream.config, [place.name for place in stream.files]
    reading: list[Any] = [config.columns, config.on_error, config.sample_by, config.formats is None]
    reading += [stream.formats, stream.weights, stream.objective]
    limits = [encoder.max_length, encoder.prompt_weight, encoder.on_long, encoder.last_turn]
    limits += [encoder.train_reasoning]
    code = [ENCODING_VERSION, tokenizers.__version__]
    around = [encoder.text.begin_token_ids, encoder.text.document_end_id]
    decisive = [code, data_sha256, names, encoder.text.fingerprint, around, reading, limits]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _row(record: Record) -> list[Any]:
    conversation = record.conversation
    said = [conversation.source, conversation.weight, conversation.system, _plain(conversation.turns), record.raw]
    other, label, tools = conversation.rejected, conversation.label, conversation.tools
    if other is None and label is None and not tools and not conversation.is_document:
        return said
    return [*said, None if other is None else _plain(other.turns), label, tools, conversation.is_document]


def _plain(turns: Sequence[Turn]) -> list[list[Any]]:
    """Turns as JSON; what an ordinary one has not is left out."""
    plain = [list(astuple(turn)) for turn in turns]
    return [said if any(said[4:]) else said[:4] for said in plain]


def _turn(said: list[Any]) -> Turn:
    """One of those that `_plain` wrote."""
    instruction, given, response, weight, thought, calls, results = (*said, "", (), ())[:7]
    called, answered = tuple(ToolCall(*one) for one in calls), tuple(ToolResult(*one) for one in results)
    return Turn(instruction, given, response, weight, thought, called, answered)


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if not path.stat().st_size:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder.parent}: the encoded records cannot be written there: {error.strerror or error}. Make room, or name "
            "another folder for the cache: TUNEFUL_CACHE=DIR"
        ) from None


def _remove_old(root: Path) -> None:
    """Remove what killed writers left a day ago, and stores that were not opened for a month."""
    now = time.time()
    for folder in _folders(root):
        touched, days = (folder, 1) if folder.name.startswith(".part-") else (folder / ABOUT, _UNUSED_DAYS)
        with contextlib.suppress(OSError):
            if now - touched.stat().st_mtime > days * _DAY:
                shutil.rmtree(folder, ignore_errors=True)


def _folders(root: Path) -> Iterable[Path]:
    return [path for path in root.iterdir() if path.is_dir()]
