"""How fast instruction finetuning is: Tuneful, its peers, and the roofline that the hardware sets. `make bench-train`.

    python benchmarks/train.py [--work starter8,mixed8] [--systems tuneful,trl] [--ladder] [--quick]

**What is measured.** Whole optimizer steps of full finetuning on the CPU (collating, forward, loss, backward,
clipping, AdamW) from the same starting weights on the same batches of token ids with the same hyperparameters. Each
system is a process of its own; one works while the others sleep, in the order ABBA, for several rounds. The first
steps are warm-up and never timed: eight, or three where systems do not fit into memory together and start afresh each round.

**The gate.** Before a system is timed, its loss on the first step is compared with plain transformers in float32,
one record at a time, and its losses on the next two steps with that reference trained alike, which shows that it
clips and updates alike. A system that is off is void, with the reason.

**What is not measured.** Tokenizing, loading, saving, evaluation; convergence; GPUs. Throughput counts the tokens
of the records as given, so padding earns nothing and sharing costs nothing. The roofline is explained in
`train_peers/roofline.py`; it is the same for every system, whatever its precision.

Peers are installed into `.bench/venv-*` on first use; one that cannot be had is reported, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from train_peers import machine, systems, works
from train_peers.figures import GIB, Rounds, Row, measured_row, table
from train_peers.roofline import OPTIMIZER_BYTES_PER_PARAMETER, Shape, count, roofline_seconds
from train_peers.systems import (
    SWITCHES,
    SYSTEMS,
    WORKSHOP,
    Contender,
    NotInstalledError,
    Worker,
    WorkerFailedError,
    started,
)
from train_peers.worker import Batch, Optimization

REPOSITORY = Path(__file__).resolve().parents[1]
STARTER = REPOSITORY / "src" / "tuneful" / "data" / "starter.json"
DEFAULT_SYSTEMS = "tuneful,trl,hf-trainer,litgpt,chapter"

NUM_GATE = 3
NUM_WARMUP = 8  # the gate's among them; until then allocators still grow by what a larger batch needs
NUM_PILOT = 3  # more steps, to choose between a system's settings
PILOT_MARGIN = 1.25  # three steps on a shared machine: who is this near the fastest runs too, and the rounds decide
FIRST_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""Of the first loss; logits rounded to bfloat16 alone move it by 2.5e-3 (rms over 24 batches of 8 records, any attention)."""
NEXT_LOSSES_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # AdamW's first updates magnify rounding
MEMORY_SHARE = 0.8  # of what is available, for all systems that are alive at once
MAX_ALIVE = 5


@dataclass(frozen=True)
class Trial:
    """A contender on its own: is it the same computation, how fast roughly, and how much memory does it want?"""

    contender: Contender
    void: str | None = None
    losses: list[float] = field(default_factory=list)
    losses_off: list[float] = field(default_factory=list)
    pilot_seconds: float = 0.0
    peak_bytes: int = 0
    resident_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    """The step times and losses of the contenders of one group, by label and round, and the rates seen between."""

    seconds: dict[str, Rounds] = field(default_factory=dict)
    losses: dict[str, Rounds] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rates: list[dict[str, Any]] = field(default_factory=list)
    sleepers_seconds: float = 0.0
    kept_alive: bool = True


@dataclass(frozen=True)
class Bench:
    """One work, prepared: its batches on disk and in memory, and the job that every system gets."""

    work: works.Work
    batches: list[Batch]
    num_rounds: int
    num_steps: int
    job: dict[str, Any]
    folder: Path

    def steps_of(self, round_number: int) -> list[int]:
        """The measured steps of a round."""
        first = NUM_WARMUP + round_number * self.num_steps
        return list(range(first, first + self.num_steps))

    def job_for(self, steps: Sequence[int]) -> dict[str, Any]:
        """The job of a process that runs these steps, and fails rather than take more memory than there is."""
        return {**self.job, "steps": list(steps), "max_bytes": int(machine.available_bytes() * 0.9)}


def main() -> None:
    options = parse_options()
    load = os.getloadavg()[0]
    warning = machine.load_warning(load)
    if warning:
        print(f"Warning: {warning}", file=sys.stderr)
    rows, origin = works.read_starter(STARTER)
    model = find_model(options.model, rows)
    document: dict[str, Any] = {
        "benchmark": "train",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(REPOSITORY),
        "hardware": machine.hardware(),
        "load_average_before": load,
        "warnings": [warning] if warning else [],
        "model": options.model,
        "num_threads": options.threads,
        "optimization": asdict(Optimization()),
        "starter": origin,
        "definitions": definitions(),
        "software": {},
        "works": [],
    }
    for name in options.work:
        bench = prepare(works.WORKS[name], model, rows, options)
        document["works"].append(run_work(bench, Shape.read(model), options, document))
        write(document, options.output)
    print(f"\nWritten to {options.output}", file=sys.stderr)


def parse_options() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    names = ",".join(works.WORKS)
    parser.add_argument("--work", default=names, help=f"what to train on, of {names}")
    parser.add_argument("--systems", default=DEFAULT_SYSTEMS, help=f"of {','.join(SYSTEMS)}")
    parser.add_argument("--reference", default="tuneful", choices=list(SYSTEMS), help="the system whose time is 1")
    parser.add_argument("--ladder", action="store_true", help="also run Tuneful with each technique switched off alone")
    parser.add_argument("--repeats", type=int, default=6, help="rounds; even, so that ABBA closes")
    parser.add_argument("--steps", type=int, help="measured steps a round (default: the work's own)")
    parser.add_argument(
        "--model", default="smollm2-135m-instruct", help="a model folder, or `tiny` to try the machinery"
    )
    parser.add_argument("--threads", type=int, default=machine.hardware()["cores"], help="of every system")
    parser.add_argument("--output", type=Path, default=REPOSITORY / f"benchmarks/results/train-{date.today()}.json")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 steps: does it run?")
    options = parser.parse_args()
    options.work, options.systems = options.work.split(","), options.systems.split(",")
    for chosen, known in ((options.work, works.WORKS), (options.systems, SYSTEMS)):
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
    if options.quick:
        options.repeats, options.steps = 2, 2
    return options


def find_model(name: str, rows: list[works.Row]) -> Path:
    """The folder of the model to train."""
    if name == "tiny":
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.doubles.tiny import make_tiny_model

        return make_tiny_model(WORKSHOP / "model-tiny", [text for row in rows for text in row.values()])
    if Path(name).is_dir():
        return Path(name).resolve()
    from tuneful.model.load import resolve_model

    return Path(resolve_model(name)).resolve()


def prepare(work: works.Work, model: Path, rows: list[works.Row], options: argparse.Namespace) -> Bench:
    """Tokenize the work's records, deal them into batches and write these down for the systems."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    end_token = json.loads((model / "config.json").read_text())["eos_token_id"]
    end_token = end_token[0] if isinstance(end_token, list) else end_token
    records = works.make_records(
        work.content, rows, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, end_token
    )
    num_steps = options.steps or work.num_steps
    num_batches = NUM_WARMUP + options.repeats * num_steps
    batches = works.make_batches(records, work.batch_size, num_batches)
    folder = WORKSHOP / "train" / work.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "batches.json"
    path.write_text(json.dumps([[asdict(record) for record in batch] for batch in batches]))
    job = {
        "model": str(model),
        "batches": str(path),
        "optimization": asdict(Optimization()),
        "num_threads": options.threads,
    }
    return Bench(
        work=replace(work, num_records=len(records)),
        batches=batches,
        num_rounds=options.repeats,
        num_steps=num_steps,
        job=job,
        folder=folder,
    )


def run_work(bench: Bench, shape: Shape, options: argparse.Namespace, document: dict[str, Any]) -> dict[str, Any]:
    """Gate, pilot and rounds of one work; prints its table and returns its part of the document."""
    print(f"\n## {bench.work.name}: {describe(bench)}\n", flush=True)
    truth = oracle_losses(bench)
    trials: list[Trial] = []
    rows: list[Row] = []
    for name in options.systems:
        tried = try_system(SYSTEMS[name], bench, truth)
        trials += tried
        record_versions(SYSTEMS[name], tried, document)
        if all(trial.void for trial in tried):
            rows += [Row(trial.contender.label, void=trial.void) for trial in tried]
    chosen = [trial for name in options.systems for trial in choose(SYSTEMS[name], trials)]
    comparison = measure_group(bench, chosen)
    rows = figures(bench, shape, chosen, comparison, options.reference) + rows
    print(roofline_line(bench, shape, comparison))
    print()
    print(table(rows, options.reference), flush=True)
    part = {
        "work": asdict(bench.work),
        "description": describe(bench),
        "record_tokens": [[tokens(bench.batches[step]) for step in steps] for steps in all_steps(bench)],
        "oracle_losses": truth,
        "roofline": roofline_document(bench, shape, comparison),
        "trials": [asdict(trial) for trial in trials],
        "rows": [asdict(row) for row in rows],
        "rounds": asdict(comparison),
    }
    if options.ladder:
        part["ladder"] = run_ladder(bench, shape, truth)
    return part


# --- the gate ---------------------------------------------------------------------------------------------------------


def oracle_losses(bench: Bench) -> list[float]:
    """What every system has to find: the reference's losses on the first steps."""
    contender = Contender("oracle", systems.ORACLE, "float32")
    with started(contender, bench.job_for(range(NUM_GATE)), bench.folder) as worker:
        return worker.run(NUM_GATE).losses


def try_system(system: systems.System, bench: Bench, truth: list[float]) -> list[Trial]:
    """Run a system alone in each of its settings; with `keep="first"`, only until one runs."""
    try:
        systems.python_of(system)
    except NotInstalledError as reason:
        return [Trial(Contender(system.name, system, ""), void=f"not installed: {reason}")]
    found: list[Trial] = []
    switches = dict.fromkeys(SWITCHES, True) if system.name == "tuneful" else {}
    for variant in system.variants:
        label = f"{system.name} {variant}" if len(system.variants) > 1 else system.name
        found.append(try_contender(Contender(label, system, variant, switches), bench, truth))
        print(trial_line(found[-1]), file=sys.stderr, flush=True)
        if system.keep == "first" and not found[-1].void:
            break
    return found


def try_contender(contender: Contender, bench: Bench, truth: list[float]) -> Trial:
    """Gate steps, then pilot steps."""
    steps = range(NUM_GATE + NUM_PILOT)
    try:
        with started(contender, bench.job_for(steps), bench.folder) as worker:
            gate = worker.run(NUM_GATE)
            pilot = worker.run(NUM_PILOT)
            resident = worker.resident_bytes()
    except WorkerFailedError as reason:
        return Trial(contender, void=str(reason))
    off = [abs(loss / wanted - 1) for loss, wanted in zip(gate.losses, truth, strict=True)]
    return Trial(
        contender,
        void=gate_verdict(off, worker.facts["dtype"]),
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


def choose(system: systems.System, trials: list[Trial]) -> list[Trial]:
    """Of a system's settings that passed the fastest in its pilot, and those that may turn out faster in the rounds."""
    passed = [trial for trial in trials if trial.contender.system == system and not trial.void]
    fastest = min((trial.pilot_seconds for trial in passed), default=0.0)
    return [trial for trial in passed if trial.pilot_seconds <= PILOT_MARGIN * fastest]


# --- the rounds -------------------------------------------------------------------------------------------------------


def measure_group(bench: Bench, trials: list[Trial]) -> Measured:
    """All rounds of contenders that take turns, kept alive if memory allows, else started afresh every round."""
    needed = sum(trial.resident_bytes for trial in trials)
    needed += max((trial.peak_bytes - trial.resident_bytes for trial in trials), default=0)
    alive = len(trials) <= MAX_ALIVE and needed < MEMORY_SHARE * machine.available_bytes()
    measured = Measured(kept_alive=alive)
    contenders = [trial.contender for trial in trials]
    rates = Contender("rates", systems.RATES, "")
    with ExitStack() as stack:
        gauge = stack.enter_context(started(rates, bench.job_for([]), bench.folder))
        workers = start_all(bench, contenders, stack, measured) if alive else {}
        for number in range(bench.num_rounds):
            measured.rates.append(gauge.ask(1))
            for contender in contenders if number % 2 == 0 else contenders[::-1]:
                if contender.label in measured.failed:
                    continue
                try:
                    if alive:
                        take_turn(contender.label, workers, bench.num_steps, measured)
                    else:
                        with started(contender, bench.job_for(round_alone(bench, number)), bench.folder) as worker:
                            worker.run(NUM_GATE)
                            take_turn(contender.label, {contender.label: worker}, bench.num_steps, measured)
                except WorkerFailedError as reason:
                    measured.failed[contender.label] = str(reason)
            print(f"round {number + 1} of {bench.num_rounds}", file=sys.stderr, flush=True)
    return measured


def start_all(bench: Bench, contenders: list[Contender], stack: ExitStack, measured: Measured) -> dict[str, Worker]:
    """Start and warm up one worker after another."""
    steps = range(NUM_WARMUP + bench.num_rounds * bench.num_steps)
    workers: dict[str, Worker] = {}
    for contender in contenders:
        try:
            worker = stack.enter_context(started(contender, bench.job_for(steps), bench.folder))
            worker.run(NUM_WARMUP)
        except WorkerFailedError as reason:
            measured.failed[contender.label] = str(reason)
        else:
            workers[contender.label] = worker
    return workers


def take_turn(label: str, workers: dict[str, Worker], num_steps: int, measured: Measured) -> None:
    """One contender's steps of a round, with an eye on the sleepers."""
    sleepers = [worker for name, worker in workers.items() if name != label]
    before = sum(worker.processor_seconds() for worker in sleepers)
    run = workers[label].run(num_steps)
    measured.sleepers_seconds += sum(worker.processor_seconds() for worker in sleepers) - before
    measured.seconds.setdefault(label, []).append(run.seconds)
    measured.losses.setdefault(label, []).append(run.losses)
    measured.peak_bytes[label] = max(run.peak_bytes, measured.peak_bytes.get(label, 0))


def round_alone(bench: Bench, number: int) -> list[int]:
    """The steps of a worker that lives for one round: a short warm-up, then the round's."""
    return [*range(NUM_GATE), *bench.steps_of(number)]


def run_ladder(bench: Bench, shape: Shape, truth: list[float]) -> dict[str, Any]:
    """Tuneful with each technique switched off alone, in groups that all hold the complete engine."""
    tuneful = SYSTEMS["tuneful"]
    variant = tuneful.variants[0]
    on = dict.fromkeys(SWITCHES, True)
    full = try_contender(Contender("tuneful", tuneful, variant, on), bench, truth)
    trials = [
        try_contender(Contender(f"without {name}", tuneful, variant, {**on, name: False}), bench, truth)
        for name in SWITCHES
    ]
    rows: list[Row] = [Row(trial.contender.label, void=trial.void) for trial in [full, *trials] if trial.void]
    groups: list[dict[str, Any]] = []
    passed = [trial for trial in trials if not trial.void]
    for start in range(0, 0 if full.void else len(passed), MAX_ALIVE - 1):
        group = [full, *passed[start : start + MAX_ALIVE - 1]]
        measured = measure_group(bench, group)
        rows += [
            row for row in figures(bench, shape, group, measured, "tuneful") if start == 0 or row.label != "tuneful"
        ]
        groups.append(asdict(measured))
    print(f"\n### {bench.work.name}: each technique switched off alone\n")
    print(table(rows, "tuneful"), flush=True)
    return {"techniques": SWITCHES, "rows": [asdict(row) for row in rows], "groups": groups}


# --- the figures ------------------------------------------------------------------------------------------------------


def figures(bench: Bench, shape: Shape, trials: list[Trial], measured: Measured, reference: str) -> list[Row]:
    """A row for each contender of a group; the ratio is blank where the reference did not run."""
    flops_per_second, bytes_per_second = best_rates(measured)
    rooflines = [
        [roofline_seconds(bench.batches[step], shape, flops_per_second, bytes_per_second) for step in steps]
        for steps in all_steps(bench)
    ]
    given = [[float(tokens(bench.batches[step])) for step in steps] for steps in all_steps(bench)]
    finished = [trial for trial in trials if trial.contender.label not in measured.failed]
    reference_label = next((t.contender.label for t in finished if t.contender.system.name == reference), None)
    rows = [Row(label, void=reason) for label, reason in measured.failed.items()]
    for trial in finished:
        label = trial.contender.label
        rows.append(
            measured_row(
                label,
                measured.seconds[label],
                tokens=given,
                rooflines=rooflines,
                steps_per_epoch=bench.work.num_records / bench.work.batch_size,
                peak_bytes=measured.peak_bytes[label],
                first_loss_off=trial.losses_off[0],
                reference=measured.seconds[reference_label] if reference_label else None,
            )
        )
    return rows


def best_rates(measured: Measured) -> tuple[float, float]:
    """The best matrix-product rate and the best bandwidth of all rounds."""
    flops = max(rate for rates in measured.rates for rate in rates["flops_per_second"].values())
    bandwidth = max(rate for rates in measured.rates for rate in rates["bytes_per_second"].values())
    return flops, bandwidth


def all_steps(bench: Bench) -> Iterator[list[int]]:
    """The measured steps, round by round."""
    return (bench.steps_of(number) for number in range(bench.num_rounds))


def tokens(batch: Batch) -> int:
    """Tokens of the records as given."""
    return sum(len(record.ids) for record in batch)


def roofline_document(bench: Bench, shape: Shape, measured: Measured) -> dict[str, Any]:
    """The roofline of an average step, and what it is made of."""
    steps = [step for round_steps in all_steps(bench) for step in round_steps]
    flops_per_second, bytes_per_second = best_rates(measured)
    counts = [count(bench.batches[step]) for step in steps]
    flops = sum(necessary.flops(shape) for necessary in counts) / len(steps)
    optimizer_bytes = shape.num_parameters * OPTIMIZER_BYTES_PER_PARAMETER
    return {
        "seconds": flops / flops_per_second + optimizer_bytes / bytes_per_second,
        "flops": flops,
        "flops_per_second": flops_per_second,
        "optimizer_bytes": optimizer_bytes,
        "bytes_per_second": bytes_per_second,
        "num_parameters": shape.num_parameters,
        "rows": sum(necessary.rows for necessary in counts) / len(steps),
        "target_rows": sum(necessary.target_rows for necessary in counts) / len(steps),
        "pairs": sum(necessary.pairs for necessary in counts) / len(steps),
        "record_tokens": sum(tokens(bench.batches[step]) for step in steps) / len(steps),
    }


def roofline_line(bench: Bench, shape: Shape, measured: Measured) -> str:
    """The roofline in a sentence."""
    roofline = roofline_document(bench, shape, measured)
    return (
        f"Roofline: {roofline['seconds']:.3f} s a step = {roofline['flops'] / 1e9:,.0f} GFLOP at "
        f"{roofline['flops_per_second'] / 1e9:,.0f} GFLOP/s + {roofline['optimizer_bytes'] / 1e9:.2f} GB at "
        f"{roofline['bytes_per_second'] / 1e9:.1f} GB/s;\n{roofline['record_tokens']:,.0f} record tokens a step need "
        f"{roofline['rows']:,.0f} rows in the blocks and {roofline['target_rows']:,.0f} in the head."
    )


def describe(bench: Bench) -> str:
    """The work in a line."""
    lengths = sorted(len(record.ids) for batch in bench.batches for record in batch)
    return (
        f"{bench.work.batch_size} records a step of {bench.work.num_records:,}, "
        f"{lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}; "
        f"{bench.num_rounds} rounds of {bench.num_steps} steps"
    )


def trial_line(trial: Trial) -> str:
    """How a contender did on its own, for who is watching."""
    if trial.void:
        return f"{trial.contender.label}: void, {trial.void}"
    return (
        f"{trial.contender.label}: gate passed (first loss off by {trial.losses_off[0]:.1e}, next by "
        f"{max(trial.losses_off[1:]):.1e}); pilot {trial.pilot_seconds:.3f} s a step, {trial.peak_bytes / GIB:.2f} GiB"
    )


def record_versions(system: systems.System, tried: list[Trial], document: dict[str, Any]) -> None:
    """Note the packages of a system's environment, once, or why there is none."""
    name = system.environment or "tuneful"
    if name in document["software"]:
        return
    missing = tried[0].void if not tried[0].contender.variant else None
    document["software"][name] = missing or machine.versions(systems.python_of(system))


def definitions() -> dict[str, str]:
    """What the document's figures mean, for who reads it without this script."""
    return {
        "tokens_per_second": "tokens of the records as given / seconds, median over rounds",
        "step_seconds": "median over all measured steps",
        "epoch_seconds": "median over rounds of the mean step, times records / records a step",
        "peak_bytes": "largest resident memory of the process, loading included",
        "fraction_of_roofline": "sum of the steps' rooflines / seconds, median over rounds; the same roofline for all systems",
        "first_loss_off": "relative difference to float32, record by record, before the first update",
        "ratio": "time / reference's time: exp of the mean over rounds of the median log ratio of paired steps; "
        "95 % interval by 10,000 bootstrap draws of rounds",
        "roofline": "necessary FLOPs / best product rate + optimizer bytes / best bandwidth; see train_peers/roofline.py",
        "sleepers_seconds": "processor time of systems that were not at work, over all turns",
    }


def write(document: dict[str, Any], path: Path) -> None:
    """Write the document, as far as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
