"""What of the runs under a folder could go, with its bytes; and its removal.

    kind           what it is                                                    what stays
    checkpoints    checkpoints of a finished run                                 model, answers, report, all else
    unfinished     what killed writers left half written in a run                what they were about to replace
    nothing        a run that was broken off and holds nothing to go on with     -

Stands over `listing.py`, for `tuneful runs clean`. No other thing in a run folder is ever offered: not what an unfinished run
goes on with, not a judge's replies, which cost money. A run is held by its own lock while something of it is removed, and looked
at again under it. What goes is renamed first, so that half of it is never met in its place, and a link is neither followed nor
removed. What a killed removal left behind is offered the next time.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout

from tuneful.console import Terminal
from tuneful.files import PART, remove, rename
from tuneful.numbers import plural, storage
from tuneful.runs.folder import LOCK
from tuneful.runs.listing import ListedRun, is_run, newest_step, read_run_folder, sizes

Kind = Literal["checkpoints", "unfinished", "nothing"]

REMOVED = ".removed-"
"""How the name of a folder begins that is being removed."""

_KINDS = {
    "checkpoints": "Checkpoints of finished runs",
    "unfinished": "Left half written, or half removed, by processes that are gone",
    "nothing": "Runs that were broken off and hold nothing to go on with",
}
_UNTOUCHED_SECONDS = 86_400
_ASIDE = re.compile(re.escape(REMOVED) + r".+-[0-9a-f]{8}")
_AT_SET_UP = {
    LOCK,
    "run.json",
    "config.yaml",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "report.html",
    *(f"data/{name}.jsonl" for name in ("train", "validation", "test", "refused")),
}
"""All that a run may hold that has nothing to go on with: what is written before the first step, lines of steps that no
checkpoint kept, and the page of those."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that could go: the file or folder `path` of the run `run`."""

    kind: Annotated[Kind, "`checkpoints`, `unfinished` or `nothing`"]
    run: Annotated[str, "the run, by its place below the folder that was listed"]
    path: Annotated[str, "what would be removed"]
    num_bytes: Annotated[int, "what that frees"]


def find_leftovers(folder: Path, runs: Sequence[ListedRun]) -> list[Leftover]:
    """What of these `runs`, found below `folder`, could go: run by run, nothing of those that are at work or damaged."""
    found = [one for run in runs for one in _of_run(Path(run.path), folder, run)]
    return found + _left_behind(folder)


def remove_leftover(leftover: Leftover, folder: Path) -> bool:
    """Remove it, where it still could go; False where a run is at work there again, or went on, since it was found.

    Raises OSError where the disk refuses: what was renamed by then is found again as left behind.
    """
    path = Path(leftover.path)
    assert path.resolve().is_relative_to(folder.resolve()), (path, folder)
    if path.name.startswith(REMOVED):
        remove(path)
        return True
    run = folder if is_run(folder) else folder / leftover.run
    aside = path.with_name(f"{REMOVED}{path.name.lstrip('.')}-{secrets.token_hex(4)}")
    is_open = leftover.kind == "nothing" and os.name == "nt"  # a folder whose lock is open cannot be renamed there
    with _held(run) as is_free:
        there = _of_run(run, folder, read_run_folder(run, folder, is_ours=True)) if is_free else []
        if not any((one.kind, one.path) == (leftover.kind, leftover.path) for one in there):
            return False
        if not is_open:
            rename(path, aside)
    if is_open:
        rename(path, aside)
    remove(aside)
    return True


def holds_nothing(path: Path) -> bool:
    """Whether an unfinished run has nothing to go on with, and no file that anybody else may have put there."""
    for place, folders, names in os.walk(path):
        places = [Path(place, name) for name in (*folders, *names)]
        files = [one.relative_to(path).as_posix() for one in places if one.name in names and not _is_half(one, path)]
        if any(one.is_symlink() for one in places) or not _AT_SET_UP.issuperset(files):
            return False
    return newest_step(path) is None


def _of_run(path: Path, folder: Path, run: ListedRun) -> list[Leftover]:
    """What could go of the run in `path`."""
    if run.state not in ("finished", "interrupted") or _is_elsewhere(path):
        return []
    if run.state == "interrupted" and path != folder and holds_nothing(path):
        return [Leftover("nothing", run.name, str(path), run.disk_bytes)]
    halves = [Leftover("unfinished", run.name, str(one), _num_bytes(one)) for one in _half_written(path)]
    checkpoints = path / "checkpoints"
    if run.state == "interrupted" or not checkpoints.is_dir():
        return halves
    outside = [one for one in halves if checkpoints not in Path(one.path).parents]
    return [Leftover("checkpoints", run.name, str(checkpoints), run.checkpoint_bytes), *outside]


def show_leftovers(leftovers: Sequence[Leftover], folder: Path, terminal: Terminal) -> None:
    """Print what could go, kind by kind, with its bytes."""
    if not leftovers:
        terminal.say(f"nothing in {folder} could go")
        return
    for kind, words in _KINDS.items():
        of_kind = [one for one in leftovers if one.kind == kind]
        if of_kind:
            terminal.heading(words)
        for one in of_kind:
            terminal.say(f"{storage(one.num_bytes):>10}  {one.path}", wrap=False)
        if of_kind and kind == "checkpoints":
            terminal.say(
                "`tuneful explain` reads them; without, it has the gradients at the final weights alone", style="yellow"
            )
    terminal.say()
    total = storage(sum(one.num_bytes for one in leftovers))
    terminal.say(f"{plural(len(leftovers), 'place')}, {total} in all; models, answers and reports stay", style="bold")


# What lies there


def _is_elsewhere(path: Path) -> bool:
    """Whether the run, its checkpoints or its lock are links to another place."""
    return any(place.is_symlink() for place in (path, path / "checkpoints", path / LOCK))


def _half_written(path: Path) -> list[Path]:
    """The topmost files and folders below a run that a killed writer left: those that nobody has touched for a day."""
    found = []
    for place, folders, names in os.walk(path):
        halves = [one for name in (*folders, *names) if _is_half(one := Path(place, name), path)]
        found += [one for one in halves if not one.is_symlink() and _is_old(one)]
        folders[:] = [name for name in folders if Path(place, name) not in halves]
    return sorted(found)


def _is_half(place: Path, run: Path) -> bool:
    """Whether `place` is, or lies in, what a writer writes aside (`files.py`), or has put away for what is there again."""
    *folders, name = place.relative_to(run).parts
    if any(folder.startswith((f"{PART}-", REMOVED)) for folder in folders):
        return True
    if name.startswith(".old-") and folders != ["checkpoints"]:
        return os.path.lexists(place.with_name(name.removeprefix(".old-")))  # else it is the only copy
    return name.startswith((f"{PART}-", ".old-", REMOVED)) or (name.startswith(".") and name.endswith(PART))


def _is_old(place: Path) -> bool:
    """Whether nothing at `place` is younger than a day, so that nobody is writing it; a removal that was begun is old at once."""
    newest = 0.0
    for one in (place, *place.rglob("*")):
        with suppress(FileNotFoundError):  # whoever wrote it has just put it in its place
            newest = max(newest, one.lstat().st_mtime)
    return place.name.startswith(REMOVED) or time.time() - newest > _UNTOUCHED_SECONDS


def _left_behind(folder: Path) -> list[Leftover]:
    """Run folders that a killed removal had put aside, beside the runs; what it had put aside in a run is the run's."""
    found: list[Path] = []
    for place, folders, _ in os.walk(folder):
        inside = [] if is_run(Path(place)) else [Path(place, name) for name in sorted(folders)]
        found += [one for one in inside if _ASIDE.fullmatch(one.name) and not one.is_symlink()]
        folders[:] = [one.name for one in inside if not one.name.startswith(".")]
    return [Leftover("unfinished", one.relative_to(folder).as_posix(), str(one), _num_bytes(one)) for one in found]


def _num_bytes(path: Path) -> int:
    return path.lstat().st_size if not path.is_dir() or path.is_symlink() else sizes(path)[0]


# Removal


@contextmanager
def _held(run: Path) -> Iterator[bool]:
    """Hold the run within the block, as a process that works on it does; False where another one does."""
    lock = FileLock(run / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
