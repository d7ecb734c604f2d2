"""A file's records become a data set ready to train on: encoded, split, every row accounted for.

    DataFile -> Records -> Examples (or refused by name) -> train / validation / test

rows read = rows used + rows refused, asserted here and printed by whoever asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneful.config import Config, DataConfig
from tuneful.data.encode import Encoder, TextEncoder
from tuneful.data.read import DataFile, Record, Refusal, read_data
from tuneful.data.show import as_dicts, shown_tokens
from tuneful.data.split import split_records
from tuneful.errors import DataError
from tuneful.types import Conversation, Example

NUM_SHOWN = 3
_HISTOGRAM_BINS = 24


@dataclass(frozen=True, slots=True)
class Subset:
    """One side of the split: records and their examples, in the same order."""

    records: tuple[Record, ...]
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    @property
    def conversations(self) -> list[Conversation]:
        """The records as they are meant."""
        return [record.conversation for record in self.records]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A whole data set, divided. `refused` holds the rows that are in no subset, each with its reason."""

    file: DataFile
    train: Subset
    validation: Subset
    test: Subset
    refused: tuple[Refusal, ...]

    @property
    def num_used(self) -> int:
        """Rows that are in a subset."""
        return len(self.train) + len(self.validation) + len(self.test)

    @property
    def num_read(self) -> int:
        """Rows of the file."""
        return self.num_used + len(self.refused)


def make_encoder(text: TextEncoder, config: DataConfig) -> Encoder:
    """The encoder for training under `config`."""
    return Encoder(
        text,
        config.max_length,
        prompt_weight=config.resolved_prompt_weight,
        on_long=config.on_long,
        last_turn=config.train_turns == "last",
    )


def prepare_data(file: DataFile, encoder: Encoder, config: Config) -> Dataset:
    """Encode and split the records of `file`; DataError where nothing is left to train on.

    A side that has a file of its own (`data.validation_file`, `data.test_file`) is all of that file.
    """
    usable, refused = _encoded(file, encoder)
    split = split_records(
        usable.records,
        config.data.split,
        test_share=config.data.test_share,
        validation_share=config.data.validation_share,
        seed=config.train.seed,
    )
    examples = dict(zip(map(id, usable.records), usable.examples, strict=True))
    sides = {
        side: Subset(records, tuple(examples[id(record)] for record in records))
        for side, records in (("train", split.train), ("validation", split.validation), ("test", split.test))
    }
    num_read = len(file.records) + len(file.refused)
    for side, name in (("validation", config.data.validation_file), ("test", config.data.test_file)):
        if name is not None:
            given = read_data(name, config.data)
            sides[side], refused_here = _encoded(given, encoder)
            refused += refused_here
            num_read += len(given.records) + len(given.refused)
    dataset = Dataset(file, **sides, refused=tuple(refused))
    assert dataset.num_read == num_read, "a row was lost between reading and splitting"
    return dataset


def _encoded(file: DataFile, encoder: Encoder) -> tuple[Subset, list[Refusal]]:
    """The records of `file` that have an example, with it, and the rows that are refused."""
    examples = encoder.examples([record.conversation for record in file.records])
    usable, refused = [], list(file.refused)
    for record, example in zip(file.records, examples, strict=True):
        if isinstance(example, Example):
            usable.append((record, example))
        else:
            refused.append(Refusal(record.source, example, record.raw))
    if not usable:
        first = refused[0]
        raise DataError(f"{file.name}: no record is left to use; the first refusal: {first.source}: {first.reason}")
    records, kept = zip(*usable, strict=True)
    return Subset(records, kept), refused


def describe(dataset: Dataset, encoder: Encoder, config: Config) -> dict[str, Any]:
    """The data set in numbers: what data.json of a run folder holds."""
    train = dataset.train.examples
    lengths = np.array([len(example) for example in train])
    prompts = np.array([example.num_prompt_tokens for example in train])
    counts, edges = np.histogram(
        lengths, bins=min(_HISTOGRAM_BINS, int(lengths.max())), range=(0, int(lengths.max()) + 1)
    )
    return {
        "source": dataset.file.name,
        "sha256": dataset.file.sha256,
        "rows_read": dataset.num_read,
        "rows_used": dataset.num_used,
        "rows_refused": len(dataset.refused),
        "refused": [{"source": refusal.source, "reason": refusal.reason} for refusal in dataset.refused],
        "split": {
            "method": config.data.split,
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
        },
        "template": encoder.text.template.name,
        "train_on": config.data.train_on,
        "prompt_weight": config.data.resolved_prompt_weight,
        "max_length": config.data.max_length,
        "num_cut": sum(example.cut for example in train),
        "num_input_cut": sum(example.num_input_cut > 0 for example in train),
        "marker_texts": dict(_count_markers(dataset, encoder)),
        "train_turns": config.data.train_turns,
        "train_tokens": {
            "record": int(lengths.sum()),
            "trained": int(sum((example.weights > 0).sum() for example in train)),
        },
        "lengths": {
            "prompt": _spread(prompts),
            "response": _spread(lengths - prompts),
            "record": _spread(lengths),
        },
        "length_histogram": {"edges": [round(float(edge), 1) for edge in edges], "counts": counts.tolist()},
        "shown": [
            {"source": example.source, "tokens": as_dicts(shown_tokens(example, encoder.text))}
            for example in train[:NUM_SHOWN]
        ],
    }


def _count_markers(dataset: Dataset, encoder: Encoder) -> Counter[str]:
    """How often texts that look like the template's structure stand in what the records themselves say."""
    found: Counter[str] = Counter()
    for subset in (dataset.train, dataset.validation, dataset.test):
        for conversation in subset.conversations:
            found += encoder.text.count_markers(conversation)
    return found


def _spread(values: Sequence[int] | np.ndarray[Any, np.dtype[Any]]) -> dict[str, float]:
    return {
        "mean": round(float(np.mean(values)), 1),
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "max": float(np.max(values)),
    }
