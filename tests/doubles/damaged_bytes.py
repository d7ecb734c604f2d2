"""Damage that knows nothing of what a file means: bits, ends, sizes, links. For every kind of model folder or file."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

MARKER = "code-was-run"
"""The file, beside the model, that code of a model would write."""

Mutation = Callable[[Path, random.Random], object]
"""Damages the model at a path, a folder or a file."""

NUMBERS = (0, 1, -1, -(1 << 63), 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def _one_of(model: Path, rng: random.Random) -> Path:
    """The model's file, or one of its folder that holds anything."""
    if not model.is_dir():
        return model
    return rng.choice(sorted(file for file in model.iterdir() if file.is_file() and file.stat().st_size))


def flip(model: Path, rng: random.Random) -> None:
    file = _one_of(model, rng)
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut(model: Path, rng: random.Random) -> None:
    file = _one_of(model, rng)
    os.truncate(file, rng.choice((0, rng.randrange(file.stat().st_size))))


def grow(model: Path, rng: random.Random) -> None:
    with _one_of(model, rng).open("ab") as stream:
        stream.write(rng.randbytes(rng.choice((1, 48, 100_000))))


def noise(model: Path, rng: random.Random) -> None:
    _one_of(model, rng).write_bytes(rng.randbytes(rng.choice((1, 60, 5_000))))


def vast(model: Path, rng: random.Random) -> None:
    os.truncate(_one_of(model, rng), rng.choice((1 << 30, 1 << 36)))  # a file of holes


def lose(model: Path, rng: random.Random) -> None:
    _one_of(model, rng).unlink()


def turn_into_another(model: Path, rng: random.Random) -> None:
    file = _one_of(model, rng)
    file.unlink()
    kinds = (
        file.mkdir,
        lambda: file.symlink_to(file.name),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to("nowhere"),
        lambda: os.mkfifo(file),
    )
    rng.choice(kinds)()


def link_out(model: Path, rng: random.Random) -> None:
    file = _one_of(model, rng)
    shutil.move(file, model.parent / "elsewhere")
    file.symlink_to(model.parent / "elsewhere")


ANY_FILE: tuple[Mutation, ...] = (flip, cut, grow, noise, vast, lose, turn_into_another, link_out)
