"""Files of tests: every form is read as it is meant, and what is damaged is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneful.errors import DataError
from tuneful.evaluation.task_files import ChoiceItem, InstructionItem, read_tasks


def written(folder: Path, rows: list[Any], name: str = "items.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def item_of(folder: Path, row: dict[str, Any]) -> Any:
    [task] = read_tasks([written(folder, [row])])
    [item] = task.items
    return item


TWO = {"question": "Which?", "choices": ["this one", "that one"]}


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({**TWO, "answer": 1}, 1),
        ({**TWO, "answer": "B"}, 1),
        ({**TWO, "answer": "(a)"}, 0),
        ({**TWO, "answer": "1"}, 1),
        ({**TWO, "answer": "that one"}, 1),
        ({"query": "Which?", "choices": ["this one", "that one"], "gold": 0}, 0),
        ({"query": "Which?", "choices": ["this one", "that one"], "gold": [0]}, 0),
        ({"ctx": "Which?", "endings": ["this one", "that one"], "label": "1"}, 1),
        ({"goal": "Which?", "sol1": "this one", "sol2": "that one", "label": 1}, 1),
        ({"question": "Which?", "options": ["this one", "that one"], "target": 0}, 0),
        (
            {
                "question": "Which?",
                "choices": {"text": ["this one", "that one"], "label": ["A", "B"]},
                "answerKey": "B",
            },
            1,
        ),
        (
            {
                "question_stem": "Which?",
                "choices": {"text": ["this one", "that one"], "label": ["1", "2"]},
                "answerKey": "1",
            },
            0,
        ),
        (
            {
                "question": "Which?",
                "choices": [{"text": "this one", "label": "A"}, {"text": "that one", "label": "B"}],
                "answerKey": "A",
            },
            0,
        ),
    ],
)
def test_every_form_of_multiple_choice_is_read(tmp_path: Path, row: dict[str, Any], gold: int) -> None:
    item = item_of(tmp_path, row)
    assert (item.question, item.choices, item.gold) == ("Which?", ("this one", "that one"), (gold,))
    assert item.source.endswith("items.jsonl:1")
    assert not item.has_blank


def test_the_choices_of_a_sentence_stand_in_its_blank(tmp_path: Path) -> None:
    row = {"sentence": "The cup fell as _ shook.", "option1": "the shelf", "option2": "the moon", "answer": "2"}
    assert item_of(tmp_path, row) == ChoiceItem(
        str(tmp_path / "items.jsonl:1"), row["sentence"], ("the shelf", "the moon"), (1,), has_blank=True
    )


def test_several_answers_may_be_right(tmp_path: Path) -> None:
    assert item_of(tmp_path, {**TWO, "answer": ["A", 1, 0]}).gold == (0, 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Which?", "choices": ["1", "2"], "answer": "1"}, "may mean choice 1 and choice 2"),
        ({"question": "Which?", "choices": ["B", "A"], "answer": "A"}, "may mean choice 1 and choice 2"),
        ({"question": "Which?", "choices": ["same", "same"], "answer": "same"}, "may mean"),
        ({**TWO, "answer": 2}, "none of the 2 choices"),
        ({**TWO, "answer": -1}, "none of the 2 choices"),
        ({**TWO, "answer": True}, "none of the 2 choices"),
        ({**TWO, "answer": []}, "is empty"),
        (TWO, "no right answer"),
        ({"question": "Which?", "choices": ["only"], "answer": 0}, "no list of two texts"),
        ({"question": "Which?", "choices": ["a", 1], "answer": 0}, "no list of two texts"),
        ({"question": "Which?", "choices": ["a", " "], "answer": 0}, "no list of two texts"),
        ({"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A"]}, "answer": 0}, "not a `label`"),
        ({"question": 3, "choices": ["a", "b"], "answer": 0}, "`question` is no text"),
        ({"sentence": "Ends in _", "option1": "a", "option2": "b", "answer": "1"}, "nothing follows"),
        ({"sentence": "_ or _ it is", "option1": "a", "option2": "b", "answer": "1"}, "more than one"),
        ({"instruction": "Which?", "output": "a"}, "no item of a test"),
        ({"prompt": "p", "instruction_id_list": []}, "no list of names"),
        ({"prompt": "", "instruction_id_list": ["punctuation:no_comma"]}, "`prompt` is no text"),
        ({"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "no list of 1 objects"),
        ({"prompt": "p", "instruction_id_list": ["startend:end_checker"], "kwargs": [{}]}, "needs `end_phrase`"),
    ],
)
def test_a_damaged_row_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    good = {**TWO, "answer": 0}
    with pytest.raises(DataError) as raised:
        read_tasks([written(tmp_path, [good, row])])
    assert "items.jsonl:2: " in str(raised.value)
    assert said in str(raised.value)


def test_all_faults_of_a_file_are_told_at_once_the_first_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("{oops\n" * 7 + json.dumps({**TWO, "answer": 0}) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        read_tasks([str(file)])
    said = str(raised.value).splitlines()
    assert [line.partition(": ")[0].rpartition(":")[2] for line in said[:5]] == ["1", "2", "3", "4", "5"]
    assert said[5] == "and 2 more"


def test_two_kinds_of_item_do_not_go_into_one_file(tmp_path: Path) -> None:
    rows = [{**TWO, "answer": 0}, {"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}]
    with pytest.raises(DataError, match=r"items.jsonl:2: multiple choice and instructions"):
        read_tasks([written(tmp_path, rows)])


def test_what_cannot_be_verified_is_an_item_with_the_reason(tmp_path: Path) -> None:
    known = {"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
    unknown = {"prompt": "q", "instruction_id_list": ["punctuation:no_comma", "language:response_language"]}
    [task] = read_tasks([written(tmp_path, [known, unknown])])
    assert task.kind == "instructions"
    reasons = [item.unscored_reason for item in task.items if isinstance(item, InstructionItem)]
    assert reasons == [None, "cannot verify language:response_language"]


def test_a_file_of_which_nothing_can_be_scored_is_refused(tmp_path: Path) -> None:
    unknown = {"prompt": "q", "instruction_id_list": ["language:response_language"]}
    with pytest.raises(DataError, match="none of its 2 items can be scored"):
        read_tasks([written(tmp_path, [unknown, unknown])])


def test_files_are_called_by_their_names_and_numbered_where_these_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    names = ["ARC-Easy.test.jsonl", "other/arc easy.jsonl", "quiz.jsonl"]
    files = [written(tmp_path, [{**TWO, "answer": 0}], name) for name in names]
    assert [task.name for task in read_tasks(files)] == ["arc_easy", "arc_easy_2", "quiz"]


def test_a_list_of_json_and_csv_are_read_too(tmp_path: Path) -> None:
    as_list = tmp_path / "a.json"
    as_list.write_text(json.dumps([{**TWO, "answer": 0}] * 2), encoding="utf-8")
    as_csv = tmp_path / "b.csv"
    as_csv.write_text("question,option1,option2,answer\nWhich?,this,that,2\n", encoding="utf-8")
    first, second = read_tasks([str(as_list), str(as_csv)])
    assert len(first.items) == 2
    assert second.items[0].gold == (1,)  # type: ignore[union-attr]
