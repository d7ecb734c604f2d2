"""Records that a program holds are read as a file of them would be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from tuneful.data.in_memory import as_names
from tuneful.data.read import read_data
from tuneful.errors import DataError

ROWS = [{"instruction": "Say red.", "input": "", "output": "red"}, {"instruction": "Say blue.", "output": "blue"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Frame:
    """What pandas' data frames offer."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self.columns = list(rows[0])

    def to_dict(self, orient: str = "dict") -> Any:
        assert orient == "records"
        return self._rows


class DataSet:
    """What data sets of `datasets` offer: their columns, and a row at a time."""

    column_names = ("instruction", "input", "output")

    def __iter__(self) -> Any:
        return iter(ROWS)


def responses(data: Any) -> list[str]:
    return [record.conversation.turns[-1].response for record in read_data(as_names(data)).records]


def test_names_of_files_stay_what_they_are() -> None:
    assert as_names("a.json") == "a.json"
    assert as_names(Path("a.json")) == "a.json"
    assert as_names(["a.json", Path("b.json")]) == ("a.json", "b.json")


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        tuple(ROWS),
        (dict(row) for row in ROWS),
        Frame(ROWS),
        DataSet(),
        {"instruction": ["Say red.", "Say blue."], "output": ["red", "blue"]},
        pyarrow.Table.from_pylist(ROWS),
    ],
    ids=["list", "tuple", "generator", "pandas", "datasets", "columns", "pyarrow"],
)
def test_records_in_memory_are_read_as_from_a_file(data: Any) -> None:
    assert responses(data) == ["red", "blue"]


def test_the_same_records_are_the_same_file_and_others_another() -> None:
    assert as_names(ROWS) == as_names([dict(row) for row in ROWS]) != as_names(ROWS[:1])


def test_an_empty_cell_of_a_data_frame_is_an_empty_input() -> None:
    frame = Frame([{"instruction": "Say red.", "input": math.nan, "output": "red"}])
    assert read_data(as_names(frame)).records[0].conversation.turns[0].input == ""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "data is a int"),
        ([], "holds no record"),
        ([ROWS[0], "Say blue."], "record 2 of the data is a str, not a dict"),
        ([{"instruction": "Say red.", "output": {1, 2}}], "record 1 of the data, `output` is a set"),
        ({"train": DataSet(), "test": DataSet()}, "give one of its splits, such as data['train']"),
        ({"instruction": ["Say red."], "output": []}, "columns of different lengths"),
    ],
)
def test_what_holds_no_records_is_told(data: Any, said: str) -> None:
    with pytest.raises(DataError, match="^.*" + said.replace("[", r"\[")):
        as_names(data)
