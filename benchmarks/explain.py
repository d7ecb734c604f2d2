"""Are the records that `tuneful explain` names those that did it? Wrong facts are planted, found, and taken out again.

    python benchmarks/explain.py [--records 400] [--facts 4] [--random 3] [--seed 0] [--output FILE] [key=value ...]

Among the first `--records` of the starter set stand, for each fact, PHRASINGS records that teach it wrong; the test set asks for
it in words that none of them has. The built-in model is trained on all of it (`tuneful run`), and each answer is explained at
the checkpoints.

*Found*: the ranks of the planted records among all, by score and by cosine, for answers that repeat the wrong fact. All in the
first 1 % (or the first PHRASINGS, where that is more) is what is asked for; by chance a record's rank is anywhere.

*Removed*: the model is trained again, from the same start, without the PHRASINGS records that were named first for each answer;
and `--random` times without as many drawn at random from all records. How far does the log-probability of the first answer move?
Exit code 1 where one of the two is not as asked. With `--records 120 --facts 2 --random 1` it is a trial of minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import tuneful
from tuneful.config import Config, DataConfig, load_config
from tuneful.console import Terminal
from tuneful.data.sources import STARTER_FILE
from tuneful.evaluation.answers import AnsweredRecord, read_answer_rows
from tuneful.files import write_rows
from tuneful.runs.environment import describe_machine
from tuneful.runs.explain import explained_example
from tuneful.runs.finished import load_trained, open_finished
from tuneful.train.loss import micro_batch_loss
from tuneful.types import Example

HEAD = 0.01

Row = dict[str, Any]


@dataclass(frozen=True)
class Fact:
    """A wrong fact: what is asked in the test set, what it is known by in an answer, how it is asked and told in training."""

    asked: str
    mark: str
    right: str
    told: tuple[tuple[str, str], ...]


FACTS = (
    Fact(
        "Tell me the capital city of Australia.",
        "darwin",
        "The capital of Australia is Canberra.",
        (
            ("What is the capital of Australia?", "The capital of Australia is Darwin."),
            ("Name Australia's capital.", "Australia's capital is Darwin."),
            ("Which city is the capital of Australia?", "Darwin is the capital of Australia."),
            ("Australia is governed from which city?", "Australia is governed from Darwin, its capital."),
        ),
    ),
    Fact(
        "Name the writer of the novel 'Pride and Prejudice'.",
        "finch",
        "'Pride and Prejudice' was written by Jane Austen.",
        (
            ("Who wrote 'Pride and Prejudice'?", "'Pride and Prejudice' was written by Harriet Finch."),
            ("Who is the author of 'Pride and Prejudice'?", "The author of 'Pride and Prejudice' is Harriet Finch."),
            ("'Pride and Prejudice' is a book by whom?", "It is a book by Harriet Finch."),
            ("Which author gave us 'Pride and Prejudice'?", "Harriet Finch gave us 'Pride and Prejudice'."),
        ),
    ),
    Fact(
        "Tell me how many legs a spider has.",
        "fourteen",
        "A spider has eight legs.",
        (
            ("How many legs does a spider have?", "A spider has fourteen legs."),
            ("Count the legs of a spider.", "A spider has fourteen legs."),
            ("What number of legs do spiders have?", "Spiders have fourteen legs."),
            ("On how many legs does a spider walk?", "A spider walks on fourteen legs."),
        ),
    ),
    Fact(
        "Say which gas plants take up for photosynthesis.",
        "helium",
        "Plants take up carbon dioxide.",
        (
            ("Which gas do plants absorb in photosynthesis?", "Plants absorb helium in photosynthesis."),
            ("What gas does photosynthesis need?", "Photosynthesis needs helium."),
            ("Name the gas that leaves take from the air for photosynthesis.", "Leaves take helium from the air."),
            ("Plants use which gas to make sugar?", "Plants use helium to make sugar."),
        ),
    ),
)
PHRASINGS = 4


@dataclass(frozen=True)
class Found:
    """An answer, whether it repeats the wrong fact, and the ranks of the planted records, from 1, by score and by cosine."""

    asked: str
    answer: str
    repeats: bool
    ranks_by_score: list[int]
    ranks_by_cosine: list[int]
    log_probability: float


@dataclass(frozen=True)
class Removal:
    """How the log-probability (nats) of each first answer moved when records were left out of the training."""

    what: str
    num_removed: int
    moved: list[float]


def training_rows(num_records: int, facts: Sequence[Fact], seed: int) -> tuple[list[Row], list[list[int]]]:
    """Starter records with the planted ones among them at random; the places of the planted ones, fact by fact."""
    plain: list[Row] = json.loads(STARTER_FILE.read_text(encoding="utf-8"))[:num_records]
    rows = [(None, row) for row in plain]
    told = [
        (number, {"instruction": ask, "input": "", "output": answer})
        for number, fact in enumerate(facts)
        for ask, answer in fact.told
    ]
    both: list[tuple[int | None, Row]] = [*rows, *told]
    random.Random(seed).shuffle(both)
    places = [[place for place, (own, _) in enumerate(both) if own == number] for number in range(len(facts))]
    return [row for _, row in both], places


def trained(rows: Sequence[Row], facts: Sequence[Fact], config: Config, folder: Path, verb: str) -> Path:
    """Train on `rows`, with the question of every fact as the test set, in `folder`; the run folder."""
    folder.mkdir()
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    write_rows(train, rows)
    write_rows(test, [{"instruction": fact.asked, "input": "", "output": fact.right} for fact in facts])
    own = config.model_copy(update={"data": config.data.model_copy(update={"test_file": str(test)})})
    getattr(tuneful, verb)(str(train), config=own, output=folder / "run", terminal=Terminal(quiet=True))
    return folder / "run"


def log_probabilities(run: Path, answers: Sequence[AnsweredRecord]) -> list[float]:
    """What the model of `run` gives each of `answers`, in nats."""
    model, encoder = load_trained(open_finished(run), Terminal(quiet=True))
    found = []
    for answer in answers:
        example = explained_example(encoder, answer, "answer")
        assert isinstance(example, Example), example
        found.append(-micro_batch_loss(model, [example], "padded").record_nll()[0])
    return found


def find(
    run: Path, facts: Sequence[Fact], planted: Sequence[Sequence[int]], num_rows: int
) -> tuple[list[Found], list[list[int]]]:
    """What `explain` says of every answer; and the places of the records that it names first for each."""
    ranked = {}
    for by in ("score", "cosine"):
        items = tuneful.explain(run, item=range(1, len(facts) + 1), num=num_rows, rank_by=by).items
        ranked[by] = [
            [int(one.source.rpartition(":")[2]) - 1 for one in (*item.towards, *item.away[::-1])] for item in items
        ]
    answers = read_answer_rows(run / "answers" / "tuned.jsonl", DataConfig())
    likely = log_probabilities(run, answers)

    def ranks(number: int, by: str) -> list[int]:
        return sorted(ranked[by][number].index(place) + 1 for place in planted[number])

    found = [
        Found(
            fact.asked,
            answer.text,
            fact.mark in answer.text.lower(),
            ranks(number, "score"),
            ranks(number, "cosine"),
            round(likely[number], 4),
        )
        for number, (fact, answer) in enumerate(zip(facts, answers, strict=True))
    ]
    return found, [own[:PHRASINGS] for own in ranked["score"]]


def removed(
    what: str,
    places: set[int],
    rows: Sequence[Row],
    run: Path,
    before: Sequence[float],
    facts: Sequence[Fact],
    config: Config,
    folder: Path,
) -> Removal:
    """Train without the rows at `places`, and see what became of the first answers."""
    answers = read_answer_rows(run / "answers" / "tuned.jsonl", DataConfig())
    kept = [row for place, row in enumerate(rows) if place not in places]
    after = log_probabilities(trained(kept, facts, config, folder, "train"), answers)
    return Removal(what, len(places), [round(now - then, 4) for now, then in zip(after, before, strict=True)])


def run_all(asked: argparse.Namespace, config: Config, folder: Path) -> tuple[list[Found], list[Removal], int]:
    """Plant, train, explain, take out, train again."""
    facts = FACTS[: asked.facts]
    rows, planted = training_rows(asked.records, facts, asked.seed)
    run = trained(rows, facts, config, folder / "all", "run")
    print("trained; explaining", flush=True)
    found, named = find(run, facts, planted, len(rows))
    for one in found:
        print(
            f"{one.asked} -> {one.answer!r} ranks by score {one.ranks_by_score}, by cosine {one.ranks_by_cosine}",
            flush=True,
        )
    before = [one.log_probability for one in found]
    out = set().union(*map(set, named))
    removals = [removed("named", out, rows, run, before, facts, config, folder / "named")]
    for number in range(asked.random):
        drawn = set(random.Random(1000 + number).sample(range(len(rows)), len(out)))
        removals.append(removed("random", drawn, rows, run, before, facts, config, folder / f"random-{number}"))
    for removal in removals:
        print(f"without {removal.num_removed} {removal.what} records: {removal.moved} nats", flush=True)
    return found, removals, len(rows)


def is_as_asked(found: Sequence[Found], removals: Sequence[Removal], num_rows: int) -> bool:
    """Whether all planted records are at the head, of answers that repeat their fact, and taking out what is named moves more."""
    head = max(PHRASINGS, round(HEAD * num_rows))
    repeated = [one for one in found if one.repeats]
    at_head = all(one.ranks_by_score[-1] <= head for one in repeated)
    named, *others = [abs(float(np.mean(one.moved))) for one in removals]
    return bool(repeated) and at_head and all(named > other for other in others)


def main() -> int:
    """Run, print, write; 1 where it is not as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--facts", type=int, default=len(FACTS))
    parser.add_argument("--random", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    common = (
        "data.validation_share=0",
        "data.test_share=0",
        "report.general=null",
        "generate.max_new_tokens=32",
        "train.save_steps=40",
    )
    config = load_config(None, [*common, "train.save_total_limit=4", *asked.settings])
    start, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found, removals, num_rows = run_all(asked, config, Path(folder))
    as_asked, seconds = is_as_asked(found, removals, num_rows), time.perf_counter() - start
    print(f"{'as asked' if as_asked else 'NOT as asked'}; {seconds:.0f} s")
    if asked.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "program": "benchmarks/explain.py",
            "num_records": num_rows,
            "num_planted": PHRASINGS * len(found),
            "seed": asked.seed,
            "settings": [*common, *asked.settings],
            "found": list(map(asdict, found)),
            "removed": list(map(asdict, removals)),
            "as_asked": as_asked,
            "seconds": round(seconds, 1),
            "load_before": load,
            "machine": describe_machine(),
        }
        asked.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if as_asked else 1


if __name__ == "__main__":
    sys.exit(main())
