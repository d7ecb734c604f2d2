"""The library of kernels: the one that the wheel brought for this processor, else one that is compiled here, once.

A library is code, so none is loaded unread. A wheel's carries the sha256 of each of its libraries and of the sources they were
made from (`built/manifest.json`, written by `tools/wheel.py`); one that is not what was built is refused, and the user's compiler
makes another. What is compiled lies in a folder of the user's alone, its own sha256 and that of all it was made from in its name:
a flipped bit is compiled again, and so is all that lies where others could write.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tuneful.files import flush_entry, sha256_of, write_text
from tuneful.model.native.compiler import (
    NATIVE,
    SOURCES,
    Compiler,
    Flag,
    NotCompiledError,
    arguments,
    compile_kernels,
    digest_of_sources,
    find_compiler,
    flags,
    predefined,
)
from tuneful.model.processor import NO_COMPILER, VARIABLE, Processor, processor

HERE = Path(__file__).parent
BUILT, MANIFEST = "built", "manifest.json"
NOTES = ".txt"
"""The ending of what is noted beside a library that a compiler did not make as it was asked to."""


@dataclass(frozen=True, slots=True)
class Found:
    """A library, where it comes from, and what there is to say about it; for people."""

    library: ctypes.CDLL
    origin: str
    notes: tuple[str, ...]


def find_library(cache: Path, allowed: Processor) -> Found:
    """The library for what may be used of the processor. Raises NotCompiledError where there is none, OSError where it cannot
    be kept or loaded."""
    try:
        if (found := bundled(HERE / BUILT, allowed)) is not None:
            return Found(ctypes.CDLL(str(found)), f"the package's own for {found.stem.removeprefix('kernels-')}", ())
        refused = []
    except (NotCompiledError, OSError) as reason:
        refused = [f"the package's own are left out: {reason}"]
    try:
        return _compiled_here(cache, allowed, refused)
    except NotCompiledError as reason:
        raise NotCompiledError("; ".join([str(reason), *refused])) from reason


def bundled(folder: Path, allowed: Processor) -> Path | None:
    """The library in `folder`, that of a wheel, with the largest set of instructions that may be used; None where there is none.

    Raises NotCompiledError where it is not what was built, or was built from other sources than the package's.
    """
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sources, libraries = str(manifest["sources"]), dict(manifest["libraries"].items())
        name = next((name for name in allowed.runs if name in libraries), None)
        entry = libraries[name] if name else {}
        if name is None or (entry["has_threads"] and not allowed.has_threads):
            return None
        library, expected = folder / f"kernels-{name}.so", str(entry["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotCompiledError(f"{folder / MANIFEST} cannot be read; install tuneful again") from error
    if sources != digest_of_sources(HERE):
        raise NotCompiledError("they were built from other sources than the package's; install tuneful again")
    if not library.is_file() or sha256_of(library) != expected:
        raise NotCompiledError(f"{library} is not what was built; install tuneful again")
    return library


def _compiled_here(cache: Path, allowed: Processor, notes: Sequence[str]) -> Found:
    """The compiled library, on one thread where it cannot be loaded on several."""
    by = compiler()
    given = _flags(by, allowed, threads=allowed.has_threads)
    path = compiled(cache, by, given)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as reason:
        alone = _flags(by, allowed, threads=False)
        if alone == given:
            raise
        path = compiled(cache, by, alone)
        library, notes = ctypes.CDLL(str(path)), [*notes, f"on one thread: with OpenMP it cannot be loaded ({reason})"]
    lost = path.with_suffix(NOTES)
    lines = lost.read_text(encoding="utf-8").splitlines() if lost.is_file() else []
    return Found(library, f"compiled by {by.path}", (*lines, *notes))


def compiler() -> Compiler:
    """The compiler. Raises NotCompiledError where there is none, or none may be used."""
    if not processor().has_compiler:
        raise NotCompiledError(f"there is no C compiler: {VARIABLE}={NO_COMPILER}")
    return find_compiler()


def _flags(by: Compiler, allowed: Processor, *, threads: bool) -> tuple[Flag, ...]:
    return flags(platform.system(), platform.machine(), by.kind, allowed.instructions or NATIVE, threads=threads)


def compiled(folder: Path, by: Compiler, given: Sequence[Flag]) -> Path:
    """The library for this source, compiler and processor in `folder`; compiled where it is not there, or not what it was.

    Raises NotCompiledError where it cannot be compiled, or where the folder is another user's.
    """
    identity = "\0".join([by.path, *arguments(given), digest_of_sources(HERE), predefined(by, given)])
    name = f"kernels-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_private(folder)
    for library in folder.glob(f"{name}-*.so"):
        if library.stem == f"{name}-{sha256_of(library)}":
            return library
        library.unlink(missing_ok=True)
    with TemporaryDirectory(dir=folder) as workshop:
        made = Path(workshop) / name
        lost = compile_kernels(by, given, HERE / SOURCES[0], made)
        flush_entry(made)
        library = folder / f"{name}-{sha256_of(made)}.so"
        if lost:
            write_text(library.with_suffix(NOTES), "\n".join(lost) + "\n")
        os.replace(made, library)
    return library


def _make_private(folder: Path) -> None:
    """Let nobody else write to `folder`, and remove what they could have written. NotCompiledError where it is another user's."""
    if not hasattr(os, "getuid"):  # Windows keeps a user's folders from others by itself
        return
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise NotCompiledError(f"{folder} belongs to another user; set TUNEFUL_CACHE to a folder of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder.chmod(0o700)
        for library in folder.glob("kernels-*"):
            library.unlink()
