"""`tuneful runs [DIR]`: every run under a folder as a table; `tuneful runs clean [DIR]`: what of them could go."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.commands.options import Json, Quiet
from tuneful.errors import InputError, TunefulError
from tuneful.numbers import storage

if TYPE_CHECKING:
    from tuneful.console import Terminal
    from tuneful.runs.leftovers import Leftover
    from tuneful.runs.listing import ListedRun

DEFAULT_FOLDER = "runs"


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs below `folder` that were asked for, in that order, and the settings in which they differ."""

    folder: Path
    runs: tuple[ListedRun, ...]
    differing: tuple[str, ...]
    num_left_out: int = 0

    def __repr__(self) -> str:
        return f"RunList({str(self.folder)!r}, {len(self.runs)} runs)"

    @property
    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        from tuneful.runs.schema import as_row

        return {
            "folder": str(self.folder),
            "num_left_out": self.num_left_out,
            "differing": list(self.differing),
            "runs": [as_row(run) for run in self.runs],
        }


def runs(
    folder: str | Path = DEFAULT_FOLDER,
    *,
    sort: str | None = None,
    filters: Sequence[str] = (),
    reverse: bool = False,
    terminal: Terminal | None = None,
) -> RunList:
    """Every run at and below `folder`: what it is, what became of it, in which settings they differ.

    `sort` is a key of the table or a setting, the best first; each of `filters` is KEY=VALUE or a text. Nothing that lies in
    the folder is an error; InputError where there is no such folder, or for a key that is unknown.
    """
    from tuneful.console import Terminal
    from tuneful.runs.listing import find_runs, read_run_folder
    from tuneful.runs.table import differing, in_order, matching, show_runs

    folder = _existing(folder)
    found = [read_run_folder(path, folder) for path in find_runs(folder)]
    chosen = in_order(matching(found, filters), sort, reverse=reverse)
    listed = RunList(folder, tuple(chosen), differing(chosen), len(found) - len(chosen))
    show_runs(chosen, folder, terminal or Terminal(quiet=True), listed.num_left_out)
    return listed


@dataclass(frozen=True, slots=True)
class CleanResult:
    """What of the runs below `folder` could go, and what of that was removed."""

    folder: Path
    leftovers: tuple[Leftover, ...]
    removed: tuple[Leftover, ...] = ()

    def __repr__(self) -> str:
        return f"CleanResult({str(self.folder)!r}, {len(self.leftovers)} could go, {len(self.removed)} removed)"

    @property
    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        from tuneful.runs.schema import as_row

        rows = [{**as_row(one), "removed": one in self.removed} for one in self.leftovers]
        return {
            "folder": str(self.folder),
            "num_bytes": sum(one.num_bytes for one in self.leftovers),
            "removed_bytes": sum(one.num_bytes for one in self.removed),
            "leftovers": rows,
        }


def clean_runs(
    folder: str | Path = DEFAULT_FOLDER,
    *,
    filters: Sequence[str] = (),
    confirmed: bool | Callable[[], bool] = False,
    terminal: Terminal | None = None,
) -> CleanResult:
    """What of the runs at and below `folder` could go; it is removed where that is `confirmed`.

    That are checkpoints of finished runs, what killed writers left, and runs that were broken off with nothing to go on with.
    `filters` as for `runs`; `confirmed` may be a question, which is asked once everything was shown. Raises InputError as
    `runs`, and TunefulError, with the rest removed, where the disk refuses something.
    """
    from tuneful.console import Terminal
    from tuneful.runs.leftovers import find_leftovers, remove_leftover, show_leftovers
    from tuneful.runs.listing import find_runs, read_run_folder
    from tuneful.runs.table import matching

    folder, terminal = _existing(folder), terminal or Terminal(quiet=True)
    found = matching([read_run_folder(path, folder) for path in find_runs(folder)], filters)
    leftovers = find_leftovers(folder, found)
    show_leftovers(leftovers, folder, terminal)
    if not leftovers or not (confirmed() if callable(confirmed) else confirmed):
        return CleanResult(folder, tuple(leftovers))
    removed, refused = [], []
    for one in leftovers:
        try:
            if remove_leftover(one, folder):
                removed.append(one)
            else:
                terminal.say(f"{one.path} stays: its run has changed, or is at work", style="yellow")
        except OSError as error:
            refused.append(f"{error.filename or one.path}: cannot be removed: {error.strerror or error}")
    terminal.say(f"removed: {len(removed)} of {len(leftovers)}, {storage(sum(one.num_bytes for one in removed))}")
    if refused:
        raise TunefulError("; ".join(refused))
    return CleanResult(folder, tuple(leftovers), tuple(removed))


def runs_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[clean] [DIR]",
            help="the folder of the runs (default: runs); `clean` says what of them could go, and asks",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="by validation_loss, headline, forgetting, time, disk, a setting ..."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="KEY=VALUE", help="only runs of which this holds, or that hold this text"),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="the other way round")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="with `clean`: remove without asking")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Every run as a table: what it is, what became of it, in which settings they differ."""
    from tuneful.console import Terminal, to_stdout

    is_clean, folder = _asked(arguments or [])
    terminal = Terminal(quiet=quiet or as_json, stderr=False)
    result: RunList | CleanResult
    if is_clean:
        if sort is not None or reverse:
            raise InputError("--sort and --reverse are for the table; clean takes --filter")
        result = clean_runs(folder, filters=filters or (), confirmed=yes or _confirmation(terminal), terminal=terminal)
    else:
        if yes:
            raise InputError("--yes is for `tuneful runs clean`; the table removes nothing")
        result = runs(folder, sort=sort, filters=filters or (), reverse=reverse, terminal=terminal)
    if as_json:
        to_stdout(json.dumps(result.document, indent=1))


def _asked(arguments: Sequence[str]) -> tuple[bool, str]:
    """Whether the first argument is `clean`, and the folder; a folder of that name is `./clean`."""
    is_clean = bool(arguments) and arguments[0] == "clean"
    folders = list(arguments[is_clean:])
    if len(folders) > 1:
        raise InputError(f"one folder of runs, not {len(folders)}: {', '.join(folders)}; see tuneful runs --help")
    return is_clean, folders[0] if folders else DEFAULT_FOLDER


def _confirmation(terminal: Terminal) -> Callable[[], bool]:
    """A person's yes; without a terminal nobody can be asked, and that is said."""

    def ask() -> bool:
        if sys.stdin.isatty() and not terminal.quiet:
            return typer.confirm("Remove all of that?", err=True)
        terminal.say("nothing was removed: there is nobody to ask; --yes removes it", style="yellow")
        return False

    return ask


def _existing(folder: str | Path) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; name the one that holds your runs: tuneful runs DIR")
    return path
