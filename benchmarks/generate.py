"""How fast answers are given: Tuneful, transformers' `generate` and llama.cpp's server, side by side. `make bench-generate`.

    python benchmarks/generate.py [--prompts 110] [--max-new-tokens 128] [--max-seconds 540] [--output FILE.json]

**What is measured.** The built-in model answers the prompts of the starter test set, greedily, up to its end token or 128
tokens. Time runs from the token ids of all prompts to those of the last answer, text included where the system makes any.
Figures are generated tokens a second, the end token included. Systems are processes of their own that sleep while
another works; one that may choose its batch size tries several, and the fastest goes on.

**What is compared with what.** transformers gets the same weights and token ids, padded to the left, prompts of like length
together, in bfloat16 and float32, as Tuneful does. llama.cpp gets the GGUF file that the built-in model was made from (Q4_1,
which is what its user would run): 16 slots, continuous batching, all prompts at once. Its arithmetic is another, so its
answers and their lengths differ.

**What is counted beside.** How many greedy answers in float32 are those of transformers, token for token; how many answers are
the same in a batch and alone, in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any

from train_peers import machine

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_SLOTS = 16
TRANSFORMERS_BATCH_SIZES = (16, 32, 64, 110)
TUNEFUL_BATCH_SIZES = (32, 64, 110)
NUM_ALONE = 16
REFERENCE = "tuneful bfloat16"


@dataclass(frozen=True)
class Contender:
    """A system in one precision, and the batch sizes among which it may choose."""

    system: str
    precision: str
    batch_sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.system} {self.precision}"


CONTENDERS = (
    Contender("tuneful", "bfloat16", TUNEFUL_BATCH_SIZES),
    Contender("tuneful", "float32", (64,)),
    Contender("transformers", "bfloat16", TRANSFORMERS_BATCH_SIZES),
    Contender("transformers", "float32", (16,)),
    Contender("llama.cpp", "Q4_1", (NUM_SLOTS,)),
)


@dataclass(frozen=True)
class Measured:
    """One pass over all prompts: the token ids of the answers, or, where a server tells no more, how many there are."""

    seconds: float
    answers: list[list[int]] | list[int]

    @property
    def num_tokens(self) -> int:
        """Generated tokens, end tokens included."""
        return sum(one if isinstance(one, int) else len(one) for one in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second."""
        return self.num_tokens / self.seconds


# ----------------------------------------------------------------------------------------------------------- the driver


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        work(arguments.worker)
        return
    started, load = time.monotonic(), os.getloadavg()[0]
    if warning := machine.load_warning(load):
        print(f"warning: {warning}", file=sys.stderr)
    prompts, stop = prompts_of_the_starter(arguments.prompts)
    workers = {one.name: Worker(one, prompts, stop, arguments.max_new_tokens) for one in CONTENDERS}
    document = describe(prompts, arguments, load)
    try:
        chosen, first = choose_batch_sizes(workers, document)
        document["same_answers"] = same_answers(workers, first, chosen)
        rounds = {name: [one] for name, one in first.items()}
        longest = sum(one.seconds for one in first.values())
        names = list(first)
        while time.monotonic() - started + 1.1 * longest < arguments.max_seconds:
            names.reverse()  # there and back: what slows over time slows all alike
            for name in names:
                rounds[name].append(workers[name].run(chosen[name]))
                print(f"  {name}: {rounds[name][-1].tokens_per_second:.0f} tokens/s", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
    document["systems"] = {name: figures(name, rounds, chosen) for name in first}
    document["seconds"] = round(time.monotonic() - started)
    print(table(document))
    output = arguments.output or REPOSITORY / "benchmarks" / "results" / f"generate-{date.today().isoformat()}.json"
    output.write_text(json.dumps(document, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=110)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-seconds", type=float, default=540.0, help="no new round begins that would end later")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


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

    def __init__(self, contender: Contender, prompts: list[list[int]], stop: list[int], max_new_tokens: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", contender.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "THP_MEM_ALLOC_ENABLE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self._ask({"prompts": prompts, "stop": stop, "max_new_tokens": max_new_tokens})

    def run(self, batch_size: int, num_prompts: int | None = None) -> Measured:
        """Answer all prompts, or the first few."""
        reply = self._ask({"batch_size": batch_size, "num_prompts": num_prompts})
        return Measured(reply["seconds"], reply["answers"])

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


def choose_batch_sizes(
    workers: dict[str, Worker], document: dict[str, Any]
) -> tuple[dict[str, int], dict[str, Measured]]:
    """The fastest batch size of each contender, and its pass."""
    chosen, first = {}, {}
    for contender in CONTENDERS:
        tried = {}
        for batch_size in contender.batch_sizes:
            tried[batch_size] = workers[contender.name].run(batch_size)
            speed = tried[batch_size].tokens_per_second
            print(f"{contender.name}, batches of {batch_size}: {speed:.0f} tokens/s", file=sys.stderr)
        best = max(tried, key=lambda size: tried[size].tokens_per_second)
        chosen[contender.name], first[contender.name] = best, tried[best]
        speeds = {size: round(one.tokens_per_second, 1) for size, one in tried.items()}
        document["batch_sizes"][contender.name] = speeds
    return chosen, first


def same_answers(
    workers: dict[str, Worker], first: dict[str, Measured], chosen: dict[str, int]
) -> dict[str, dict[str, int]]:
    """How many answers are the same, token for token, of how many."""
    counts = {}
    ours = first["tuneful float32"].answers
    counts["tuneful float32, as transformers float32"] = count_same(ours, first["transformers float32"].answers)
    counts["tuneful bfloat16, as float32"] = count_same(first[REFERENCE].answers, ours)
    for precision in ("float32", "bfloat16"):
        name = f"tuneful {precision}"
        alone = workers[name].run(1, min(NUM_ALONE, len(ours))).answers
        counts[f"{name}, in batches of {chosen[name]} as alone"] = count_same(first[name].answers[: len(alone)], alone)
    return counts


def count_same(one: Sequence[Any], other: Sequence[Any]) -> dict[str, int]:
    """How many of the pairs are equal."""
    return {"same": sum(a == b for a, b in zip(one, other, strict=True)), "of": len(one)}


def figures(name: str, rounds: dict[str, list[Measured]], chosen: dict[str, int]) -> dict[str, Any]:
    """A system's tokens a second over the rounds, and how many times that the reference gives, round by round."""
    ratios = [
        reference.tokens_per_second / own.tokens_per_second
        for reference, own in zip(rounds[REFERENCE], rounds[name], strict=True)
    ]
    own = [one.tokens_per_second for one in rounds[name]]
    return {
        "batch_size": chosen[name],
        "tokens": rounds[name][0].num_tokens,
        "seconds": [round(one.seconds, 2) for one in rounds[name]],
        "tokens_per_second": round(math.exp(fmean(map(math.log, own))), 1),
        "reference_times": round(math.exp(fmean(map(math.log, ratios))), 3),
        "reference_times_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def describe(prompts: list[list[int]], arguments: argparse.Namespace, load: float) -> dict[str, Any]:
    """What the figures are published with."""
    return {
        "benchmark": "generate",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(REPOSITORY),
        "hardware": machine.hardware(),
        "load": load,
        "load_warning": machine.load_warning(load),
        "software": {**machine.versions(Path(sys.executable)), "xllamacpp": llama_version()},
        "prompts": {"count": len(prompts), "tokens": sum(map(len, prompts))},
        "max_new_tokens": arguments.max_new_tokens,
        "batch_sizes": {},
    }


def llama_version() -> str:
    """The version of llama.cpp's package."""
    from importlib.metadata import version

    return version("xllamacpp")


def table(document: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        f"{document['prompts']['count']} prompts of {document['prompts']['tokens']:,} tokens, greedy, "
        f"at most {document['max_new_tokens']} new tokens; {document['hardware']['cores']} cores, "
        f"{document['hardware']['processor']}; {len(next(iter(document['systems'].values()))['seconds'])} rounds",
        "",
        f"| | rows at once | tokens | tokens/s | {REFERENCE} is faster by [range of the rounds] |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, one in document["systems"].items():
        low, high = one["reference_times_range"]
        lines.append(
            f"| {name} | {one['batch_size']} | {one['tokens']:,} | {one['tokens_per_second']:,.0f} | "
            f"{one['reference_times']:.2f} [{low:.2f}, {high:.2f}] |"
        )
    lines += ["", *(f"- {what}: {n['same']} of {n['of']}" for what, n in document["same_answers"].items())]
    if document["load_warning"]:
        lines.append(f"- {document['load_warning']}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- the workers


def work(name: str) -> None:
    """Be the system `name`: the prompts come as a line on standard input, then a line for each pass."""
    system, precision = name.split()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    job = json.loads(sys.stdin.readline())
    answer = {"tuneful": be_tuneful, "transformers": be_transformers, "llama.cpp": be_llama}[system](precision, job)
    answer(job["prompts"][:2], 2)  # once, so that nothing is measured that happens once
    channel.write("{}\n")
    channel.flush()
    for line in sys.stdin:
        request = json.loads(line)
        prompts = job["prompts"][: request["num_prompts"]]
        start = time.perf_counter()
        answers = answer(prompts, request["batch_size"])
        channel.write(json.dumps({"seconds": time.perf_counter() - start, "answers": answers}) + "\n")
        channel.flush()


def loaded(precision: str) -> Any:
    """The built-in model and its tokenizer, in a precision."""
    import torch

    from tuneful.model.builtin import BUILTIN
    from tuneful.model.load import load_model
    from tuneful.model.memory import keep_freed_memory
    from tuneful.model.precision import cast_parameters

    keep_freed_memory()
    pretrained = load_model(BUILTIN)
    cast_parameters(pretrained.model, getattr(torch, precision))
    return pretrained


def be_tuneful(precision: str, job: dict[str, Any]) -> Any:
    """This project, text included."""
    from tuneful.config import GenerateConfig
    from tuneful.encoding.template import find_template
    from tuneful.encoding.tokens import TextEncoder
    from tuneful.infer.generate import generate
    from tuneful.infer.text import AnswerText

    pretrained = loaded(precision)
    text = TextEncoder(pretrained.tokenizer, find_template("alpaca"))

    def answer(prompts: list[list[int]], batch_size: int) -> list[list[int]]:
        config = GenerateConfig(max_new_tokens=job["max_new_tokens"], batch_size=batch_size)
        found = generate(pretrained.model, prompts, config, job["stop"], new_text=lambda: AnswerText(text.decode))
        by_index = {index: list(generated.token_ids) for index, generated in found}
        return [by_index[index] for index in range(len(prompts))]

    return answer


def be_transformers(precision: str, job: dict[str, Any]) -> Any:
    """transformers' own `generate`, a batch of prompts of like length after the other."""
    import torch

    pretrained = loaded(precision)
    model, pad = pretrained.model, job["stop"][0]
    model.set_attn_implementation("sdpa")

    def answer(prompts: list[list[int]], batch_size: int) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = len(prompts[batch[0]])
            ids = torch.tensor([[pad] * (longest - len(prompts[index])) + prompts[index] for index in batch])
            seen = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            with torch.inference_mode():
                found = model.generate(
                    ids,
                    attention_mask=seen,
                    do_sample=False,
                    max_new_tokens=job["max_new_tokens"],
                    eos_token_id=job["stop"],
                    pad_token_id=pad,
                )[:, longest:].tolist()
            for index, row in zip(batch, found, strict=True):
                end = next((at for at, token_id in enumerate(row) if token_id in job["stop"]), len(row) - 1)
                answers[index] = row[: end + 1]
        return answers

    return answer


def be_llama(precision: str, job: dict[str, Any]) -> Any:
    """llama.cpp's server on the GGUF file, all prompts at once."""
    import xllamacpp

    from tuneful.model.builtin import builtin_gguf

    params = xllamacpp.CommonParams()
    params.model.path = str(builtin_gguf())
    longest = max(map(len, job["prompts"])) + job["max_new_tokens"]
    params.n_parallel = NUM_SLOTS
    params.n_ctx = NUM_SLOTS * (-(-longest // 256) * 256)
    params.cont_batching = True
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_cores
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def ask(prompt: list[int]) -> int:
        reply = server.handle_completions({"prompt": prompt, "max_tokens": job["max_new_tokens"], "temperature": 0})
        return int(reply["usage"]["completion_tokens"])

    def answer(prompts: list[list[int]], batch_size: int) -> list[int]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(ask, prompts))

    return answer


if __name__ == "__main__":
    main()
