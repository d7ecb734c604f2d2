"""How long does `tuneful check` take, and how much memory? On files of any size that this program writes itself.

    python benchmarks/check_speed.py [--records 52000 1000000] [--words] [--output FILE.json]

The records are made up of the words of the built-in data: questions, rewriting, classification of passages, arithmetic,
lists, German and Russian ones, code, a few long answers; 210 characters of prompt and 260 of answer in the mean. Of each
thousand records 30 are exact copies, 30 nearly so, and 10 carry a defect, so that every check has work.

The command runs as a user runs it, in a process of its own; its peak memory is what the kernel counted. With `--words` it
finds no tokenizer on the machine. What it found is compared with what was planted: figures of a check that misses things
mean nothing, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tuneful.data.read import STARTER, read_data
from tuneful.runs.environment import describe_machine

TASKS = [
    "Explain how the {0} of the {1} changed after the {2} had left the {3}.",
    "Rewrite the sentence so that the {0} comes first and the {1} last.",
    "Is the following note about a {0}, a {1} or a {2}? Answer with one word.",
    "List three reasons why a {0} from {1} would need a {2} and a {3}.",
    "What is {4} plus {5}, if each {0} counts as one {1}?",
    "Write a letter to the {0} of {1} about the {2} that was found near the {3}.",
    "Wie heißt der {0} von {1}, und was ist mit dem {2} nicht in Ordnung?",
    "Как называется {0} и что это за {1} для {2}?",
    "Write a function `{0}` that turns a {1} into a {2} and returns {4}.",
]
WITH_INPUT = {1, 2}
DEFECTS = [
    ("null_answers", "None"),
    ("placeholder_answers", "TODO"),
    ("declined_answers", "As an AI language model, I have never met the {0} of {1}."),
    ("control_characters", "The {0} is in {1}\x00."),
    ("email_addresses", "Write to {0}@{1}-post.org for the {2}."),
]


class Corpus:
    """`num` records, and how many of each kind of finding stand among them."""

    def __init__(self, num: int, seed: int = 0) -> None:
        self.num, self.planted = num, Counter[str]()
        self._chance = random.Random(seed)
        texts = " ".join(f"{one.raw['instruction']} {one.raw['output']}" for one in read_data(STARTER).records)
        self._words = sorted(set(re.findall(r"\b[a-z]{3,}\b", texts)))

    def __iter__(self) -> Iterator[dict[str, str]]:
        """The records, the same for one seed."""
        recent: list[dict[str, str]] = []
        for number in range(self.num):
            draw = self._chance.random()
            if recent and draw < 0.03:
                self.planted["exact_duplicates"] += 1
                yield dict(self._chance.choice(recent))
                continue
            if recent and draw < 0.06:
                self.planted["near_duplicates"] += 1
                yield self._nearly(self._chance.choice(recent))
                continue
            record = self._fresh()
            if draw < 0.07:
                kind, answer = DEFECTS[number % len(DEFECTS)]
                self.planted[kind] += 1
                record["output"] = answer.format(*self._some(3))
            elif len(record["instruction"]) > 90:
                recent.append(record)
                del recent[:-500]
            yield record

    def _some(self, num: int) -> list[str]:
        return [self._chance.choice(self._words) for _ in range(num)]

    def _sentence(self) -> str:
        words = self._some(self._chance.randint(6, 14))
        return f"The {words[0]} of the {words[1]} is a {' '.join(words[2:])}."

    def _fresh(self) -> dict[str, str]:
        task = self._chance.randrange(len(TASKS))
        numbers = [self._chance.randrange(10_000) for _ in range(2)]
        instruction = TASKS[task].format(*self._some(4), *numbers) + " " + self._sentence()
        given = " ".join(self._sentence() for _ in range(3)) if task in WITH_INPUT else ""
        length = 25 if self._chance.random() < 0.01 else self._chance.randint(1, 5)
        return {
            "instruction": instruction,
            "input": given,
            "output": " ".join(self._sentence() for _ in range(length)),
        }

    def _nearly(self, record: dict[str, str]) -> dict[str, str]:
        """The same question with a word more at its end: well over 0.8 similar."""
        instruction = f"{record['instruction']} {self._some(1)[0]}"
        return {**record, "instruction": instruction, "output": self._sentence()}


def write(corpus: Corpus, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in corpus:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def measure(path: Path, words: bool) -> dict[str, Any]:
    """Seconds, peak memory and findings of one check, in a process of its own."""
    command = [sys.executable, "-m", "tuneful.cli", "check", str(path), "--json"]
    environment = {**os.environ, **({"TUNEFUL_CACHE": str(path.parent / "no-cache")} if words else {})}
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        document = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.returncode
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "rows_read": document["rows_read"],
        "unit": document["unit"],
        "units": document[f"num_{document['unit']}"],
        "found": {finding["name"]: finding["count"] for finding in document["findings"]},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[52_000, 1_000_000], help="sizes of the files")
    parser.add_argument("--words", action="store_true", help="without a tokenizer: lengths in words")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    arguments = parser.parse_args()
    results, whole = [], True
    for num in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.jsonl"
            corpus = Corpus(num)
            write(corpus, path)
            figures = {"records": num, "file_mb": round(path.stat().st_size / 1e6, 1), **measure(path, arguments.words)}
        figures["planted"] = dict(corpus.planted)
        missed = {
            kind: (figures["found"].get(kind, 0), planted)
            for kind, planted in corpus.planted.items()
            if not 0.99 * planted <= figures["found"].get(kind, 0) <= 1.05 * planted + 5
        }
        whole = whole and not missed
        results.append(figures)
        print(
            f"{num:>9,} records, {figures['file_mb']:,.0f} MB: {figures['seconds']:.1f} s "
            f"({num / figures['seconds']:,.0f} records/s), peak {figures['peak_mb']:,.0f} MB"
            + (f"; found and planted differ: {missed}" if missed else "; all that was planted was found"),
            flush=True,
        )
    if arguments.output:
        document = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": describe_machine(),
            "load_average": os.getloadavg()[0],
            "results": results,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
