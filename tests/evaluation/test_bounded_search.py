"""Patterns of one's own that take longer than anybody waits: unscored with a reason, within their limit, the others scored."""

from __future__ import annotations

import time
from typing import Any

from tests.evaluation.test_check_kinds import given

from tuneful.config import load_config
from tuneful.evaluation.check_process import MAX_FAILURES
from tuneful.evaluation.checks import check_item, read_checks, run_checks
from tuneful.runs.schema import CheckOutcome

ENDLESS = r"^(a+)+$"
NEVER = "a" * 60 + "!"
"""ENDLESS tries 2^60 ways on it."""


def outcomes(check: dict[str, Any], answers: list[str]) -> list[CheckOutcome]:
    checks = read_checks(load_config(None).model_copy(update={"evaluation": given(check)}))
    items = [check_item(f"my.json:{number}", "asked", None, answer) for number, answer in enumerate(answers)]
    return [next(iter(found.values())) for found in run_checks(checks, items)]


def test_a_pattern_that_has_no_end_is_unscored_within_its_limit_and_the_other_answers_are_scored():
    start = time.monotonic()
    found = outcomes({"regex": ENDLESS, "timeout_seconds": 0.2}, ["aaa", NEVER, "b", NEVER, "aa"])
    assert time.monotonic() - start < 30
    assert [one.score for one in found] == [1, None, 0, None, 1]
    assert [one.unscored_reason for one in found if one.score is None] == ["no answer within 0.2 seconds"] * 2


def test_a_pattern_that_has_no_end_on_any_answer_is_given_up():
    found = outcomes({"regex": ENDLESS, "timeout_seconds": 0.05}, [NEVER] * (MAX_FAILURES + 2))
    assert [one.unscored_reason for one in found] == [
        *["no answer within 0.05 seconds"] * MAX_FAILURES,
        *[f"not asked: the pattern had failed to answer {MAX_FAILURES} times"] * 2,
    ]


def test_the_patterns_of_a_schema_have_the_same_limit():
    schema = {"type": "object", "properties": {"code": {"pattern": ENDLESS}}}
    found = outcomes({"json": None, "schema": schema}, ['{"code": "aa"}', f'{{"code": "{NEVER}"}}', '{"code": "b"}'])
    assert [one.score for one in found] == [1, None, 0]
    assert found[1].unscored_reason == "a pattern of the schema: no answer within 1 seconds"
    assert found[2].why == f"code: does not match {ENDLESS}"
