"""What rows say of how they were made, what of the files was read, and what makes a request another one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.doubles.teacher import Teacher, teaching
from tests.synthesize.conftest import QUICK, SEEDS, lines
from tests.synthesize.test_server_that_fails import ONE_AT_A_TIME, Failing

import tuneful
from tuneful.commands.synthesize import show_synthesis
from tuneful.console import Terminal
from tuneful.errors import ConfigError, JudgeError

Make = Callable[..., Any]
PROMPT = "[system]\n{reply}\n[user]\n{instruction}\n{input}\n{response}\n"


def test_a_pair_names_the_requests_of_its_two_answers(made: Make, tmp_path: Path) -> None:
    with teaching(Teacher()) as name:
        made(kind="pairs", teacher=name, model=name, samples=3)
    requests = {one["request"]: one for one in lines(tmp_path / "made.requests.jsonl")}
    rows = lines(tmp_path / "made.jsonl")
    assert rows
    for row in rows:
        metadata = row["tuneful_metadata"]
        chosen, rejected = requests[metadata["request"]], requests[metadata["rejected_request"]]
        assert (chosen["reply"], rejected["reply"]) == (row["chosen"], row["rejected"])
        assert (chosen["seed"], rejected["seed"]) == (metadata["seed"], metadata["rejected_seed"])


def test_samples_that_say_the_same_are_one(made: Make, tmp_path: Path) -> None:
    said = ["It is made by hand.", "it is  made by HAND.", "It grows."]
    teacher = Teacher(lambda request: said[len(teacher.requests) % 3])
    with teaching(teacher) as name:
        found = made(*ONE_AT_A_TIME, data=SEEDS[:1], kind="responses", teacher=name, samples=3)
    assert found.made.num_rows == len(lines(tmp_path / "made.jsonl")) == 2
    assert found.made.refused == {"says the same as another sample": 1}


def test_the_seed_of_the_configuration_seeds_every_request(made: Make, tmp_path: Path) -> None:
    sent = []
    for number, seed in enumerate((1, 2, 1)):
        teacher = Teacher()
        with teaching(teacher) as name:
            output = tmp_path / f"{number}.jsonl"
            made(*ONE_AT_A_TIME, f"train.seed={seed}", kind="reflections", teacher=name, data=SEEDS[:2], output=output)
        sent.append(teacher.sent("seed"))
    assert len(set(sent[0])) == 4
    assert sent[0] == sent[2]
    assert not set(sent[0]) & set(sent[1])


@pytest.mark.parametrize("changed", ["data", "excluded", "prompts", "seed", "temperature", "judge"])
def test_what_a_killed_process_left_is_taken_only_where_all_that_replies_follow_from_is_the_same(
    made: Make, tmp_path: Path, changed: str
) -> None:
    test, prompt = tmp_path / "test.jsonl", tmp_path / "response-reflection.txt"
    data = [{**one, "input": f"{n}"} for n, one in enumerate([*SEEDS, *SEEDS])]
    settings, options = [*ONE_AT_A_TIME], dict[str, Any](data=data, exclude=[str(test)], temperature=0.5)

    def make() -> None:
        made(*settings, kind="reflections", teacher=name, reflect="response", prompts=tmp_path, **options)

    test.write_text(json.dumps({"instruction": "Name a sea."}), encoding="utf-8")
    prompt.write_text(PROMPT, encoding="utf-8")
    with teaching(Failing(lambda number: number > 0)) as name:
        with pytest.raises(JudgeError):
            make()
        with pytest.raises(JudgeError, match="in a row"):
            make()  # it goes on
        if changed == "data":
            data[-1] = {**SEEDS[0], "input": "another"}
        elif changed == "excluded":
            test.write_text(json.dumps({"instruction": "Name a lake."}), encoding="utf-8")
        elif changed == "prompts":
            prompt.write_text(f"{PROMPT}Be brief.", encoding="utf-8")
        elif changed == "temperature":
            options["temperature"] = 0.6
        else:
            settings.append("train.seed=5" if changed == "seed" else "judge.max_tokens=77")
        with pytest.raises(ConfigError, match="holds replies to another request"):
            make()


def test_rows_that_are_refused_are_said_of_every_file_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("seeds", "test"):
        rows = [*SEEDS[:2], {"instruction": ""}] if name == "seeds" else [{"instruction": "Name a sea."}, {"no": 1}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said, page = io.StringIO(), io.StringIO()
    terminals = []
    for stream in (said, page):
        terminals.append(Terminal())
        terminals[-1].console = Console(file=stream, width=200)
    with teaching(Teacher()) as name:
        found = tuneful.synthesize(
            "seeds.jsonl",
            kind="responses",
            output="made.jsonl",
            teacher=name,
            exclude=["test.jsonl"],
            config=tuneful.load_config(overrides=[*QUICK, "data.on_error=skip"]),
            terminal=terminals[0],
        )
    assert found.as_dict()["read"] == {
        "seeds.jsonl": {"num_used": 2, "num_refused": 1},
        "test.jsonl": {"num_used": 1, "num_refused": 1},
    }
    assert said.getvalue().count("2 rows read = 1 used + 1 refused") == 1
    assert said.getvalue().count("3 rows read = 2 used + 1 refused") == 1
    show_synthesis(found, terminals[1])
    assert "seeds.jsonl: 2 used + 1 refused" in page.getvalue()
    assert "test.jsonl: 1 used + 1 refused" in page.getvalue()


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_topic(made: Make, tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_bytes("rivers\ntrees\n".encode("utf-8-sig"))
    with teaching(Teacher()) as name:
        made(data=None, kind="instructions", teacher=name, num=2, topics=tmp_path / "topics.txt")
    assert [row["tuneful_metadata"]["topic"] for row in lines(tmp_path / "made.jsonl")] == ["rivers", "trees"]
