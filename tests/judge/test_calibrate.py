"""Judges of known character are found out: the fair one passes, and each fault shows in the figure that is named for it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.judge.test_verdicts import Scripted

from tuneful.config import JudgeConfig
from tuneful.errors import DataError
from tuneful.judge.calibrate import calibrate, num_calibration_questions
from tuneful.judge.client import AskResult, NoReply, Reply
from tuneful.judge.people import RatedItem
from tuneful.judge.probes import injections, padded
from tuneful.judge.protocols import Item
from tuneful.judge.questions import Question
from tuneful.judge.verdicts import ReplyCache
from tuneful.runs.schema import Calibration

ITEMS = [
    Item(f"t:{n}", f"Name the capital of country {n}.", f"It is city {n}, on the river.", f"City {n}?")
    for n in range(12)
]


def part(question: Question, kind: str) -> str:
    found = re.search(rf"<{kind} {question.nonce}>\n(.*?)\n</{kind} {question.nonce}>", question.user, re.S)
    assert found, question.user
    return found[1]


def fair(question: Question, kind: str = "answer") -> int:
    """100 for the reference, 70 for an answer that names the city, else 0; length and orders mean nothing."""
    answer, reference = part(question, kind), part(question, "reference")
    city = re.search(r"city (\d+)", reference)
    assert city
    if answer == reference:
        return 100
    return 70 if re.match(rf"City {city[1]}\b", answer) else 0


def judging(score: Callable[[Question], int], winner: Callable[[Question], str] | None = None) -> Scripted:
    def prefer(question: Question) -> str:
        a, b = fair(question, "answer a"), fair(question, "answer b")
        return "tie" if a == b else "A" if a > b else "B"

    def reply(question: Question) -> AskResult:
        pair = "answer a" in question.user and "winner" in question.user
        said: dict[str, Any] = {"winner": (winner or prefer)(question)} if pair else {"score": score(question)}
        return Reply(json.dumps({"id": question.nonce, **said}))

    return Scripted(reply)


def found_out(judge: Scripted, folder: Path, **settings: Any) -> Calibration:
    with ReplyCache.open(folder / "replies.jsonl") as cache:
        return calibrate(ITEMS, judge, JudgeConfig(calibration_items=10, **settings), cache, confidence=0.95)


def value(found: Calibration, name: str) -> float | None:
    return next(figure.value for figure in found.figures if figure.name == name)


def test_a_fair_judge_passes_every_probe(tmp_path: Path) -> None:
    judge = judging(fair)
    found = found_out(judge, tmp_path)
    assert (found.verdict, found.sentence) == ("usable", "scripted passed every probe on these items.")
    assert (found.num_items, found.num_questions, found.num_unread) == (10, 100, 0)
    assert len(judge.asked) == 100, "the second asking is a second question"
    assert {figure.name: figure.value for figure in found.figures} == {
        "scored": 1,
        "accuracy": 1,
        "pair_accuracy": 1,
        "swap_consistency": 1,
        "injection_rate": 0,
        "empty_rate": 0,
        "copied_rate": 0,
        "length_slope": 0,
        "repeatability": 0,
    }
    assert found.mean_scores["reference"] == 100
    assert found.mean_scores["answer"] == found.mean_scores["padded"] == 70


DICE = random.Random(0)
FAULTS: dict[str, tuple[Scripted, str, float, float, str]] = {
    "likes everything": (judging(lambda q: 90), "accuracy", 0.5, 0.5, "not usable"),
    "likes nothing at all too": (judging(lambda q: 90), "empty_rate", 1, 1, "not usable"),
    "the wrong way round": (judging(lambda q: 100 - fair(q)), "accuracy", 0, 0, "not usable"),
    "obeys orders": (
        judging(lambda q: 100 if part(q, "answer").count("\n") >= 2 else fair(q)),
        "injection_rate",
        1,
        1,
        "not usable",
    ),
    "likes length": (
        judging(lambda q: min(100, fair(q) + len(part(q, "answer")) // 6)),
        "length_slope",
        5.1,
        20,
        "usable with care",
    ),
    "likes the first": (judging(fair, lambda q: "A"), "swap_consistency", 0, 0, "usable with care"),
    "has moods": (judging(lambda q: max(0, fair(q) - DICE.randrange(40))), "repeatability", 3, 30, "usable with care"),
    "is taken in by the task": (
        judging(lambda q: 80 if part(q, "answer") == part(q, "task") else fair(q)),
        "copied_rate",
        1,
        1,
        "usable with care",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows_in_its_figure(tmp_path: Path, fault: str) -> None:
    judge, name, low, high, verdict = FAULTS[fault]
    found = found_out(judge, tmp_path)
    measured = value(found, name)
    assert measured is not None
    assert low <= measured <= high
    assert found.verdict == verdict
    figure = next(figure for figure in found.figures if figure.name == name)
    assert figure.standing != "good"
    assert figure.label in found.sentence


def test_a_judge_that_says_nothing_is_no_judge_and_is_counted(tmp_path: Path) -> None:
    found = found_out(Scripted(lambda _: NoReply("HTTP 500")), tmp_path)
    assert (found.verdict, found.num_read, found.num_unread) == ("not usable", 0, 100)
    assert found.unread == {"HTTP 500": 100}
    assert value(found, "accuracy") is None


def test_the_same_calibration_is_not_asked_for_twice(tmp_path: Path) -> None:
    first = found_out(judging(fair), tmp_path)
    again = judging(fair)
    assert found_out(again, tmp_path) == first
    assert again.asked == []


def test_a_rubric_is_calibrated_by_its_mean(tmp_path: Path) -> None:
    def reply(question: Question) -> AskResult:
        if "winner" in question.user:
            return NoReply("no")
        grades = dict.fromkeys(("correctness", "relevance", "completeness", "clarity"), fair(question))
        return Reply(json.dumps({"id": question.nonce, "reason": "", **grades}))

    found = found_out(Scripted(reply), tmp_path, protocol="rubric")
    assert (found.protocol, value(found, "accuracy")) == ("rubric", 1)


def test_items_that_are_all_alike_cannot_calibrate(tmp_path: Path) -> None:
    alike = [replace(item, reference="yes") for item in ITEMS]
    with ReplyCache.open(tmp_path / "r.jsonl") as cache, pytest.raises(DataError, match="different references"):
        calibrate(alike, judging(fair), JudgeConfig(), cache, confidence=0.95)


def test_padding_adds_length_and_nothing_else() -> None:
    for answer in ("City 3.", "x", "a long answer " * 30, ""):
        assert padded(answer).startswith(answer)
        assert 3 * len(answer) <= len(padded(answer)) <= 3 * len(answer) + 100


def test_there_are_forty_orders_of_different_wording() -> None:
    assert len(set(injections())) == 40
    assert all(order.strip() for order in injections())


def test_a_judge_is_held_against_what_people_preferred(tmp_path: Path) -> None:
    """Three pairs: the fair judge prefers what people did in two, and has no preference where neither answer names the city."""
    pairs = [("City 0?", "Nothing.", "won"), ("Nothing.", "City 1?", "lost"), ("Perhaps.", "Nothing.", "won")]
    rated = [
        RatedItem(replace(ITEMS[n], answer=answer, rival=rival), preferred)  # type: ignore[arg-type]
        for n, (answer, rival, preferred) in enumerate(pairs)
    ]
    judge, settings = judging(fair), JudgeConfig(calibration_items=10)
    with ReplyCache.open(tmp_path / "replies.jsonl") as cache:
        found = calibrate(ITEMS, judge, settings, cache, confidence=0.95, rated=rated)
    assert value(found, "people_agreement") == pytest.approx((1 + 1 + 0.5) / 3)
    assert found.num_questions == num_calibration_questions(len(ITEMS), settings, len(rated)) == 106
    assert found.verdict == "usable"


def test_a_judge_that_contradicts_people_is_usable_with_care(tmp_path: Path) -> None:
    rated = [RatedItem(replace(item, answer=f"City {n}?", rival="Nothing."), "lost") for n, item in enumerate(ITEMS)]
    with ReplyCache.open(tmp_path / "replies.jsonl") as cache:
        found = calibrate(ITEMS, judging(fair), JudgeConfig(), cache, confidence=0.95, rated=rated)
    assert (value(found, "people_agreement"), found.verdict) == (0, "usable with care")
    assert "answer preferred that people prefer 0%" in found.sentence
