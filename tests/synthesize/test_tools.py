"""Records that call tools are never taken for plain text; and files of --exclude are read as the data of their kind are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.teacher import Teacher, teaching, text_of
from tests.synthesize.conftest import SEEDS, lines

from tuneful.errors import DataError
from tuneful.export.runtime import messages_of
from tuneful.types import Conversation, ToolCall, ToolResult, Turn

Make = Callable[..., Any]
CALL = [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]
ASKED = {"role": "user", "content": "How is the weather in Rome?"}
CALLING = {"messages": [ASKED, {"role": "assistant", "tool_calls": CALL}]}
ANSWERED = {
    "messages": [
        *CALLING["messages"],
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny in Rome today."},
    ]
}


@pytest.mark.parametrize("kind", ["responses", "reflections"])
def test_records_with_tools_are_left_out_and_counted(made: Make, kind: str) -> None:
    plain = {
        "messages": [{"role": "user", "content": "Say how soap is made."}, {"role": "assistant", "content": "By hand."}]
    }
    teacher = Teacher()
    with teaching(teacher) as name:
        found = made(data=[plain, CALLING, ANSWERED], kind=kind, teacher=name)
    assert found.made.left_out == {"tools": 2}
    assert all("Rome" not in text_of(request) for request in teacher.requests)


def test_seeds_with_tools_are_no_examples_of_a_new_task(made: Make, capsys: pytest.CaptureFixture[str]) -> None:
    from tuneful.console import Terminal

    teacher = Teacher()
    seeds = [
        {"messages": [{"role": "user", "content": one["instruction"]}, {"role": "assistant", "content": one["output"]}]}
        for one in SEEDS
    ]
    with teaching(teacher) as name:
        made(data=[*seeds, CALLING, ANSWERED], kind="instructions", teacher=name, num=3, terminal=Terminal())
        assert "2 seeds left out: a new task calls no tools" in capsys.readouterr().err
        assert all("Rome" not in text_of(request) for request in teacher.requests)
        with pytest.raises(DataError, match="every record has tools"):
            made(data=[CALLING], kind="instructions", teacher=name, num=3, output="other.jsonl")


def test_excluded_files_of_preferences_and_of_documents_settings_are_read(made: Make, tmp_path: Path) -> None:
    pair = {"prompt": SEEDS[0]["instruction"], "chosen": "By hand.", "rejected": "By foot."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in SEEDS), encoding="utf-8")
    teacher = Teacher()
    with teaching(teacher) as name:
        found = made(
            "train.objective=dpo",
            data=str(tmp_path / "seeds.jsonl"),
            kind="responses",
            teacher=name,
            exclude=[str(tmp_path / "pairs.jsonl")],
        )
        assert found.made.left_out == {f"near-duplicate of {tmp_path / 'pairs.jsonl'}": 1}
        assert len(lines(tmp_path / "made.jsonl")) == 5
        weighed = made(
            f"data.weights={{{tmp_path}/seeds.jsonl: 2}}",
            data=str(tmp_path / "seeds.jsonl"),
            kind="responses",
            teacher=name,
            exclude=[str(tmp_path / "pairs.jsonl")],
            output=tmp_path / "weighed.jsonl",
        )
    assert weighed.made.num_rows == 5, "weights are of DATA alone"


def test_messages_of_a_chat_hold_no_calls_that_they_would_lose() -> None:
    calls = (ToolCall("weather", "{}"),)
    for turn in (Turn("Ask.", "", "yes", calls=calls), Turn("Ask.", "", "yes", results=(ToolResult("sunny"),))):
        with pytest.raises(AssertionError):
            messages_of(Conversation("", (turn, Turn("And?", "", "no")), "a.jsonl:1"))
