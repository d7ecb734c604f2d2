"""Write `src/tuneful/data/starter.json` from the tables of this folder: `python -m tools.starter.make [--check]`.

The same tables and the same seed give the same bytes: only `random.Random.shuffle` and `.sample` are used, nothing
hangs on the hash seed, the clock or the machine. The order of the file is the order of training, so the kinds are
spread through it: each kind is dealt over the whole length at even steps, with a little jitter. However the file is
cut, each part that is not tiny then holds nearly every kind.
"""

from __future__ import annotations

import argparse
import json
import random
import sys

from tuneful.data.sources import STARTER_FILE

from . import editing, facts, formats, numbers, reading, rewriting, words, writing
from .record import Record

SEED = 1867
FAMILIES = (rewriting, editing, words, numbers, formats, facts, reading, writing)


def records() -> list[Record]:
    """Return all records in the order of the file."""
    rng = random.Random(SEED)
    by_kind: dict[str, list[Record]] = {}
    for family in FAMILIES:
        for record in family.records(rng):
            by_kind.setdefault(record.kind, []).append(record)
    placed = []
    for group in by_kind.values():
        rng.shuffle(group)
        start = rng.random()
        step = 1 / len(group)
        placed += [((start + index) * step, record) for index, record in enumerate(group)]
    return [record for _, record in sorted(placed, key=lambda pair: pair[0])]


def categories() -> dict[str, str]:
    """The category of each kind: the name of the module that holds its tables."""
    return {
        record.kind: family.__name__.rpartition(".")[2]
        for family in FAMILIES
        for record in family.records(random.Random(SEED))
    }


def render(found: list[Record]) -> str:
    """Return the text of the file: a JSON list with one record a line."""
    category_of = categories()
    shown = (
        {"instruction": one.instruction, "input": one.input, "output": one.output, "category": category_of[one.kind]}
        for one in found
    )
    lines = (json.dumps(one, ensure_ascii=False) for one in shown)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the file, or with `--check` return 1 if the one on disk differs."""
    parser = argparse.ArgumentParser(description="write starter.json from its tables")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file differs")
    text = render(records()).encode()
    if not parser.parse_args(arguments).check:
        STARTER_FILE.write_bytes(text)
        return 0
    if STARTER_FILE.exists() and STARTER_FILE.read_bytes() == text:
        return 0
    print(f"{STARTER_FILE} differs from what the program writes; run it without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
