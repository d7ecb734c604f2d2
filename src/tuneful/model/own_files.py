"""Which files of a model folder may be opened, and its JSON documents: a folder is what somebody else made, and not believed.

Stands under everything that reads a model. A file is a regular file of its folder, no device and no pipe, and no link that leads
out of the folder, but for those of the Hub's cache (`snapshots/COMMIT/config.json -> ../../blobs/3f7a...`). None is larger than
what the largest models need several times over, so that no small download fills the memory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneful.errors import ModelError

MAX_DEPTH = 100
"""How deeply a JSON document may be nested; those of the largest models reach 10."""
_MAX_CONTAINERS = 1 << 19
"""How many lists and objects a JSON document may hold: one for each added token of a vocabulary."""
_MAX_DOCUMENT_BYTES = 1 << 24
_MAX_INDEX_BYTES = 1 << 25
_MAX_BYTES: Mapping[str, int] = {
    "tokenizer.json": 1 << 26,
    "tekken.json": 1 << 26,
    "vocab.json": 1 << 26,
    ".index.json": _MAX_INDEX_BYTES,
    ".json": _MAX_DOCUMENT_BYTES,
    ".jinja": 1 << 20,
    ".txt": 1 << 26,
    ".model": 1 << 26,
    ".vocab": 1 << 26,
    ".spm": 1 << 26,
    ".tiktoken": 1 << 26,
    ".codes": 1 << 26,
    ".bpe": 1 << 26,
    ".safetensors": 1 << 62,
}
"""Endings of names that a model is read from, and how large such a file may be: the first that fits.

Gemma's tokenizer.json has 33 MB.
"""
_TEMPLATES = "additional_chat_templates"


def own_file(folder: Path, name: str, max_bytes: int | None = None) -> Path:
    """The file `name` of `folder`; ModelError where there is none, it is a link out of the folder, or larger than `max_bytes`."""
    file = folder / name
    if not file.is_file():
        if os.path.lexists(file):
            raise ModelError(f"{file} is no file, or a link to none; put the file itself there")
        raise ModelError(f"{folder} has no {name}; fetch the folder again")
    check_own_file(file, folder, max_bytes)
    return file


def check_own_file(file: Path, folder: Path, max_bytes: int | None = None) -> None:
    """ModelError unless `file`, which lies in `folder`, is a regular file that belongs there, of at most `max_bytes`."""
    try:
        found, home, status = file.resolve(strict=True), folder.resolve(), file.stat()
    except (OSError, RuntimeError, ValueError) as error:  # links that lead to each other
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"{file} cannot be read: {reason}; fetch it again") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{file} cannot be read: it is no regular file; put the file itself there")
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (found.is_relative_to(home) or found.is_relative_to(blobs)):
        raise ModelError(f"{file} is a link out of its folder; put the file itself there")
    if max_bytes is not None and status.st_size > max_bytes:
        raise ModelError(f"{file} has more than {max_bytes:,} bytes; fetch it again")


def check_own_files(folder: Path) -> None:
    """The same for every file of a model folder that transformers may open: by the endings of their names."""
    for place in (folder, folder / _TEMPLATES):
        if place is not folder and place.is_symlink():
            raise ModelError(f"{place} is a link; put the folder itself there")
        try:
            with os.scandir(place) as entries:
                names = sorted(entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ModelError(f"{place} cannot be read: {error.strerror or error}") from error
        for name in names:
            if (ending := next((end for end in _MAX_BYTES if name.endswith(end)), None)) is not None:
                check_own_file(place / name, folder, _MAX_BYTES[ending])


def read_document(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder. ModelError where it is damaged, too large, or nested too deeply."""
    check_own_file(file, file.parent, _MAX_INDEX_BYTES if file.name.endswith(".index.json") else _MAX_DOCUMENT_BYTES)
    try:
        return parse_object(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}; fetch it again") from error
    except ValueError as error:
        raise ModelError(f"{file} is not a JSON object: {error}; fetch it again") from error


def parse_object(content: bytes, max_depth: int | None = MAX_DEPTH) -> dict[str, Any]:
    """The object that a JSON text is. ValueError where it is none, nested too deeply, or made of too many parts.

    Without a `max_depth` only what the parser itself cannot nest is too deep.
    """
    if content.count(b"[") + content.count(b"{") > _MAX_CONTAINERS:
        raise ValueError(f"it has more than {_MAX_CONTAINERS:,} lists and objects")
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, found {type(document).__name__}")
    layer: list[Any] = [document]
    if max_depth is None:
        return document
    for _ in range(max_depth):
        layer = [value for one in layer for value in _values(one) if isinstance(value, (dict, list))]
        if not layer:
            return document
    raise ValueError("it is nested too deeply")


def _values(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container
