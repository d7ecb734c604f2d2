"""Tests of two models compared: figures by hand, what counts, and the cases in which nothing varies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tuneful.config import EvaluationConfig
from tuneful.errors import DataError
from tuneful.evaluation.documents import comparison_without_answers
from tuneful.evaluation.gate import check_gate, check_without_answers, parse_gate
from tuneful.evaluation.tables import items_in_words
from tuneful.evaluation.task_comparison import compare_all_tests, compare_tests, figures_of, metric_names, summary_of
from tuneful.evaluation.task_files import ChoiceItem, InstructionItem, Task
from tuneful.runs.schema import ChoiceScore, InstructionScore

SETTINGS: dict[str, Any] = {"confidence": 0.95, "num_resamples": 500, "seed": 0}
CONFIG = EvaluationConfig(tests=("t.jsonl",))
CHOICES = Task("quiz", "quiz.jsonl", "0", tuple(ChoiceItem(f"q:{n}", "?", ("a", "b"), (0,)) for n in range(20)))
INSTRUCTIONS = Task("rules", "rules.jsonl", "0", tuple(InstructionItem(f"r:{n}", "?", ()) for n in range(4)))


def choice(number: int, acc: bool | None, norm: bool | None = None, reason: str | None = None) -> ChoiceScore:
    norm = acc if norm is None else norm
    return ChoiceScore(f"q:{number}", (0,), (-1.0, -2.0), (1, 1), (1, 1), (1, 1), acc, norm, acc, reason)


def rule(number: int, strict: tuple[bool, ...], loose: tuple[bool, ...], reason: str | None = None) -> InstructionScore:
    names = ("punctuation:no_comma",) * len(strict)
    return InstructionScore(f"r:{number}", "p", "t", "stop", 1, names, strict, loose, reason)


def test_accuracies_are_shares_with_paired_verdicts() -> None:
    base = [choice(n, n < 4) for n in range(20)]
    tuned = [choice(n, n < 16, n < 4) for n in range(20)]
    acc, norm = compare_tests(CHOICES, base, tuned, **SETTINGS)
    assert (acc.name, acc.label, acc.unit) == ("quiz_acc", "quiz acc", "share of items")
    assert (acc.base, acc.tuned, acc.wins, acc.losses, acc.ties) == (0.2, 0.8, 12, 0, 8)
    assert acc.verdict == "better"
    assert acc.p_value == pytest.approx(2 * 0.5**12)
    assert acc.p_is_exact
    assert (norm.name, norm.difference, norm.verdict) == ("quiz_acc_norm", 0, "cannot tell")


def test_accuracy_by_the_byte_is_a_metric_where_it_is_another() -> None:
    wide = ChoiceScore("q:0", (0,), (-1.0, -2.0), (1, 1), (1, 1), (2, 1), True, True, False)
    assert [one.name for one in compare_tests(CHOICES, [wide], [wide], **SETTINGS)] == [
        "quiz_acc",
        "quiz_acc_norm",
        "quiz_acc_bytes",
    ]


def test_an_item_that_one_model_has_no_score_of_counts_for_neither_and_is_told() -> None:
    base = [choice(0, True), choice(1, None, reason="too long"), choice(2, False)]
    tuned = [choice(0, True), choice(1, True), choice(2, None, reason="no token")]
    acc, _ = compare_tests(CHOICES, base, tuned, **SETTINGS)
    assert (acc.num_items, acc.base, acc.tuned) == (1, 1.0, 1.0)
    found = summary_of(CHOICES, CONFIG, base, tuned)
    assert (found.num_items, found.num_fewshot, found.num_scored, found.num_unscored) == (20, 17, 1, 2)
    assert found.unscored == {"too long": 1, "no token": 1}
    assert found.metrics == ("quiz_acc", "quiz_acc_norm")
    assert items_in_words(found) == (
        "quiz: 1 of 3 items scored, after 17 items that stand before each (1 not scored: too long; 1 not scored: no token)"
    )


def test_where_nothing_was_scored_there_is_no_metric_and_no_comparison() -> None:
    nothing = [choice(0, None, reason="too long")]
    assert compare_tests(CHOICES, nothing, nothing, **SETTINGS) == []
    assert figures_of(CHOICES, nothing, **SETTINGS) == []
    with pytest.raises(DataError, match=r"no item of evaluation\.tests was scored"):
        comparison_without_answers((), (), **SETTINGS)


def test_one_item_and_equal_models_tell_nothing() -> None:
    for scores in ([choice(0, True)], [choice(n, True) for n in range(20)]):
        for metric in compare_tests(CHOICES, scores, scores, **SETTINGS):
            assert (metric.difference, metric.verdict) == (0.0, "cannot tell")
            assert metric.low is None or metric.high is None or metric.low <= 0 <= metric.high


def test_instructions_count_each_and_prompts_whole() -> None:
    base = [rule(0, (True, False), (True, True)), rule(1, (False,), (False,)), rule(2, (True,), (True,))]
    tuned = [rule(0, (True, True), (True, True)), rule(1, (False,), (True,)), rule(2, (True,), (True,))]
    found = {one.name: one for one in compare_tests(INSTRUCTIONS, base, tuned, **SETTINGS)}
    assert {name: (one.base, one.tuned) for name, one in found.items()} == {
        "rules_prompt_level_strict_acc": (pytest.approx(1 / 3), pytest.approx(2 / 3)),
        "rules_inst_level_strict_acc": (0.5, 0.75),
        "rules_prompt_level_loose_acc": (pytest.approx(2 / 3), 1.0),
        "rules_inst_level_loose_acc": (0.75, 1.0),
    }
    assert found["rules_inst_level_strict_acc"].unit == "share of instructions"
    assert found["rules_inst_level_strict_acc"].label == "rules instructions, strict"


def test_figures_of_one_model_have_intervals_inside_0_to_1() -> None:
    strict = [rule(n, (n % 2 == 0, True), (True, True)) for n in range(10)]
    for figure in figures_of(INSTRUCTIONS, strict, **SETTINGS):
        assert 0 <= figure.low <= figure.value <= figure.high <= 1
        assert figure.num_items == 10
    [acc, _] = figures_of(CHOICES, [choice(n, True) for n in range(10)], **SETTINGS)
    assert (acc.value, acc.high) == (1.0, 1.0)
    assert acc.low < 0.8  # no point where all items agree


def test_the_interval_of_a_share_of_instructions_covers() -> None:
    rng = np.random.default_rng(0)
    num_covering = 0
    for seed in range(200):
        scores = []
        for number in range(30):
            ease = rng.beta(2, 2)  # instructions of one item go together
            own = tuple(bool(one) for one in rng.random(rng.integers(1, 4)) < ease)
            scores.append(rule(number, own, own))
        settings = {**SETTINGS, "num_resamples": 200, "seed": seed}
        figure = next(one for one in figures_of(INSTRUCTIONS, scores, **settings) if "inst_level_strict" in one.name)
        num_covering += figure.low <= 0.5 <= figure.high
    assert 0.91 <= num_covering / 200 <= 0.99


def test_gates_name_the_metrics_of_tests() -> None:
    names = metric_names([CHOICES, INSTRUCTIONS])
    assert "quiz_acc" in names
    assert "rules_prompt_level_strict_acc" in names
    conditions = parse_gate("quiz_acc>=0, quiz_acc.tuned>=0.9", others=names)
    check_without_answers(conditions, has_documents=False, others=names)
    tests, metrics = compare_all_tests(
        [CHOICES],
        CONFIG,
        {"quiz": [choice(n, n < 4) for n in range(20)]},
        {"quiz": [choice(n, n < 16) for n in range(20)]},
        **SETTINGS,
    )
    comparison = comparison_without_answers(metrics, (), **SETTINGS)
    assert [one.met for one in check_gate(conditions, comparison)] == [True, False]
    assert tests[0].num_scored == 20
    assert comparison.sentence is not None
    assert comparison.sentence.startswith("The tuned model's answers are better on quiz acc: ")
