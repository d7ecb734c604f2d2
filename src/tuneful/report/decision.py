"""The first screen: ship, do not ship or cannot tell, why, what changed for the worse, and the run at a glance.

Feeds `sections.py` from comparison.json and environment.json. The gate that the user gave decides, as the exit code does; without
one the verdict on the headline metric does. A condition on a figure that is not known neither speaks for nor against. The trade:
one word for many figures, so everything that got worse stands right under it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tuneful.evaluation.metric_specs import label_in_sentence
from tuneful.numbers import count, duration, fixed, known, plain, plural, signed, significant, storage
from tuneful.report.folder import Run
from tuneful.report.forgotten import how_much
from tuneful.report.scores import confidence, interval, main_metric, measure_decimals
from tuneful.report.trained_on import Cells
from tuneful.runs.schema import Comparison, GateOutcome, KindComparison, MetricComparison

_REPEATED = ("perplexity", "document_bits")
"""Metrics that repeat another on another scale."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of the gate: the figure found, in words, and `met`, `not met` or `not known`."""

    condition: str
    found: str
    state: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`word` is what to do, `tone` its colour (`better`, `worse`, `unclear`), `reason` why; `worse` is what got worse, in
    sentences, or none with `nothing_worse` said instead."""

    word: str
    tone: str
    reason: str
    gate: tuple[Condition, ...]
    worse: tuple[str, ...]
    nothing_worse: str


def view_decision(comparison: Comparison | None) -> Decision | None:
    """What the comparison says to somebody who must decide; None where nothing was compared."""
    metric = main_metric(comparison) if comparison else None
    if comparison is None or metric is None:
        return None
    gate = comparison.gate or ()
    tone, reason = _by_gate(gate) if gate else _by_headline(metric, comparison)
    if gate and tone == "better" and metric.verdict != "better":
        reason += f" On {label_in_sentence(metric)} alone: {metric.verdict}."
    worse = tuple(_worse(comparison))
    return Decision(
        word=_word(tone, "B" if comparison.names else ""),
        tone=tone,
        reason=reason,
        gate=tuple(_condition(outcome) for outcome in gate),
        worse=worse,
        nothing_worse=""
        if worse
        else "Nothing that was measured is surely worse than before."
        if not comparison.names
        else "Nothing that was measured is surely worse than in A.",
    )


def _word(tone: str, which: str) -> str:
    words = {"better": f"Ship {which}", "worse": f"Do not ship {which}", "unclear": "Cannot tell"}
    return words[tone].rstrip()


def _by_gate(gate: tuple[GateOutcome, ...]) -> tuple[str, str]:
    unmet = [outcome for outcome in gate if not outcome.met]
    failed = [outcome for outcome in unmet if outcome.found is not None]
    if not unmet:
        return "better", "The gate is met." if len(gate) == 1 else f"All {len(gate)} conditions of the gate are met."
    if failed:
        fail = "fails" if len(failed) == 1 else "fail"
        return "worse", f"The gate is not met: {len(failed)} of {plural(len(gate), 'condition')} {fail}."
    names = ", ".join(one.condition for one in unmet)
    return "unclear", f"The gate is not met, because the figure is not known: {names}."


def _by_headline(metric: MetricComparison, comparison: Comparison) -> tuple[str, str]:
    tone = metric.verdict if metric.verdict in ("better", "worse") else "unclear"
    verdict = {
        "better": "is better",
        "worse": "is worse",
        "changed": "has changed",
    }.get(metric.verdict, "may be better or worse")
    who = "B" if comparison.names else "the tuned model"
    return tone, (
        f"No gate was given (--gate, report.gate). By {label_in_sentence(metric)} {who} {verdict}: "
        f"{_figures(metric, comparison)}, on {plural(metric.num_items, 'test item')}."
    )


def _condition(outcome: GateOutcome) -> Condition:
    state = "met" if outcome.met else "not met" if outcome.found is not None else "not known"
    in_words = fixed if outcome.is_value else signed
    return Condition(outcome.condition, in_words(outcome.found, 4) if known(outcome.found) else "nothing", state)


def _worse(comparison: Comparison) -> list[str]:
    """What is worse: metrics and what was forgotten, kinds of task, a judge that cannot judge, answers."""
    said = [
        f"{metric.label}: {_figures(metric, comparison)}{how_much(metric)}"
        for metric in (*comparison.metrics, *comparison.forgetting)
        if metric.verdict == "worse" and metric.name not in _REPEATED
    ]
    said += [
        f"Tasks of the kind “{kind.kind}”: {_figures(kind, comparison)}, on {plural(kind.num_items, 'item')}"
        for kind in comparison.kinds
        if kind.verdict == "worse"
    ]
    metric = main_metric(comparison)
    if metric is not None and metric.losses and metric.higher_is_better is not None:
        total = metric.wins + metric.losses + metric.ties
        said.append(f"{count(metric.losses)} of {plural(total, 'answer')} got worse by {label_in_sentence(metric)}")
    if comparison.judge is not None and comparison.judge.verdict == "not usable":
        said.append(f"The judge’s scores say nothing: {comparison.judge.sentence}".rstrip("."))
    return [f"{sentence}." for sentence in said]


def _figures(one: MetricComparison | KindComparison, comparison: Comparison) -> str:
    """`0.210 → 0.480 (+0.270, 95 % interval +0.220 to +0.320)`."""
    decimals = measure_decimals(one)
    between = interval(one, decimals)
    said = f"{confidence(comparison)} interval {between}" if between else "interval not known"
    return f"{fixed(one.base, decimals)} → {fixed(one.tuned, decimals)} ({signed(one.difference, decimals)}, {said})"


# At a glance


def view_glance(run: Run) -> Cells:
    """Settings, the speed of an answer, peak memory and how to use the model, as (name, value)."""
    if run.comparison is not None and run.comparison.names is not None:
        return ()
    cells = (
        ("Settings", _settings(run)),
        ("An answer", _speed(run)),
        ("Peak memory", _memory(run)),
        ("Use it", _use(run)),
    )
    return tuple((name, value) for name, value in cells if value)


def _settings(run: Run) -> str:
    train = run.config.get("train")
    if not isinstance(train, dict) or not run.steps:
        return ""
    lora, method = run.config.get("lora"), str(train.get("method") or "full")
    rank = f", rank {lora['r']}" if method != "full" and isinstance(lora, dict) and "r" in lora else ""
    rate, size = train.get("learning_rate"), train.get("batch_size")
    parts = [
        f"{method} finetuning{rank}",
        f"learning rate {plain(float(rate))}" if isinstance(rate, (int, float)) else "",
        f"{plural(len(run.steps), 'step')}" + (f" of {plural(size, 'record')}" if isinstance(size, int) else ""),
        f"seed {train['seed']}" if "seed" in train else "",
    ]
    return ", ".join(part for part in parts if part)


def _speed(run: Run) -> str:
    seconds = run.environment.phase_seconds.get("answers_tuned") if run.environment else None
    if not known(seconds) or not run.tuned or seconds <= 0:
        return ""
    num_tokens = sum(answer.num_tokens or 0 for answer in run.tuned)
    rate = f", {significant(num_tokens / seconds)} tokens a second" if num_tokens else ""
    return f"{duration(seconds / len(run.tuned))} on average{rate}, answered in batches"


def _memory(run: Run) -> str:
    peak = run.environment.peak_memory_bytes if run.environment else None
    if not known(peak) or run.environment is None:
        return ""
    total = run.environment.memory_bytes
    on_gpu = run.environment.device.startswith("cuda")
    return f"{storage(peak)} on the GPU" if on_gpu else f"{storage(peak)}" + (f" of {storage(total)}" if total else "")


def _use(run: Run) -> str:
    if not any((run.path / name).is_dir() for name in ("model", "adapter")):
        return ""
    path, here = run.path.resolve(), Path.cwd()
    name = shlex.quote(path.relative_to(here).as_posix() if here in path.parents else path.name)
    return f"tuneful chat --model {name}\ntuneful serve --model {name}\ntuneful export {name} --to gguf"
