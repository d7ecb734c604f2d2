"""What a gate may say, what it finds, and what it refuses before anything is trained."""

from __future__ import annotations

import pytest

from tuneful.errors import ConfigError, GateError
from tuneful.evaluation.compare import compare
from tuneful.evaluation.gate import Condition, check_gate, check_met, parse_gate
from tuneful.evaluation.metrics import score_answer
from tuneful.runs.schema import GateOutcome


def comparison():
    answers = {"base": ["a b c", "x", "a"], "tuned": ["a b c", "a b c", "a b"]}
    sides = ([score_answer(text, "a b c", ended=True) for text in answers[side]] for side in ("base", "tuned"))
    return compare(*sides, num_resamples=200)


def test_a_gate_is_read_as_it_is_written():
    assert parse_gate("rouge_l>=0, forgetting <= 0.05,exact_match.tuned> .5, token-f1.low>-1e-2,") == (
        Condition("rouge_l", "difference", ">=", 0),
        Condition("forgetting", "difference", "<=", 0.05),
        Condition("exact_match", "tuned", ">", 0.5),
        Condition("token_f1", "low", ">", -0.01),
    )
    assert parse_gate("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drift<=1", "--gate: `drift` is called `kl_to_base` now"),
        ("rogue_l>=0", "--gate: unknown metric `rogue_l`: did you mean `rouge_l`?"),
        ("xyz>=0", "--gate: unknown metric `xyz`: known are judge_score, people_preference, exact_match,"),
        (
            "rouge_l.mean>=0",
            "--gate: `rouge_l` has no figure `.mean`; there are .difference, .low, .high, .base, .tuned",
        ),
        ("rouge_l", "--gate: 'rouge_l' is no condition: expected NAME, one of >= <= > <, a number"),
        ("rouge_l=0", "is no condition"),
        ("rouge_l>=0.0.1", "is no condition"),
        ("rouge_l>=nan", "is no condition"),
        ("rouge_l>=0 forgetting<=1", "is no condition"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_mend(text, message):
    with pytest.raises(ConfigError) as refused:
        parse_gate(text, "--gate")
    assert message in str(refused.value)


def test_each_figure_is_held_against_its_limit():
    found = comparison()
    rouge = found.measured("rouge_l")
    assert rouge.low is None  # on so few items
    outcomes = check_gate(
        parse_gate("rouge_l>=0, rouge_l.base>0.9, exact_match.tuned>=0.66, rouge_l.low>0, length>0, length<1.34"), found
    )
    assert [outcome.met for outcome in outcomes] == [True, False, True, False, True, True]
    assert outcomes[1].found == rouge.base
    assert str(outcomes[3]) == "rouge_l.low>0: not known, NOT met"
    check_met(outcomes[:1])
    with pytest.raises(GateError, match=r"rouge_l.base>0.9 \(found 0.5000\). 1 of 2 conditions are met") as unmet:
        check_met(outcomes[:2])
    assert unmet.value.exit_code == 3


def test_the_limit_itself_is_within_or_without_as_it_is_written():
    found = comparison()
    base = found.measured("exact_match").base
    signs = {}
    for sign in ("<", "<=", ">", ">="):
        [outcome] = check_gate((Condition("exact_match", "base", sign, base),), found)
        signs[sign] = outcome.met
    assert signs == {"<": False, "<=": True, ">": False, ">=": True}


def test_a_metric_that_was_not_measured_is_no_silent_pass():
    with pytest.raises(ConfigError, match="`forgetting` was not measured in this comparison; measured are exact_match"):
        check_gate(parse_gate("forgetting<=0.05"), comparison())


def test_a_difference_is_found_with_its_sign_and_a_value_without_one() -> None:
    assert str(GateOutcome("rouge_l>=0", 0.25, True)) == "rouge_l>=0: +0.2500, met"
    assert str(GateOutcome("rouge_l.tuned>=0.5", 0.25, False)) == "rouge_l.tuned>=0.5: 0.2500, NOT met"
    assert str(GateOutcome("rouge_l.low>0", None, False)) == "rouge_l.low>0: not known, NOT met"
