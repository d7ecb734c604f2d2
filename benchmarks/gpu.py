"""Is a GPU's path right, and how fast is it? One command, which goes on where a time limit cut it.

    make bench-gpu                                             everything; about 25 minutes on an H200
    make bench-gpu BENCH="--minutes 9"                         as much as fits; the same command again goes on
    make bench-gpu BENCH="--only attention,step/135m"          some of it
    python benchmarks/gpu.py --device cpu --tiny               does it run? no figure of it means anything

Needed are torch with CUDA and what Tuneful itself needs; nothing is downloaded: models are random weights of known shapes. TRL
and Liger are measured beside it where they can be imported.

Each piece is measured in one of a few processes and written to a file of lines as soon as it is known; a process that dies
takes down the piece at hand alone, which is named with what it said. At the end a table, and a JSON document of all pieces.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gpu_pieces import Piece, Place, attention_pieces, facts, peer_pieces, step_pieces

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS = (
    "error",
    "ms",
    "compile_seconds",
    "graphs",
    "worst",
    "repeats",
    "loss",
    "tokens_per_second",
    "floor_share",
    "peak_gb",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    place: Place
    output: Path
    only: tuple[str, ...] = ()
    minutes: float | None = None

    def pieces(self) -> list[Piece]:
        """All pieces that are wanted, in the order in which they are measured: what decides most comes first."""
        place = self.place
        found = [facts(place), *attention_pieces(place), *step_pieces(place), *peer_pieces(place)]
        return [one for one in found if not self.only or any(one.name.startswith(word) for word in self.only)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not yet measured, print the table, write the document; 1 where a piece failed."""
    parsed = _parsed(arguments)
    options = Options(Place(parsed.device, parsed.tiny), parsed.output, parsed.only, parsed.minutes)
    if parsed.group:
        measure(options, parsed.group)
        return 0
    left = drive(options, lambda group: _in_a_process(group, arguments))
    rows = read(options)
    print("\n".join(table(rows)))
    document = options.output.with_suffix(".json")
    document.write_text(json.dumps({"date": str(date.today()), "pieces": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{document}")
    if left:
        print(f"{left} pieces are left: the same command goes on")
    return int(any("error" in row for row in rows.values()))


def drive(options: Options, spawn: Callable[[str], str | None]) -> int:
    """Have every group of pieces measured by `spawn(group)`, again and again while it dies and the time lasts; how many pieces
    are left. `spawn` returns None, or what a process that died said last."""
    start = time.monotonic()
    for group in dict.fromkeys(piece.group for piece in options.pieces()):
        while _missing(options, group):
            if options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
                break
            before = len(_missing(options, group))
            died = spawn(group)
            begun = _begun(options)
            if died is not None and begun is not None:
                write(options, begun, {"error": f"the process ended: {died}"})
            if died is not None and begun is None and len(_missing(options, group)) == before:
                for piece in _missing(options, group):
                    write(options, piece.name, {"error": f"the process did not begin: {died}"})
    return len(_missing(options))


def measure(options: Options, group: str) -> None:
    """Measure what is missing of a group in this process, writing each piece as soon as it is known."""
    start = time.monotonic()
    for piece in _missing(options, group):
        if options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
            return
        write(options, piece.name, None)
        try:
            found = piece.measure()
        except Exception as error:  # of any library, at any shape: a figure of its own
            found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            traceback.print_exc()
            if options.place.is_broken():
                write(options, piece.name, found)
                raise
        write(options, piece.name, found)
        print(f"{piece.name}: {found}", file=sys.stderr, flush=True)
        options.place.forget()


def write(options: Options, name: str, found: Row | None) -> None:
    """Append a line: what was found of a piece, or that it is begun."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    was_cut = options.output.exists() and not options.output.read_bytes().endswith(b"\n")
    with options.output.open("a", encoding="utf-8") as file:
        file.write("\n" * was_cut + json.dumps({"piece": name, "found": found}) + "\n")


def read(options: Options) -> dict[str, Row]:
    """What was found of each piece."""
    return {row["piece"]: row["found"] for row in _lines(options) if row["found"] is not None}


def _begun(options: Options) -> str | None:
    """The piece that was begun last and is not known."""
    last = next(iter(reversed(list(_lines(options)))), None)
    return str(last["piece"]) if last and last["found"] is None else None


def _lines(options: Options) -> Iterator[Row]:
    if not options.output.exists():
        return
    for line in options.output.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the line at which a time limit cut


def _missing(options: Options, group: str | None = None) -> list[Piece]:
    known = read(options)
    return [one for one in options.pieces() if one.name not in known and group in (None, one.group)]


def _in_a_process(group: str, arguments: Sequence[str] | None) -> str | None:
    """Measure a group in a process of its own: None, or what it said last."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *given, "--group", group], stderr=subprocess.PIPE, text=True
    )
    sys.stderr.write(done.stderr)
    said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
    return None if done.returncode == 0 else f"exit code {done.returncode}, {said[0][:200]}"


def table(rows: dict[str, Row]) -> list[str]:
    """The figures that are there, as a table."""
    columns = [name for name in FIELDS if any(name in row for row in rows.values())]
    lines = [f"| piece | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        if any(column in row for column in columns):
            lines.append(f"| {name} | {' | '.join(_cell(row.get(column)) for column in columns)} |")
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:60]


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes that a laptop computes in seconds")
    parser.add_argument("--minutes", type=float, help="begin no piece after so many")
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=(), help="pieces that begin so")
    parser.add_argument("--output", type=Path, default=RESULTS / f"gpu-{date.today()}.jsonl")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
