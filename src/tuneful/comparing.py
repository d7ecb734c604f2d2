"""Two sets of answers become a comparison that is shown and written: what `tuneful compare` does, and the end of a run.

OUTPUT/comparison.json   OUTPUT/answers/{base,tuned}.jsonl   OUTPUT/data/test.jsonl   OUTPUT/report.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.judge.answered import Answered, AnsweredSet, Pairing, pair, read_answered
from tuneful.judge.compare import (
    Comparison,
    KindComparison,
    MetricComparison,
    as_dict,
    compare,
    gains,
    summary_sentence,
)
from tuneful.judge.forgetting import GeneralScore, compare_forgetting
from tuneful.judge.gate import Condition, Outcome, check_gate
from tuneful.judge.metrics import AnswerScores
from tuneful.report.build import build_report
from tuneful.rundir import RunDir

_NUM_CHANGED_SHOWN = 3


def compare_answers(
    base: str,
    tuned: str,
    config: Config,
    output: Path | None,
    terminal: Terminal,
    conditions: tuple[Condition, ...] = (),
    answer_key: str | None = None,
) -> tuple[dict[str, Any], list[Outcome]]:
    """Compare the answers in `tuned` with those in `base`, show it, and write it into `output` where that is given.

    `answer_key` names the key of the answer in files that are not ours. Returns what comparison.json holds, and what
    became of each condition of the gate. Raises DataError where the two cannot be paired, ConfigError where `output`
    is taken or a condition names what was not measured.
    """
    before, after = (read_answered(name, config.data, answer_key) for name in (base, tuned))
    pairing = pair(before, after)
    kinds = [one.kind for one in pairing.tuned]
    comparison = compare_models(
        config,
        [one.scores for one in pairing.base],
        [one.scores for one in pairing.tuned],
        kinds,
        before.general,
        after.general,
    )
    names = {"base": before.name, "tuned": after.name}
    document = comparison_document(
        comparison,
        sources=[one.source for one in pairing.tuned],
        references=[one.reference for one in pairing.tuned],
        kinds=kinds,
        base=[one.scores for one in pairing.base],
        tuned=[one.scores for one in pairing.tuned],
        names=names,
    )
    terminal.heading("Compared")
    terminal.facts(
        {
            "A": _counted(before, len(pairing.base), pairing.num_only_base),
            "B": _counted(after, len(pairing.tuned), pairing.num_only_tuned),
        }
    )
    show_comparison(comparison, document["sentence"], terminal, ("A", "B"))
    _show_changed_most(document, pairing, terminal)
    outcomes = apply_gate(conditions, comparison, document, terminal)
    if output is not None:
        _write(output, pairing, config, document)
        terminal.say(f"written: {output / 'report.html'}")
    return document, outcomes


def compare_models(
    config: Config,
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    kinds: Sequence[str | None],
    general_base: Sequence[GeneralScore],
    general_tuned: Sequence[GeneralScore],
) -> Comparison:
    """Compare the answers and the forgetting of two models with the confidence, resamples and seed of `config`."""
    report, seed = config.report, config.train.seed
    forgetting = compare_forgetting(
        general_base, general_tuned, confidence=report.confidence, num_resamples=report.num_resamples, seed=seed
    )
    return compare(
        base,
        tuned,
        kinds=kinds,
        forgetting=forgetting,
        confidence=report.confidence,
        num_resamples=report.num_resamples,
        seed=seed,
    )


def comparison_document(
    comparison: Comparison,
    *,
    sources: Sequence[str],
    references: Sequence[str],
    kinds: Sequence[str | None],
    base: Sequence[AnswerScores],
    tuned: Sequence[AnswerScores],
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What comparison.json holds: the comparison, its sentence, and the items behind it, each with its `gain`."""
    rows = zip(sources, references, kinds, gains(comparison, base, tuned), base, tuned, strict=True)
    items = [
        {
            "source": source,
            "reference": reference,
            "kind": kind,
            "gain": gain,
            "base": asdict(before),
            "tuned": asdict(after),
        }
        for source, reference, kind, gain, before, after in rows
    ]
    sentence = summary_sentence(comparison, "B") if names else summary_sentence(comparison)
    named = {"names": dict(names)} if names else {}
    return {**as_dict(comparison), **named, "sentence": sentence, "items": items}


def show_comparison(comparison: Comparison, sentence: str, terminal: Terminal, columns: tuple[str, str]) -> None:
    """The comparison as tables, and its sentence; `columns` head the two models."""
    difference = f"difference, {comparison.confidence:.0%} interval"
    terminal.heading(f"{columns[0].capitalize()} against {columns[1]}, {comparison.num_items} test records")
    terminal.table(
        ["", *columns, difference, ""], [_cells(one) for one in (*comparison.metrics, *comparison.forgetting)]
    )
    if comparison.kinds:
        terminal.say()
        head = f"{comparison.main.label} by kind of task"
        terminal.table([head, "items", *columns, difference, ""], [_kind_cells(kind) for kind in comparison.kinds])
    main = comparison.main
    terminal.say()
    terminal.say(
        f"{main.label} by item: {main.wins} better, {main.losses} worse, {main.ties} the same; {p_in_words(main)}"
    )
    terminal.say(sentence, style="bold")


def apply_gate(
    conditions: tuple[Condition, ...], comparison: Comparison, document: dict[str, Any], terminal: Terminal
) -> list[Outcome]:
    """Check the gate, show what became of it, and note it in the document of comparison.json."""
    outcomes = check_gate(conditions, comparison)
    for outcome in outcomes:
        terminal.say(f"gate  {outcome}", style="green" if outcome.met else "red")
    if outcomes:
        document["gate"] = [{"condition": str(one.condition), "found": one.found, "met": one.met} for one in outcomes]
    return outcomes


def p_in_words(metric: MetricComparison) -> str:
    """`p < 0.001 (permutation test)`, or that there is none."""
    if metric.p_value is None:
        return "no test"
    value = "p < 0.001" if metric.p_value < 0.001 else f"p = {metric.p_value:.3f}"
    return f"{value} ({'exact ' if metric.p_is_exact else ''}permutation test)"


def _counted(side: AnsweredSet, num_compared: int, num_left: int) -> str:
    left = f", {num_left} only here and left out" if num_left else ""
    return f"{side.name}: {len(side.items)} answers = {num_compared} compared{left or ' + 0 left out'}"


def _cells(metric: MetricComparison) -> list[str]:
    decimals = 1 if metric.unit == "0 to 100" else 3
    return [metric.label, *_figures(metric, decimals), metric.verdict]


def _kind_cells(kind: KindComparison) -> list[str]:
    return [
        kind.kind,
        str(kind.num_items),
        *_figures(kind, 3 if abs(kind.base) <= 1 and abs(kind.tuned) <= 1 else 1),
        kind.verdict,
    ]


def _figures(one: MetricComparison | KindComparison, decimals: int) -> list[str]:
    return [
        f"{one.base:.{decimals}f}",
        f"{one.tuned:.{decimals}f}",
        f"{one.difference:+.{decimals}f}  [{one.low:+.{decimals}f}, {one.high:+.{decimals}f}]",
    ]


def _show_changed_most(document: Mapping[str, Any], pairing: Pairing, terminal: Terminal) -> None:
    """The answers that lost most and those that gained most, one line a side."""
    changed = sorted(
        (
            (item["gain"], before, after)
            for item, before, after in zip(document["items"], pairing.base, pairing.tuned, strict=True)
            if item["gain"]
        ),
        key=lambda one: one[0],
    )
    losses = [one for one in changed[:_NUM_CHANGED_SHOWN] if one[0] < 0]
    gained = [one for one in reversed(changed[-_NUM_CHANGED_SHOWN:]) if one[0] > 0]
    for heading, rows in (("Largest losses", losses), ("Largest gains", gained)):
        if rows:
            terminal.heading(heading)
        for gain, before, after in rows:
            terminal.say(f"{gain:+.2f}  {after.source}", style="dim")
            for name, text in (("wanted", after.reference), ("A", before.text), ("B", after.text)):
                terminal.say(f"  {name:>6}  {_line(text, terminal)}")


def _line(text: str, terminal: Terminal) -> str:
    room = min(terminal.console.width, 120) - len("  wanted  ")
    line = " ".join(text.split()) or "(empty)"
    return line if len(line) <= room else line[: room - 4] + " ..."


def _write(output: Path, pairing: Pairing, config: Config, document: Mapping[str, Any]) -> None:
    run = RunDir(output)
    try:
        run.write_config(config)
        for name, side in (("base", pairing.base), ("tuned", pairing.tuned)):
            # Both under B's sources: the page joins them by source, and A's file may have lain elsewhere.
            rows = zip(side, pairing.tuned, strict=True)
            run.write_rows(f"answers/{name}.jsonl", (_answer_row(one, other.source) for one, other in rows))
        run.write_rows("data/test.jsonl", map(_test_row, pairing.tuned))
        run.write_json("comparison.json", document)
        build_report(run.path)
    finally:
        run.close()


def _answer_row(one: Answered, source: str) -> dict[str, Any]:
    return {
        "source": source,
        "prompt": one.prompt,
        "text": one.text,
        "ended_by": one.ended_by,
        "num_tokens": one.num_tokens,
    }


def _test_row(one: Answered) -> dict[str, Any]:
    kind = {"kind": one.kind} if one.kind else {}
    return {"instruction": one.prompt, "input": "", "output": one.reference, **kind, "source": one.source}
