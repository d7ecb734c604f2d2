"""Labels: found as a person would, counted as scikit-learn counts, compared with intervals that cover and exact tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneful.evaluation.check_kinds import CheckItem
from tuneful.evaluation.label_comparison import compare_labels
from tuneful.evaluation.labels import (
    class_table,
    label_outcomes,
    labelled,
    labels_of,
    macro_f1,
    macro_f1_differences,
    macro_f1_interval,
    macro_f1_test,
)
from tuneful.evaluation.metric_specs import MetricSpec
from tuneful.runs.schema import CheckOutcome

SPEC = MetricSpec("label_macro_f1", "Label, macro F1", "0 to 1", True, formula="macro_f1", check="label")


def items(*pairs: tuple[str | None, str]) -> list[CheckItem]:
    return [CheckItem(f"my.json:{n}", "asked", reference, text) for n, (reference, text) in enumerate(pairs)]


def outcomes(wanted: Sequence[str], found: Sequence[str | None]) -> list[CheckOutcome]:
    return [CheckOutcome(float(w == f), found=f, wanted=w) for w, f in zip(wanted, found, strict=True)]


def test_labels_are_found_from_the_references_and_in_the_answers_as_words() -> None:
    given_items = items(
        ("spam", "Spam."),
        ("not spam", "This is not spam, I think"),
        ("Spam", "spam or not spam?"),
        ("spam", "Hard to say"),
        ("not spam", "spammy spam"),
        ("not spam", "The label is: “spam”"),
        (None, "spam"),
        ("spam", ""),
    )
    found = label_outcomes(given_items, (), whole=False)
    assert [one.found for one in found] == ["spam", "not spam", None, None, "spam", "spam", None, None]
    assert [one.score for one in found] == [1, 1, 0, 0, 0, 0, None, 0]
    assert [one.why for one in found] == [
        None,
        None,
        "several labels",
        "no label",
        "another label",
        "another label",
        None,
        "no label",
    ]
    assert found[6].unscored_reason == "the record has no reference answer"
    whole = label_outcomes(given_items, (), whole=True)
    assert [one.found for one in whole] == ["spam", None, None, None, None, None, None, None]


def test_labels_of_scripts_without_spaces_are_found_inside_a_sentence() -> None:
    found = label_outcomes(
        items(("积极", "这是积极的"), ("消极", "这是消极的"), ("消极", "?")), ("积极", "消极"), whole=False
    )
    assert [one.found for one in found] == ["积极", "消极", None]


def test_given_labels_leave_out_references_that_are_none_of_them() -> None:
    found = label_outcomes(items(("A+", "a+"), ("A", "A+"), ("B", "A")), ("A", "A+"), whole=False)
    assert [(one.score, one.found) for one in found] == [(1, "A+"), (0, "A+"), (None, None)]
    assert found[2].unscored_reason == "the reference is none of the labels"


def test_references_that_all_differ_are_no_labels() -> None:
    found = label_outcomes(items(*((f"Answer {n}", "x") for n in range(8))), (), whole=False)
    assert {one.unscored_reason for one in found} == {
        "no labels: 8 different references of 8; name the labels, label: [A, B]"
    }


GOLDEN: tuple[tuple[str, str, float, float, tuple[tuple[float, float, float], ...]], ...] = (
    # references and answers (- names no label); scikit-learn 1.9.1's accuracy, macro F1 over the labels of the references, and
    # (precision, recall, F1) of a, b and c with zero_division=0
    ("cbbaaaaaacbc", "cc-cccc-b-ca", 1 / 12, 0.06666666666666667, ((0, 0, 0), (0, 0, 0), (1 / 7, 1 / 3, 0.2))),
    ("bbccaaccaacb", "b-bbccaa---c", 1 / 12, 0.1111111111111111, ((0, 0, 0), (1 / 3, 1 / 3, 1 / 3), (0, 0, 0))),
    ("caaabcbabbcc", "-a-acbacbcba", 0.25, 0.2619047619047619, ((0.5, 0.5, 0.5), (1 / 3, 0.25, 2 / 7), (0, 0, 0))),
)


@pytest.mark.parametrize(("wanted", "found", "accuracy", "f1", "per_label"), GOLDEN)
def test_figures_are_scikit_learns(
    wanted: str, found: str, accuracy: float, f1: float, per_label: tuple[tuple[float, float, float], ...]
) -> None:
    scored = outcomes([*wanted], [None if sign == "-" else sign for sign in found])
    assert np.mean([one.score for one in scored if one.score is not None]) == pytest.approx(accuracy)
    assert macro_f1(labelled(scored, labels_of(scored))) == pytest.approx(f1, abs=1e-12)
    table, _ = class_table(scored)
    for one, expected in zip(table, per_label, strict=True):
        assert (one.precision or 0, one.recall or 0, one.f1) == pytest.approx(expected, abs=1e-12)


def independent(
    wanted: Sequence[str], found: Sequence[str | None]
) -> tuple[float, dict[str, tuple[float, float, float]]]:
    """Macro F1 and (precision, recall, F1) of each label, counted item by item."""
    per_label = {}
    for label in {*wanted, *(one for one in found if one)}:
        right = sum(w == f == label for w, f in zip(wanted, found, strict=True))
        named, true = sum(f == label for f in found), sum(w == label for w in wanted)
        precision, recall = right / named if named else math.nan, right / true if true else math.nan
        f1 = 0.0 if not right else 2 * precision * recall / (precision + recall)
        per_label[label] = (precision, recall, f1)
    return sum(per_label[label][2] for label in set(wanted)) / len(set(wanted)), per_label


@pytest.mark.parametrize("seed", range(10))
def test_figures_are_those_of_an_independent_count_on_random_tables(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(100):
        num_labels, num_items = int(generator.integers(1, 6)), int(generator.integers(1, 40))
        labels = [f"label {index}" for index in range(num_labels)]
        wanted = [labels[k] for k in generator.integers(num_labels, size=num_items)]
        found = [None if k == num_labels else labels[k] for k in generator.integers(num_labels + 1, size=num_items)]
        scored = outcomes(wanted, found)
        expected, per_label = independent(wanted, found)
        assert macro_f1(labelled(scored, labels_of(scored))) == pytest.approx(expected, abs=1e-12)
        table, confusion = class_table(scored)
        assert sum(map(sum, confusion)) == num_items
        for one in table:
            figures = [math.nan if value is None else value for value in (one.precision, one.recall, one.f1)]
            assert figures == pytest.approx(per_label[one.label], abs=1e-12, nan_ok=True)
            assert one.num_right == sum(w == f == one.label for w, f in zip(wanted, found, strict=True))


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("abc-"), st.sampled_from("abc-")), min_size=1, max_size=7
    )
)
@settings(max_examples=60, deadline=None)
def test_the_permutation_test_is_that_of_all_swaps_one_by_one(rows: list[tuple[str, str, str]]) -> None:
    wanted, one, other = ([None if sign == "-" else sign for sign in column] for column in zip(*rows, strict=True))

    def distance(swaps: Sequence[bool]) -> float:
        sides = [[b if s else a for a, b, s in zip(x, y, swaps, strict=True)] for x, y in ((one, other), (other, one))]
        first, second = (independent(wanted, side)[0] for side in sides)  # type: ignore[arg-type]
        return abs(second - first)

    every = list(product((False, True), repeat=len(rows)))
    observed = distance(every[0])
    expected = sum(distance(swaps) >= observed - 1e-9 for swaps in every) / len(every)
    scored = [outcomes(wanted, side) for side in (one, other)]  # type: ignore[arg-type]
    labels = labels_of(scored[0])
    test = macro_f1_test(labelled(scored[0], labels), labelled(scored[1], labels), 10, seed=0)
    assert test.is_exact
    assert test.p_value == pytest.approx(expected)


def population(
    generator: np.random.Generator, num_items: int, shares: Sequence[float], right: Sequence[float]
) -> list[tuple[str, str | None, str | None]]:
    """Items of labels with these `shares`; each of two models is right with its own probability, else names any label or none."""
    labels = [chr(ord("a") + index) for index in range(len(shares))]
    rows = []
    for code in generator.choice(len(shares), size=num_items, p=shares):
        found = [
            labels[code] if generator.random() < p else [*labels, None][generator.integers(len(labels) + 1)]
            for p in right
        ]
        rows.append((labels[code], found[0], found[1]))
    return rows


@pytest.mark.parametrize(
    ("num_items", "shares", "right"),
    [(130, (0.5, 0.3, 0.2), (0.5, 0.5)), (130, (0.5, 0.3, 0.2), (0.4, 0.6)), (300, (0.8, 0.15, 0.05), (0.6, 0.75))],
)
def test_intervals_cover_and_equal_models_are_seldom_called_better(
    num_items: int, shares: tuple[float, ...], right: tuple[float, float]
) -> None:
    generator = np.random.default_rng(7)
    large = population(np.random.default_rng(1), 100_000, shares, right)
    truth = _difference(large)
    num_sets, covered, better = 150, 0, 0
    for seed in range(num_sets):
        rows = population(generator, num_items, shares, right)
        wanted = [row[0] for row in rows]
        sides = [outcomes(wanted, [row[k] for row in rows]) for k in (1, 2)]
        found = compare_labels(SPEC, *sides, confidence=0.95, num_resamples=300, seed=seed)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
        better += found.verdict == "better"
    assert covered / num_sets >= 0.91  # 95 % less three standard errors of 150 sets
    if right[0] == right[1]:
        assert better / num_sets <= 0.05
    else:
        assert better / num_sets > 0.5


def _difference(rows: Sequence[tuple[str, str | None, str | None]]) -> float:
    wanted = [row[0] for row in rows]
    values = [macro_f1(labelled(outcomes(wanted, [row[k] for row in rows]), sorted(set(wanted)))) for k in (1, 2)]
    return values[1] - values[0]


def test_the_interval_of_one_model_covers() -> None:
    generator, shares = np.random.default_rng(3), (0.6, 0.4)
    truth = macro_f1(labelled(outcomes(*_columns(population(generator, 100_000, shares, (0.6, 0.6)))), ["a", "b"]))
    covered = 0
    for seed in range(150):
        scored = outcomes(*_columns(population(generator, 80, shares, (0.6, 0.6))))
        low, high = macro_f1_interval(
            labelled(scored, labels_of(scored)), confidence=0.95, num_resamples=300, seed=seed
        )
        covered += low <= truth <= high
    assert covered / 150 >= 0.91


def _columns(rows: Sequence[tuple[str, str | None, str | None]]) -> tuple[list[str], list[str | None]]:
    return [row[0] for row in rows], [row[1] for row in rows]


@pytest.mark.parametrize(
    ("wanted", "one", "other"),
    [
        (["a"], ["a"], ["a"]),
        (["a"], [None], ["a"]),
        (["a", "b"] * 10, ["a", "b"] * 10, ["a", "b"] * 10),
        (["a"] * 20, [None] * 20, [None] * 20),
    ],
)
def test_one_item_and_equal_models_cannot_be_told_apart(
    wanted: list[str], one: list[str | None], other: list[str | None]
) -> None:
    sides = outcomes(wanted, one), outcomes(wanted, other)
    found = compare_labels(SPEC, *sides, confidence=0.95, num_resamples=200, seed=0)
    assert found.verdict == "cannot tell"
    if len(wanted) == 1:
        assert found.low is found.high is None
    else:
        assert found.low is not None
        assert found.high is not None
        assert -1 <= found.low < found.difference < found.high <= 1
    assert found.wins + found.losses + found.ties == found.num_items == len(wanted)


def test_the_swapped_models_give_the_swapped_interval() -> None:
    rows = population(np.random.default_rng(0), 60, (0.5, 0.5), (0.4, 0.7))
    wanted = [row[0] for row in rows]
    one, other = (labelled(outcomes(wanted, [row[k] for row in rows]), sorted(set(wanted))) for k in (1, 2))
    forth, back = macro_f1_differences(one, other, 200, 0), macro_f1_differences(other, one, 200, 0)
    assert np.allclose(forth, -back, rtol=0, atol=1e-12)
