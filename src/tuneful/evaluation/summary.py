"""The result of a comparison in plain words: the sentence at the head of the report and at the end of a run.

Stands beside `compare.py` and reads a `Comparison`. As many decimals are written as the interval's width deserves: figures that
the test set cannot tell apart are not shown as different.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuneful.evaluation.metric_specs import label_in_sentence
from tuneful.evaluation.statistics import fewest_items
from tuneful.numbers import plural
from tuneful.runs.schema import Comparison, MetricComparison


def summary_sentence(comparison: Comparison, tuned: str = "the tuned model") -> str:
    """The headline metric, the metrics that point elsewhere, what was forgotten, and the caution.

    `tuned` is what the second model is called.
    """
    return "".join(
        (
            _headline(comparison, tuned),
            _other_metrics(comparison, tuned),
            _forgetting(comparison, tuned),
            _judge(comparison),
            f" Caution: {comparison.caution}." if comparison.caution else "",
        )
    )


def _headline(comparison: Comparison, tuned: str) -> str:
    metric = comparison.main
    numbers, items = _numbers(metric, comparison.confidence), plural(metric.num_items, "test item")
    if metric.name.startswith("document_"):
        return _of_documents(metric, numbers, tuned)
    if metric.verdict != "cannot tell":
        label = label_in_sentence(metric)
        return f"{_capital(tuned)}'s answers are {metric.verdict} on {label}: {numbers} on {items}."
    text = f"The test cannot tell whether {tuned}'s answers are better: {metric.label} {numbers} on {items}."
    if metric.low is not None and metric.high is not None and not metric.low <= 0 <= metric.high:
        return text + f" {_why_not(metric, comparison.confidence)}"
    if metric.detectable is None:
        return text
    return text + f" A true difference of {_decimal(metric.detectable, metric)} would show in 4 of 5 such tests."


def _why_not(metric: MetricComparison, confidence: float) -> str:
    """Why an interval that leaves out 0 makes no verdict: the other test does not agree."""
    changed, fewest = metric.wins + metric.losses, fewest_items(confidence)
    if changed < fewest:
        few = plural(changed, "changed answer")
        return f"The interval leaves out 0, but {few} can be chance: {fewest} is the fewest that cannot."
    return f"The interval leaves out 0, but the permutation test does not (p = {metric.p_value:.3f}); a verdict needs both."


def _of_documents(metric: MetricComparison, numbers: str, tuned: str) -> str:
    documents = plural(metric.num_items, "held-out document")
    found = f"{'perplexity' if metric.name == 'document_perplexity' else metric.unit} {numbers} on {documents}"
    if metric.verdict == "cannot tell":
        return f"The test cannot tell whether {tuned} expects held-out documents better: {found}."
    return f"{_capital(tuned)} is {metric.verdict} at held-out documents: {found}."


def _other_metrics(comparison: Comparison, tuned: str) -> str:
    """The metrics that are better or worse where the headline is not."""
    text = ""
    for verdict in ("better", "worse"):
        labels = [
            label_in_sentence(metric)
            for metric in comparison.metrics
            if metric.verdict == verdict != comparison.main.verdict
            and metric.name
            not in ("perplexity", "document_bits", "judge_score")  # which repeat another, or are told with the judge
            and not metric.name.endswith(
                ("_acc_norm", "_acc_bytes", "inst_level_strict_acc", "_loose_acc")
            )  # as these do
        ]
        text += f" {_capital(tuned)} is {verdict} on {_listed(labels)}." if labels else ""
    return text


def _judge(comparison: Comparison) -> str:
    """What is wrong with the judge; nothing where it is usable, or where there is none."""
    if comparison.measured("judge_score") is None:
        return ""
    if comparison.judge is None:
        return " The judge was not probed, so its scores are not the headline."
    verdict, sentence = comparison.judge.verdict, comparison.judge.sentence
    if verdict == "usable":
        return ""
    return f" {sentence}" + ("" if verdict == "usable with care" else " Its scores are not the headline.")


def _forgetting(comparison: Comparison, tuned: str) -> str:
    """What the tuned model forgot of general text, or that it did not; nothing where it was not measured."""
    metric = comparison.measured("forgetting")
    if metric is None:
        return ""
    numbers = f"{label_in_sentence(metric)} {_numbers(metric, comparison.confidence)} {metric.unit}"
    if metric.verdict == "worse":
        return f" {_capital(tuned)} has forgotten something: {numbers}."
    if metric.verdict == "better":
        return f" {_capital(tuned)} has forgotten nothing that was measured: {numbers}."
    return f" Whether {tuned} has forgotten anything cannot be told: {numbers}."


def _numbers(metric: MetricComparison, confidence: float) -> str:
    """`0.21 -> 0.48 (+0.27, 95 % interval +0.22 to +0.32)`."""
    base, tuned = (f"{value:.{_decimals(metric)}f}" for value in (metric.base, metric.tuned))
    change = f"{base} -> {tuned} ({_decimal(metric.difference, metric, '+')}"
    if metric.low is None or metric.high is None:
        return f"{change}, interval not known)"
    low, high = (_decimal(value, metric, "+") for value in (metric.low, metric.high))
    return f"{change}, {100 * confidence:g} % interval {low} to {high})"


def _decimals(metric: MetricComparison) -> int:
    half_width = 0.0 if metric.low is None or metric.high is None else (metric.high - metric.low) / 2
    fewest = 1 if metric.unit == "0 to 100" else 2
    return int(np.clip(np.ceil(-np.log10(half_width)), fewest, 4)) if half_width > 1e-9 else fewest


def _decimal(value: float, metric: MetricComparison, sign: str = "") -> str:
    decimals = _decimals(metric)
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # + 0.0 turns -0.0 into 0.0


def _listed(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
