"""A comparison on the terminal: metrics, kinds of task and forgetting as tables, the results of the gate, one sentence.

Stands over `compare.py` and `gate.py`, for `tuneful compare` and for the end of a run.
"""

from __future__ import annotations

from dataclasses import replace

from tuneful.console import Terminal
from tuneful.evaluation.check_tables import show_unscored
from tuneful.evaluation.gate import Condition, check_gate
from tuneful.evaluation.ratings import in_words
from tuneful.runs.schema import Comparison, KindComparison, MetricComparison


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
    if comparison.people is not None:
        terminal.say(in_words(comparison.people, comparison.confidence, columns))
    terminal.say(comparison.sentence or "", style="bold")


def apply_gate(conditions: tuple[Condition, ...], comparison: Comparison, terminal: Terminal) -> Comparison:
    """The comparison with the result of each condition of the gate, which is printed; unchanged where there is none."""
    outcomes = check_gate(conditions, comparison)
    for outcome in outcomes:
        terminal.say(f"gate  {outcome}", style="green" if outcome.met else "red")
    return replace(comparison, gate=tuple(outcomes)) if outcomes else comparison


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
        f"{one.base:.{decimals}f}",
        f"{one.tuned:.{decimals}f}",
        f"{one.difference:+.{decimals}f}  [{one.low:+.{decimals}f}, {one.high:+.{decimals}f}]",
    ]
