"""What `train.py` and `lora.py` have in common: the options, the document, and one work from its gate to its table.

A document is written after each work. `tables.py` makes the tables of `benchmarks/README.md` from the documents.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from train_peers import machine, systems, works
from train_peers.bench import OPTIMIZATION, REPOSITORY, STARTER, Bench, Settings, find_model, prepare, tokens
from train_peers.figures import Row, measured_row, table
from train_peers.gate import Trial, Truth, choose, disagreeing, reference_losses, try_contender, try_system
from train_peers.roofline import Shape, count, roofline_seconds
from train_peers.rounds import MAX_ALIVE, Measured, measure_group
from train_peers.systems import BENCHMARKS, SWITCHES, TUNEFUL, Contender, System

RESULTS = REPOSITORY / "benchmarks" / "results"
OTHERS_SHARE = 0.02
"""Of the processor time of the turns: who else took more than this makes the timings doubtful."""


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    works: list[works.Work]
    systems: list[System]
    reference: str
    settings: Settings
    model_name: str
    quick: bool
    ladder: bool
    output: Path | None


def add_options(parser: argparse.ArgumentParser, known: dict[str, System], default_systems: str) -> None:
    """The options of both programs."""
    parser.add_argument("--systems", default=default_systems, help=f"of {','.join(known)}")
    parser.add_argument("--reference", default="tuneful", choices=list(known), help="the system whose time is 1")
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="another checkout of Tuneful, as one more system"
    )
    parser.add_argument("--repeats", type=int, default=6, help="rounds; even, so that ABBA closes")
    parser.add_argument("--steps", type=int, help="measured steps a round (default: the work's own)")
    parser.add_argument(
        "--model",
        default="smollm2-135m-instruct",
        help="a folder or a name; `qwen2-1.5b`: that shape with random weights; `tiny`, to try the machinery",
    )
    parser.add_argument("--threads", type=int, default=machine.hardware()["cores"], help="of every system")
    parser.add_argument("--output", type=Path, help="default: a dated file in benchmarks/results, none with --quick")
    parser.add_argument(
        "--variants", default="", help="of a system with several settings only these, by commas, such as `padding-free`"
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 steps, first settings: does it run?")


def check_options(
    parser: argparse.ArgumentParser, name: str, known: dict[str, System], rows: list[works.Row]
) -> Options:
    """Read the command line of the benchmark `name`; ends the program where it asks for what there is not."""
    options = parser.parse_args()
    chosen, asked = options.work.split(","), options.systems.split(",")
    for given, there in ((chosen, works.WORKS), (asked, known)):
        if unknown := [one for one in given if one not in there]:
            parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(there)})")
    rank = getattr(options, "rank", 0)
    contestants = [_narrowed(known[one], options.variants.split(",")) for one in asked]
    if options.before:
        if not (options.before / "src" / "tuneful").is_dir():
            parser.error(f"--before {options.before}: no checkout of Tuneful, src/tuneful is not in it")
        contestants.append(systems.before(options.before.resolve(), "lora" if rank else "full"))
    settings = Settings(
        model=find_model(options.model, rows),
        num_threads=options.threads,
        num_rounds=2 if options.quick else options.repeats,
        num_steps=2 if options.quick else options.steps,
        rank=rank,
        of_pairs=name == "preferences",
    )
    output = options.output or (None if options.quick else RESULTS / f"{name}-{date.today()}.json")
    ladder = getattr(options, "ladder", False)
    found = [works.WORKS[one] for one in chosen]
    return Options(found, contestants, options.reference, settings, options.model, options.quick, ladder, output)


def _as_known(value: object) -> str:
    """What JSON has no form of, as text: a folder by its name alone, and this checkout as `.`."""
    if isinstance(value, Path):
        return "." if value == BENCHMARKS.parent else value.name
    return str(value)


def _narrowed(system: System, variants: list[str]) -> System:
    """`system` in those of its settings that are among `variants`, where any are."""
    kept = tuple(variant for variant in system.variants if variant in variants)
    return replace(system, variants=kept) if kept else system


def read_rows() -> list[works.Row]:
    """The starter set."""
    return works.read_starter(STARTER)[0]


def run(name: str, options: Options, rows: list[works.Row]) -> int:
    """All works of a benchmark: prints their tables, writes the document, and returns the exit code."""
    document: dict[str, Any] = {
        "benchmark": name,
        "format": 2,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(REPOSITORY),
        "hardware": machine.hardware(),
        "load_average_before": os.getloadavg()[0],
        "warnings": [],
        "model": options.model_name,
        "num_threads": options.settings.num_threads,
        "optimization": asdict(OPTIMIZATION[options.settings.method]),
        "rank": options.settings.rank,
        "starter": STARTER.name,
        "variants": {system.name: system.variants for system in options.systems},
        "definitions": definitions(),
        "software": {},
        "works": [],
    }
    print(machine.hardware_line(document["hardware"], options.settings.num_threads))
    failed: list[str] = []
    for work in options.works:
        bench = prepare(work, rows, options.settings)
        document["works"].append(run_work(bench, Shape.read(options.settings.model), options, document))
        failed += document["works"][-1]["disagreeing"]
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(document, indent=1, default=_as_known) + "\n")
    print(software_lines(document))
    for line in document["warnings"]:
        print(f"Warning: {line}")
    if options.output:
        print(f"\nWritten to {options.output}", file=sys.stderr)
    if failed:
        print(f"Not the same work as the reference's: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_work(bench: Bench, shape: Shape, options: Options, document: dict[str, Any]) -> dict[str, Any]:
    """Gate, pilot and rounds of one work; prints its table and returns its part of the document."""
    print(f"\n## {bench.work.name}: {bench.describe()}\n", flush=True)
    truth = reference_losses(bench, options.systems)
    trials: list[Trial] = []
    rows: list[Row] = []
    for system in options.systems:
        tried = try_system(system, bench, truth, options.quick)
        trials += tried
        record_versions(system, tried, document)
        if all(trial.void for trial in tried):
            rows += [Row(trial.contender.label, void=trial.void) for trial in tried]
    chosen = [trial for system in options.systems for trial in choose(system, trials)]
    comparison = measure_group(bench, chosen)
    rows = figures(bench, shape, chosen, comparison, options.reference) + rows
    lines = [
        *(f"Settings tried: {line}" for line in settings_lines(trials)),
        *equal_work_lines(bench, truth),
        roofline_line(bench, shape, comparison),
        at_rest_line(comparison, document),
    ]
    print("\n".join(lines), end="\n\n")
    print(table(rows, options.reference), flush=True)
    part = {
        "work": asdict(bench.work),
        "description": bench.describe(),
        "record_tokens": [[tokens(bench.batches[step]) for step in steps] for steps in bench.all_steps()],
        "reference_losses": truth,
        "num_targets_of_step_1": _num_targets(bench),
        "disagreeing": list(disagreeing(options.systems, trials)),
        "roofline": roofline_document(bench, shape, comparison),
        "trials": [asdict(trial) for trial in trials],
        "rows": [asdict(row) for row in rows],
        "lines": lines,
        "table": table(rows, options.reference).splitlines(),
        "rounds": asdict(comparison),
    }
    if options.ladder:
        part["ladder"] = run_ladder(bench, shape, truth)
    return part


def run_ladder(bench: Bench, shape: Shape, truth: Truth) -> dict[str, Any]:
    """Tuneful with each technique switched off alone, in groups that all hold the complete engine."""
    variant = TUNEFUL.variants[0]
    on = dict.fromkeys(SWITCHES, True)
    full = try_contender(Contender("tuneful", TUNEFUL, variant, on), bench, truth)
    trials = [
        try_contender(Contender(f"without {name}", TUNEFUL, variant, {**on, name: False}), bench, truth)
        for name in SWITCHES
    ]
    rows: list[Row] = [Row(trial.contender.label, void=trial.void) for trial in [full, *trials] if trial.void]
    groups: list[dict[str, Any]] = []
    passed = [trial for trial in trials if not trial.void]
    for start in range(0, 0 if full.void else len(passed), MAX_ALIVE - 1):
        group = [full, *passed[start : start + MAX_ALIVE - 1]]
        measured = measure_group(bench, group)
        found = figures(bench, shape, group, measured, "tuneful")
        rows += [row for row in found if start == 0 or row.label != "tuneful"]
        groups.append(asdict(measured))
    print(f"\n### {bench.work.name}: each technique switched off alone\n")
    print(table(rows, "tuneful"), flush=True)
    return {"techniques": SWITCHES, "rows": [asdict(row) for row in rows], "groups": groups}


# --- the figures ------------------------------------------------------------------------------------------------------


def figures(bench: Bench, shape: Shape, trials: list[Trial], measured: Measured, reference: str) -> list[Row]:
    """A row for each contender of a group; the ratio is blank where the reference did not run."""
    given = [[float(tokens(bench.batches[step])) for step in steps] for steps in bench.all_steps()]
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
                rooflines=rooflines(bench, trial.contender, shape, measured),
                steps_per_epoch=bench.work.num_records / bench.work.batch_size,
                peak_bytes=measured.peak_bytes[label],
                first_loss=trial.losses[0],
                first_loss_off=trial.losses_off[0],
                reference=measured.seconds[reference_label] if reference_label else None,
            )
        )
    return rows


def rooflines(bench: Bench, contender: Contender, shape: Shape, measured: Measured) -> list[list[float]]:
    """The roofline of each measured step for what the contender trains, by round."""
    rank = bench.rank if bench.method_of(contender) == "lora" else 0
    rates = best_rates(measured)
    return [
        [roofline_seconds(bench.batches[step], shape, *rates, rank=rank) for step in steps]
        for steps in bench.all_steps()
    ]


def best_rates(measured: Measured) -> tuple[float, float]:
    """The best matrix-product rate and the best bandwidth of all rounds."""
    flops = max(rate for rates in measured.rates for rate in rates["flops_per_second"].values())
    bandwidth = max(rate for rates in measured.rates for rate in rates["bytes_per_second"].values())
    return flops, bandwidth


def roofline_document(bench: Bench, shape: Shape, measured: Measured) -> dict[str, Any]:
    """The roofline of an average step, and what it is made of."""
    steps = [step for round_steps in bench.all_steps() for step in round_steps]
    flops_per_second, bytes_per_second = best_rates(measured)
    counts = [count(bench.batches[step]) for step in steps]
    flops = sum(necessary.flops(shape, bench.rank) for necessary in counts) / len(steps)
    optimizer_bytes = shape.optimizer_bytes(bench.rank)
    return {
        "seconds": flops / flops_per_second + optimizer_bytes / bytes_per_second,
        "flops": flops,
        "flops_per_second": flops_per_second,
        "optimizer_bytes": optimizer_bytes,
        "bytes_per_second": bytes_per_second,
        "num_parameters": shape.num_parameters,
        "num_trainable": shape.adapter_parameters(bench.rank) if bench.rank else shape.num_parameters,
        "rows": sum(necessary.rows for necessary in counts) / len(steps),
        "target_rows": sum(necessary.target_rows for necessary in counts) / len(steps),
        "pairs": sum(necessary.pairs for necessary in counts) / len(steps),
        "record_tokens": sum(tokens(bench.batches[step]) for step in steps) / len(steps),
    }


# --- what is printed --------------------------------------------------------------------------------------------------


def settings_lines(trials: Sequence[Trial]) -> list[str]:
    """A line for each setting that was tried: its seconds a step in the pilot, or why it is void."""
    return [
        f"{trial.contender.label}, " + (trial.void or f"{trial.pilot_seconds:.3f} s a step in the pilot")
        for trial in trials
    ]


def equal_work_lines(bench: Bench, truth: Truth) -> list[str]:
    """The losses that every system was held against."""
    num_targets = _num_targets(bench)
    return [
        f"Reference ({method}; transformers, float32, each record alone): loss of step 1 {losses[0]:.4f} over {num_targets} "
        f"target tokens, then {', '.join(f'{loss:.4f}' for loss in losses[1:])}."
        for method, losses in truth.items()
    ]


def _num_targets(bench: Bench) -> int:
    return sum(side.num_targets for record in bench.batches[0] for side in record.sides)


def roofline_line(bench: Bench, shape: Shape, measured: Measured) -> str:
    """The roofline in a sentence."""
    roofline = roofline_document(bench, shape, measured)
    return (
        f"Roofline: {roofline['seconds']:.3f} s a step = {roofline['flops'] / 1e9:,.0f} GFLOP at "
        f"{roofline['flops_per_second'] / 1e9:,.0f} GFLOP/s + {roofline['optimizer_bytes'] / 1e9:.2f} GB at "
        f"{roofline['bytes_per_second'] / 1e9:.1f} GB/s; {roofline['record_tokens']:,.0f} record tokens a step need "
        f"{roofline['rows']:,.0f} rows in the blocks and {roofline['target_rows']:,.0f} in the head."
    )


def at_rest_line(measured: Measured, document: dict[str, Any]) -> str:
    """Who else used the processor; a warning joins the document where it was too much."""
    whole = max(measured.turns_seconds, 1e-9)
    others, sleepers = measured.others_seconds / whole, measured.sleepers_seconds / whole
    if others > OTHERS_SHARE:
        document["warnings"].append(
            f"other programs used the processor during the turns ({others:.0%} of the systems' own time): "
            "these timings are not to be trusted"
        )
    return (
        f"During the turns waiting systems used {sleepers:.1%} of the working ones' processor time, "
        f"other programs {others:.1%}."
    )


def record_versions(system: System, tried: list[Trial], document: dict[str, Any]) -> None:
    """Note the packages of a system's environment, once, or why there is none."""
    name = system.environment or "tuneful"
    if system.name == "before":
        document["software"]["before"] = {"commit": machine.commit(system.checkout)}
    if name in document["software"]:
        return
    missing = tried[0].void if not tried[0].contender.variant else None
    document["software"][name] = missing or machine.versions(systems.python_of(system))


def software_lines(document: dict[str, Any]) -> str:
    """The versions, an environment a line."""
    lines = [f"\ncommit {document['commit']}"]
    for name, found in document["software"].items():
        said = found if isinstance(found, str) else ", ".join(f"{what} {version}" for what, version in found.items())
        lines.append(f"{name}: {said}")
    return "\n".join(lines)


def definitions() -> dict[str, str]:
    """What the document's figures mean, for who reads it without this program."""
    return {
        "tokens_per_second": "tokens of the records as given / seconds, median over rounds",
        "step_seconds": "median over all measured steps; step_quartiles: the quartiles",
        "epoch_seconds": "median over rounds of the mean step, times records / records a step",
        "peak_bytes": "largest resident memory of the process, loading included",
        "fraction_of_roofline": "sum of the steps' rooflines / seconds, median over rounds; the same roofline for all systems "
        "that train the same parameters",
        "first_loss": "loss of step 1, before the first update",
        "first_loss_off": "its relative difference to float32, record by record",
        "ratio": "time / reference's time: exp of the mean over rounds of the median log ratio of paired steps; "
        "95 % interval by 10,000 bootstrap draws of rounds",
        "roofline": "necessary FLOPs / best product rate + optimizer bytes / best bandwidth; see train_peers/roofline.py",
        "turns_seconds": "processor time of the systems at work; sleepers_seconds, others_seconds: of the waiting ones "
        "and of all other programs meanwhile",
    }
