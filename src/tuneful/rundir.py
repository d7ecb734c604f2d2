"""A run folder: everything a run was and found, in files that others read.

    config.yaml  environment.json  data.json  data/{train,validation,test,refused}.jsonl  metrics.jsonl
    answers/{base,tuned}.jsonl  comparison.json  model/  report.html

Whole files are written aside and renamed, so that a reader, or the next run after a kill, never meets half of one.
`metrics.jsonl` grows line by line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tuneful.config import Config, dump_config
from tuneful.errors import ConfigError
from tuneful.types import Answer


class RunDir:
    """The folder `path` of one run; raises ConfigError where it exists and is not empty, or cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ConfigError(f"{path}: already exists and is not empty; give another --output, or remove it")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None

    def remove_if_empty(self) -> None:
        """Leave no empty folder behind a request that was refused."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @property
    def model(self) -> Path:
        """Where the trained model goes."""
        return self.path / "model"

    def write_config(self, config: Config) -> None:
        """config.yaml, every key resolved."""
        write_text(self.path / "config.yaml", dump_config(config))

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """A JSON document of the folder, such as `data.json`."""
        write_text(self.path / name, as_json(document, indent=1) + "\n")

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """A JSONL file of the folder, such as `data/train.jsonl`."""
        (self.path / name).parent.mkdir(exist_ok=True)
        write_text(self.path / name, "".join(json_line(row) for row in rows))

    def write_answers(self, name: str, answers: Sequence[Answer]) -> None:
        """answers/{name}.jsonl, in test-set order."""
        self.write_rows(f"answers/{name}.jsonl", map(answer_row, answers))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json_line(row))


def new_run_path(data: str, now: datetime) -> Path:
    """Where a run of `data` goes when nothing is said: runs/<data>-<date>-<time>, counted up where that exists."""
    stem = re.sub(r"[^\w.-]+", "-", Path(data).stem) or "data"
    path = Path("runs") / f"{stem}-{now:%Y%m%d-%H%M%S}"
    count = 2
    while path.exists():
        path = path.with_name(f"{stem}-{now:%Y%m%d-%H%M%S}-{count}")
        count += 1
    return path


def answer_row(answer: Answer) -> dict[str, Any]:
    """A row of answers/*.jsonl."""
    return {
        "source": answer.source,
        "prompt": answer.prompt,
        "text": answer.text,
        "ended_by": answer.ended_by,
        "num_tokens": len(answer.token_ids),
    }


def json_line(row: Mapping[str, Any]) -> str:
    """One row of a JSONL file, its line end included."""
    return as_json(row) + "\n"


def as_json(document: Mapping[str, Any], indent: int | None = None) -> str:
    """`document` as JSON: readable text, or escapes where it holds a lone surrogate, which no file in UTF-8 can."""
    text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, ensure_ascii=True, indent=indent, allow_nan=False)
    return text


def write_text(path: Path, text: str) -> None:
    """Write `text` whole: aside, flushed, renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
