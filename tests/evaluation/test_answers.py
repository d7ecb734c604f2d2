"""Answers files of ours and of others become the same items, and a row that cannot is named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneful.config import DataConfig
from tuneful.data.read import read_data
from tuneful.errors import DataError
from tuneful.evaluation.answers import task_text
from tuneful.judge.items import paired, read_answers
from tuneful.judge.protocols import Item
from tuneful.types import Conversation, Turn

RECORD = {"instruction": "Add.", "input": "1 and 2", "output": "3"}


def written(path: Path, rows: list[dict[str, Any]], *, lines: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("key", ["text", "model_response", "model 1 response"])
@pytest.mark.parametrize("lines", [True, False])
def test_a_foreign_file_is_read_as_it_is(tmp_path: Path, key: str, lines: bool) -> None:
    file = written(tmp_path / f"theirs.json{'l' if lines else ''}", [{**RECORD, key: "three"}], lines=lines)
    found = read_answers(file, DataConfig(), key if " " in key else None)
    assert found.name == "theirs"
    assert found.items == (Item(f"{file}:{1 if lines else 2}", "Add.\n\n1 and 2", "3", "three"),)


def test_answers_of_a_run_find_their_records_in_it(tmp_path: Path) -> None:
    written(tmp_path / "data" / "test.jsonl", [{**RECORD, "source": "my.json:7"}])
    row = {"source": "my.json:7", "prompt": "...", "text": "three", "finish_reason": "stop", "num_tokens": 1}
    file = written(tmp_path / "answers" / "tuned.jsonl", [row])
    assert read_answers(file, DataConfig()).items == (Item("my.json:7", "Add.\n\n1 and 2", "3", "three"),)
    written(file, [{**row, "source": "my.json:8"}])
    with pytest.raises(DataError, match=r"tuned\.jsonl:1: the record my.json:8 .* nowhere"):
        read_answers(file, DataConfig())


def test_generated_answers_find_their_records_in_the_file_they_answer(tmp_path: Path) -> None:
    data = written(tmp_path / "my.jsonl", [RECORD, {**RECORD, "output": "three"}])
    file = written(tmp_path / "out.jsonl", [{"source": f"{data}:2", "prompt": "...", "text": "4"}])
    assert read_answers(file, DataConfig()).items == (Item(f"{data}:2", "Add.\n\n1 and 2", "three", "4"),)


def test_answers_to_the_starter_data_find_their_records(tmp_path: Path) -> None:
    record = read_data("starter").records[16]
    file = written(tmp_path / "out.jsonl", [{"source": record.source, "prompt": "...", "text": "4"}])
    assert read_answers(file, DataConfig()).items == (
        Item(record.source, task_text(record.conversation), record.conversation.turns[-1].response, "4"),
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (RECORD, "no answer under `text` or `model_response`; name its key: --answer-key"),
        ({**RECORD, "text": 3}, "`text` is int, expected the answer as text"),
        ({"instruction": "Add.", "text": "3"}, "no `output`"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = written(tmp_path / "theirs.jsonl", [{**RECORD, "text": "3"}, row])
    with pytest.raises(DataError, match=f":2: .*{message}"):
        read_answers(file, DataConfig())


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "none.jsonl", DataConfig())


def test_an_earlier_exchange_is_part_of_the_task() -> None:
    turns = (Turn("Name a river.", "", "The Rhine."), Turn("Another", "in France", "The Loire."))
    assert task_text(Conversation("", turns, "x:1")) == (
        "User: Name a river.\n\nAssistant: The Rhine.\n\nUser: Another\n\nin France"
    )
    assert task_text(Conversation("Be brief.", turns[:1], "x:1")) == "Be brief.\n\nName a river."


def test_pairs_are_made_by_source() -> None:
    ours = [Item("a:1", "t", "r", "x"), Item("a:2", "t", "r", "y")]
    theirs = [Item("a:2", "t", "r", "Y"), Item("a:1", "t", "r", "X")]
    assert [(item.answer, item.rival) for item in paired(ours, theirs)] == [("x", "X"), ("y", "Y")]
    with pytest.raises(DataError, match="a:2: only one"):
        paired(ours, theirs[1:])
    with pytest.raises(DataError, match="a:1: the two files hold different tasks"):
        paired(ours[:1], [Item("a:1", "another", "r", "X")])


def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^others/first: no such file, and no such run\. Give a run folder"):
        read_answers(Path("others/first"), DataConfig())
