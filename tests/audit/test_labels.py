"""Answers that are few short labels are told from others, counted, and held against each other."""

from __future__ import annotations

from typing import Any

import pytest

from tuneful.audit.audit import audit
from tuneful.audit.labels import labels_in_words
from tuneful.config import load_config
from tuneful.data.read import Record
from tuneful.data.split import TEST, TRAIN
from tuneful.types import Conversation, Turn


def rows(answers: list[str]) -> list[tuple[Any, None]]:
    said = [
        Conversation("", (Turn(f"Is sentence {at} of {at * 7919} kind?", "", answer),), f"a.jsonl:{at}")
        for at, answer in enumerate(answers, start=1)
    ]
    return [(Record({"output": one.turns[0].response}, one), None) for one in said]


def looked_at(answers: list[str], *overrides: str, held_out: list[str] | None = None) -> Any:
    config = load_config(None, overrides)
    given = {TRAIN: rows(answers), TEST: rows(held_out)} if held_out is not None else {}
    return audit([] if given else rows(answers), config, None, given=given)


def test_few_short_answers_are_labels_and_are_counted_by_side() -> None:
    found = looked_at(["yes"] * 90 + ["no"] * 8, held_out=["yes", "no"])
    assert [(one.label, one.count, one.train, one.test) for one in found.labels] == [
        ("yes", 91, 90, 1),
        ("no", 9, 8, 1),
    ]
    said = labels_in_words(found.labels)
    assert said.startswith("2 distinct answers: this is classification. yes 91, no 9; the commonest comes 10 times")


def test_a_label_that_is_never_trained_and_one_written_in_two_ways_are_findings() -> None:
    found = looked_at(["yes"] * 20 + ["no"] * 19 + ["No."], held_out=["yes", "perhaps"])
    by_name = {one.kind.name: one for one in found.findings}
    assert by_name["unseen_labels"].count == 1
    assert by_name["label_spellings"].count == 1
    assert [one.label for one in found.labels] == ["yes", "no", "perhaps"]


@pytest.mark.parametrize(
    "answers",
    [
        ["yes", "no"] * 5,
        [f"answer {at}" for at in range(40)],
        ["yes"] * 40,
        ["yes"] * 39 + ["It is not so, because the sentence before it says something else than this one."],
        ["a\nb", "c"] * 20,
    ],
    ids=["few", "different", "one", "long", "lines"],
)
def test_other_answers_are_no_labels(answers: list[str]) -> None:
    found = looked_at(answers)
    assert found.labels == ()
    assert not {"unseen_labels", "label_spellings"} & {one.kind.name for one in found.findings}
