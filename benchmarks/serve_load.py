"""`tuneful serve` under load: how fast, how soon, and whether it stays whole.

    python benchmarks/serve_load.py rates  [--clients 1,16,64] [--seconds 30] [--repeats 2] [--systems tuneful,llama.cpp]
    python benchmarks/serve_load.py endure [--seconds 180] [--rush-seconds 60] [--echo] [--model M]
    python benchmarks/serve_load.py rates|endure --quick      does it run? no figure of it means anything

`rates`: every client asks one streamed completion after another, 64 tokens at most, of the same rendered prompts, greedily. Told
are tokens a second over all clients, and the time to the first token (median and 95th percentile). llama.cpp's server (xllamacpp)
gets the GGUF file that the built-in model was made from, and a slot a client. Systems take turns, there and back.

`endure`: 64 clients, of whose requests 30 in a hundred are left midway and 5 are malformed, then 256 of the same. Fails where a
status is other than 200, 400 or 503, where memory or descriptors of the server do not come back to what they were, and, with
`--echo`, where an answer is not the one to its prompt: a stand-in model says the prompt again, a nonce.

Servers are processes of their own, clients one more, all on the cores of this machine. `--output FILE.json` keeps the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import psutil

from train_peers import machine

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' doubles, which are not installed

MAX_TOKENS = 64
NUM_PROMPTS = 64
MEMORY_SLACK = 0.15
"""Of the memory after the first minute, what may be more at the end: allocators keep what they once had."""
RUSH_CLIENTS = 256
ALLOWED = (200, 400, 503)


@dataclass
class Tally:
    """What clients saw."""

    num_tokens: int = 0
    first_seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    num_left: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A server that listens: its address, key, the name of its model, and its process."""

    url: str
    key: str
    model: str
    process: psutil.Process


# Servers


def serve_tuneful(model: str) -> None:
    """`tuneful serve` in this process."""
    import tuneful

    terminal = tuneful.Terminal()
    tuneful.serve(model=model, port=0, terminal=terminal)


def serve_echo() -> None:
    """A server whose model says its prompt again, in this process."""
    from tests.doubles.served import EchoDecoder, models_of

    from tuneful.infer import continuous

    models = models_of("smollm2-135m-instruct")
    [model] = models
    end, vocabulary = model.loaded.encoder.text.end_token_id, model.loaded.model.config.vocab_size

    def make(made_for: Any, num_rows: int, num_shared: int, longest: int = 0, laid: Any = None) -> EchoDecoder:
        return EchoDecoder(num_rows, vocabulary, end, seconds=0.005)

    vars(continuous)["make_decoder"] = make
    import uvicorn

    from tuneful.serve.app import create_app

    config = uvicorn.Config(
        create_app(models), port=0, log_level="info", access_log=False, ws="none", timeout_keep_alive=75
    )
    uvicorn.Server(config).run()


def serve_llama_cpp(slots: int) -> None:
    """llama.cpp's server in this process, until its standard input ends."""
    from tuneful.infer.llama_cpp import start_llama_server
    from tuneful.model.builtin import builtin_gguf

    server = start_llama_server(builtin_gguf(), num_ctx=512, num_slots=slots, key="any")
    print(f"Ollama's protocol: {server.listening_address}", file=sys.stderr, flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def served(system: str, model: str, slots: int) -> Iterator[Target]:
    """A server of `system` in a process of its own."""
    command = [sys.executable, __file__, "--serve", system, "--model", model, "--slots", str(slots)]
    with tempfile.NamedTemporaryFile("r") as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=open(said.name, "w"))  # noqa: SIM115
        try:
            yield answering(process, Path(said.name))
        finally:
            process.terminate()
            process.communicate(timeout=60)
            if noted := [line for line in said.read().splitlines() if "Traceback" in line or "Error" in line]:
                print(f"{system} said: {Counter(noted).most_common(3)}")


def answering(process: subprocess.Popen[bytes], said: Path) -> Target:
    """The server that `process` is, once it answers; it says where it is."""
    deadline = time.monotonic() + 300
    while True:
        found = re.search(r"(http://[\w.:]+)", said.read_text())
        if found:
            with contextlib.suppress(httpx.HTTPError):
                listed = httpx.get(found[1] + "/v1/models", headers={"Authorization": "Bearer any"}, timeout=30)
                if listed.status_code == 200:
                    return Target(found[1], "any", listed.json()["data"][0]["id"], psutil.Process(process.pid))
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.2)


# Clients


def prompts() -> list[str]:
    """Rendered prompts of the built-in data."""
    from tuneful.config import DataConfig
    from tuneful.data.read import read_data
    from tuneful.encoding.template import find_template

    template = find_template("alpaca")
    records = read_data("starter", DataConfig()).records[:NUM_PROMPTS]
    return ["".join(piece.text for piece in template.prompt(record.conversation)) for record in records]


async def ask(client: httpx.AsyncClient, target: Target, prompt: str, tally: Tally, leave_after: int | None) -> None:
    """One streamed completion, left after so many pieces."""
    body = {"model": target.model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    began, said, pieces = time.perf_counter(), "", 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        tally.statuses[response.status_code] += 1
        if response.status_code != 200:
            await response.aread()
            return
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                tally.num_tokens += chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                pieces += 1
                if pieces == 1:
                    tally.first_seconds.append(time.perf_counter() - began)
                said += choice["text"]
            if leave_after is not None and pieces >= leave_after:
                tally.num_left += 1
                break
    check(prompt, said, leave_after is None, tally)


def check(prompt: str, said: str, is_whole: bool, tally: Tally) -> None:
    """Note an answer that is not the one to its prompt."""
    is_its_own = said == prompt if is_whole else prompt.startswith(said)
    if prompt.startswith("nonce") and not is_its_own:
        tally.wrong.append(f"{prompt!r}: {said!r}")


async def ask_badly(client: httpx.AsyncClient, tally: Tally, chance: random.Random) -> None:
    """A body that is none."""
    content = chance.choice([b"", b"{", b"[1]", b'{"model": 5}', b'{"model": "nobody", "prompt": "a"}', b"\xff" * 99])
    response = await client.post("/v1/completions", content=content)
    status = 400 if response.status_code == 404 else response.status_code
    tally.statuses[status] += 1
    if status == 200:
        tally.wrong.append(f"{content!r} was answered")


async def load(
    target: Target, asked: list[str], clients: int, seconds: float, *, is_rough: bool, seed: int = 0
) -> Tally:
    """`clients` at once, for so many seconds; the rough ones leave and send nonsense."""
    tally, end = Tally(), time.monotonic() + seconds
    # llama.cpp's server ends a connection after some requests: where rates are compared every request has one of its own.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients if is_rough else 0)
    headers = {"Authorization": f"Bearer {target.key}"}
    async with httpx.AsyncClient(base_url=target.url, headers=headers, limits=limits, timeout=300) as client:

        async def one(number: int) -> None:
            chance = random.Random(seed * 1000 + number)
            at = number
            while time.monotonic() < end:
                draw = chance.random() if is_rough else 1.0
                if draw < 0.05:
                    await ask_badly(client, tally, chance)
                    continue
                prompt = asked[at % len(asked)] if asked else f"nonce {number} {at} {chance.random()}"
                at += clients
                before = tally.statuses[503]
                await ask(client, target, prompt, tally, chance.randint(1, 20) if draw < 0.35 else None)
                if tally.statuses[503] > before:
                    await asyncio.sleep(1)

        await asyncio.gather(*[one(number) for number in range(clients)])
    return tally


# The two works


def rates(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Tokens a second and the time to the first token."""
    asked, systems = prompts(), arguments.systems.split(",")
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for clients in map(int, arguments.clients.split(",")):
        for turn in range(arguments.repeats):
            for system in systems if turn % 2 == 0 else reversed(systems):
                with served(system, arguments.model, clients) as target:
                    asyncio.run(load(target, asked, clients, arguments.warm_seconds, is_rough=False))
                    found.setdefault((clients, system), []).append(measured(target, asked, clients, arguments.seconds))
    print(
        "| clients | system | tokens/s | first token, median | 95 % | answers | of each turn |\n|---|---|---|---|---|---|---|"
    )
    rows = []
    for (clients, system), turns in found.items():
        row = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        each = ", ".join(f"{turn['tokens_per_second']:.1f}" for turn in turns)
        print(
            f"| {clients} | {system} | {row['tokens_per_second']:.1f} | {row['first_median']:.3f} s | {row['first_95']:.3f} s "
            f"| {row['answers']:.0f} | {each} |"
        )
        rows.append({"clients": clients, "system": system, **row, "turns": turns})
    return {"rates": rows}, True


def measured(target: Target, asked: list[str], clients: int, seconds: float) -> dict[str, float]:
    """What so many clients got within `seconds`, and until their last answer had come."""
    began = time.monotonic()
    tally = asyncio.run(load(target, asked, clients, seconds, is_rough=False))
    first = sorted(tally.first_seconds)
    assert set(tally.statuses) == {200}, tally.statuses
    return {
        "tokens_per_second": tally.num_tokens / (time.monotonic() - began),
        "first_median": statistics.median(first),
        "first_95": first[int(len(first) * 0.95)],
        "answers": float(tally.statuses[200]),
    }


def endure(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Rough clients, then a rush."""
    asked = [] if arguments.echo else prompts()
    faults: list[str] = []
    parts = []
    with served("echo" if arguments.echo else "tuneful", arguments.model, 0) as target:
        asyncio.run(load(target, asked, 64, min(20, arguments.seconds), is_rough=True, seed=9))
        base = at_rest(target)
        for name, clients, seconds in (
            ("rough", 64, arguments.seconds),
            ("rush", RUSH_CLIENTS, arguments.rush_seconds),
        ):
            tally = asyncio.run(load(target, asked, clients, seconds, is_rough=True, seed=clients))
            after = at_rest(target)
            print(
                f"{name}: {clients} clients, {seconds:g} s: {dict(tally.statuses)}, {tally.num_left} left midway, "
                f"{tally.num_tokens / seconds:.1f} tokens/s of whole answers; memory {base[0] >> 20} -> {after[0] >> 20} MiB, "
                f"descriptors {base[1]} -> {after[1]}",
                flush=True,
            )
            parts.append(
                {
                    "name": name,
                    "clients": clients,
                    "seconds": seconds,
                    "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
                    "left_midway": tally.num_left,
                    "wrong": len(tally.wrong),
                    "memory_mib": [base[0] >> 20, after[0] >> 20],
                    "descriptors": [base[1], after[1]],
                }
            )
            faults += tally.wrong[:5]
            faults += [f"status {status}" for status in tally.statuses if status not in ALLOWED]
            if after[0] > base[0] * (1 + MEMORY_SLACK):
                faults.append(f"memory grew by {after[0] - base[0] >> 20} MiB")
            if after[1] > base[1]:
                faults.append(f"descriptors grew by {after[1] - base[1]}")
    print("\n".join(faults) or "nothing is wrong")
    return {"echo": arguments.echo, "parts": parts, "faults": faults}, not faults


def at_rest(target: Target) -> tuple[int, int]:
    """(bytes of memory, open descriptors) of a server, once nobody asks it."""
    time.sleep(2)
    return target.process.memory_info().rss, target.process.num_fds()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", choices=["rates", "endure"])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--clients", default="1,16,64")
    parser.add_argument("--systems", default="tuneful,llama.cpp")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each system")
    parser.add_argument("--seconds", type=float, help="of a turn (30), or of the rough clients (180)")
    parser.add_argument("--rush-seconds", type=float, default=60)
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--slots", type=int, default=16, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve == "tuneful":
        serve_tuneful(arguments.model)
        return 0
    if arguments.serve == "echo":
        serve_echo()
        return 0
    if arguments.serve:
        serve_llama_cpp(arguments.slots)
        return 0
    if arguments.work is None:
        parser.error("which work: rates or endure?")
    arguments.warm_seconds = 3
    if arguments.quick:
        arguments.repeats, arguments.warm_seconds, arguments.seconds, arguments.rush_seconds = 1, 1, 3, 3
    arguments.seconds = arguments.seconds or {"rates": 30, "endure": 180}[arguments.work]
    return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Do the work, and keep its figures where that is wanted."""
    warning = machine.load_warning(os.getloadavg()[0])
    if warning and arguments.work == "rates":
        print(f"warning: {warning}", file=sys.stderr)
    head = {
        "benchmark": f"serve_load {arguments.work}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(Path(__file__).parents[1]),
        "hardware": machine.hardware(),
        "load_warning": warning,
        "versions": machine.versions(Path(sys.executable)),
        "model": arguments.model,
        "quick": arguments.quick,
    }
    found, is_right = {"rates": rates, "endure": endure}[arguments.work](arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps({**head, **found}, indent=1) + "\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
