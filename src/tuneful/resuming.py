"""Whether a run that goes on is the training that was begun: what identifies one, and which settings may change.

Two runs that agree in `training_identity` end in the same weights and the same answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tuneful.config import Config
from tuneful.data.prepare import Dataset
from tuneful.data.replay import Replay
from tuneful.errors import ConfigError
from tuneful.rundir import Difference
from tuneful.types import Example

FREE_SECTIONS = ("report", "judge")
FREE_KEYS = {
    "model.device",
    "model.name_or_path",  # the weights are compared, wherever they lie
    "train.save_steps",
    "train.save_minutes",
    "train.save_total_limit",
    "train.micro_batch_tokens",
    "train.layout",
    "train.activation_checkpointing",
    "train.report_to",
}
"""Settings that may change when a run goes on: they change no weight and no answer."""


def training_identity(config: Config, dataset: Dataset, replay: Replay | None, model_sha256: str) -> dict[str, Any]:
    """What a training is made of, key to value: every setting that changes a weight, the model, the data, the tokens."""
    settings = {
        f"{name}.{key}": value
        for name, section in config.model_dump(mode="json").items()  # as run.json gives it back
        for key, value in section.items()
        if not _is_free(name, key)
    }
    replayed = replay.examples if replay is not None else ()
    return {
        **settings,
        "model": f"sha256 {model_sha256}",
        "data": f"sha256 {dataset.file.sha256}",
        "tokens": f"sha256 {_digest_of(chain(dataset.train.examples, dataset.validation.examples, replayed))}",
    }


def refuse_changes(where: Path, changed: Sequence[Difference], allowed: Sequence[str]) -> None:
    """ConfigError that names every change which is not allowed, with both values."""
    refused = [one for one in changed if one.key not in allowed]
    if len(refused) > 1:
        refused = [one for one in refused if one.key != "tokens"]  # which follow from the others
    if not refused:
        return
    listed = "\n".join(f"  `{one.key}` was {one.before}, is {one.now}" for one in refused)
    keys = " ".join(f"--allow-changed {one.key}" for one in refused)
    raise ConfigError(
        f"{where}: this is another training than the one that was begun:\n{listed}\nGo on with what it was, or add {keys}"
    )


def _is_free(section: str, key: str) -> bool:
    """Whether a setting may change when a run goes on. The general text may not: base and tuned are measured on the same."""
    dotted = f"{section}.{key}"
    return dotted in FREE_KEYS or (section in FREE_SECTIONS and dotted != "report.general")


def _digest_of(examples: Iterable[Example]) -> str:
    """sha256 over the token ids and weights of `examples`, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example).to_bytes(8, "little") + example.token_ids.tobytes() + example.weights.tobytes())
    return digest.hexdigest()
