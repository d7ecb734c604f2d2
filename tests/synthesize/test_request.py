"""An option that would be ignored, or one that is missing, ends in one message before anybody is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.teacher import Teacher, teaching
from tests.synthesize.conftest import SEEDS

from tuneful.errors import ConfigError
from tuneful.synthesize import opened

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "instructions"}, "--teacher JUDGE is needed"),
        ({"kind": "instructions", "teacher": "llama3"}, "names no judge"),
        ({"kind": "instructions", "teacher": "ollama/x", "samples": 3}, "--samples is for --kind responses or pairs"),
        ({"kind": "instructions", "teacher": "ollama/x", "data": None}, "needs DATA"),
        ({"kind": "instructions", "teacher": "ollama/x", "from_empty_turn": True}, "leave DATA and --topics out"),
        (
            {"kind": "instructions", "teacher": "ollama/x", "from_empty_turn": True, "data": None},
            "give it, such as --empty-turn",
        ),
        ({"kind": "responses", "teacher": "ollama/x", "best_by_judge": True}, "give --samples 2"),
        ({"kind": "responses", "teacher": "ollama/x", "judge": "ollama/y"}, "--judge ranks samples"),
        ({"kind": "responses", "teacher": "ollama/x", "data": None}, "DATA"),
        ({"kind": "reflections", "teacher": "ollama/x", "min_margin": 2.0}, "--min-margin is for --kind pairs"),
        ({"kind": "pairs"}, "is ranked by a judge"),
        ({"kind": "pairs", "teacher": "ollama/x", "rank_by": "chrf"}, "is not asked where --rank-by chrf"),
        ({"kind": "pairs", "teacher": "ollama/x", "judge": "ollama/y"}, "not asked where --judge ollama/y ranks"),
        ({"kind": "responses", "teacher": "ollama/x", "prompts": "."}, "--prompts is for --kind instructions or refl"),
        ({"kind": "pairs", "teacher": "ollama/x", "prompts": "."}, "--prompts is for --kind instructions or refl"),
        (
            {
                "kind": "instructions",
                "teacher": "model:x",
                "from_empty_turn": True,
                "prompts": ".",
                "data": None,
            },
            "leave --prompts out",
        ),
        ({"kind": "instructions", "teacher": "ollama/x", "prompts": "nowhere"}, "nowhere: no such folder"),
        ({"kind": "pairs", "rank_by": "bleu"}, "expected judge or one of rouge_l"),
        ({"kind": "pairs", "rank_by": "chrf", "samples": 1}, "two samples or more"),
        ({"kind": "pairs", "rank_by": "chrf", "temperature": 0.0}, "gives the same answer every time"),
        ({"kind": "responses", "teacher": "ollama/x", "num": 0}, "--num 0: expected a number of 1 or more"),
        (
            {"kind": "responses", "teacher": "ollama/x", "temperature": float("inf")},
            "--temperature inf: expected a number",
        ),
        (
            {"kind": "responses", "teacher": "ollama/x", "temperature": float("nan")},
            "--temperature nan: expected a number",
        ),
        ({"kind": "pairs", "teacher": "ollama/x", "min_margin": float("inf")}, "--min-margin inf: expected a number"),
        ({"kind": "responses", "teacher": "ollama/x", "output": "rows.json"}, "ends in .jsonl"),
        ({"kind": "responses", "teacher": "ollama/x", "output": "nowhere/rows.jsonl"}, "its folder does not exist"),
        ({"kind": "poems", "teacher": "ollama/x"}, "expected one of instructions"),
    ],
)
def test_an_option_that_would_be_ignored_or_is_missing_is_one_message(
    made: Make, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        made(**options)


def test_a_file_that_is_there_is_never_written_over(made: Make, tmp_path: Path) -> None:
    (tmp_path / "made.jsonl").write_text("mine\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"made.jsonl: already exists"):
        made(kind="responses", teacher="ollama/x")
    assert (tmp_path / "made.jsonl").read_text(encoding="utf-8") == "mine\n"


def test_the_file_of_requests_is_never_written_over_even_where_it_is_the_data(made: Make, tmp_path: Path) -> None:
    text = "".join(json.dumps(one) + "\n" for one in SEEDS)
    (tmp_path / "made.requests.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"made.requests.jsonl: already exists"):
        made(kind="responses", teacher="ollama/x", data=str(tmp_path / "made.requests.jsonl"))
    assert (tmp_path / "made.requests.jsonl").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({"kind": "instructions"}, "instruction.txt"),  # misspelt
        ({"kind": "instructions"}, "topic.txt"),  # of another request
        ({"kind": "reflections", "reflect": "response"}, "instruction-reflection.txt"),
    ],
)
def test_a_folder_of_prompts_none_of_which_would_be_read_is_refused(
    made: Make, tmp_path: Path, options: dict[str, Any], file: str
) -> None:
    (tmp_path / file).write_text("[system]\nOurs. {reply}\n[user]\n{topic}{examples}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has no [a-z-]+\.txt, so nothing in it would be read"):
        made(teacher="ollama/x", prompts=tmp_path, **options)


def test_the_judge_of_the_configuration_ranks_pairs_unless_another_is_named(made: Make, tmp_path: Path) -> None:
    with teaching(Teacher()) as name:
        options: dict[str, Any] = {"data": SEEDS[:1], "kind": "pairs", "model": name, "samples": 2}
        made("judge.model=ollama/absent", judge=name, **options)
        made(f"judge.model={name}", **options, output=tmp_path / "default.jsonl")
    assert (tmp_path / "default.jsonl").read_bytes() == (tmp_path / "made.jsonl").read_bytes()


def test_who_has_two_roles_is_opened_once(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    open_asker = opened.open_asker

    def counting(name: str, *arguments: Any, **options: Any) -> Any:
        names.append(name)
        return open_asker(name, *arguments, **options)

    monkeypatch.setattr(opened, "open_asker", counting)
    with teaching(Teacher()) as name:
        found = made(data=SEEDS[:1], kind="pairs", model=name, judge=name, samples=2)
    assert found.made.num_requests == 4
    assert names == [name]
