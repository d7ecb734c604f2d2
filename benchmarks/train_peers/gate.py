"""Before a system is timed: is it the same computation, how fast in each of its settings, and how much memory does it want?

Its loss on the first step is compared with plain transformers in float32, one record at a time, which shows that it was given the
same records and targets; its losses on the next two steps with that reference trained alike, which shows that it clips
and updates alike. A setting that is off is void, with the reason; a system all of whose settings are off fails the benchmark.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from train_peers import systems
from train_peers.bench import NUM_GATE, Bench
from train_peers.figures import GIB
from train_peers.systems import Contender, NotInstalledError, System, WorkerFailedError, started
from train_peers.worker import Method

NUM_PILOT = 3  # more steps, to choose between a system's settings
PILOT_MARGIN = 1.25  # three steps on a shared machine: who is this near the fastest runs too, and the rounds decide
MAX_SETTINGS = 2  # of a system, in the rounds
FIRST_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""Of the first loss; logits rounded to bfloat16 alone move it by 2.5e-3 (rms over 24 batches of 8 records, any attention)."""
NEXT_LOSSES_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # AdamW's first updates magnify rounding

Truth = dict[Method, list[float]]


@dataclass(frozen=True)
class Trial:
    """A contender on its own; `disagrees` where its losses are not the reference's, one of several reasons to be void."""

    contender: Contender
    void: str | None = None
    disagrees: bool = False
    losses: list[float] = field(default_factory=list)
    losses_off: list[float] = field(default_factory=list)
    pilot_seconds: float = 0.0
    peak_bytes: int = 0
    resident_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def reference_losses(bench: Bench, chosen: list[System]) -> Truth:
    """What every system has to find: the reference's losses on the first steps, for each method that a system trains by."""
    found: Truth = {}
    for system in chosen:
        contender = Contender("oracle", systems.oracle(system.method), "float32")
        method = bench.method_of(contender)
        if method not in found:
            with started(contender, bench.job_for(contender, range(NUM_GATE)), bench.folder) as worker:
                found[method] = worker.run(NUM_GATE).losses
    return found


def try_system(system: System, bench: Bench, truth: Truth, quick: bool = False) -> list[Trial]:
    """Run a system alone in each of its settings; with `keep="first"`, only until one runs, and when `quick` too."""
    try:
        systems.python_of(system)
    except NotInstalledError as reason:
        return [Trial(Contender(system.name, system, ""), void=f"not installed: {reason}")]
    found: list[Trial] = []
    switches = dict.fromkeys(systems.switches_of(system), True) if system.module == "tuneful" else {}
    for variant in system.variants:
        label = f"{system.name} {variant}" if len(system.variants) > 1 else system.name
        found.append(try_contender(Contender(label, system, variant, switches), bench, truth))
        print(trial_line(found[-1]), file=sys.stderr, flush=True)
        if (quick or system.keep == "first") and not found[-1].void:
            break
    return found


def try_contender(contender: Contender, bench: Bench, truth: Truth) -> Trial:
    """Gate steps, then pilot steps."""
    job = bench.job_for(contender, range(NUM_GATE + NUM_PILOT))
    try:
        with started(contender, job, bench.folder) as worker:
            gate = worker.run(NUM_GATE)
            pilot = worker.run(NUM_PILOT)
            resident = worker.resident_bytes()
    except WorkerFailedError as reason:
        return Trial(contender, void=str(reason))
    wanted = truth[bench.method_of(contender)]
    off = [abs(loss / right - 1) for loss, right in zip(gate.losses, wanted, strict=True)]
    verdict = gate_verdict(off, worker.facts["dtype"])
    return Trial(
        contender,
        void=verdict,
        disagrees=verdict is not None,
        losses=gate.losses,
        losses_off=off,
        pilot_seconds=median(pilot.seconds),
        peak_bytes=pilot.peak_bytes,
        resident_bytes=resident,
        facts=worker.facts,
    )


def gate_verdict(off: list[float], dtype: str) -> str | None:
    """Why losses that are `off` (relative) void a system of this precision, or None."""
    first, next_ones = off[0], max(off[1:])
    if not first <= FIRST_LOSS_TOLERANCE[dtype]:
        return f"first loss off by {first:.1e} (allowed {FIRST_LOSS_TOLERANCE[dtype]:.0e})"
    if not next_ones <= NEXT_LOSSES_TOLERANCE[dtype]:
        return f"losses after an update off by {next_ones:.1e} (allowed {NEXT_LOSSES_TOLERANCE[dtype]:.0e})"
    return None


def choose(system: System, trials: list[Trial]) -> list[Trial]:
    """Of a system's settings that passed the fastest in its pilot, and the next where it may turn out faster in the rounds."""
    passed = [trial for trial in trials if trial.contender.system == system and not trial.void]
    passed.sort(key=lambda trial: trial.pilot_seconds)
    return [trial for trial in passed if trial.pilot_seconds <= PILOT_MARGIN * passed[0].pilot_seconds][:MAX_SETTINGS]


def disagreeing(chosen: list[System], trials: list[Trial]) -> Iterator[str]:
    """The systems none of whose settings does the work of the others, as its losses show."""
    for system in chosen:
        own = [trial for trial in trials if trial.contender.system == system]
        if all(trial.void for trial in own) and any(trial.disagrees for trial in own):
            yield system.name


def trial_line(trial: Trial) -> str:
    """How a contender did on its own, for who is watching."""
    losses = f"loss of step 1 {trial.losses[0]:.4f}; " if trial.losses else ""
    if trial.void:
        return f"{trial.contender.label}: {losses}void, {trial.void}"
    return (
        f"{trial.contender.label}: {losses}gate passed (off by {trial.losses_off[0]:.1e}, next by "
        f"{max(trial.losses_off[1:]):.1e}); pilot {trial.pilot_seconds:.3f} s a step, {trial.peak_bytes / GIB:.2f} GiB"
    )
