"""Several files of one run: in which shares their records come (`data.interleave_probs`) and how often; what is replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from tuneful.batch.order import Mixture, mixture_of
from tuneful.config import Config, DataConfig
from tuneful.data.by_file import Key
from tuneful.encoding.by_file import file_numbers
from tuneful.encoding.documents import records_of
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import Dataset
from tuneful.encoding.replay import Replay, read_replay
from tuneful.errors import ConfigError
from tuneful.runs.schema import DataDocument


def read_mixture(dataset: Dataset, config: DataConfig) -> Mixture | None:
    """The mixture that `data.interleave_probs` asks for, None for none; ConfigError where a file has no training record."""
    shares = config.interleave_probs
    if shares is None:
        return None
    keys: list[Key | None] = list(shares) if isinstance(shares, Mapping) else list(range(len(shares)))
    given = [float(shares[key]) for key in keys]  # type: ignore[index]
    group_of_file = np.array([keys.index(file.group) for file in dataset.files])
    group_of = group_of_file[_files_of_chunks(dataset)]
    if missing := [key for at, key in enumerate(keys) if not (group_of == at).any()]:
        raise ConfigError(f"`data.interleave_probs`: {missing[0]} has no training record to give")
    return mixture_of(group_of, given, config.stopping_strategy)


def with_shares(document: DataDocument, dataset: Dataset, mixture: Mixture | None) -> DataDocument:
    """The data.json of a run, with what each file gives to an epoch."""
    if mixture is None:
        return document
    source = _files_of_chunks(dataset)
    times = np.empty(len(source))
    for own, count in zip(mixture.members, mixture.counts, strict=True):
        times[own] = count / len(own)
    files = tuple(
        replace(file, examples_an_epoch=round(float(own.sum())), times_an_epoch=float(own.mean()))
        if len(own := times[source == at])
        else file
        for at, file in enumerate(document.files)
    )
    return replace(document, files=files)


def _files_of_chunks(dataset: Dataset) -> npt.NDArray[np.int64]:
    """The index in `dataset.files` of each training chunk."""
    return file_numbers(dataset.train.sources, dataset.files)[records_of(dataset.train.chunks)]


def replay_of(config: Config, encoder: Encoder, dataset: Dataset) -> Replay | None:
    """What is replayed beside `dataset`, none of whose held-out records is in it; None where `data.replay` names nothing."""
    if (data := config.data).replay is None:
        return None
    held_out = chain(dataset.validation.conversations, dataset.test.conversations)
    return read_replay(data.replay, data.resolved_replay_ratio, encoder, held_out, config.train.objective)
