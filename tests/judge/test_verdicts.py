"""Every item ends scored or named unscored, nothing is asked twice, and the bounds hold whatever was missed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError
from tuneful.judge import questions
from tuneful.judge.client import AskResult, NoReply, OnResult, Reply
from tuneful.judge.grammar import read_score
from tuneful.judge.protocols import PROTOCOLS, Item
from tuneful.judge.questions import Question
from tuneful.judge.verdicts import ReplyCache, ask_cached, judge_items, score_row, summarise
from tuneful.runs.schema import as_row
from tuneful.types import Verdict

ITEMS = [
    Item(f"t.jsonl:{n}", f"Count to {n}.", " ".join(map(str, range(n))), f"about {n}", f"rival {n}") for n in range(6)
]


@dataclass
class Scripted:
    """A judge whose replies a function makes; it keeps what it was asked."""

    reply: Callable[[Question], AskResult]
    name: str = "scripted"
    identity: Mapping[str, Any] = field(default_factory=lambda: {"wire": "scripted"})
    asked: list[Question] = field(default_factory=list)

    def ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        for index in reversed(range(len(questions))):  # outcomes come in any order
            self.asked.append(questions[index])
            on_result(index, self.reply(questions[index]))


def scoring(score: Any) -> Callable[[Question], AskResult]:
    return lambda question: Reply(json.dumps({"id": question.nonce, "score": score}))


def judged(judge: Scripted, folder: Path, items: Sequence[Item] = ITEMS, **settings: Any) -> list[Verdict]:
    with ReplyCache.open(folder / "replies.jsonl") as cache:
        return judge_items(items, judge, JudgeConfig(**settings), cache)


def test_every_item_has_one_verdict_in_order_with_its_source(tmp_path: Path) -> None:
    verdicts = judged(Scripted(scoring(85)), tmp_path)
    assert [as_row(score_row(verdict)) for verdict in verdicts] == [
        {
            "source": item.source,
            "judge": "scripted",
            "protocol": "score",
            "score": 85.0,
            "unscored_reason": None,
            "raw": verdict.raw,
        }
        for item, verdict in zip(ITEMS, verdicts, strict=True)
    ]


def test_the_protocols_are_those_that_a_setting_can_name() -> None:
    assert tuple(PROTOCOLS) == get_args(JudgeConfig.model_fields["protocol"].annotation)


def test_a_protocol_is_an_entry_and_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brevity.txt").write_text("[system]\nGrade {nonce}.\n[user]\n{answer}\n{reply}\n", encoding="utf-8")
    brevity = replace(
        PROTOCOLS["score"],
        name="brevity",
        properties={"brevity": {"type": "integer"}},
        fields='"brevity": N',
        read=lambda reply, nonce, item: read_score(reply.replace("brevity", "score"), nonce=nonce, answer=item.answer),
    )
    monkeypatch.setattr(questions, "PROTOCOLS", {"brevity": brevity})
    judge = Scripted(lambda question: Reply(json.dumps({"id": question.nonce, "brevity": 70})))
    settings = JudgeConfig(prompts=str(tmp_path)).model_copy(update={"protocol": "brevity"})
    with ReplyCache.open(tmp_path / "replies.jsonl") as cache:
        verdicts = judge_items(ITEMS, judge, settings, cache)
    assert [(verdict.score, verdict.protocol) for verdict in verdicts] == [(70.0, "brevity")] * 6
    assert '"brevity": N}, N being' in judge.asked[0].user
    schema = judge.asked[0].schema
    assert schema is not None
    assert schema["required"] == ["id", "brevity"]


def test_what_cannot_be_read_or_had_no_reply_is_unscored_and_counted(tmp_path: Path) -> None:
    replies: Iterator[Any] = iter([Reply("fine"), NoReply("HTTP 500 (3 tries)"), *[scoring(60)] * 4])

    def reply(question: Question) -> AskResult:
        made = next(replies)
        found: AskResult = made(question) if callable(made) else made
        return found

    verdicts = judged(Scripted(reply), tmp_path)
    assert [verdict.score for verdict in verdicts] == [60, 60, 60, 60, None, None]
    found = summarise(verdicts, confidence=0.95)
    assert (found.num_items, found.num_scored, found.num_unscored) == (6, 4, 2)
    assert (found.mean, found.mean_if_worst, found.mean_if_best) == (60, 40, 440 / 6)
    assert found.unscored == {
        "HTTP 500 (3 tries)": 1,
        "unreadable: not the JSON object that was asked for": 1,
    }


def test_where_nothing_was_scored_there_is_no_mean(tmp_path: Path) -> None:
    found = summarise(judged(Scripted(lambda _: NoReply("no")), tmp_path), confidence=0.95)
    assert (found.mean, found.low, found.high, found.mean_if_worst, found.mean_if_best) == (None, None, None, 0, 100)


@given(st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=12), st.data())
def test_the_bounds_hold_whatever_the_unscored_items_are_worth(scores, data) -> None:
    verdicts = [
        Verdict(f"t:{n}", "j", "score", score, None if score is not None else "no", "")
        for n, score in enumerate(scores)
    ]
    found = summarise(verdicts, confidence=0.9)
    worth = [score if score is not None else data.draw(st.integers(0, 100)) for score in scores]
    assert found.mean_if_worst is not None
    assert found.mean_if_best is not None
    assert found.mean_if_worst - 1e-9 <= sum(worth) / len(worth) <= found.mean_if_best + 1e-9
    assert (found.low is not None) is (found.high is not None) is (found.num_scored >= 5)  # 5 at 90 %
    if found.low is not None:
        assert found.mean is not None
        assert found.high is not None
        assert 0 <= found.low <= found.mean + 1e-9
        assert found.mean - 1e-9 <= found.high <= 100
        assert found.low < found.high  # no mean is known without a doubt


def test_equal_scores_are_no_certainty() -> None:
    """Twenty times 100: 14 % of all answers may get anything else, else twenty alike were seen in one case of twenty."""
    same = [Verdict(f"t:{n}", "j", "score", 100.0, None, "") for n in range(20)]
    found = summarise(same, confidence=0.95)
    assert (found.mean, found.high) == (100, 100)
    assert found.low == pytest.approx(100 * 0.05 ** (1 / 20))
    few = summarise(same[:3], confidence=0.95)
    assert (few.mean, few.low, few.high) == (100, None, None)


def test_a_judge_that_prefers_a_place_sees_ties_only(tmp_path: Path) -> None:
    first = Scripted(lambda question: Reply(json.dumps({"id": question.nonce, "winner": "A"})))
    assert [verdict.score for verdict in judged(first, tmp_path, protocol="pairwise")] == [50] * 6
    assert len(first.asked) == 12


@pytest.mark.parametrize(("liked", "score"), [("about", 100), ("rival", 0)])
def test_a_judge_that_prefers_an_answer_prefers_it_in_both_orders(tmp_path: Path, liked: str, score: int) -> None:
    def reply(question: Question) -> AskResult:
        winner = "A" if f"<answer a {question.nonce}>\n{liked}" in question.user else "B"
        return Reply(json.dumps({"id": question.nonce, "winner": winner}))

    verdicts = judged(Scripted(reply), tmp_path, protocol="pairwise")
    assert [verdict.score for verdict in verdicts] == [score] * 6
    assert all(len(json.loads(verdict.raw)) == 2 for verdict in verdicts)


def test_one_order_without_a_verdict_leaves_the_pair_unscored(tmp_path: Path) -> None:
    def reply(question: Question) -> AskResult:
        if f"<answer a {question.nonce}>\nrival" in question.user:
            return NoReply("no whole reply within 1 s")
        return Reply(json.dumps({"id": question.nonce, "winner": "A"}))

    assert {verdict.unscored_reason for verdict in judged(Scripted(reply), tmp_path, protocol="pairwise")} == {
        "no whole reply within 1 s"
    }


def test_a_rubric_is_the_mean_of_its_criteria_and_keeps_them(tmp_path: Path) -> None:
    grades = {"correctness": 100, "relevance": 80, "completeness": 60, "clarity": 40}
    verdicts = judged(
        Scripted(lambda question: Reply(json.dumps({"id": question.nonce, "reason": "short", **grades}))),
        tmp_path,
        protocol="rubric",
    )
    found = summarise(verdicts, confidence=0.95)
    assert (found.mean, found.criteria) == (70, grades)


def test_nothing_is_asked_twice_and_what_failed_is_asked_again(tmp_path: Path) -> None:
    calls = iter([NoReply("HTTP 503")] * 2 + [Reply("nonsense")] + [None] * 99)

    def reply(question: Question) -> AskResult:
        return next(calls) or scoring(70)(question)

    first, second = Scripted(reply), Scripted(scoring(70))
    assert [v.score for v in judged(first, tmp_path)] == [70, 70, 70, None, None, None]
    assert [v.score for v in judged(second, tmp_path)] == [70, 70, 70, None, 70, 70]
    assert len(first.asked) == 6
    assert len(second.asked) == 2, "the nonsense was a whole reply: it stands"


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 0.5}, {"seed": 7}, {"max_tokens": 64}, {"num_ctx": 512}, {"reply_format": "text"}, "identity", "item"],
)  # fmt: skip
def test_what_could_change_a_reply_is_asked_anew(tmp_path: Path, changed: Any) -> None:
    judged(Scripted(scoring(70)), tmp_path)
    again = Scripted(scoring(70))
    if changed == "identity":
        again.identity = {"wire": "scripted", "digest": "other"}
    items = [Item("t:1", "Count.", "1", "one")] if changed == "item" else ITEMS
    judged(again, tmp_path, items, **(changed if isinstance(changed, dict) else {}))
    assert len(again.asked) == len(items)


@pytest.mark.parametrize(
    "changed", [{"concurrency": 9}, {"timeout_seconds": 9}, {"max_retries": 0}, {"keep_alive": "1h"}]
)
def test_what_could_not_is_not(tmp_path: Path, changed: dict[str, Any]) -> None:
    judged(Scripted(scoring(70)), tmp_path)
    again = Scripted(scoring(70))
    judged(again, tmp_path, **changed)
    assert again.asked == []


def test_equal_questions_are_asked_once_and_a_second_opinion_on_request(tmp_path: Path) -> None:
    judge = Scripted(scoring(70))
    question = Question("s", "u", "abc", None)
    with ReplyCache.open(tmp_path / "replies.jsonl") as cache:
        heard: list[int] = []
        assert len(ask_cached([question] * 3, judge, JudgeConfig(), cache, heard.append)) == 3
        assert (len(judge.asked), sum(heard)) == (1, 3)
        ask_cached([question], judge, JudgeConfig(), cache, again=1)
        assert len(judge.asked) == 2


def test_a_line_that_a_kill_cut_short_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    file = tmp_path / "replies.jsonl"
    judged(Scripted(scoring(70)), tmp_path)
    whole = file.read_bytes()
    for kept in range(len(whole)):
        file.write_bytes(whole[:kept])
        with ReplyCache.open(file) as cache:
            assert len(cache) == whole[:kept].count(b"\n")
    file.write_bytes(whole[: len(whole) // 2])
    judged(Scripted(scoring(70)), tmp_path)
    assert file.read_bytes() == whole, "equal work leaves equal files"


def test_a_damaged_cache_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "replies.jsonl").write_text('{"key": "a", "reply": "b"}\nnonsense\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"replies\.jsonl:2: damaged"):
        judged(Scripted(scoring(70)), tmp_path)


def test_two_processes_do_not_judge_into_one_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".replies.jsonl.lock"), pytest.raises(ConfigError, match="another process is judging"):
        judged(Scripted(scoring(70)), tmp_path)
