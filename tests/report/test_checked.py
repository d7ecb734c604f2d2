"""The section of checks: what each asks, in words that tell no folders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tuneful.config.checks import check_spec
from tuneful.evaluation.check_kinds import in_words
from tuneful.report.checked import view_checks
from tuneful.report.decision import _condition
from tuneful.report.explained import view_explained
from tuneful.runs.schema import CheckedSides, CheckResult, GateOutcome


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ({"python": "/home/ada/checks/own.py:polite"}, "is what …/own.py:polite asks for"),
        ({"regex": "^/home/ada"}, "holds what ^/home/ada matches"),
        ({"length": "words", "max": 3}, "has at most 3 words"),
    ],
)
def test_whether_an_answer_is_what_is_asked_is_said_without_the_folders_of_a_function(entry: Any, shown: str) -> None:
    spec = check_spec(entry)
    result = CheckResult(spec.name, spec.kind, in_words(spec), 1, 1, 0, 1.0, 0.2, 1.0, {}, {})
    run: Any = SimpleNamespace(comparison=SimpleNamespace(checks=CheckedSides((result,), (result,))))
    (view,) = view_checks(run, ("Before", "After"))
    assert view.asks == shown
    assert [side.name for side in view.sides] == ["Before", "After"]


def test_a_value_in_the_gate_has_no_sign_and_a_difference_has_one() -> None:
    assert _condition(GateOutcome("length.tuned<=9", 7.7222, True)).found == "7.7222"
    assert _condition(GateOutcome("length<=9", -7.5, True)).found == "\u22127.5000"


def test_what_is_explained_tells_no_folders() -> None:
    record = SimpleNamespace(score=0.5, cosine=0.25, source="/home/ada/my.json:3", text="Ask.", response="Say.")
    item = SimpleNamespace(
        number=2, source="/home/ada/my.json:9", asked="Ask?", text="", raised=(), towards=(record,), away=()
    )
    found: Any = SimpleNamespace(items=(item,), of="answer", num_records=1, notes=())
    view = view_explained(found)
    assert view is not None
    assert view.sentence.startswith("Of 1 training record compared, those whose gradients point the way of the answer")
    assert (view.items[0].name, view.items[0].towards[0].source) == ("2. …/my.json:9", "…/my.json:3")
