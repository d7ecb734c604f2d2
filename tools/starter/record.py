"""The one type of this folder, and the three tools that turn hand-written tables into records.

The content modules hold text in two plain layouts, because a table is easier to proofread than a nest of tuples:
`pairs` reads a text and its answer on two lines, `rows` reads short fields between bars. `dress` then puts a request
around each text. Requests are dealt like cards, so every wording is used about equally often and neighbors differ.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One instruction, its input ("" where there is none) and its answer, with the kind of task it belongs to."""

    kind: str
    instruction: str
    input: str
    output: str


def pairs(text: str) -> list[tuple[str, str]]:
    """Read `question` / `= answer` lines; an indented line goes on from the one above it, `\\n` stands for a new line.

    Raises ValueError for a question without an answer or an answer without a question.
    """
    found: list[list[str]] = []
    for line in text.strip().splitlines():
        if not line.strip():
            continue
        if line.startswith("= "):
            if len(found[-1]) != 1:
                raise ValueError(f"an answer without a question: {line!r}")
            found[-1].append(line[2:].strip())
        elif line.startswith(" "):
            found[-1][-1] += " " + line.strip()
        else:
            if found and len(found[-1]) != 2:
                raise ValueError(f"a question without an answer: {found[-1][0]!r}")
            found.append([line.strip()])
    return [(question.replace("\\n", "\n"), answer.replace("\\n", "\n")) for question, answer in found]


def rows(text: str) -> list[tuple[str, ...]]:
    """Read one row a line, its fields divided by ` | `. Raises ValueError where rows differ in length."""
    found = [tuple(field.strip() for field in line.split("|")) for line in text.strip().splitlines()]
    if len({len(row) for row in found}) > 1:
        raise ValueError(f"rows of unequal length near {found[0]!r}")
    return found


def deal(wordings: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Yield the wordings in random order, again and again, each once a round."""
    while True:
        yield from rng.sample(list(wordings), len(wordings))


def dress(kind: str, content: Sequence[tuple[str, ...]], wordings: Sequence[str], rng: random.Random) -> list[Record]:
    """Put a request around each row of `content`; the last field of a row is the answer.

    A wording with `{0}` takes the text into the instruction, one without leaves it to the input. Further fields of a
    row are `{1}`, `{2}` ... and may stand in either.
    """
    dealt = deal(wordings, rng)
    records = []
    for *fields, answer in content:
        wording = next(dealt)
        text = "" if "{0}" in wording else fields[0]
        records.append(Record(kind, wording.format(*fields), text, answer))
    return records
