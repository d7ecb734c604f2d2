"""A run goes on: whether it is the training that was begun, which settings may change, and what the folder then gives back.

Two runs that agree in `training_identity` end in the same weights and the same answers.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from tuneful.config import Config, load_config
from tuneful.console import Terminal
from tuneful.encoding.prepare import Dataset
from tuneful.encoding.replay import Replay
from tuneful.errors import ConfigError, DataError
from tuneful.runs.folder import (
    MADE_AGAIN,
    Difference,
    RunDir,
    differences,
    newest_unfinished,
    read_record,
    this_process,
)
from tuneful.runs.schema import Environment, RunRecord, read_loosely, read_object
from tuneful.types import Example, sides_of

FREE_SECTIONS = ("report", "judge", "evaluation")
FREE_KEYS = {
    "data.train_file",  # its content is compared, wherever it lies
    "model.device",
    "model.name_or_path",  # the weights are compared, wherever they lie
    "train.save_steps",
    "train.save_minutes",
    "train.save_total_limit",
    "train.micro_batch_tokens",
    "train.layout",
    "train.activation_checkpointing",
    "train.report_to",
    "train.strategy",
    "train.shard_ranks",
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
        "tokens": f"sha256 {digest_of(chain(dataset.train.examples, dataset.validation.examples, replayed))}",
    }


def unfinished_request(runs: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], Config, Path]:
    """(data, configuration, folder) that began the run in the folder named, with its paths meant as they were then.

    `runs` names one folder or none (the newest under runs/); `overrides` are settings on top. Raises ConfigError.
    """
    if len(runs) > 1:
        raise ConfigError(f"--resume takes one run folder, not {len(runs)}: {', '.join(runs)}")
    path = (Path(runs[0]) if runs else newest_unfinished(Path("runs"))).absolute()
    record = read_record(path)
    if record is None:
        raise ConfigError(f"{path}: there is no run to resume")
    if os.path.isdir(record.folder):
        os.chdir(record.folder)
    return list(record.data), load_config(None, overrides, begun_with=record.config), path


def begin_or_resume(
    folder: RunDir,
    data: str | Sequence[str],
    verb: str,
    config: Config,
    identity: Mapping[str, Any],
    allow_changed: Sequence[str],
    terminal: Terminal,
) -> tuple[datetime, dict[str, float]]:
    """Write run.json, or compare what it says with what is asked for now: ConfigError where that is another training.

    Returns when the run was begun and how long each of its phases has taken so far.
    """
    settings, phase_seconds = config.model_dump(mode="json"), dict[str, float]()
    if (record := folder.record) is None:
        started = datetime.now(timezone.utc)
        record = RunRecord(
            verb=verb,
            data=(data,) if isinstance(data, str) else tuple(data),
            folder=os.getcwd(),
            allowed=(),
            finished=None,
            started=started.isoformat(timespec="seconds"),
            config=settings,
            training=identity,
            process=this_process(),
        )
    else:
        started = datetime.fromisoformat(record.started)
        phase_seconds |= _phase_seconds(folder, terminal)
        _check_resumption(folder, record, verb, differences(record.training, identity), allow_changed, terminal)
        allowed = tuple(sorted({*record.allowed, *allow_changed}))
        kept = {name: sha256 for name, sha256 in folder.begun.files.items() if _is_still_finished(folder, name)}
        record = replace(record, allowed=allowed, config=settings, training=identity, files=kept)
    folder.write_record(record)
    return started, phase_seconds


def _check_resumption(
    folder: RunDir,
    record: RunRecord,
    verb: str,
    changed: Sequence[Difference],
    allow_changed: Sequence[str],
    terminal: Terminal,
) -> None:
    if verb != record.verb:
        raise ConfigError(
            f"{folder.path}: was begun by `tuneful {record.verb}`; go on with: tuneful {record.verb} "
            f"--resume {shlex.quote(str(folder.path))}"
        )
    check_changes(folder.path, changed, allow_changed)
    if folder.has_model and (
        late := [one.key for one in changed if not one.key.startswith(("generate.", "report.", "evaluation."))]
    ):
        raise ConfigError(
            f"{folder.path}: the model is trained and saved; `{late[0]}` comes too late. Begin another run for it"
        )
    missing = folder.check_trained() if folder.has_model else []
    terminal.say(f"going on with the run in {folder.path}, begun {record.started}")
    for sentence in missing:
        terminal.say(sentence, style="yellow")
    for one in changed:
        terminal.say(f"  changed: {one.key} was {one.before}, is {one.now}", style="yellow")
    if any(not one.key.startswith("train.") for one in changed):
        folder.forget(
            *(f"answers/{name}{what}.jsonl" for name in ("base", "tuned") for what in ("", "-references")),
            *(f"{what}/{name}.jsonl" for name in ("base", "tuned") for what in ("general", "documents")),
        )


def _phase_seconds(folder: RunDir, terminal: Terminal) -> Mapping[str, float]:
    """How long each phase took, as environment.json says: the time alone is lost where it is damaged."""
    try:
        found = read_object(folder.path / "environment.json") or {}
    except DataError as error:
        terminal.say(f"{error}; it is written again, and the time of earlier processes is not counted", style="yellow")
        return {}
    return read_loosely(Environment, found).phase_seconds


def _is_still_finished(folder: RunDir, name: str) -> bool:
    """Whether a file that was finished stays so: what the training made goes where its model is gone."""
    return folder.has_model or name.startswith(MADE_AGAIN)


def check_changes(where: Path, changed: Sequence[Difference], allowed: Sequence[str]) -> None:
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


def digest_of(examples: Iterable[Example]) -> str:
    """sha256 over the token ids and weights of `examples` and of their other sides, and their labels, in order."""
    digest = hashlib.sha256()
    for example in examples:
        for side in sides_of(example):
            digest.update(len(side).to_bytes(8, "little") + side.token_ids.tobytes() + side.weights.tobytes())
        if example.label is not None:
            digest.update(b"wanted" if example.label else b"unwanted")
    return digest.hexdigest()
