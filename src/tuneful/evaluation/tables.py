"""A comparison on the terminal: metrics, kinds of task and forgetting as tables, the results of the gate, one sentence.

Stands over `compare.py` and `gate.py`, for `tuneful compare` and for the end of a run.
"""

from __future__ import annotations

from dataclasses import replace

from tuneful.console import Terminal
from tuneful.evaluation.check_tables import show_unscored
from tuneful.evaluation.gate import Condition, check_gate
from tuneful.evaluation.ratings import in_words
from tuneful.numbers import plural
from tuneful.runs.schema import (
    Comparison,
    KindComparison,
    MetricComparison,
    PairOfSides,
    PairwiseComparison,
    PairwiseMetric,
    Side,
    TaskSummary,
)

_MOST_SIDES = 7  # columns of figures that a table of 80 columns holds


def show_comparison(comparison: Comparison, terminal: Terminal, columns: tuple[str, str]) -> None:
    """Print the comparison as tables, and its sentence; `columns` head the two models."""
    difference = f"difference, {comparison.confidence:.0%} interval"
    terminal.heading(f"{columns[0].capitalize()} against {columns[1]}, {comparison.num_items} test records")
    terminal.table(
        ["", *columns, difference, ""], [metric_cells(one) for one in (*comparison.metrics, *comparison.forgetting)]
    )
    if comparison.kinds:
        terminal.say()
        head = f"{comparison.main.label} by kind of task"
        terminal.table([head, "items", *columns, difference, ""], [_kind_cells(kind) for kind in comparison.kinds])
    main = comparison.main
    if comparison.checks is not None:
        show_unscored(dict(zip(columns, (comparison.checks.base, comparison.checks.tuned), strict=True)), terminal)
    terminal.say()
    terminal.say(
        f"{main.label} by item: {main.wins} better, {main.losses} worse, {main.ties} the same; {p_in_words(main)}"
    )
    for test in comparison.tests:
        terminal.say(items_in_words(test))
    if comparison.people is not None:
        terminal.say(in_words(comparison.people, comparison.confidence, columns))
    terminal.say(comparison.sentence or "", style="bold")


def show_pairwise(compared: PairwiseComparison, terminal: Terminal) -> None:
    """Print what all sides reach by every metric, every pair by the headline metric, and who is told from whom."""
    terminal.heading(f"Compared: {len(compared.sides)} sides, every two of them")
    terminal.facts({side.letter: _counted(side) for side in compared.sides})
    letters = [side.letter for side in compared.sides]
    for start in range(0, len(letters), _MOST_SIDES):
        chosen = slice(start, start + _MOST_SIDES)
        terminal.say()
        terminal.table(["", *letters[chosen]], [[one.label, *_values(one)[chosen]] for one in compared.metrics])
    terminal.say()
    main, level = compared.main, f"{100 * compared.pair_confidence:.4g} %"
    head = f"{main.label} by pair"
    terminal.table(
        [head, f"difference, {level} interval", "p (Holm)", ""], [pair_cells(main, one) for one in main.pairs]
    )
    terminal.say(
        f"The {plural(len(main.pairs), 'interval')} hold together at {100 * compared.confidence:g} %.", style="dim"
    )
    others = [one for one in compared.metrics if one is not main and any(p.verdict != "cannot tell" for p in one.pairs)]
    for one in others:
        terminal.say(f"{one.label}: {one.sentence}", style="dim")
    terminal.say(compared.sentence or "", style="bold")


def pair_cells(metric: PairwiseMetric, pair: PairOfSides) -> list[str]:
    """A pair of sides as a line of a table: which, difference with its interval, corrected p-value, verdict."""
    decimals = _decimals(metric)
    figures = f"{pair.difference:+.{decimals}f}  {_interval(pair, decimals)}"
    p_value = (
        "no test" if pair.p_corrected is None else f"{pair.p_corrected:.3f}" if pair.p_corrected >= 0.001 else "< 0.001"
    )
    verdict = pair.verdict if pair.verdict == "cannot tell" else f"{pair.tuned} {pair.verdict}"
    return [f"{pair.tuned} against {pair.base}", figures, p_value, verdict]


def _values(metric: PairwiseMetric) -> list[str]:
    return [f"{value:.{_decimals(metric)}f}" for value in metric.values]


def _decimals(metric: PairwiseMetric) -> int:
    return 1 if metric.unit == "0 to 100" or max(map(abs, metric.values)) >= 100 else 3


def _counted(side: Side) -> str:
    if not side.num_items + side.num_left_out:
        return side.name
    return f"{side.name}: {side.num_items + side.num_left_out} answers = {side.num_items} compared + {side.num_left_out} left out"


def apply_gate(conditions: tuple[Condition, ...], comparison: Comparison, terminal: Terminal) -> Comparison:
    """The comparison with the result of each condition of the gate, which is printed; unchanged where there is none."""
    outcomes = check_gate(conditions, comparison)
    for outcome in outcomes:
        terminal.say(f"gate  {outcome}", style="green" if outcome.met else "red")
    return replace(comparison, gate=tuple(outcomes)) if outcomes else comparison


def items_in_words(test: TaskSummary) -> str:
    """How many items of a test count, and why others do not."""
    asked = "" if test.prompt == "template" else ", asked raw"
    shots = f", after {plural(test.num_fewshot, 'item')} that stand before each" if test.num_fewshot else ""
    reasons = "; ".join(f"{count:,} not scored: {reason}" for reason, count in test.unscored.items())
    counted = f"{test.name}: {test.num_scored:,} of {plural(test.num_items - test.num_fewshot, 'item')} scored"
    return counted + shots + asked + (f" ({reasons})" if reasons else "")


def p_in_words(metric: MetricComparison) -> str:
    """`p < 0.001 (permutation test)`, or that there is none."""
    if metric.p_value is None:
        return "no test"
    value = "p < 0.001" if metric.p_value < 0.001 else f"p = {metric.p_value:.3f}"
    return f"{value} ({'exact ' if metric.p_is_exact else ''}permutation test)"


def metric_cells(metric: MetricComparison) -> list[str]:
    """A metric as a line of a table: label, base, tuned, difference with its interval, verdict."""
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
        _figure(one.base, decimals),
        _figure(one.tuned, decimals),
        f"{_figure(one.difference, decimals, sign='+')}  {_interval(one, decimals)}",
    ]


def _interval(one: MetricComparison | KindComparison | PairOfSides, decimals: int) -> str:
    if one.low is None or one.high is None:
        return "[not known]"
    return f"[{_figure(one.low, decimals, sign='+')}, {_figure(one.high, decimals, sign='+')}]"


def _figure(value: float, decimals: int, *, sign: str = "") -> str:
    """A figure of a table of 80 columns: one of 10,000 and more (the perplexity of a model that knows nothing of what it is
    asked) has three significant digits."""
    return f"{value:{sign}.{decimals}f}" if abs(value) < 10_000 else f"{value:{sign}.3g}"
