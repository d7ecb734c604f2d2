"""Checkpoints: a training's tensors and state on disk, whole or not at all.

    checkpoints/step-000117/
      weights.safetensors     master weights by parameter name       optimizer.safetensors   both moments
      best.safetensors        weights of the best evaluation, where it is an earlier one
      manifest.json           step, state and what was being trained; size and sha256 of each file, and of itself

A checkpoint is written beside its place, flushed file by file, renamed, and its parent flushed; only then an older one is
removed. Whenever the power fails, the folder holds the checkpoint before or this one. Reading trusts a manifest whose checksums
hold, and nothing else. The trade: every byte is hashed once when written and once when read, about a second a gigabyte, so that
damage is never trained on. Files are safetensors and JSON; nothing here can run code.

Files are written, flushed and hashed by `files.py`. What is done to folders stays here and not with `files.written_aside`,
because its order is the promise, and because a removal that fails is an error here: a disk that is full of old checkpoints has
to be reported. Folders are made, renamed and removed through `os`, so that a test can make any operation the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tuneful.errors import CheckpointError, CorruptCheckpointError
from tuneful.files import flush_entry, free_bytes, rename, sha256_of, write_json, written
from tuneful.train.distributed import full_tensor

MANIFEST = "manifest.json"
FORMAT = 1

_NAME = re.compile(r"step-(\d+)")
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_BLOCK_BYTES = 1 << 23

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: where it lies, the step it was made after, and the document that was saved with it."""

    path: Path
    step: int
    document: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `<name>.safetensors` on the CPU; empty where the checkpoint has no such file."""
        file = self.path / f"{name}.safetensors"
        return load_file(file) if file.exists() else {}


@dataclass(frozen=True, slots=True)
class CorruptCheckpoint:
    """A checkpoint that is not whole, and what is wrong with it."""

    path: Path
    reason: str


def save_checkpoint(
    folder: Path, step: int, groups: Mapping[str, Tensors], document: Mapping[str, Any], *, keep: int
) -> Path:
    """Write the checkpoint of `step` into `folder` and remove all but the newest `keep`; its path.

    `groups` become `<name>.safetensors` each, empty ones none; `document` is any JSON. Raises CheckpointError, with the
    checkpoints before untouched, where a tensor holds a number that is not finite or the disk refuses.
    """
    for tensors in groups.values():
        check_finite(tensors)
    name = f"step-{step:06d}"
    aside, final = folder / f".part-{name}", folder / name
    try:
        _make_folder(folder)
        clear_leftovers(folder)
        os.mkdir(aside)
        files = {
            f"{group}.safetensors": _write(aside / f"{group}.safetensors", _safetensors(tensors))
            for group, tensors in groups.items()
            if tensors
        }
        write_json(aside / MANIFEST, _manifest(step, files, document))
        if os.path.lexists(final):
            _remove(folder, name)
        rename(aside, final)
        flush_entry(folder)
        for old in sorted(_steps(folder))[:-keep]:
            _remove(folder, _steps(folder)[old])
    except BaseException as error:
        with contextlib.suppress(OSError):
            _delete(aside)
        if isinstance(error, OSError):
            raise CheckpointError(_unwritten(folder, groups, error)) from error
        raise
    return final


def bring_shards(groups: Mapping[str, Tensors]) -> None:
    """What every other rank does while one saves `groups`: bring its part of each tensor, in the same order."""
    for tensors in groups.values():
        check_finite(tensors)
    for tensors in groups.values():
        for _ in _safetensors(tensors) if tensors else ():
            pass


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[CorruptCheckpoint]]:
    """The newest whole checkpoint of `folder`, and the damaged ones that are newer.

    CorruptCheckpointError where there are checkpoints and all of them are damaged.
    """
    damaged: list[CorruptCheckpoint] = []
    steps = _steps(folder)
    for step in sorted(steps, reverse=True):
        found = read_checkpoint(folder / steps[step])
        if isinstance(found, Checkpoint):
            return found, damaged
        damaged.append(found)
    if damaged:
        listed = "; ".join(f"{one.path}: {one.reason}" for one in damaged)
        raise CorruptCheckpointError(f"no checkpoint is whole: {listed}. Remove {folder} to train from the beginning")
    return None, []


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """Every whole checkpoint of `folder`, the oldest first; those that are damaged are passed over."""
    steps = _steps(folder)
    found = [read_checkpoint(folder / steps[step]) for step in sorted(steps)]
    return [one for one in found if isinstance(one, Checkpoint)]


def read_checkpoint(path: Path) -> Checkpoint | CorruptCheckpoint:
    """The checkpoint at `path` with every byte checked, or what is wrong with it."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        own = manifest.pop("sha256")
        if own != _digest(manifest):
            return CorruptCheckpoint(path, f"{MANIFEST}: its checksum differs")
        if manifest["format"] != FORMAT:
            return CorruptCheckpoint(path, f"{MANIFEST}: format {manifest['format']}, this version reads {FORMAT}")
        if path.name != f"step-{manifest['step']:06d}":
            return CorruptCheckpoint(path, f"{MANIFEST}: made after step {manifest['step']}")
        for name, wanted in manifest["files"].items():
            if (reason := _wrong_with(path / name, wanted)) is not None:
                return CorruptCheckpoint(path, f"{name}: {reason}")
    except FileNotFoundError as error:
        return CorruptCheckpoint(path, f"{Path(error.filename).name}: missing")
    except OSError as error:
        return CorruptCheckpoint(path, f"cannot be read: {error.strerror or error}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return CorruptCheckpoint(path, f"{MANIFEST}: cannot be read")
    return Checkpoint(path, manifest["step"], manifest["document"])


def quarantine(corrupt: CorruptCheckpoint) -> Path:
    """Move a damaged checkpoint out of the way, to `damaged-<name>`; where it is now."""
    folder, target = corrupt.path.parent, corrupt.path.with_name(f"damaged-{corrupt.path.name}")
    if os.path.lexists(target):
        _delete(target)
    rename(corrupt.path, target)
    flush_entry(folder)
    return target


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed save or removal left behind; for the one process that holds the run."""
    for entry in _entries(folder):
        if entry.startswith((".part-", ".old-")):
            _delete(folder / entry)


def checkpoint_bytes(groups: Mapping[str, Tensors]) -> int:
    """About how much a checkpoint of these tensors takes on disk."""
    return sum(tensor.numel() * tensor.element_size() for tensors in groups.values() for tensor in tensors.values())


def check_finite(tensors: Tensors) -> None:
    """CheckpointError, naming the first tensor that holds a number that is not finite."""
    for name, sharded in tensors.items():
        tensor = full_tensor(sharded)
        # A sum is finite only where every number is; that one overflows says nothing, so then each is looked at.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            count = int(tensor.isfinite().logical_not().sum())
            raise CheckpointError(
                f"{name}: {count:,} of its {tensor.numel():,} numbers are not finite, so nothing was saved. Resume from "
                "the last checkpoint with a lower train.learning_rate"
            )


# Writing


def _safetensors(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, tensor by tensor, without a second copy of any."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        stop = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        flat = full_tensor(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
        yield flat.numpy().data


def _write(path: Path, parts: Iterator[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file, hashing its blocks on the way; its size and sha256 as the manifest holds them."""
    digest, size = hashlib.sha256(), 0
    with written(path, binary=True) as file:
        for part in parts:
            for start in range(0, len(part), _BLOCK_BYTES):
                block = part[start : start + _BLOCK_BYTES]
                digest.update(block)
                size += len(block)
                file.write(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _manifest(step: int, files: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    content = {"format": FORMAT, "step": step, "files": files, "document": document}
    return {**content, "sha256": _digest(content)}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _make_folder(folder: Path) -> None:
    if not os.path.isdir(folder):
        os.mkdir(folder)
        flush_entry(folder.parent)


def _remove(folder: Path, name: str) -> None:
    """Remove a checkpoint: out of its place first, so that half of one is never met there."""
    aside = folder / f".old-{name}"
    rename(folder / name, aside)
    _delete(aside)


def _delete(path: Path) -> None:
    """Remove whatever lies at `path`, if anything: of a link the link alone."""
    if not os.path.isdir(path) or os.path.islink(path):
        if os.path.lexists(path):
            os.unlink(path)
        return
    for entry in _entries(path):
        _delete(path / entry)
    os.rmdir(path)


def _unwritten(folder: Path, groups: Mapping[str, Tensors], error: OSError) -> str:
    try:
        free = f", {free_bytes(folder) / 1e9:.2f} GB are free"
    except OSError:
        free = ""
    return (
        f"{error.filename or folder}: a checkpoint of {checkpoint_bytes(groups) / 1e9:.2f} GB cannot be written: "
        f"{error.strerror or error}{free}. The checkpoints before are whole; make room and resume"
    )


# Reading


def _wrong_with(file: Path, wanted: Mapping[str, Any]) -> str | None:
    if (size := file.stat().st_size) != wanted["bytes"]:
        return f"{size:,} bytes, {wanted['bytes']:,} were written"
    return None if sha256_of(file) == wanted["sha256"] else "its checksum differs"


def _steps(folder: Path) -> dict[int, str]:
    """The checkpoints of `folder`, whole or not: step to name."""
    return {int(found.group(1)): entry for entry in _entries(folder) if (found := _NAME.fullmatch(entry))}


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
