"""The records of a data set by the file that each was read from: how many, what they weigh, which share of an epoch they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuneful.config import DataConfig
from tuneful.data.by_file import Key
from tuneful.data.read import DataStream
from tuneful.numbers import plural
from tuneful.runs.schema import FileCounts

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of DATA: its name, the `data.format` and `data.weights` that hold for it, and its key in `data.interleave_probs`."""

    name: str
    format: str
    weight: float
    group: Key | None


def input_files(stream: DataStream) -> tuple[InputFile, ...]:
    """The files of `stream`, in order."""
    settings = zip(stream.files, stream.formats, stream.weights, stream.groups, strict=True)
    return tuple(InputFile(place.name, format, weight, group) for place, format, weight, group in settings)


def file_numbers(sources: Sequence[str], files: Sequence[InputFile]) -> IntArray:
    """The index of the file that each record was read from: int64 [N], by its source, `file:line`."""
    if len(files) == 1:
        return np.zeros(len(sources), dtype=np.int64)
    number = {file.name: at for at, file in enumerate(files)}
    return np.array([number[source.rpartition(":")[0]] for source in sources], dtype=np.int64)


def count_files(
    files: Sequence[InputFile], sides: Mapping[str, Sequence[str]], config: DataConfig
) -> tuple[FileCounts, ...]:
    """What of each file is on which side, by the sources of the records there; nothing of a single file that nothing weighs."""
    if len(files) < 2 and config.weights is None:
        return ()
    counts = {name: np.bincount(file_numbers(sources, files), minlength=len(files)) for name, sources in sides.items()}
    return tuple(
        FileCounts(
            file.name,
            file.format,
            train=int(counts["train"][at]),
            validation=int(counts["validation"][at]),
            test=int(counts["test"][at]),
            weight=file.weight,
        )
        for at, file in enumerate(files)
    )


def files_in_words(files: Sequence[FileCounts]) -> list[str]:
    """A line a file: its records, what they weigh, and how often they come."""
    return [f"{file.name}: {plural(file.train, 'training record')}" + _how(file) for file in files]


def _how(file: FileCounts) -> str:
    parts = [file.format] if file.format == "text" else []
    if file.weight != 1:
        parts.append(f"weight {file.weight:g}")
    if file.examples_an_epoch is not None and file.times_an_epoch is not None:
        parts.append(f"{file.examples_an_epoch:,} an epoch, each {file.times_an_epoch:.3g} times")
    return "".join(f", {part}" for part in parts)
