"""Labels: which one an answer names, and how well a set of answers names them: accuracy, per class, confusion, macro F1.

    labels    those that are given, or what the references say, where few enough differ for them to be labels
    found     the whole answer, or else the one label that stands in it as a word (`not spam` is not `spam`)

Macro F1 is the mean, over the labels that scored references name, of F1 = 2 right / (items + found); an answer that names no
label, or one that no reference names, counts against the label of its reference alone. It is scikit-learn's
`f1_score(average="macro", labels=those)`. Two models are compared over the same labels, on every resample those that its
references name.

Legend of shapes: I items, C labels, R resamples of a chunk, B resamples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuneful.evaluation.check_kinds import NO_REFERENCE, CheckItem, unscored
from tuneful.evaluation.metrics import is_unspaced, without_outer_marks
from tuneful.evaluation.statistics import Array, PermutationTest, interval, resampled_counts
from tuneful.runs.schema import CheckOutcome, ClassScores

Codes = npt.NDArray[np.int64]
"""The label of each item as its place in a list of labels, -1 for none: [I]."""

MAX_LABELS = 50
_COUNTED = 14
"""Changed items whose 2**14 swaps are counted one by one."""
_ROUNDING = 1e-9


def label_outcomes(items: Sequence[CheckItem], given: Sequence[str], *, whole: bool) -> list[CheckOutcome]:
    """Whether each answer names the label of its reference. `given` are the labels, or none to take those of the references;
    with `whole` an answer names only the label that it is."""
    labels = {without_outer_marks(label): label for label in given} or _labels_of(items)
    if isinstance(labels, str):
        return [unscored(NO_REFERENCE if item.reference is None else labels) for item in items]
    finder = _Finder(labels, whole)
    outcomes = []
    for item in items:
        wanted = None if item.reference is None else labels.get(without_outer_marks(item.reference))
        if wanted is None:
            reason = NO_REFERENCE if item.reference is None else "the reference is none of the labels"
            outcomes.append(unscored(reason))
            continue
        found, why = finder.find(item.text)
        if found is not None:
            why = None if found == wanted else "another label"
        outcomes.append(CheckOutcome(float(found == wanted), why=why, found=found, wanted=wanted))
    return outcomes


def _labels_of(items: Sequence[CheckItem]) -> dict[str, str] | str:
    """The labels that the references are, each as it is first written; in words why they are none."""
    labels: dict[str, str] = {}
    references = [item.reference for item in items if item.reference is not None]
    for reference in references:
        labels.setdefault(without_outer_marks(reference), reference.strip())
    labels.pop("", None)
    if len(labels) > MAX_LABELS or len(labels) > max(2, len(references) / 2):
        return f"no labels: {len(labels)} different references of {len(references)}; name the labels, label: [A, B]"
    return dict(sorted(labels.items()))


class _Finder:
    """Finds the label that a text names."""

    def __init__(self, labels: Mapping[str, str], whole: bool) -> None:
        self._labels = labels
        longest_first = sorted(filter(None, labels), key=len, reverse=True)
        self._pattern = None if whole else re.compile("|".join(map(_as_word, longest_first)))

    def find(self, text: str) -> tuple[str | None, str | None]:
        """The label, or None and why."""
        folded = without_outer_marks(text)
        if folded in self._labels:
            return self._labels[folded], None
        named = set(self._pattern.findall(folded)) if self._pattern else set()
        if len(named) == 1:
            return self._labels[named.pop()], None
        return None, "several labels" if named else "no label"


def _as_word(label: str) -> str:
    """The pattern of a label that no other letter touches; scripts without spaces have no such ends."""
    before, after = (
        "" if is_unspaced(sign) else guard for sign, guard in ((label[0], r"(?<!\w)"), (label[-1], r"(?!\w)"))
    )
    return f"{before}{re.escape(label)}{after}"


def class_table(
    outcomes: Sequence[CheckOutcome],
) -> tuple[tuple[ClassScores, ...], tuple[tuple[int, ...], ...]]:
    """Every label that an answer or a reference of the scored items names, sorted; and the confusion matrix of `CheckResult`."""
    scored = [outcome for outcome in outcomes if outcome.score is not None and outcome.wanted is not None]
    labels = sorted({one for outcome in scored for one in (outcome.wanted, outcome.found) if one is not None})
    pairs = Counter((outcome.wanted, outcome.found) for outcome in scored)
    columns: list[str | None] = [*labels, None]
    confusion = tuple(tuple(pairs[label, found] for found in columns) for label in labels)
    table = []
    for index, label in enumerate(labels):
        num_items, num_found = sum(confusion[index]), sum(row[index] for row in confusion)
        num_right = confusion[index][index]
        table.append(
            ClassScores(
                label,
                num_items,
                num_found,
                num_right,
                precision=num_right / num_found if num_found else None,
                recall=num_right / num_items if num_items else None,
                f1=2 * num_right / (num_items + num_found),
            )
        )
    return tuple(table), confusion


# Macro F1


@dataclass(frozen=True, slots=True)
class LabelledItems:
    """Scored items of one model as codes, [I] each: the label of the reference, which is always there, and of the answer."""

    wanted: Codes
    found: Codes


def labelled(outcomes: Sequence[CheckOutcome], labels: Sequence[str]) -> LabelledItems:
    """The outcomes, each scored, as codes of `labels`, which are those of the references."""
    codes = {label: code for code, label in enumerate(labels)}
    wanted = np.array([codes[str(one.wanted)] for one in outcomes], dtype=np.int64)
    found = np.array([codes.get(str(one.found), -1) if one.found else -1 for one in outcomes], dtype=np.int64)
    return LabelledItems(wanted, found)


def labels_of(outcomes: Sequence[CheckOutcome]) -> list[str]:
    """The labels that the references of scored items name, sorted."""
    return sorted({str(one.wanted) for one in outcomes if one.score is not None})


def macro_f1(items: LabelledItems) -> float:
    """Mean F1 over the labels of the references; at least one item."""
    ones = np.ones((1, len(items.wanted)))
    return float(_macro_f1(ones @ _right(items), ones @ _one_hot(items.found, _num(items)), ones @ _true(items))[0])


def macro_f1_differences(base: LabelledItems, tuned: LabelledItems, num_resamples: int, seed: int) -> Array:
    """Macro F1 of tuned - base on every resample, [B]. Drawn with the pseudo-counts of shares: one item more that only tuned gets
    right and one more that only base does, spread over the labels as the references are."""
    # The item against the change comes first, so that swapping the models flips the interval.
    base_first = macro_f1(tuned) >= macro_f1(base)
    sides = ((base, base_first), (tuned, not base_first))
    columns_I6C = np.concatenate([_with_pseudo_items(one, is_first) for one, is_first in sides], 1)
    num = _num(base)
    differences = []
    for counts_RI in resampled_counts(len(columns_I6C), num_resamples, seed):
        sums = counts_RI @ columns_I6C
        right, found, true, tuned_right, tuned_found, _ = (sums[:, k * num : (k + 1) * num] for k in range(6))
        differences.append(_macro_f1(tuned_right, tuned_found, true) - _macro_f1(right, found, true))
    return np.concatenate(differences)


def macro_f1_interval(items: LabelledItems, *, confidence: float, num_resamples: int, seed: int) -> tuple[float, float]:
    """Bootstrap interval of one model's macro F1, with one item more that is right and one more that names no label, and without
    the bias that resampling shows (Efron & Tibshirani 1993, section 10.6)."""
    num, value = _num(items), macro_f1(items)
    columns = np.concatenate([_right(items), _one_hot(items.found, num), _true(items)], 1)
    shares = _true(items).mean(0)
    none = np.zeros(num)
    columns = np.vstack([columns, np.concatenate([shares, shares, shares]), np.concatenate([none, none, shares])])
    drawn = []
    for counts_RI in resampled_counts(len(columns), num_resamples, seed):
        right, found, true = np.split(counts_RI @ columns, 3, axis=1)
        drawn.append(_macro_f1(right, found, true))
    drawn_B = np.concatenate(drawn)
    whole = float(_macro_f1(*np.split(columns.sum(0, keepdims=True), 3, axis=1))[0])
    # F1 of few items is too low on average, and that of a resample of them again: both are given back.
    shift = 2 * (whole - float(drawn_B.mean()))
    low, high = interval(drawn_B, len(items.wanted), confidence)
    return max(0.0, min(low + shift, value)), min(1.0, max(high + shift, value))


def macro_f1_test(base: LabelledItems, tuned: LabelledItems, num_permutations: int, seed: int) -> PermutationTest:
    """The sign-flip test of macro F1: how likely is so large a difference if each item's two answers are swapped by a coin?"""
    changed_I = base.found != tuned.found
    num_changed = int(changed_I.sum())
    if num_changed == 0:
        return PermutationTest(1.0, is_exact=True)
    num, true = _num(base), _true(base).sum(0, keepdims=True)
    moves = np.concatenate([_right(tuned) - _right(base), _one_hot(tuned.found, num) - _one_hot(base.found, num)], 1)[
        changed_I
    ]
    starts = [np.concatenate([_right(one).sum(0), _one_hot(one.found, num).sum(0)]) for one in (base, tuned)]

    def distance(swaps_RI: Array) -> Array:
        moved = swaps_RI @ moves
        sides = [start + sign * moved for start, sign in zip(starts, (1, -1), strict=True)]
        before, after = (_macro_f1(side[:, :num], side[:, num:], true) for side in sides)
        return np.abs(after - before)

    observed = float(distance(np.zeros((1, num_changed)))[0]) - _ROUNDING
    is_exact = num_changed <= _COUNTED
    swaps = _every_swap(num_changed) if is_exact else _random_swaps(num_changed, num_permutations, seed)
    num_reached = num_drawn = 0
    for swaps_RI in swaps:
        num_reached += int((distance(swaps_RI) >= observed).sum())
        num_drawn += len(swaps_RI)
    if is_exact:
        return PermutationTest(num_reached / num_drawn, is_exact=True)
    return PermutationTest((num_reached + 1) / (num_drawn + 1), is_exact=False)


def _every_swap(num_changed: int) -> Iterator[Array]:
    numbers = np.arange(2**num_changed)[:, None]
    yield (numbers >> np.arange(num_changed) & 1).astype(np.float64)


def _random_swaps(num_changed: int, num_permutations: int, seed: int) -> Iterator[Array]:
    generator = np.random.Generator(np.random.PCG64(seed))
    chunk_size = max(1, (1 << 20) // num_changed)
    for start in range(0, num_permutations, chunk_size):
        size = min(chunk_size, num_permutations - start)
        yield generator.integers(2, size=(size, num_changed), dtype=np.int8).astype(np.float64)


def _macro_f1(right_RC: Array, found_RC: Array, true_RC: Array) -> Array:
    """Mean over the labels that are true at all of 2 right / (true + found), [R]."""
    true_RC = np.broadcast_to(true_RC, right_RC.shape)
    there_RC = true_RC > 0
    f1_RC = np.zeros(right_RC.shape)
    np.divide(2 * right_RC, true_RC + found_RC, out=f1_RC, where=there_RC)
    mean_R: Array = f1_RC.sum(1) / there_RC.sum(1)
    return mean_R


def _with_pseudo_items(items: LabelledItems, is_right_first: bool) -> Array:
    """Columns right, found and true, [I + 2, 3 C], with two items more of which this model gets one right."""
    num = _num(items)
    columns = np.concatenate([_right(items), _one_hot(items.found, num), _true(items)], 1)
    shares, none = _true(items).mean(0), np.zeros(num)
    right, wrong = np.concatenate([shares, shares, shares]), np.concatenate([none, none, shares])
    return np.vstack([columns, *((right, wrong) if is_right_first else (wrong, right))])


def _right(items: LabelledItems) -> Array:
    return _one_hot(np.where(items.found == items.wanted, items.wanted, -1), _num(items))


def _true(items: LabelledItems) -> Array:
    return _one_hot(items.wanted, _num(items))


def _num(items: LabelledItems) -> int:
    return int(items.wanted.max()) + 1


def _one_hot(codes_I: Codes, num_labels: int) -> Array:
    """[I, C]: 1 at each item's label, nothing for -1."""
    one_hot_IC: Array = (codes_I[:, None] == np.arange(num_labels)).astype(np.float64)
    return one_hot_IC
