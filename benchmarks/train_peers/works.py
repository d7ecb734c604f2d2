"""The work that the systems are given: records as token ids, in batches, the same for all.

| work | records | a step |
|---|---|---|
| starter8, starter32 | the built-in data set in the Alpaca template | 8, 32 |
| nopreamble8 | the same records without any common text: the control for prefix sharing | 8 |
| pairs8, pairs32 | the starter's prompts, each with its answer and another that opens like it | 8, 32 |
| mixed8 | responses of 50 to 1,500 tokens, lengths log-uniform, short prompts | 8 |

Pieces of a record (preamble, instruction, response ...) are encoded apart and their ids concatenated, so no token
straddles a seam. Order is a seeded shuffle of each epoch.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from train_peers.worker import Batch, Record

PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n"
)
MIXED_RECORDS = 256
NUM_PAIRS = 1_100
MIXED_TOKENS = (50, 1500)
SEED = 7

Row = dict[str, str]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Work:
    """A set of `num_records` and how many make a step; a round measures `num_steps` unless the user says otherwise."""

    name: str
    content: str
    batch_size: int
    num_steps: int
    num_records: int = 0


WORKS = {
    work.name: work
    for work in (
        Work("starter8", "starter", 8, 8),
        Work("starter32", "starter", 32, 4),
        Work("nopreamble8", "nopreamble", 8, 8),
        Work("mixed8", "mixed", 8, 2),
        Work("pairs8", "pairs", 8, 8),
        Work("pairs32", "pairs", 32, 4),
    )
}


def make_records(content: str, rows: list[Row], encode: Encode, end_token: int) -> list[Record]:
    """All records of a work's set."""
    if content == "mixed":
        return list(_mixed(rows, encode, end_token))
    if content == "pairs":
        return list(_pairs(rows[:NUM_PAIRS], encode, end_token))
    prompt = _alpaca_prompt if content == "starter" else _bare_prompt
    return [_record(prompt(row), encode(row["output"]), encode, end_token) for row in rows]


def make_batches(records: list[Record], batch_size: int, num_batches: int) -> list[Batch]:
    """`num_batches` full batches, from as many epochs as it takes."""
    batches: list[Batch] = []
    epoch = 0
    while len(batches) < num_batches:
        order = random.Random(f"{SEED}/{epoch}").sample(records, len(records))
        batches += [order[start : start + batch_size] for start in range(0, len(order) - batch_size + 1, batch_size)]
        epoch += 1
    return batches[:num_batches]


def read_starter(path: Path) -> tuple[list[Row], str]:
    """The starter set's rows, and the name of their file."""
    rows = json.loads(path.read_text())
    return [{key: row.get(key) or "" for key in ("instruction", "input", "output")} for row in rows], path.name


def _record(pieces: list[str], response: list[int], encode: Encode, end_token: int) -> Record:
    prompt = [token for piece in pieces for token in encode(piece)]
    return Record([*prompt, *response, end_token], len(prompt))


def _alpaca_prompt(row: Row) -> list[str]:
    given = ["\n\n### Input:\n", row["input"]] if row["input"] else []
    return [PREAMBLE, row["instruction"], *given, "\n\n### Response:\n"]


def _bare_prompt(row: Row) -> list[str]:
    return [row["instruction"], "\n", row["input"], "\n"] if row["input"] else [row["instruction"], "\n"]


def _pairs(rows: list[Row], encode: Encode, end_token: int) -> Iterator[Record]:
    """Each prompt with its answer and a worse one as in the book's set: about as long, most often with the same first words.

    The worse one opens like the answer, up to seven tokens, and goes on like that of another record. The reference's
    log-probabilities are made up, two nats a token and some, so that the first loss says whether a system has the same tokens.
    """
    rng = random.Random(SEED)
    answers = [encode(row["output"]) for row in rows]
    for row, answer in zip(rows, answers, strict=True):
        opening = answer[: min(len(answer) - 1, rng.choice([0, 0, 0, 1, 2, 4, 7, 7]))]
        rest = rng.choice(answers)[len(opening) :][: max(1, len(answer) - len(opening) + rng.randint(-2, 2))]
        chosen = _record(_alpaca_prompt(row), answer, encode, end_token)
        prompt = chosen.ids[: chosen.num_prompt]
        rejected = [*prompt, *opening, *rest, end_token]
        counted = ((-2.0, chosen.ids), (-4.0, rejected))  # nats a token, so that the first losses are near ln 2
        reference = [nats * (len(side) - len(prompt)) - rng.random() for nats, side in counted]
        yield Record(chosen.ids, chosen.num_prompt, rejected, reference)


def _mixed(rows: list[Row], encode: Encode, end_token: int) -> Iterator[Record]:
    rng = random.Random(SEED)
    sentences = [encode(" " + row[key]) for row in rows for key in ("input", "output") if row[key]]
    for row in rng.choices(rows, k=MIXED_RECORDS):
        low, high = (math.log(limit) for limit in MIXED_TOKENS)
        num_tokens = round(math.exp(rng.uniform(low, high)))
        response: list[int] = []
        while len(response) < num_tokens - 1:
            response += rng.choice(sentences)
        yield _record(["Question: ", row["instruction"], "\nAnswer:"], response[: num_tokens - 1], encode, end_token)
