"""Checkpoints: a training's tensors and state on disk, whole or not at all.

    checkpoints/step-000117/
      weights.safetensors     master weights by parameter name       optimizer.safetensors   both moments
      best.safetensors        weights of the best evaluation, where it is an earlier one
      manifest.json           step, state and what was being trained; size and sha256 of each file, and of itself

Where the model is sharded each rank writes its own rows, `weights-00002-of-00004.safetensors`, and nothing else passes between
them but sizes and sums; the manifest then says of every tensor its shape, and which file holds which of its rows. Whatever number
of ranks reads it, each takes the rows that it needs.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from tuneful.errors import CheckpointError, CorruptCheckpointError
from tuneful.files import flush_entry, free_bytes, rename, sha256_of, write_json, written
from tuneful.model.stored import read_safetensors_header, stretches
from tuneful.train.distributed import SINGLE_PROCESS, ProcessGroup, RowOwner, local, row_owners
from tuneful.train.slices import SavedRows, SavedTensors, saved_whole

MANIFEST = "manifest.json"
WHOLE, IN_ROWS = 1, 2
"""The formats: every tensor in one piece, as one process writes it, or cut into the rows of several ranks."""

_NAME = re.compile(r"step-(\d+)")
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_BLOCK_BYTES = 1 << 23

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: where it lies, the step it was made after, and the document that was saved with it.

    `in_rows` says of every tensor that several ranks wrote, by its group and its name, what shape it has and where its rows are.
    """

    path: Path
    step: int
    document: Mapping[str, Any]
    in_rows: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self, name: str) -> Mapping[str, torch.Tensor]:
        """The tensors of the group `name` on the CPU, read one by one as they are asked for; empty where there are none."""
        if (parts := self.in_rows.get(name)) is not None:
            return self._cut(parts)
        file = self.path / f"{name}.safetensors"
        return saved_whole(file) if file.exists() else {}

    def _cut(self, parts: Mapping[str, Any]) -> SavedTensors:
        files = {file for about in parts.values() for file, _, _ in about["rows"]}
        stored = {file: read_safetensors_header(self.path / file) for file in files}
        rows = {
            name: [SavedRows(stored[file][name], start, stop) for file, start, stop in about["rows"]]
            for name, about in parts.items()
        }
        return SavedTensors({name: about["shape"] for name, about in parts.items()}, rows)


@dataclass(frozen=True, slots=True)
class CorruptCheckpoint:
    """A checkpoint that is not whole, and what is wrong with it."""

    path: Path
    reason: str


def save_checkpoint(
    folder: Path,
    step: int,
    groups: Mapping[str, Tensors],
    document: Mapping[str, Any],
    *,
    keep: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Path:
    """Write the checkpoint of `step` into `folder` and remove all but the newest `keep`; its path.

    `groups` become `<name>.safetensors` each, empty ones none; `document` is any JSON, that of the main rank. Where the model is
    sharded over a `group` every rank calls, and writes its own rows. Raises CheckpointError, on every rank and with the
    checkpoints before untouched, where a tensor holds a number that is not finite or the disk refuses.
    """
    _check_finite([one for tensors in groups.values() for one in tensors.items()], group)
    name = f"step-{step:06d}"
    aside, final = folder / f".part-{name}", folder / name

    def begin() -> None:
        _make_folder(folder)
        clear_leftovers(folder)
        os.mkdir(aside)

    def put_in_place() -> None:
        write_json(aside / MANIFEST, _manifest(step, dict(chain(*files)), _in_rows(groups), document))
        if os.path.lexists(final):
            _remove(folder, name)
        rename(aside, final)
        flush_entry(folder)
        for old in sorted(_steps(folder))[:-keep]:
            _remove(folder, _steps(folder)[old])

    try:
        _on_all_ranks(begin if group.is_main else _nothing, group)
        files = _on_all_ranks(lambda: _own_files(aside, groups, group), group)
        _on_all_ranks(put_in_place if group.is_main else _nothing, group)
    except BaseException as error:
        if group.is_main:
            with contextlib.suppress(OSError):
                _delete(aside)
        if isinstance(error, OSError):
            raise CheckpointError(_unwritten(folder, groups, error)) from error
        raise
    return final


def _nothing() -> None:
    """What the other ranks do where the main one alone works."""


def _on_all_ranks(work: Callable[[], Any], group: ProcessGroup) -> list[Any]:
    """What `work` gives on each rank, in order. Where the disk refuses one of them, OSError on every one."""
    if group.size == 1:
        return [work()]
    found, refused = None, None
    try:
        found = work()
    except OSError as error:
        refused = error
    said = group.gather([[found, None if refused is None else [refused.errno, refused.strerror, refused.filename]]])
    if refused is not None:
        raise refused
    if others := [error for _, error in said if error is not None]:
        raise OSError(*others[0])
    return [one for one, _ in said]


def _own_files(aside: Path, groups: Mapping[str, Tensors], group: ProcessGroup) -> list[tuple[str, dict[str, Any]]]:
    """Write what is this rank's of each of `groups` into `aside`; each file with what the manifest says of it."""
    return [
        (name, _write(aside / name, _safetensors(tensors))) for name, tensors in _cut(groups, group).items() if tensors
    ]


def _cut(groups: Mapping[str, Tensors], group: ProcessGroup) -> Mapping[str, Tensors]:
    """The files that this rank writes, and the tensors in each: its own rows, and on the main rank what is not sharded."""
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensors in groups.items():
        for key, tensor in tensors.items():
            if not (owners := row_owners(tensor)) and group.is_main:
                files.setdefault(f"{name}.safetensors", {})[key] = tensor
            for owner in owners:
                if owner.rank == group.rank and owner.start < owner.stop:
                    files.setdefault(_file_of(name, owner), {})[key] = local(tensor)
    return files


def _in_rows(groups: Mapping[str, Tensors]) -> dict[str, Any]:
    """What the manifest says of the tensors that are cut: shape, and the rows that each file holds."""
    return {
        name: {
            key: {
                "shape": list(tensor.shape),
                "rows": [[_file_of(name, one), one.start, one.stop] for one in owners if one.start < one.stop],
            }
            for key, tensor in tensors.items()
            if (owners := row_owners(tensor))
        }
        for name, tensors in groups.items()
        if any(map(row_owners, tensors.values()))
    }


def _file_of(name: str, owner: RowOwner) -> str:
    return f"{name}-{owner.part + 1:05d}-of-{owner.num_parts:05d}.safetensors"


def newest_checkpoint(
    folder: Path, group: ProcessGroup = SINGLE_PROCESS
) -> tuple[Checkpoint | None, list[CorruptCheckpoint]]:
    """The newest whole checkpoint of `folder`, and the damaged ones that are newer; the ranks of `group` look together.

    CorruptCheckpointError where there are checkpoints and all of them are damaged.
    """
    damaged: list[CorruptCheckpoint] = []
    for name in group.broadcast([name for _, name in sorted(_steps(folder).items(), reverse=True)]):
        found = read_checkpoint(folder / name, group)
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


def read_checkpoint(path: Path, group: ProcessGroup = SINGLE_PROCESS) -> Checkpoint | CorruptCheckpoint:
    """The checkpoint at `path` with every byte checked, each rank of `group` its share of the files; or what is wrong with it."""
    found = _read(path, group)
    if group.size == 1:
        return found
    said = group.gather([found.reason if isinstance(found, CorruptCheckpoint) else None])
    reason = next((one for one in said if one is not None), None)
    return found if reason is None else CorruptCheckpoint(path, reason)


def _read(path: Path, group: ProcessGroup) -> Checkpoint | CorruptCheckpoint:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        own = manifest.pop("sha256")
        if own != _digest(manifest):
            return CorruptCheckpoint(path, f"{MANIFEST}: its checksum differs")
        if manifest["format"] not in (WHOLE, IN_ROWS):
            return CorruptCheckpoint(
                path, f"{MANIFEST}: format {manifest['format']}, this version reads {WHOLE} and {IN_ROWS}"
            )
        if path.name != f"step-{manifest['step']:06d}":
            return CorruptCheckpoint(path, f"{MANIFEST}: made after step {manifest['step']}")
        for name, wanted in list(manifest["files"].items())[group.rank :: group.size]:
            if (reason := _wrong_with(path / name, wanted)) is not None:
                return CorruptCheckpoint(path, f"{name}: {reason}")
    except FileNotFoundError as error:
        return CorruptCheckpoint(path, f"{Path(error.filename).name}: missing")
    except OSError as error:
        return CorruptCheckpoint(path, f"cannot be read: {error.strerror or error}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return CorruptCheckpoint(path, f"{MANIFEST}: cannot be read")
    return Checkpoint(path, manifest["step"], manifest["document"], manifest.get("tensors", {}))


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


def check_finite(tensors: Tensors, group: ProcessGroup = SINGLE_PROCESS) -> None:
    """CheckpointError, on every rank of `group`, naming the first tensor that holds a number that is not finite.

    Each rank looks at its own rows.
    """
    _check_finite(list(tensors.items()), group)


def _check_finite(tensors: Sequence[tuple[str, torch.Tensor]], group: ProcessGroup) -> None:
    bad = ([number, count] for number, (_, tensor) in enumerate(tensors) if (count := _num_bad(local(tensor))))
    found = group.gather(list(bad)) if group.size > 1 else [*islice(bad, 1)]
    if found:
        first = min(number for number, _ in found)
        count, (name, tensor) = sum(count for number, count in found if number == first), tensors[first]
        raise CheckpointError(
            f"{name}: {count:,} of its {tensor.numel():,} numbers are not finite, so nothing was saved. Resume from "
            "the last checkpoint with a lower train.learning_rate"
        )


def _num_bad(tensor: torch.Tensor) -> int:
    # A sum is finite only where every number is; that one overflows says nothing, so then each is looked at.
    return 0 if tensor.sum().isfinite() else int(tensor.isfinite().logical_not().sum())


# Writing


def _safetensors(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, a stretch of one tensor after the other.

    A stretch is copied: memory that numpy has seen cannot be given back any more, as that of a sharded model is.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        stop = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        flat = tensor.detach().reshape(-1)
        for start, stop in stretches(len(flat)):
            yield flat[start:stop].to("cpu", copy=True).view(torch.uint8).numpy().data


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


def _manifest(
    step: int, files: Mapping[str, Any], in_rows: Mapping[str, Any], document: Mapping[str, Any]
) -> dict[str, Any]:
    content = {"format": WHOLE, "step": step, "files": files, "document": document}
    if in_rows:
        content |= {"format": IN_ROWS, "tensors": in_rows}
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
