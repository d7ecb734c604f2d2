"""Does the list of suspects find wrong answers? One training answer in a hundred is made wrong, and the product is run.

    python benchmarks/suspects.py [--kind other|near] [--share 0.01] [--records 660] [--seed 0] [--output FILE] [key=value ...]

`other`: the answer of any other record. `near`: the answer of a record that begins alike, of the same kind of task and
of the same form: the hard case. The program trains the built-in model on the first `--records` of the starter set, two epochs
at the defaults, `tuneful train` and nothing else; sorts records.jsonl by outlier_score, and counts how many of the wrong ones
stand in the first 5 %: by chance that would be 5 % of them. Exit code 1 below one half. About four minutes on two cores.
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
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import tuneful
from tuneful.config import Config, load_config
from tuneful.data.sources import STARTER_FILE
from tuneful.data.split import normal_prompt
from tuneful.runs.environment import describe_machine
from tuneful.types import Conversation, Turn

ENOUGH = 0.5
HEAD = 0.05

Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """Where the wrong records stand in the list: how many there are, the share in its head, and each one's rank from 1."""

    num_records: int
    num_wrong: int
    share_in_head: float
    ranks: list[int]


def planted(rows: Sequence[Row], may_be_wrong: Sequence[int], kind: str, share: float, seed: int) -> dict[int, str]:
    """Wrong answers for a `share` of the records `may_be_wrong`: index to answer, always another than the right one."""
    rng = random.Random(seed)
    order = sorted(range(len(rows)), key=lambda index: normal_prompt(_conversation(rows[index])))
    place = {index: at for at, index in enumerate(order)}
    wrong = {}
    for index in rng.sample(sorted(may_be_wrong), round(share * len(may_be_wrong))):
        at = place[index]
        near = order[max(0, at - 6) : at + 7] if kind == "near" else order
        wrong[index] = rng.choice([rows[i]["output"] for i in near if rows[i]["output"] != rows[index]["output"]])
    return wrong


def find(records: Sequence[Row], wrong: set[str]) -> Finding:
    """Where the sources `wrong` stand among the rows of records.jsonl, highest outlier score first."""
    ordered = sorted(records, key=lambda row: -(row["outlier_score"] if row["outlier_score"] is not None else -1e9))
    ranks = [rank for rank, row in enumerate(ordered, start=1) if row["source"] in wrong]
    in_head = sum(rank <= HEAD * len(ordered) for rank in ranks)
    return Finding(len(ordered), len(ranks), in_head / len(ranks), ranks)


def run(rows: Sequence[Row], config: Config, folder: Path, kind: str, share: float, seed: int) -> Finding:
    """Train on `rows` with wrong answers planted among those that are trained on, and look for them."""
    file = folder / "planted.jsonl"
    clean = [f"{file}:{number}" for number in range(1, len(rows) + 1)]
    trained = _trained_on(rows, file, config)
    wrong = planted(rows, [index for index, source in enumerate(clean) if source in trained], kind, share, seed)
    _write(file, [{**row, "output": wrong.get(index, row["output"])} for index, row in enumerate(rows)])
    tuneful.train(str(file), config=config, output=folder / "run")
    lines = (folder / "run" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return find([json.loads(line) for line in lines], {clean[index] for index in wrong})


def _trained_on(rows: Sequence[Row], file: Path, config: Config) -> set[str]:
    """The sources of the training side. A split looks at prompts alone, which wrong answers leave as they are."""
    from tuneful.data.read import read_data
    from tuneful.data.split import TRAIN, normal_prompt, split_sides

    _write(file, rows)
    data, records = config.data, read_data(str(file)).records
    shares = {"test_share": data.test_share, "validation_share": data.validation_share}
    prompts = (normal_prompt(record.conversation) for record in records)
    sides = split_sides(prompts, data.split, **shares, seed=config.train.seed)
    return {record.source for record, side in zip(records, sides, strict=True) if side == TRAIN}


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _conversation(row: Row) -> Conversation:
    return Conversation("", (Turn(row["instruction"], row["input"], row["output"]),), "")


def main() -> int:
    """Run, print, write; 1 where too few are found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("other", "near"), default="other")
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--records", type=int, default=660)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    config = load_config(None, ["data.test_share=0", "train.eval_steps=1000", *asked.settings])
    rows = json.loads(STARTER_FILE.read_text(encoding="utf-8"))[: asked.records]
    start, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = run(rows, config, Path(folder), asked.kind, asked.share, asked.seed)
    seconds = time.perf_counter() - start
    print(
        f"{found.num_wrong} wrong answers ({asked.kind}) among {found.num_records} records: {found.share_in_head:.0%} of them "
        f"in the first {HEAD:.0%} of the list; ranks {', '.join(map(str, found.ranks))}; {seconds:.0f} s"
    )
    if asked.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "program": "benchmarks/suspects.py",
            "kind": asked.kind,
            "share": asked.share,
            "seed": asked.seed,
            "settings": asked.settings,
            "num_records": found.num_records,
            "num_wrong": found.num_wrong,
            "share_in_first_5_percent": found.share_in_head,
            "ranks": found.ranks,
            "seconds": round(seconds, 1),
            "load_before": load,
            "machine": describe_machine(),
        }
        asked.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if found.share_in_head >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
