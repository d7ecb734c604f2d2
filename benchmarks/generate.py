"""How fast answers are given: Tuneful, transformers' `generate` and llama.cpp's server, side by side. `make bench-generate`.

    python benchmarks/generate.py [--prompts 110] [--max-new-tokens 128] [--before CHECKOUT] [--quick] [--output FILE.json]

**What is measured.** The built-in model answers the prompts of the starter test set, greedily, up to its end token or 128
tokens: all at once, and some of them one after another (a single stream). Time runs from the token ids of all prompts to
those of the last answer, text included where the system makes any. Figures are generated tokens a second, the end token
included. Systems are processes of their own that sleep while another works, in the order ABBA; one that may choose its
settings tries several, and the fastest goes on.

**What is compared with what.** transformers gets the same weights and token ids, padded to the left, prompts of like length
together, in the faster of bfloat16 and float32. llama.cpp gets the GGUF file that the built-in model was made from (Q4_1,
which is what its user would run): 16 slots, continuous batching, all prompts at once. Its arithmetic is another, so its
answers and their lengths differ. `before` is another checkout of Tuneful, through its own `benchmarks/generate.py`.

**What is counted beside.** How many greedy answers in float32 are those of transformers, token for token: all of them, or the
exit code is 1. How many answers are the same in a batch and alone, in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from answering import Answers, work
from tables import update
from train_peers import machine

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE, OURS_FLOAT32 = "tuneful bfloat16", "tuneful float32"
THEIRS, THEIRS_FLOAT32 = "transformers bfloat16", "transformers float32"
NUM_ALONE = 16
OTHERS_SHARE = 0.02


@dataclass(frozen=True)
class Contender:
    """A system in one precision, the settings among which it may choose, and the one in which it answers a single stream."""

    system: str
    precision: str
    settings: tuple[str, ...]
    alone: str = "1"
    checkout: Path = REPOSITORY
    label: str = ""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.label or f"{self.system} {self.precision}"


CONTENDERS = (
    Contender("tuneful", "bfloat16", ("32", "64", "110")),
    Contender("tuneful", "float32", ("64",)),
    Contender("transformers", "bfloat16", ("16", "32", "64", "110")),
    Contender("transformers", "float32", ("16", "64")),
    Contender("llama.cpp", "Q4_1", ("16", "16 flash", "16 no-flash", "16 unified"), alone="1"),
)


@dataclass(frozen=True)
class Measured:
    """One pass over some prompts."""

    seconds: float
    answers: Answers

    @property
    def num_tokens(self) -> int:
        """Generated tokens, end tokens included."""
        return sum(one if isinstance(one, int) else len(one) for one in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second."""
        return self.num_tokens / self.seconds


@dataclass
class Turns:
    """Processor time over all passes of the rounds: of the systems at work, and of anything else meanwhile."""

    working: float = 0.0
    others: float = 0.0


Passes = dict[str, list[Measured]]


def main() -> int:
    arguments = parse_arguments()
    if arguments.worker:
        work(arguments.worker)
        return 0
    prompts, stop = prompts_of_the_starter(arguments.prompts)
    contenders = contenders_of(arguments)
    document = describe(prompts, arguments, os.getloadavg()[0])
    print(machine.hardware_line(document["hardware"], arguments.threads))
    workers = {one.name: Worker(one, prompts, stop, arguments) for one in contenders}
    try:
        chosen, first = choose_settings(contenders, workers, document)
        same = same_answers(workers, first, chosen)
        slower = min((THEIRS, THEIRS_FLOAT32), key=lambda name: first[name].tokens_per_second)
        going_on = [one for one in contenders if one.name != slower]
        turns = Turns()
        batch = measure(going_on, workers, chosen, None, arguments.repeats, turns)
        alone = measure(
            going_on, workers, {one.name: one.alone for one in going_on}, arguments.alone, arguments.repeats, turns
        )
    finally:
        for worker in workers.values():
            worker.close()
    if turns.others > OTHERS_SHARE * turns.working:
        document["warnings"].append(
            f"other programs used the processor during the passes ({turns.others / max(turns.working, 1e-9):.0%} of the "
            "systems' own time): these timings are not to be trusted"
        )
    document["turns"], document["same_answers"] = asdict(turns), same
    document["works"] = [
        part(f"{len(prompts)} prompts at once", batch, chosen, document),
        part("single stream", alone, {one.name: one.alone for one in going_on}, document),
    ]
    show(document)
    output = arguments.output or (
        None if arguments.quick else REPOSITORY / "benchmarks" / "results" / f"generate-{date.today().isoformat()}.json"
    )
    if output:
        output.write_text(json.dumps(document, indent=1) + "\n")
        update(output)
    exact = same["tuneful float32, as transformers float32"]
    return 0 if exact["same"] == exact["of"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=110)
    parser.add_argument("--alone", type=int, default=NUM_ALONE, help="prompts of the single stream")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=4, help="rounds; even, so that ABBA closes")
    parser.add_argument("--threads", type=int, default=machine.hardware()["cores"], help="of every system")
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="another checkout of Tuneful, as one more system"
    )
    parser.add_argument("--output", type=Path, help="default: a dated file in benchmarks/results, none with --quick")
    parser.add_argument(
        "--quick", action="store_true", help="4 prompts, 6 tokens, 2 rounds, last settings: does it run?"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.before and not (arguments.before / "src" / "tuneful").is_dir():
        parser.error(f"--before {arguments.before}: no checkout of Tuneful, src/tuneful is not in it")
    if arguments.quick:
        arguments.prompts, arguments.alone, arguments.max_new_tokens, arguments.repeats = 4, 2, 6, 2
    return arguments


def contenders_of(arguments: argparse.Namespace) -> list[Contender]:
    """All systems; when `quick`, in one setting each."""
    found = list(CONTENDERS)
    if arguments.before:
        checkout = arguments.before.resolve()
        found.insert(1, Contender("tuneful", "bfloat16", ("64", "110"), checkout=checkout, label="before bfloat16"))
    if not arguments.quick:
        return found
    return [Contender(**{**vars(one), "settings": one.settings[-1:]}) for one in found]


def prompts_of_the_starter(num_prompts: int) -> tuple[list[list[int]], list[int]]:
    """Token ids of the first prompts of the test set, and the ids of the end tokens."""
    from tuneful.config import Config
    from tuneful.data.read import read_data
    from tuneful.encoding.prepare import make_encoder, prepare_data
    from tuneful.encoding.template import find_template
    from tuneful.encoding.tokens import TextEncoder
    from tuneful.model.load import load_tokenizer, resolve_model

    config = Config()
    text = TextEncoder(load_tokenizer(resolve_model(config.model.name_or_path)), find_template("alpaca"))
    encoder = make_encoder(text, config.data)
    test = prepare_data(read_data("starter", config.data), encoder, config).test
    return [encoder.prompt_ids(one) for one in test.conversations[:num_prompts]], sorted(text.stop_token_ids)


class Worker:
    """A system in a process of its own, which answers when it is asked to."""

    def __init__(
        self, contender: Contender, prompts: list[list[int]], stop: list[int], arguments: argparse.Namespace
    ) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        self._process = subprocess.Popen(
            [sys.executable, "generate.py", "--worker", f"{contender.system} {contender.precision}"],
            cwd=contender.checkout / "benchmarks",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **environment,
                "PYTHONPATH": str(contender.checkout / "src"),
                "OMP_NUM_THREADS": str(arguments.threads),
                "THP_MEM_ALLOC_ENABLE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
        )
        self._ask(
            {
                "prompts": prompts,
                "stop": stop,
                "max_new_tokens": arguments.max_new_tokens,
                "num_threads": arguments.threads,
                "setting": contender.settings[0],
            }
        )

    def run(self, setting: str, num_prompts: int | None = None) -> Measured:
        """Answer all prompts, or the first few."""
        number = int(setting.split()[0])
        reply = self._ask({"batch_size": number, "setting": setting, "num_prompts": num_prompts})
        return Measured(reply["seconds"], reply["answers"])

    def processor_seconds(self) -> float:
        """Processor time spent so far."""
        return machine.processor_seconds(self._process.pid)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a system that answers has ended: see above")
        reply: dict[str, Any] = json.loads(line)
        return reply


def choose_settings(
    contenders: list[Contender], workers: dict[str, Worker], document: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Measured]]:
    """The fastest setting of each contender, and its pass."""
    chosen, first = {}, {}
    for contender in contenders:
        tried = {setting: workers[contender.name].run(setting) for setting in contender.settings}
        for setting, one in tried.items():
            print(f"Settings tried: {contender.name}, {setting}: {one.tokens_per_second:.0f} tokens/s", flush=True)
        best = max(tried, key=lambda setting: tried[setting].tokens_per_second)
        chosen[contender.name], first[contender.name] = best, tried[best]
        document["settings"][contender.name] = {key: round(one.tokens_per_second, 1) for key, one in tried.items()}
    return chosen, first


def measure(
    contenders: list[Contender],
    workers: dict[str, Worker],
    settings: dict[str, str],
    num_prompts: int | None,
    num_rounds: int,
    turns: Turns,
) -> Passes:
    """Rounds of passes, there and back: what slows over time slows all alike. The first pass of each is not counted."""
    passes: Passes = {one.name: [] for one in contenders}
    if num_prompts is not None:
        for one in contenders:
            workers[one.name].run(settings[one.name], 1)
    for number in range(num_rounds):
        for one in contenders if number % 2 == 0 else contenders[::-1]:
            worker = workers[one.name]
            own, all_before = worker.processor_seconds(), machine.busy_seconds()
            passes[one.name].append(worker.run(settings[one.name], num_prompts))
            working = worker.processor_seconds() - own
            turns.working += working
            turns.others += max(0.0, machine.busy_seconds() - all_before - working)
        print(f"round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return passes


def same_answers(
    workers: dict[str, Worker], first: dict[str, Measured], chosen: dict[str, str]
) -> dict[str, dict[str, int]]:
    """How many answers are the same, token for token, of how many."""
    counts = {}
    ours = first[OURS_FLOAT32].answers
    counts["tuneful float32, as transformers float32"] = count_same(ours, first[THEIRS_FLOAT32].answers)
    counts["tuneful bfloat16, as float32"] = count_same(first[REFERENCE].answers, ours)
    if "before bfloat16" in first:
        counts["tuneful bfloat16, as before"] = count_same(first[REFERENCE].answers, first["before bfloat16"].answers)
    for name in (OURS_FLOAT32, REFERENCE):
        alone = workers[name].run("1", min(NUM_ALONE, len(ours))).answers
        counts[f"{name}, in batches of {chosen[name]} as alone"] = count_same(first[name].answers[: len(alone)], alone)
    return counts


def count_same(one: Sequence[Any], other: Sequence[Any]) -> dict[str, int]:
    """How many of the pairs are equal."""
    return {"same": sum(a == b for a, b in zip(one, other, strict=True)), "of": len(one)}


def figures(name: str, passes: Passes, settings: dict[str, str]) -> dict[str, Any]:
    """A system's tokens a second over the rounds, and how many times that the reference gives, round by round."""
    own = [one.tokens_per_second for one in passes[name]]
    ratios = [reference.tokens_per_second / speed for reference, speed in zip(passes[REFERENCE], own, strict=True)]
    return {
        "setting": settings[name],
        "tokens": passes[name][0].num_tokens,
        "seconds": [round(one.seconds, 3) for one in passes[name]],
        "tokens_per_second": {"median": median(own), "range": [min(own), max(own)]},
        "reference_times": {"median": median(ratios), "range": [min(ratios), max(ratios)]},
    }


def part(name: str, passes: Passes, settings: dict[str, str], document: dict[str, Any]) -> dict[str, Any]:
    """One work of the document: its figures and their table."""
    systems = {one: figures(one, passes, settings) for one in passes}
    num_prompts = len(next(iter(passes.values()))[0].answers)
    return {
        "work": {"name": name},
        "description": f"{num_prompts} prompts, greedy, at most {document['max_new_tokens']} new tokens, medians and ranges of "
        f"{len(next(iter(passes.values())))} rounds",
        "systems": systems,
        "table": table(systems),
    }


def table(systems: dict[str, dict[str, Any]]) -> list[str]:
    """The figures in Markdown."""
    lines = [f"| | setting | tokens | tokens/s | {REFERENCE} is faster by |", "|---|---:|---:|---:|---:|"]
    for name, one in systems.items():
        speed, times = one["tokens_per_second"], one["reference_times"]
        lines.append(
            f"| {name} | {one['setting']} | {one['tokens']:,} | {speed['median']:,.0f} [{speed['range'][0]:,.0f}, "
            f"{speed['range'][1]:,.0f}] | {times['median']:.2f} [{times['range'][0]:.2f}, {times['range'][1]:.2f}] |"
        )
    return lines


def describe(prompts: list[list[int]], arguments: argparse.Namespace, load: float) -> dict[str, Any]:
    """What the figures are published with."""
    from tuneful.model.builtin import BUILTIN

    return {
        "benchmark": "generate",
        "format": 2,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(REPOSITORY),
        "before": machine.commit(arguments.before) if arguments.before else None,
        "model": BUILTIN,
        "hardware": machine.hardware(),
        "num_threads": arguments.threads,
        "load": load,
        "warnings": [],
        "software": machine.versions(Path(sys.executable)),
        "prompts": {"count": len(prompts), "tokens": sum(map(len, prompts))},
        "max_new_tokens": arguments.max_new_tokens,
        "settings": {},
    }


def show(document: dict[str, Any]) -> None:
    """Print the tables and what stands beside them."""
    for one in document["works"]:
        print(f"\n## {one['work']['name']}: {one['description']}\n")
        print("\n".join(one["table"]))
    print("", *(f"- {what}: {n['same']} of {n['of']}" for what, n in document["same_answers"].items()), sep="\n")
    versions = ", ".join(f"{what} {version}" for what, version in document["software"].items())
    print(f"\ncommit {document['commit']}, before {document['before'] or '-'}; {versions}")
    for warning in document["warnings"]:
        print(f"Warning: {warning}")


if __name__ == "__main__":
    sys.exit(main())
