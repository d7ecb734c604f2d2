"""Whether a run folder is as the run left it: each place a file or a folder as it was made, run.json as it was written, and each
finished file the one whose sha256 run.json names.

Stands under `folder.py`. What a run writes and later believes is told from damage by its bytes, and what an earlier version
wrote, without sha256, by its schema alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneful.errors import ConfigError
from tuneful.files import sha256_of

FOLDERS = ("answers", "checkpoints", "data", "documents", "general", "judge", "scores", "tests", "model", "adapter")
FILES = (
    ".lock",
    "run.json",
    "config.yaml",
    "environment.json",
    "data.json",
    *(f"data/{name}.jsonl" for name in ("train", "validation", "test", "refused")),
    *(
        f"{folder}/{name}.jsonl"
        for folder in ("answers", "general", "documents", "scores")
        for name in ("base", "tuned")
    ),
    *(f"answers/{name}-references.jsonl" for name in ("base", "tuned")),
    "metrics.jsonl",
    "training.json",
    "reference.json",
    "preferences.json",
    "records.jsonl",
    "validation.jsonl",
    "comparison.json",
    "evaluation.json",
    "calibration.json",
    "judge/replies.jsonl",
    "model/README.md",
    "report.html",
)
"""What a run writes at places of its own."""

_DECISIVE = ("verb", "data", "folder", "allowed", "started", "finished", "config", "training", "files")


def check_places(path: Path) -> None:
    """ConfigError where one of the run's places below `path` holds something else: a file for a folder, a link to nothing."""
    for name in (*FOLDERS, *FILES, *(f"tests/{own.name}" for own in path.glob("tests/*.json*"))):
        place, wanted = path / name, "folder" if name in FOLDERS else "file"
        if not os.path.lexists(place) or (os.path.isdir(place) if name in FOLDERS else os.path.isfile(place)):
            continue
        found = "a folder" if os.path.isdir(place) else "a file" if os.path.isfile(place) else "a link to nothing"
        raise ConfigError(
            f"{place}: is {found}, and the run keeps a {wanted} there; move it away, or give another --output"
        )


def record_sha256(row: Mapping[str, Any]) -> str:
    """The sha256 that run.json names of itself: over what decides what the run becomes, as it stands in the file."""
    choices = row.get("choices")
    chosen = [choices.get(key) for key in ("dtype", "layout")] if isinstance(choices, Mapping) else None
    decisive = json.dumps([[row.get(key) for key in _DECISIVE], chosen], sort_keys=True)
    return hashlib.sha256(decisive.encode()).hexdigest()


def sums_of(path: Path, places: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(place, sha256) of each of `places` below `path`, and of each file below those that are folders; its card may change."""
    for place in places:
        found = sorted((path / place).rglob("*")) if (path / place).is_dir() else [path / place]
        for file in found:
            if file.is_file() and file.name != "README.md":
                yield file.relative_to(path).as_posix(), sha256_of(file)
