"""The four kinds over a teacher that answers well: what is asked, which rows come of it, and what is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.judge_server import Request, head
from tests.doubles.teacher import Teacher, teaching, text_of
from tests.synthesize.conftest import SEEDS, lines

import tuneful
from tuneful.errors import ConfigError, DataError, JudgeError
from tuneful.synthesize import replies
from tuneful.synthesize.journal import Journal

Make = Callable[..., Any]


def test_new_instructions_say_how_they_were_made_and_every_request_is_accounted_for(made: Make, tmp_path: Path) -> None:
    teacher = Teacher()
    with teaching(teacher) as name:
        found = made(kind="instructions", teacher=name, num=20)
    rows, requests = lines(tmp_path / "made.jsonl"), lines(tmp_path / "made.requests.jsonl")
    assert len(rows) == found.made.num_rows == 20
    assert found.made.num_requests == len(requests) == len(teacher.requests)
    assert found.made.num_used + sum(found.made.refused.values()) == len(requests)
    metadata = rows[0]["tuneful_metadata"]
    assert metadata["model"] == name
    assert metadata["prompt_sha256"] == requests[0]["prompt_sha256"]
    assert (metadata["kind"], metadata["temperature"], metadata["seed"]) == ("instructions", 0.8, requests[0]["seed"])
    assert set(teacher.sent("temperature")) == {0.8}
    assert len(set(teacher.sent("seed"))) == len(requests)
    assert found.made.num_prompt_tokens == sum(one["num_prompt_tokens"] for one in requests)
    assert not found.made.estimated
    assert found.check.audit.num_used == 20
    assert found.check.reading == ()  # the metadata is no text that was forgotten
    assert {file.name for file in tmp_path.iterdir()} == {"made.jsonl", "made.requests.jsonl"}
    assert "made.jsonl" in repr(found)
    assert found.as_dict()["num_rows"] == 20


def test_examples_are_drawn_for_each_request_and_shown_as_data(made: Make) -> None:
    teacher = Teacher()
    with teaching(teacher, "openai") as name:
        made(kind="instructions", teacher=name, num=6)
    prompts = [text_of(request) for request in teacher.requests]
    assert len(set(prompts)) > 1
    assert all(prompt.count("<instruction ") == 3 for prompt in prompts)
    assert all(one.body["response_format"]["json_schema"]["strict"] for one in teacher.requests)


def test_what_is_like_a_seed_an_earlier_row_or_the_test_set_is_dropped_and_counted(made: Make, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"instruction": "Name the longest river of Africa."}\n', encoding="utf-8")
    tasks = ["SAY HOW BREAD IS MADE!", "Name the longest river of Africa", "Why do leaves fall in autumn?"]

    def says(request: Request) -> str:
        task = tasks[len(teacher.requests) % 3]
        return json.dumps({"instruction": task, "input": "", "output": "Because of this and that."})

    teacher = Teacher(says)
    with teaching(teacher) as name:
        found = made(
            "judge.concurrency=1",
            kind="instructions",
            teacher=name,
            num=5,
            max_requests=9,
            exclude=[str(tmp_path / "test.jsonl")],
        )
    assert [row["instruction"] for row in lines(tmp_path / "made.jsonl")] == ["Why do leaves fall in autumn?"]
    assert found.made.refused["near-duplicate of a seed"] == 3
    assert found.made.refused["near-duplicate of an earlier row"] == 2
    assert found.made.refused[f"near-duplicate of {tmp_path / 'test.jsonl'}"] == 3
    assert found.made.stopped == "9 of 9 requests were spent (--max-requests)"


def test_topics_are_taken_in_turn(made: Make, tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("rivers\n\n trees \nrivers\n", encoding="utf-8")
    teacher = Teacher()
    with teaching(teacher) as name:
        made(data=None, kind="instructions", teacher=name, num=4, topics=tmp_path / "topics.txt")
    topics = [row["tuneful_metadata"]["topic"] for row in lines(tmp_path / "made.jsonl")]
    assert topics == ["rivers", "trees", "rivers", "trees"]
    (tmp_path / "topics.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"topics.txt: 0 topics"):
        made(
            data=None,
            kind="instructions",
            teacher="ollama/x",
            topics=tmp_path / "topics.txt",
            output=tmp_path / "b.jsonl",
        )


@pytest.mark.parametrize("wire", ["ollama", "openai"])
def test_a_server_writes_the_users_turn_itself_and_answers_it(made: Make, tmp_path: Path, wire: Any) -> None:
    def says(request: Request) -> str:
        number = len(teacher.requests)
        return f"How far away is star number {number}?" if "prompt" in request.body else f"{number} light years."

    teacher = Teacher(says)
    with teaching(teacher, wire) as name:
        made(
            "judge.concurrency=1",
            data=None,
            kind="instructions",
            teacher=name,
            num=2,
            from_empty_turn=True,
            empty_turn="<|im_start|>user\\n",
        )
    assert [request.path for request in teacher.requests] == (
        ["/api/generate"] * 2 + ["/api/chat"] * 2
        if wire == "ollama"
        else ["/v1/completions"] * 2 + ["/v1/chat/completions"] * 2
    )
    assert teacher.requests[0].body["prompt"] == "<|im_start|>user\n"
    assert [message["role"] for message in teacher.requests[2].body["messages"]] == ["user"]
    rows = lines(tmp_path / "made.jsonl")
    assert rows[0]["instruction"] == "How far away is star number 1?"
    assert rows[0]["output"] == "3 light years."


def test_several_responses_are_rows_or_the_best_by_the_judge(made: Make, tmp_path: Path) -> None:
    records = [{"system": "Be brief.", "instruction": "Name a sea.", "input": "In Asia.", "output": "x"}, *SEEDS[:2]]
    teacher = Teacher()
    with teaching(teacher) as name:
        found = made(data=records, kind="responses", teacher=name, samples=3)
        assert found.made.num_rows == 9
        asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a sea.\n\nIn Asia."}]
        assert [request.body["messages"] for request in teacher.requests].count(asked) == 3
        teacher.requests.clear()
        best = made(
            data=records, kind="responses", teacher=name, samples=3, best_by_judge=True, output=tmp_path / "best.jsonl"
        )
    assert best.made.num_rows == 3
    assert best.made.num_requests == 18
    assert best.made.refused == {"not the best of its samples": 6}
    assert {one["temperature"] for one in lines(tmp_path / "best.requests.jsonl")} == {0.8, None}
    rows = lines(tmp_path / "best.jsonl")
    assert rows[0]["system"] == "Be brief."
    scores = [request for request in lines(tmp_path / "best.requests.jsonl") if request["asked"] == "judge"]
    highest = max(json.loads(one["reply"])["score"] for one in scores if one["item"] == 0)
    assert rows[0]["tuneful_metadata"]["score"] == highest


def test_a_record_of_the_test_set_and_a_repeated_prompt_are_left_out_without_a_request(
    made: Make, tmp_path: Path
) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(SEEDS[1]) + "\n", encoding="utf-8")
    teacher = Teacher()
    with teaching(teacher) as name:
        found = made(
            data=[*SEEDS[:3], SEEDS[0]], kind="responses", teacher=name, exclude=[str(tmp_path / "test.jsonl")]
        )
    assert found.made.num_requests == found.made.num_rows == 2
    assert found.made.left_out == {
        f"near-duplicate of {tmp_path / 'test.jsonl'}": 1,
        "the same prompt as an earlier record": 1,
    }
    assert [one["outcome"] for one in lines(tmp_path / "made.requests.jsonl")] == [
        "used",
        "left out",
        "used",
        "left out",
    ]


def test_reflections_improve_the_instruction_and_then_the_response_and_keep_the_old_record(
    made: Make, tmp_path: Path
) -> None:
    teacher = Teacher()
    with teaching(teacher) as name:
        found = made(kind="reflections", teacher=name)
        assert found.made.num_requests == 12
        only = made(kind="reflections", teacher=name, reflect="response", output=tmp_path / "only.jsonl")
    row = lines(tmp_path / "made.jsonl")[0]
    assert row["tuneful_metadata"]["original"] == SEEDS[0]
    assert set(row["tuneful_metadata"]["reflection"]) == {"on_instruction", "on_response"}
    assert row["instruction"] != SEEDS[0]["instruction"]
    second = text_of(teacher.requests[6])
    assert any(one["instruction"] in second for one in lines(tmp_path / "made.jsonl"))
    assert only.made.num_requests == 6
    assert [one["instruction"] for one in lines(tmp_path / "only.jsonl")] == [one["instruction"] for one in SEEDS]


def test_pairs_are_the_best_and_the_worst_of_a_models_own_samples(made: Make, tmp_path: Path) -> None:
    teacher = Teacher()
    with teaching(teacher) as name:
        found = made(kind="pairs", teacher=name, model=name, samples=3)
        close = made(kind="pairs", teacher=name, model=name, samples=3, min_margin=99, output=tmp_path / "close.jsonl")
    rows, requests = lines(tmp_path / "made.jsonl"), lines(tmp_path / "made.requests.jsonl")
    assert found.made.num_rows == 6
    for number, row in enumerate(rows):
        scores = [
            json.loads(one["reply"])["score"] for one in requests if one["item"] == number and one["asked"] == "judge"
        ]
        assert row["score_chosen"] == max(scores)
        assert row["score_rejected"] == min(scores)
        assert row["margin"] == max(scores) - min(scores)
        assert row["chosen"] != row["rejected"]
    assert found.made.refused == {"neither the best nor the worst of its samples": 6}
    assert close.made.refused.keys() <= {"too small a margin", "neither the best nor the worst of its samples"}
    assert close.made.num_rows < 6


def test_pairs_by_comparison_are_won_in_both_orders(made: Make, tmp_path: Path) -> None:
    with teaching(Teacher()) as name:
        found = made("judge.protocol=pairwise", kind="pairs", judge=name, model=name, samples=2)
    requests = lines(tmp_path / "made.requests.jsonl")
    assert [one["asked"] for one in requests] == ["model", "model", "judge", "judge"] * 6
    rows = lines(tmp_path / "made.jsonl")
    assert 0 < len(rows) == found.made.num_rows
    assert {(row["score_chosen"], row["score_rejected"], row["margin"]) for row in rows} == {(100, 0, 100)}


def test_pairs_by_a_metric_ask_no_judge(made: Make, tmp_path: Path) -> None:
    said = ["By hand, in 2 steps, slowly.", "By hand, in 2 steps.", "I do not know."]
    teacher = Teacher(lambda request: said[len(teacher.requests) % 3])
    with teaching(teacher) as name:
        found = made("judge.concurrency=1", data=SEEDS[:1], kind="pairs", model=name, samples=3, rank_by="rouge_l")
    assert found.made.num_requests == 3
    (row,) = lines(tmp_path / "made.jsonl")
    assert (row["chosen"], row["rejected"]) == ("By hand, in 2 steps.", "I do not know.")
    assert row["score_chosen"] == 1.0
    assert row["tuneful_metadata"]["ranked_by"] == "rouge_l"


def test_a_pair_after_earlier_turns_is_written_as_messages(made: Make, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Name a lake."},
    ]
    teacher = Teacher()
    with teaching(teacher) as name:
        made("judge.use_reference=false", data=[{"messages": messages}], kind="pairs", teacher=name, model=name)
        made(data=[{"messages": messages}], kind="responses", teacher=name, output=tmp_path / "responses.jsonl")
    (row,) = lines(tmp_path / "made.jsonl")
    assert row["prompt"] == messages
    assert [message["role"] for message in row["chosen"]] == ["assistant"]
    (row,) = lines(tmp_path / "responses.jsonl")
    assert row["history"] == [["Hello.", "Good day."]]
    assert row["instruction"] == "Name a lake."


def test_a_server_that_is_gone_ends_the_work_and_the_same_command_goes_on(made: Make, tmp_path: Path) -> None:
    class Gone(Teacher):
        is_gone = True

        async def behave(self, request: Request, writer: Any) -> None:
            if self.is_gone and request.method != "GET" and len(self.requests) >= 20:
                writer.write(head(503, length=2) + b"{}")
                await writer.drain()
                return
            await super().behave(request, writer)

    teacher = Gone()
    with teaching(teacher) as name:
        with pytest.raises(
            JudgeError, match=r"no reply to 8 requests in a row: HTTP 503.*run the same command to go on"
        ):
            made(kind="instructions", teacher=name, num=40)
        assert (tmp_path / "made.jsonl.partial").exists()
        assert not (tmp_path / "made.jsonl").exists()
        teacher.is_gone = False
        with pytest.raises(ConfigError, match=r"made.jsonl.partial: holds replies to another request"):
            made(kind="instructions", teacher=name, num=41)
        found = made(kind="instructions", teacher=name, num=40)
    assert found.made.num_before == 20
    assert len(teacher.requests) == found.made.num_requests
    assert found.made.num_rows == 40


def test_what_was_answered_before_a_kill_is_not_asked_again_and_the_files_are_the_same(
    made: Make, tmp_path: Path
) -> None:
    teacher = Teacher()
    with teaching(teacher) as name:
        made(kind="responses", teacher=name, samples=2, best_by_judge=True)
        files = [(tmp_path / one).read_bytes() for one in ("made.jsonl", "made.requests.jsonl")]
        num_requests = len(teacher.requests)
        teacher.requests.clear()
        for one in ("made.jsonl", "made.requests.jsonl"):
            (tmp_path / one).unlink()
        with pytest.MonkeyPatch.context() as patch:
            add = Journal.add

            def dying(self: Journal, results: Any) -> None:
                if len(self._results) == 7:
                    raise RuntimeError("killed")
                add(self, results)

            patch.setattr(Journal, "add", dying)
            with pytest.raises(RuntimeError, match="killed"):
                made(kind="responses", teacher=name, samples=2, best_by_judge=True)
        partial = tmp_path / "made.jsonl.partial"
        partial.write_bytes(partial.read_bytes() + b'{"replies": [{"key": "5/sam')  # half a line
        num_before = len(teacher.requests)
        found = made(kind="responses", teacher=name, samples=2, best_by_judge=True)
    assert found.made.num_before == 7
    assert len(teacher.requests) - num_before == num_requests - 7
    assert [(tmp_path / one).read_bytes() for one in ("made.jsonl", "made.requests.jsonl")] == files


def test_the_command_shows_the_counts_and_gives_them_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in SEEDS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    from tuneful.cli import main

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["tuneful", "synthesize", "seeds.jsonl", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return str(capsys.readouterr().out)

    with teaching(Teacher()) as name:
        page = run("--kind", "responses", "--teacher", name, "-o", "a.jsonl")
        document = json.loads(run("--kind", "responses", "--teacher", name, "-o", "b.jsonl", "--json", "--num", "2"))
    assert "a.jsonl: 6 rows (responses)" in page
    assert "6 = 6 used + 0 refused" in page
    assert "check: 6 rows read = 6 used + 0 refused" in page
    assert (document["num_rows"], document["num_requests"], document["kind"]) == (2, 2, "responses")
    assert document["check"]["rows_used"] == 2


def test_a_model_in_this_process_teaches_itself_out_of_nothing_and_is_ranked(
    tiny_llama: Path, made: Make, tmp_path: Path
) -> None:
    """A random model writes nonsense; that it is all accounted for, and the same every time, is what is tested."""
    teacher = f"model:{tiny_llama}"
    options: dict[str, Any] = {
        "data": None,
        "kind": "instructions",
        "teacher": teacher,
        "num": 3,
        "from_empty_turn": True,
    }
    settings = ["judge.max_tokens=40", "model.dtype=float32", "generate.temperature=1", "generate.top_k=50"]
    found = made(*settings, quick=(), **options, max_requests=24, temperature=1.0)
    requests = lines(tmp_path / "made.requests.jsonl")
    assert found.made.num_requests == len(requests) > 3
    assert {one["asked"] for one in requests} == {"teacher"}
    assert found.made.num_used + sum(found.made.refused.values()) == len(requests)
    again = made(*settings, quick=(), **options, max_requests=24, temperature=1.0, output=tmp_path / "again.jsonl")
    assert again.made.num_rows == found.made.num_rows
    assert (tmp_path / "again.requests.jsonl").read_bytes() == (tmp_path / "made.requests.jsonl").read_bytes()
    pairs = made(
        "generate.max_new_tokens=12",
        "model.dtype=float32",
        kind="pairs",
        model=str(tiny_llama),
        samples=3,
        rank_by="chrf",
        temperature=1.0,
        output=tmp_path / "pairs.jsonl",
    )
    assert pairs.made.num_requests == 18
    assert pairs.made.num_used + sum(pairs.made.refused.values()) == 18
    assert tuneful.synthesize.__name__ == "synthesize"


def test_a_short_campaign_of_a_hostile_teacher_loses_no_request(tmp_path: Path) -> None:
    """The long one is `python benchmarks/hostile_teacher.py --replies 2000`."""
    from tests.doubles.hostile_teacher import play

    for number, (kind, wire) in enumerate(
        [("instructions", "ollama"), ("responses", "openai"), ("reflections", "ollama")]
    ):
        requests, wrong, played = play(kind, wire, 10, f"suite {number}", tmp_path)  # type: ignore[arg-type]
        assert wrong == []
        assert requests >= 10
        assert len(played) > 2


def test_the_oracle_notices_a_reader_that_takes_control_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the campaign would prove nothing."""
    import re

    from tests.doubles.hostile_teacher import play

    monkeypatch.setattr(replies, "_CONTROL_TOKEN", re.compile("(?!)"))
    _, wrong, _ = play("responses", "ollama", 20, "planted", tmp_path)
    assert any("used, though it was" in one for one in wrong)
