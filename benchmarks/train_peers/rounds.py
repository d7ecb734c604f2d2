"""The measurement: contenders take turns on the same steps, one at work at a time, there and back (ABBA)."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from train_peers import machine, systems
from train_peers.bench import NUM_GATE, NUM_WARMUP, Bench
from train_peers.figures import Rounds
from train_peers.gate import Trial
from train_peers.systems import Contender, Worker, WorkerFailedError, started

MEMORY_SHARE = 0.8  # of what is available, for all systems that are alive at once
MAX_ALIVE = 9


@dataclass
class Measured:
    """The step times and losses of the contenders of one group, by label and round, and the rates seen between.

    `sleepers_seconds` and `others_seconds` are processor time during the turns: of systems that were not at work, and of anything
    else on the machine; `turns_seconds` is what the system whose turn it was spent.
    """

    seconds: dict[str, Rounds] = field(default_factory=dict)
    losses: dict[str, Rounds] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rates: list[dict[str, Any]] = field(default_factory=list)
    turns_seconds: float = 0.0
    sleepers_seconds: float = 0.0
    others_seconds: float = 0.0
    kept_alive: bool = True


def measure_group(bench: Bench, trials: list[Trial]) -> Measured:
    """All rounds of contenders that take turns, kept alive if memory allows, else started afresh every round."""
    needed = sum(trial.resident_bytes for trial in trials)
    needed += max((trial.peak_bytes - trial.resident_bytes for trial in trials), default=0)
    alive = len(trials) <= MAX_ALIVE and needed < MEMORY_SHARE * machine.available_bytes()
    measured = Measured(kept_alive=alive)
    contenders = [trial.contender for trial in trials]
    rates = Contender("rates", systems.RATES, "")
    with ExitStack() as stack:
        gauge = stack.enter_context(started(rates, bench.job_for(rates, []), bench.folder))
        workers = _start_all(bench, contenders, stack, measured) if alive else {}
        for number in range(bench.num_rounds):
            measured.rates.append(gauge.ask(1))
            for contender in contenders if number % 2 == 0 else contenders[::-1]:
                if contender.label in measured.failed:
                    continue
                try:
                    if alive:
                        _take_turn(contender.label, workers, bench.num_steps, measured)
                    else:
                        _take_turn_alone(bench, contender, number, measured)
                except WorkerFailedError as reason:
                    measured.failed[contender.label] = str(reason)
            print(f"round {number + 1} of {bench.num_rounds}", file=sys.stderr, flush=True)
    return measured


def _start_all(bench: Bench, contenders: list[Contender], stack: ExitStack, measured: Measured) -> dict[str, Worker]:
    """Start and warm up one worker after another."""
    steps = range(NUM_WARMUP + bench.num_rounds * bench.num_steps)
    workers: dict[str, Worker] = {}
    for contender in contenders:
        try:
            worker = stack.enter_context(started(contender, bench.job_for(contender, steps), bench.folder))
            worker.run(NUM_WARMUP)
        except WorkerFailedError as reason:
            measured.failed[contender.label] = str(reason)
        else:
            workers[contender.label] = worker
    return workers


def _take_turn_alone(bench: Bench, contender: Contender, number: int, measured: Measured) -> None:
    """A worker that lives for one round: a short warm-up, then the round's steps."""
    steps = [*range(NUM_GATE), *bench.steps_of(number)]
    with started(contender, bench.job_for(contender, steps), bench.folder) as worker:
        worker.run(NUM_GATE)
        _take_turn(contender.label, {contender.label: worker}, bench.num_steps, measured)


def _take_turn(label: str, workers: dict[str, Worker], num_steps: int, measured: Measured) -> None:
    """One contender's steps of a round, with an eye on the sleepers and on the rest of the machine."""
    own, sleepers = workers[label], [worker for name, worker in workers.items() if name != label]

    def spent() -> tuple[float, float, float]:
        return (
            own.processor_seconds(),
            sum(worker.processor_seconds() for worker in sleepers),
            machine.busy_seconds(),
        )

    before = spent()
    run = own.run(num_steps)
    working, sleeping, busy = (after - earlier for after, earlier in zip(spent(), before, strict=True))
    measured.turns_seconds += working
    measured.sleepers_seconds += sleeping
    measured.others_seconds += max(0.0, busy - working - sleeping)
    measured.seconds.setdefault(label, []).append(run.seconds)
    measured.losses.setdefault(label, []).append(run.losses)
    measured.peak_bytes[label] = max(run.peak_bytes, measured.peak_bytes.get(label, 0))
