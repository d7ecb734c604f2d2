"""A judge is asked until the finding is clear: what is saved, what is said, and where its interval may stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.test_compare import metric_of, scores_of
from tests.judge.test_verdicts import Scripted, scoring

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError
from tuneful.evaluation.compare import compare, worse_finding
from tuneful.evaluation.tables import p_in_words
from tuneful.judge.client import AskResult, NoReply, Reply
from tuneful.judge.items import AnswerSet
from tuneful.judge.protocols import Item
from tuneful.judge.questions import Question
from tuneful.judge.stopping import LOOK_EVERY, check_two_sets, judge_until_clear
from tuneful.judge.verdicts import ReplyCache
from tuneful.runs.schema import JudgeFinding, WatchedDifference

NUM = 100
SETS = [
    AnswerSet(name, tuple(Item(f"t:{n}", f"Task {n}.", f"It is {n}.", f"{name} {n}") for n in range(NUM)))
    for name in ("base", "tuned")
]
USABLE = JudgeFinding("j", "usable", 40, "j passed every probe on these items.")


def until_clear(
    reply: Callable[[Question], AskResult], folder: Path, sets: Any = SETS, **settings: Any
) -> tuple[dict[str, list[Any]], WatchedDifference | None, Scripted]:
    judge = Scripted(reply)
    with ReplyCache.open(folder / "replies.jsonl") as cache:
        config = JudgeConfig(stop_early=True, **settings)
        verdicts, seen = judge_until_clear(sets, judge, config, cache, confidence=0.95, seed=4)
    return verdicts, seen, judge


def by_answer(better: int, worse: int) -> Callable[[Question], AskResult]:
    return lambda question: scoring(better if ">\ntuned " in question.user else worse)(question)


def test_a_clear_difference_is_asked_about_no_further_and_the_rest_is_unscored_with_the_reason(tmp_path: Path) -> None:
    verdicts, seen, judge = until_clear(by_answer(80, 20), tmp_path)
    assert seen is not None
    assert (seen.num_judged, seen.num_items, seen.num_scored, seen.difference) == (LOOK_EVERY, NUM, LOOK_EVERY, 60)
    assert seen.low > 0
    assert seen.p_value < 0.05
    assert len(judge.asked) == 2 * LOOK_EVERY
    for name in ("base", "tuned"):
        assert [one.source for one in verdicts[name]] == [f"t:{n}" for n in range(NUM)]
        unscored = [one for one in verdicts[name] if one.score is None]
        assert len(unscored) == NUM - LOOK_EVERY
        assert {(one.unscored_reason, one.raw) for one in unscored} == {
            ("not asked: the finding was clear after 20 of 100 items (judge.stop_early)", "")
        }
    scored = [n for n, one in enumerate(verdicts["base"]) if one.score is not None]
    assert scored != list(range(LOOK_EVERY)), "drawn from the whole file"
    assert scored == [n for n, one in enumerate(verdicts["tuned"]) if one.score is not None]
    again = until_clear(by_answer(80, 20), tmp_path)
    assert again[:2] == (verdicts, seen)
    assert again[2].asked == [], "the replies are kept"


def test_where_nothing_is_clear_every_item_is_asked_about(tmp_path: Path) -> None:
    verdicts, seen, judge = until_clear(scoring(50), tmp_path)
    assert seen is not None
    assert (seen.num_judged, seen.difference, seen.p_value) == (NUM, 0, 1)
    assert seen.low < 0 < seen.high
    assert len(judge.asked) == 2 * NUM
    assert all(one.score == 50 for own in verdicts.values() for one in own)


def test_a_pair_counts_from_one_end_of_the_scale_to_the_other(tmp_path: Path) -> None:
    pairs = [AnswerSet("tuned-against-base", tuple(replace(item, rival="base") for item in SETS[1].items))]

    def prefer(question: Question) -> AskResult:
        a, b = (question.user.index(f">\n{name}") for name in ("tuned", "base"))
        return Reply(f'{{"id": "{question.nonce}", "winner": "{"A" if a < b else "B"}"}}')

    verdicts, seen, _ = until_clear(prefer, tmp_path, pairs, protocol="pairwise")
    assert seen is not None
    assert (seen.num_judged, seen.difference) == (LOOK_EVERY, 100)
    assert sum(one.score == 100 for one in verdicts["tuned-against-base"]) == LOOK_EVERY


def test_a_judge_that_never_answers_ends_with_its_own_reason(tmp_path: Path) -> None:
    verdicts, seen, judge = until_clear(lambda _: NoReply("HTTP 500"), tmp_path)
    assert seen is None
    assert {one.unscored_reason for own in verdicts.values() for one in own} == {"HTTP 500"}
    assert len(judge.asked) == 2 * NUM


@pytest.mark.parametrize(("protocol", "sets"), [("score", SETS[:1]), ("pairwise", SETS)])
def test_without_two_sets_there_is_no_difference_to_watch(protocol: Any, sets: list[AnswerSet]) -> None:
    with pytest.raises(ConfigError, match="two sets of answers"):
        check_two_sets(sets, JudgeConfig(stop_early=True, protocol=protocol))
    check_two_sets(sets, JudgeConfig(protocol=protocol))


def compared(watched: WatchedDifference | None, tuned: float = 80.0) -> Any:
    finding = replace(USABLE, watched=watched)
    base, better = ([one] * 20 + [None] * 80 for one in (20.0, tuned))
    kinds = ["odd", "even"] * 50
    return compare(
        scores_of(judge_score=base), scores_of(judge_score=better), kinds=kinds, judge=finding, num_resamples=200
    )


def test_the_interval_of_a_comparison_is_the_watched_one_and_kinds_have_none() -> None:
    seen = WatchedDifference(20, 100, 20, 60.0, 12.5, 90.0, 0.004)
    found = compared(seen)
    score = metric_of(found, "judge_score")
    assert (score.low, score.high, score.p_value, score.verdict, score.num_items) == (12.5, 90.0, 0.004, "better", 20)
    assert found.kinds == ()
    assert "asked about 20 of 100 items" in (found.caution or "")
    assert p_in_words(score, "sequential") == "p = 0.004 (sequential test)"
    assert compared(None).kinds, "of a judge that was asked about all of them there are some"
    open_end = compared(replace(seen, low=-1.0, p_value=0.08))
    assert metric_of(open_end, "judge_score").verdict == "cannot tell"


def test_of_other_answers_a_watched_difference_says_nothing() -> None:
    found = compared(WatchedDifference(20, 100, 20, 60.0, 12.5, 90.0, 0.004), tuned=70.0)
    score = metric_of(found, "judge_score")
    assert (score.low, score.p_value, score.verdict) == (None, None, "cannot tell")
    assert "its score has no interval here" in (found.caution or "")
    seen = WatchedDifference(20, 100, 20, 60.0, 12.5, 90.0, 0.004)
    worse = worse_finding(replace(USABLE, watched=seen), replace(USABLE, verdict="not usable"))
    assert worse is not None
    assert (worse.verdict, worse.watched) == ("not usable", seen)
    alone = worse_finding(replace(USABLE, watched=seen), None)
    assert alone is not None
    assert (alone.verdict, alone.watched) == ("not probed", seen)
    assert worse_finding(USABLE, None) is None
