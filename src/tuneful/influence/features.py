"""Each record becomes a few thousand numbers whose inner products say how alike the gradients are; kept as they come.

    Examples -> gradients (gradients.py) -> times AdamW's scale (parameters.py) -> sketch (sketch.py) -> features [N, D]

Records are computed in padded batches of like length, and written in files of CHUNK records in the order of the training set,
each whole or not there: what was computed before a kill is not computed again. The trade: 4 D bytes a record and checkpoint on
disk, for which every further question about the run takes seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from tuneful.errors import TunefulError
from tuneful.files import written
from tuneful.influence.gradients import Parameters, gradients_alone, gradients_together, linear_layers
from tuneful.influence.sketch import Sketch
from tuneful.train.memory import out_of_memory_says
from tuneful.types import Example

Features = npt.NDArray[np.float32]

CHUNK = 64
"""Records of a file, and so the most that a kill costs."""

TOLERANCE = 1e-3
"""Largest difference of the features of records computed together, as a share of those of each alone."""

_MAX_BATCH_TOKENS = 2048
_MAX_BATCH_RECORDS = 16
_LOGITS = 1 << 26
"""Logits that are held at most: 256 MB, and as much again for their gradient."""


@dataclass(frozen=True, eq=False)
class Featurizer:
    """What makes features of examples: the model as it stands, by which parameters, times which scale, in which sketch.

    `together` says whether records are computed together; `scale` is empty where gradients stay as they are.
    """

    model: PreTrainedModel
    parameters: Parameters
    sketch: Sketch
    scale: Mapping[str, torch.Tensor]
    together: bool = True

    def features(self, examples: Sequence[Example], advance: Callable[[int], None] = lambda count: None) -> Features:
        """float32 [N, D], a row an example, in order. TunefulError where a gradient is not finite."""
        found = np.zeros((len(examples), self.sketch.dim), np.float32)
        room = min(_MAX_BATCH_TOKENS, _LOGITS // self.model.config.get_text_config().vocab_size) if self.together else 1
        for places in batches([len(example) for example in examples], room):
            batch = [examples[place] for place in places]
            with out_of_memory_says(batch):
                rows = self.of_batch(batch, together=self.together)
            if not np.isfinite(rows).all():
                bad = batch[int(np.flatnonzero(~np.isfinite(rows).all(1))[0])]
                raise TunefulError(
                    f"{bad.source}: its gradient is not finite: the model has diverged, or the record has"
                )
            found[places] = rows
            advance(len(batch))
        return found

    def of_batch(self, batch: Sequence[Example], *, together: bool) -> Features:
        """The same of a few examples, in one forward or one after the other."""
        found = self._together(batch) if together else None
        return self._alone(batch) if found is None else found

    def why_alone(self, examples: Sequence[Example]) -> str | None:
        """Why records are not to be computed together, tried on `examples`; None where they may be."""
        if linear_layers(self.model, self.parameters) is None:
            return "some of what was trained is no linear layer"
        if (together := self._together(examples)) is None:
            return "some layer takes records apart"
        alone = self._alone(examples)
        off = np.linalg.norm(together - alone, axis=1) / np.maximum(np.linalg.norm(alone, axis=1), 1e-30)
        if not off.max(initial=0.0) <= TOLERANCE:
            return f"computed together their gradients differ by {off.max():.1g} from those of each alone"
        return None

    def _together(self, batch: Sequence[Example]) -> Features | None:
        layers, sums = linear_layers(self.model, self.parameters), _Sums(self, len(batch))
        if layers is None or gradients_together(self.model, batch, layers, sums.add) is None:
            return None
        return sums.total.float().cpu().numpy()

    def _alone(self, batch: Sequence[Example]) -> Features:
        sums = _Sums(self, len(batch))
        gradients_alone(self.model, batch, self.parameters, sums.add)
        return sums.total.float().cpu().numpy()


class _Sums:
    """Scales and projects gradients of `num_records` records as they come, and adds them up: `total` [B, D]."""

    def __init__(self, made_by: Featurizer, num_records: int) -> None:
        model, sketch = made_by.model, made_by.sketch
        self._scale, self._sketch = made_by.scale, sketch
        self.total = torch.zeros(num_records, sketch.dim, device=model.device, dtype=model.dtype)

    def add(self, name: str, gradients: torch.Tensor) -> None:
        """Take the gradients [B, ...] of one parameter."""
        scaled = gradients * self._scale[name] if self._scale else gradients
        self.total += self._sketch.of(name, scaled)


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Which records are computed together, by their places: of like length, the longest first, so that little is padded and
    memory that runs out does so at once. Padding included they have `max_tokens` at most; a longer record is alone."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        room = max(1, min(_MAX_BATCH_RECORDS, max_tokens // lengths[order[0]]))
        yield order[:room]
        order = order[room:]


# On disk


def kept_features(
    folder: Path,
    examples: Sequence[Example],
    dim: int,
    compute: Callable[[Sequence[Example]], Features],
) -> Iterator[tuple[int, Features]]:
    """(place of the first, features) of every CHUNK of `examples`: as they lie in `folder`, else computed and written there."""
    for start in range(0, len(examples), CHUNK):
        chunk = [examples[place] for place in range(start, min(start + CHUNK, len(examples)))]
        file = folder / f"records-{start:08d}.safetensors"
        if (features := _read(file, len(chunk), dim)) is None:
            features = compute(chunk)
            folder.mkdir(parents=True, exist_ok=True)
            with written(file, binary=True) as opened:
                opened.write(save({"features": torch.from_numpy(features)}))
        yield start, features


def num_kept(folder: Path, num_examples: int) -> int:
    """How many of the examples have features in `folder`, by the names of its files."""
    starts = range(0, num_examples, CHUNK)
    there = [start for start in starts if (folder / f"records-{start:08d}.safetensors").exists()]
    return sum(min(CHUNK, num_examples - start) for start in there)


def _read(file: Path, num_rows: int, dim: int) -> Features | None:
    """The features of a file; None where there are none, or others."""
    with contextlib.suppress(FileNotFoundError, SafetensorError, KeyError):
        features = load_file(file)["features"]
        if features.shape == (num_rows, dim) and features.dtype is torch.float32:
            found: Features = features.numpy()
            return found
    return None
