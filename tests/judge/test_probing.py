"""A judge is probed before its scores stand anywhere, and what was found stands beside each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.test_compare import scores_of
from tests.judge.test_calibrate import ITEMS, fair, judging, value
from tests.judge.test_evaluate import ROWS, Evaluate, evaluate, honest, written  # noqa: F401  (fixtures)
from tests.judge.test_verdicts import Scripted, judged, scoring

from tuneful.config import JudgeConfig
from tuneful.evaluation.compare import compare, worse_finding
from tuneful.evaluation.gate import check_gate, parse_gate
from tuneful.evaluation.summary import summary_sentence
from tuneful.judge.client import NoReply, Reply
from tuneful.judge.probing import finding_of, num_probe_questions, probe, scale_remarks
from tuneful.judge.protocols import Item
from tuneful.judge.questions import Question
from tuneful.judge.verdicts import ReplyCache
from tuneful.runs.schema import Calibration, JudgeFinding
from tuneful.types import Verdict

USABLE = JudgeFinding("j", "usable", 40, "j passed every probe on these items.")
NOT_USABLE = JudgeFinding("j", "not usable", 40, "j is not fit to judge these answers: empty answers 100%.")


def probed(judge: Scripted, folder: Path, items: Any = ITEMS, **settings: Any) -> Calibration:
    with ReplyCache.open(folder / "replies.jsonl") as cache:
        return probe(items, judge, JudgeConfig(**settings), cache, confidence=0.95)


def test_a_fair_judge_passes_with_four_questions_an_item_asked_once(tmp_path: Path) -> None:
    judge, again = judging(fair), judging(fair)
    found = probed(judge, tmp_path)
    assert (found.verdict, found.num_items, found.num_questions) == ("usable", 10, 40)
    assert len(judge.asked) == num_probe_questions(len(ITEMS), JudgeConfig()) == 40
    assert found.mean_scores == {"reference": 100, "shuffled": 0, "copied": 0, "empty": 0}
    assert probed(again, tmp_path) == found
    assert again.asked == [], "the replies are kept"
    assert num_probe_questions(3, JudgeConfig(num_probes=20, protocol="pairwise")) == 18


FAULTS: dict[str, tuple[Callable[[Question], int], str, str]] = {
    "100 for everything": (lambda q: 100, "empty_rate", "not usable"),
    "50 for everything": (lambda q: 50, "accuracy", "not usable"),
    "100 for nothing": (lambda q: 100 if _shown(q) == "" else fair(q), "empty_rate", "not usable"),
    "fond of the task": (
        lambda q: max(fair(q), 80 * ("Name the capital" in _shown(q))),
        "copied_rate",
        "usable with care",
    ),
}


def _shown(question: Question) -> str:
    return question.user.split(f"<answer {question.nonce}>\n")[1].split(f"\n</answer {question.nonce}>")[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_judge_that_cannot_judge_is_found_out(tmp_path: Path, fault: str) -> None:
    score, name, verdict = FAULTS[fault]
    found = probed(judging(score), tmp_path)
    assert found.verdict == verdict
    figure = next(figure for figure in found.figures if figure.name == name)
    assert figure.standing == "bad"
    assert figure.label in found.sentence


def test_a_silent_judge_is_no_judge(tmp_path: Path) -> None:
    found = probed(Scripted(lambda _: NoReply("HTTP 500")), tmp_path)
    assert (found.verdict, found.num_read, found.unread) == ("not usable", 0, {"HTTP 500": 40})


def test_pairs_are_probed_as_pairs_in_both_orders(tmp_path: Path) -> None:
    found = probed(judging(fair), tmp_path / "fair", protocol="pairwise")
    assert (found.verdict, found.num_questions, found.protocol) == ("usable", 60, "pairwise")
    assert (value(found, "pair_accuracy"), value(found, "empty_rate"), value(found, "copied_rate")) == (1, 0, 0)
    first = probed(judging(fair, lambda q: "A"), tmp_path / "first", protocol="pairwise")
    assert (first.verdict, value(first, "empty_rate"), value(first, "swap_consistency")) == ("not usable", 1, 0)


def test_without_references_nothing_and_the_task_are_what_is_known(tmp_path: Path) -> None:
    def score(question: Question) -> Reply:
        is_said = _shown(question) not in ("", *(item.task for item in ITEMS))
        return Reply(json.dumps({"id": question.nonce, "score": 60 * is_said}))

    bare = [replace(item, reference=None) for item in ITEMS]
    found = probed(Scripted(score), tmp_path, bare, use_reference=False)
    assert (found.verdict, found.num_questions) == ("usable with care", 20)
    assert "Whether it tells right from wrong was not probed" in found.sentence
    alike = [replace(item, reference="yes") for item in ITEMS[:3]]
    assert {figure.name for figure in probed(Scripted(scoring(0)), tmp_path, alike).figures} == {
        "scored",
        "empty_rate",
        "copied_rate",
    }
    one = probed(Scripted(scoring(100)), tmp_path, [Item("t:0", "Say.", "So.", "No.")])
    assert (one.num_items, one.verdict) == (1, "not usable")


def test_what_few_items_show_is_used_with_care(tmp_path: Path) -> None:
    found = probed(judging(fair), tmp_path, ITEMS[:5])
    assert (found.verdict, found.num_items) == ("usable with care", 5)
    assert "It was probed on 5 items only, where one that guesses may pass." in found.sentence
    assert probed(judging(fair), tmp_path, ITEMS[:6]).verdict == "usable"


def scored(*scores: float) -> list[Verdict]:
    return [Verdict(f"t:{n}", "j", "score", score, None, "") for n, score in enumerate(scores)]


def test_the_scale_and_its_ties_are_remarked_on() -> None:
    assert scale_remarks({"a": scored(*[40.0] * 6)}) == ("all 6 verdicts are the same (40): they tell nothing apart",)
    few = scale_remarks({"a": scored(*[0.0, 50.0, 100.0] * 8)})
    assert few == ("of the scale of 100 this judge used only 0, 50, 100: smaller differences are not seen",)
    spread = [float(n) for n in range(30)]
    assert scale_remarks({"a": scored(*spread), "b": scored(*spread[:20], *[99.0] * 10)}) == (
        "20 of 30 items got the same score from both sides: the rest decides",
    )
    assert scale_remarks({"a": scored(*spread), "b": scored(*reversed(spread))}) == ()
    assert scale_remarks({"a": []}) == ()


def test_a_judge_that_is_not_usable_or_was_not_probed_is_not_the_headline() -> None:
    base, tuned = scores_of(judge_score=[10.0] * 20), scores_of(judge_score=[60.0] * 20)
    usable, failed, unknown = (compare(base, tuned, judge=one, num_resamples=100) for one in (USABLE, NOT_USABLE, None))
    assert (usable.headline, usable.main.label) == ("judge_score", "Judge score (judge usable)")
    assert (failed.headline, unknown.headline) == ("rouge_l", "rouge_l")
    assert failed.metrics[0].label == "Judge score (judge not usable)"
    assert (failed.metrics[0].verdict, unknown.metrics[0].verdict) == ("cannot tell", "better")
    assert failed.judge == NOT_USABLE
    assert NOT_USABLE.sentence in summary_sentence(failed)
    assert "better on judge score" not in summary_sentence(failed) + summary_sentence(unknown)
    assert "The judge was not probed" in summary_sentence(unknown)
    conditions = parse_gate("judge_score>=0")
    assert [check_gate(conditions, one)[0].met for one in (usable, failed)] == [True, False]
    assert check_gate(conditions, failed)[0].found is None


def test_of_two_judges_the_worse_is_told() -> None:
    unprobed = finding_of(None, "j")
    assert worse_finding(USABLE, NOT_USABLE) == worse_finding(NOT_USABLE, unprobed) == NOT_USABLE
    assert worse_finding(unprobed, USABLE) == unprobed
    assert worse_finding(None, USABLE) is None  # nothing is known of one of them


def test_scores_of_a_judge_that_was_not_probed_are_as_they_were(tmp_path: Path) -> None:
    assert [verdict.score for verdict in judged(Scripted(scoring(7)), tmp_path)] == [7] * 6


def test_the_finding_stands_beside_the_mean_on_the_terminal_and_in_the_document(
    evaluate: Evaluate,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The double gives an item the same score whatever is answered."""
    written(tmp_path / "theirs.jsonl", ROWS)
    arguments = ["theirs.jsonl", "--judge", "ollama/judge-8b", "--output", "out"]
    code, _, err = evaluate(*arguments, "judge.num_probes=5")
    assert code == 0, err
    said = " ".join(err.split())
    assert (
        "20 questions first, whose answers are known, to see whether ollama/judge-8b can judge (286% on top of 7;"
        in said
    )
    assert any("7 + 0 = 7" in line and "not usable" in line for line in err.splitlines())
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert document["finding"]["verdict"] == document["probes"]["verdict"] == "not usable"
    assert document["finding"]["sentence"] in said
    assert document["probes"]["num_questions"] == 20
    _, _, err = evaluate(*arguments, "judge.num_probes=5")
    assert "of which 20 were answered before" in " ".join(err.split())
    _, out, _ = evaluate(*arguments, "judge.num_probes=0", "--json")
    assert json.loads(out)["finding"]["verdict"] == "not probed"
    assert "probes" not in json.loads(out)
