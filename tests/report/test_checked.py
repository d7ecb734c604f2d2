"""The section of checks: what each asks, in words that tell no folders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tuneful.config.checks import check_spec
from tuneful.evaluation.check_kinds import in_words
from tuneful.report.checked import view_checks
from tuneful.runs.schema import CheckedSides, CheckResult


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
