"""Are the records that `tuneful explain` names those that did it? Wrong facts are planted, found, and taken out again.

    python benchmarks/explain.py [--records 352] [--facts 20] [--random 3] [--folder DIR] [--output FILE] [key=value ...]

Among the first `--records` of the starter set stand, for each fact of wrong_facts.py, PHRASINGS records that teach it wrong; the
test set asks for it in words that none of them has. An adapter of the built-in model is trained on all of it (`tuneful run`), and
each answer is explained at the weights before the first step and those after each epoch but the last. Learning rate and epochs
were chosen by the answers alone: they teach the facts.

*Found*: the ranks of the planted records among all, by cosine (as `explain` ranks) and by score, for answers that repeat the
wrong fact. All in the first 1 % (or the first PHRASINGS, where that is more) is what is asked for; by chance a rank is anywhere.

*Removed*: the model is trained again, from the same start, without the PHRASINGS records that were named first for each answer;
and `--random` times without as many drawn at random from all records. How far does the log-probability of the first answer move?
Exit code 1 where one of the two is not as asked, which takes an answer that repeats its wrong fact.

Every piece (what was found, each removal) is written to `--folder` when it is measured, and the same command goes on after a
kill, within a training from its last checkpoint. With `--records 24 --facts 1 --random 1 model.name_or_path=DIR` it is a trial.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import tuneful
from tuneful.config import Config, DataConfig, load_config
from tuneful.console import Terminal
from tuneful.data.sources import STARTER_FILE
from tuneful.errors import ConfigError
from tuneful.evaluation.answers import AnsweredRecord, read_answer_rows
from tuneful.files import write_json, write_rows
from tuneful.runs.environment import describe_machine
from tuneful.runs.explained_items import explained_example
from tuneful.runs.finished import load_trained, open_finished
from tuneful.runs.folder import read_record
from tuneful.train.loss import micro_batch_loss
from tuneful.types import Example
from wrong_facts import FACTS, NUM_KNOWN, PHRASINGS, Fact

HEAD = 0.01
BATCH_SIZE, EPOCHS, LEARNING_RATE = 8, 3, 1e-3
ROOT = Path(__file__).parents[1]

Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """An answer, whether it repeats the wrong fact, and the ranks of the planted records, from 1, by score and by cosine.

    Of an answer that cannot be explained, because it is empty and was cut off, there are no ranks and no log-probability.
    """

    asked: str
    answer: str
    repeats: bool
    ranks_by_score: list[int]
    ranks_by_cosine: list[int]
    log_probability: float | None


@dataclass(frozen=True)
class Removal:
    """How the log-probability (nats) of each first answer moved when records were left out of the training."""

    what: str
    num_removed: int
    moved: list[float | None]


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
    """Train on `rows`, with the question of every fact as the test set, in `folder`, or go on there; the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test, run = folder / "train.jsonl", folder / "test.jsonl", folder / "run"
    write_rows(train, rows)
    write_rows(test, [{"instruction": fact.asked, "input": "", "output": fact.right} for fact in facts])
    record = read_record(run) if run.is_dir() else None
    if record is None or not record.finished:
        own = config.model_copy(update={"data": config.data.model_copy(update={"test_file": str(test)})})
        getattr(tuneful, verb)(str(train), config=own, output=run, terminal=Terminal(quiet=True))
    return run


def log_probabilities(run: Path, answers: Sequence[AnsweredRecord]) -> list[float | None]:
    """What the model of `run` gives each of `answers`, in nats; None for one that cannot be explained."""
    trained = load_trained(open_finished(run), Terminal(quiet=True))
    examples = [explained_example(trained.encoder, answer, "answer") for answer in answers]
    return [
        -micro_batch_loss(trained.model, [one], "padded").record_nll()[0] if isinstance(one, Example) else None
        for one in examples
    ]


def find(
    run: Path, facts: Sequence[Fact], planted: Sequence[Sequence[int]], num_rows: int
) -> tuple[list[Found], list[list[int]]]:
    """What `explain` says of every answer; and the places of the records that it names first for each."""
    answers = read_answer_rows(run / "answers" / "tuned.jsonl", DataConfig())
    likely = log_probabilities(run, answers)
    known = [number for number, one in enumerate(likely, start=1) if one is not None]
    ranked: dict[str, dict[int, list[int]]] = {}
    for by in ("score", "cosine"):
        items = tuneful.explain(run, item=known, num=num_rows, rank_by=by).items if known else ()
        ranked[by] = {
            item.number: [int(one.source.rpartition(":")[2]) - 1 for one in (*item.towards, *item.away[::-1])]
            for item in items
        }

    def ranks(number: int, by: str) -> list[int]:
        if number not in ranked[by]:
            return []
        order = {place: rank for rank, place in enumerate(ranked[by][number], start=1)}
        return sorted(order.get(place, num_rows) for place in planted[number - 1])  # what pushes neither way is last

    found = [
        Found(
            fact.asked,
            answer.text,
            fact.mark in answer.text.lower(),
            ranks(number, "score"),
            ranks(number, "cosine"),
            None if own is None else round(own, 4),
        )
        for number, (fact, answer, own) in enumerate(zip(facts, answers, likely, strict=True), start=1)
    ]
    return found, [ranked["cosine"][number][:PHRASINGS] for number in known]


def removed(
    what: str,
    places: set[int],
    rows: Sequence[Row],
    run: Path,
    before: Sequence[float | None],
    facts: Sequence[Fact],
    config: Config,
    folder: Path,
) -> Removal:
    """Train without the rows at `places`, and see what became of the first answers."""
    answers = read_answer_rows(run / "answers" / "tuned.jsonl", DataConfig())
    kept = [row for place, row in enumerate(rows) if place not in places]
    after = log_probabilities(trained(kept, facts, config, folder, "train"), answers)
    pairs = zip(after, before, strict=True)
    moved = [None if now is None or then is None else round(now - then, 4) for now, then in pairs]
    return Removal(what, len(places), moved)


class Pieces:
    """What was measured so far, in `folder`/pieces.json; ConfigError where that is of another request."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        self._file, self._request = folder / "pieces.json", dict(request)
        folder.mkdir(parents=True, exist_ok=True)
        found = (
            json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {"request": self._request}
        )
        if found["request"] != self._request:
            raise ConfigError(f"{folder}: holds pieces of another request ({found['request']}); give another --folder")
        self._found: dict[str, Any] = found

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """The piece called `name`: as it was measured before, else what `measure` gives, written down."""
        if name not in self._found:
            begun = time.perf_counter()
            value = measure()
            self._found[name] = {"value": value, "seconds": round(time.perf_counter() - begun, 1)}
            write_json(self._file, self._found)
        return self._found[name]["value"]

    @property
    def seconds(self) -> dict[str, float]:
        """How long each piece took, that of the process which ended it."""
        return {name: piece["seconds"] for name, piece in self._found.items() if name != "request"}


def run_all(
    asked: argparse.Namespace, config: Config, folder: Path, pieces: Pieces
) -> tuple[list[Found], list[Removal], int]:
    """Plant, train, explain, take out, train again."""
    facts = FACTS[: asked.facts]
    rows, planted = training_rows(asked.records, facts, asked.seed)
    run = folder / "all" / "run"

    def explained() -> dict[str, Any]:
        trained(rows, facts, config, folder / "all", "run")
        print("trained; explaining", flush=True)
        found, named = find(run, facts, planted, len(rows))
        return {"found": list(map(asdict, found)), "named": named}

    piece = pieces("found", explained)
    found = [Found(**one) for one in piece["found"]]
    for one in found:
        print(
            f"{one.asked} -> {one.answer!r} ranks by score {one.ranks_by_score}, by cosine {one.ranks_by_cosine}",
            flush=True,
        )
    before = [one.log_probability for one in found]
    out = {place for own in piece["named"] for place in own}
    taken = {"named": out} | {
        f"random-{number}": set(random.Random(1000 + number).sample(range(len(rows)), len(out)))
        for number in range(asked.random)
    }
    removals = []
    for name, places in taken.items():

        def measure(name: str = name, places: set[int] = places) -> dict[str, Any]:
            what = name.partition("-")[0]
            return asdict(removed(what, places, rows, run, before, facts, config, folder / name))

        removal = Removal(**pieces(name, measure))
        print(f"without {removal.num_removed} {removal.what} records: {removal.moved} nats", flush=True)
        removals.append(removal)
    return found, removals, len(rows)


def size_of_head(num_rows: int) -> int:
    """How many records are the first 1 %, of which there are to be all PHRASINGS."""
    return max(PHRASINGS, round(HEAD * num_rows))


def at_the_head(found: Sequence[Found], num_rows: int) -> str:
    """How many planted records stand at the head by either measure, and for how many answers all do."""
    head, said = size_of_head(num_rows), []
    for which, some in (("known", found[:NUM_KNOWN]), ("unseen", found[NUM_KNOWN:])):
        for by in ("cosine", "score"):
            ranks = [getattr(one, f"ranks_by_{by}") for one in some if one.repeats]
            num, whole = sum(rank <= head for own in ranks for rank in own), sum(own[-1] <= head for own in ranks)
            said.append(f"{which} facts by {by}: {num} of {PHRASINGS * len(ranks)}, all of {whole} of {len(ranks)}")
    return f"among the first {head}: " + "; ".join(said)


def is_as_asked(found: Sequence[Found], removals: Sequence[Removal], num_rows: int) -> bool:
    """Whether all planted records are at the head, of answers that repeat their fact, and taking out what is named moves more."""
    head = size_of_head(num_rows)
    repeated = [one for one in found if one.repeats]
    at_head = all(one.ranks_by_cosine[-1] <= head for one in repeated)
    named, *others = [abs(float(np.mean([nats for nats in one.moved if nats is not None] or [0]))) for one in removals]
    return bool(repeated) and at_head and all(named > other for other in others)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=352)
    parser.add_argument("--facts", type=int, default=len(FACTS))
    parser.add_argument("--random", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where pieces and runs are kept (default: .bench/explain-HASH)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    return parser.parse_args()


def main() -> int:
    """Run, print, write; 1 where it is not as asked."""
    asked = arguments()
    num_rows = asked.records + PHRASINGS * asked.facts
    common = (
        "data.validation_share=0",
        "data.test_share=0",
        "report.general=null",
        "generate.max_new_tokens=24",
        "train.method=lora",
        f"train.batch_size={BATCH_SIZE}",
        f"train.num_train_epochs={EPOCHS}",
        f"train.learning_rate={LEARNING_RATE}",
        f"train.save_steps={-(-num_rows // BATCH_SIZE)}",
        f"train.save_total_limit={EPOCHS}",
    )
    settings = [*common, *asked.settings]
    request = {"records": asked.records, "facts": asked.facts, "seed": asked.seed, "settings": settings}
    sha256 = hashlib.sha256(json.dumps(request).encode()).hexdigest()
    folder = asked.folder or ROOT / ".bench" / f"explain-{sha256[:8]}"
    load, pieces = os.getloadavg()[0], Pieces(folder, request)
    print(f"pieces and runs: {folder}", flush=True)
    found, removals, num_rows = run_all(asked, load_config(None, settings), folder, pieces)
    as_asked = is_as_asked(found, removals, num_rows)
    print(at_the_head(found, num_rows))
    print(f"{'as asked' if as_asked else 'NOT as asked'}; {sum(pieces.seconds.values()):.0f} s")
    if asked.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "program": "benchmarks/explain.py",
            **request,
            "num_records": num_rows,
            "num_planted": PHRASINGS * len(found),
            "found": list(map(asdict, found)),
            "at_the_head": at_the_head(found, num_rows),
            "removed": list(map(asdict, removals)),
            "as_asked": as_asked,
            "seconds": pieces.seconds,
            "load_before": load,
            "machine": describe_machine(),
        }
        write_json(asked.output, document)
    return 0 if as_asked else 1


if __name__ == "__main__":
    sys.exit(main())
