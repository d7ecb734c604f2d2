"""Every run under a folder, as the page lists it: read as far as it can be read, whatever state it is in.

Stands under `pages.py`. A run is a folder with a config.yaml; runs inside runs are not looked for, and nothing outside of the
folder is ever read, links or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.errors import DataError
from tuneful.files import read_lines
from tuneful.runs.schema import read_object
from tuneful.serve.items import answer_names

_MAX_DEPTH = 3
HERE = "."
"""The name of a run that is the folder itself."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in one line; text is "" and a figure None where the folder does not say."""

    name: str
    model: str
    data: str
    started: str
    finished: str
    sentence: str
    verdict: str
    answers: tuple[str, ...]
    num_ratings: int
    has_report: bool


class RunsFolder:
    """The runs under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def runs(self) -> list[RunSummary]:
        """Every run, the one that was begun last first."""
        found = [summarise_run(path, self._name(path)) for path in self._run_paths(self.root, _MAX_DEPTH)]
        return sorted(found, key=lambda run: (run.started, run.name), reverse=True)

    def path(self, name: str) -> Path:
        """The folder of the run called `name`; DataError where there is none under the root."""
        root = self.root.resolve()
        try:
            path = (root / name).resolve()
            is_run = path.is_relative_to(root) and (path / "config.yaml").is_file()
        except (OSError, ValueError):  # too long, or no name of a file at all
            is_run = False
        if not name or not is_run:
            raise DataError(f"{name[:200]}: no run of this name; the page lists those that there are")
        return path

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _run_paths(self, folder: Path, depth: int) -> Iterator[Path]:
        if (folder / "config.yaml").is_file():
            yield folder
        elif depth > 0:
            try:
                inside = sorted(Path(one.path) for one in os.scandir(folder) if one.is_dir(follow_symlinks=False))
            except OSError:
                return
            for one in inside:
                if not one.name.startswith("."):
                    yield from self._run_paths(one, depth - 1)


def summarise_run(path: Path, name: str) -> RunSummary:
    """The line of the run folder `path`."""
    record, environment, comparison = (
        _object(path / file) for file in ("run.json", "environment.json", "comparison.json")
    )
    data, model = record.get("data"), environment.get("model")
    headline = comparison.get("headline")
    metrics = comparison.get("metrics")
    main = next(
        (one for one in metrics if isinstance(one, dict) and one.get("name") == headline)
        if isinstance(metrics, list)
        else iter(()),
        {},
    )
    return RunSummary(
        name=name,
        model=_text(model.get("name")) if isinstance(model, dict) else "",
        data=", ".join(map(_text, data))
        if isinstance(data, list)
        else _text(_object(path / "data.json").get("source")),
        started=_text(record.get("started")) or _text(environment.get("started")),
        finished=_text(record.get("finished")) or _text(environment.get("finished")),
        sentence=_text(comparison.get("sentence")),
        verdict=_text(main.get("verdict")),
        answers=tuple(answer_names(path)),
        num_ratings=_num_lines(path / "ratings.jsonl"),
        has_report=(path / "report.html").is_file(),
    )


def _num_lines(file: Path) -> int:
    try:
        return sum(line.row is not None for line in read_lines(file))
    except OSError:
        return 0


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_object(file) or {}
    except DataError:
        return {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
