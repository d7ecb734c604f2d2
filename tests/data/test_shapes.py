"""Shapes of files: columns, objects over many lines, Excel's first line, class labels, saved folders and clones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.data import json_columns
from tuneful.data.read import DataFile, read_data
from tuneful.errors import DataError

ROWS = [{"instruction": f"Ask {n}.", "input": None, "output": f"Answer {n}."} for n in range(3)]
CHAT = [{"role": "user", "content": "Ask."}, {"role": "assistant", "content": "Answer."}]


def read(folder: Path, content: str | bytes, name: str = "data.json", **options: Any) -> DataFile:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_data(str(folder / name), **options)


def raws(file: DataFile) -> list[Any]:
    return [record.raw for record in file.records]


def places(file: DataFile) -> list[str]:
    return [Path(record.source).name for record in file.records]


def in_columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: [row[key] for row in rows] for key in rows[0]}


COLUMNS = {
    "lists": in_columns(ROWS),
    "objects by row": {key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]},
    "rows by number": {str(n): row for n, row in enumerate(ROWS)},
    "names and rows": {"columns": list(ROWS[0]), "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
}


@pytest.mark.parametrize("what", COLUMNS)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
def test_columns_are_read_as_the_rows_that_they_hold(tmp_path: Path, what: str, indent: int | None, name: str) -> None:
    file = read(tmp_path, "\ufeff" + json.dumps(COLUMNS[what], indent=indent), name)
    assert raws(file) == ROWS
    assert places(file) == [f"{name}:row {number}" for number in (1, 2, 3)]


def test_columns_of_messages_and_columns_with_nan_are_read(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "id": 1}, {"messages": CHAT, "id": 2}]
    assert raws(read(tmp_path, json.dumps(in_columns(rows)))) == rows
    assert raws(read(tmp_path, json.dumps({"messages": [CHAT, CHAT]}))) == [{"messages": CHAT}] * 2
    text = json.dumps(in_columns(ROWS)).replace("null", "NaN")
    assert raws(read(tmp_path, text)) == ROWS


RECORDS: dict[str, dict[str, Any]] = {
    "one of texts in turn": {"conversations": ["Ask.", "Answer."]},
    "one of messages": {"messages": CHAT},
    "one whose messages have another key": {"conversation": CHAT, "model": "m"},
    "one of two lists of messages": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "one with tags": {"tags": ["a", "b"], "instruction": "Ask.", "output": "Answer."},
}


@pytest.mark.parametrize("what", RECORDS)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_record_is_not_taken_for_columns(tmp_path: Path, what: str, indent: int | None) -> None:
    file = read(tmp_path, json.dumps(RECORDS[what], indent=indent))
    assert raws(file) == [RECORDS[what]]
    lines = "\n".join([json.dumps(RECORDS[what])] * 2)
    assert raws(read(tmp_path, lines, "data.jsonl")) == [RECORDS[what]] * 2


def test_columns_of_unlike_lengths_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`instruction` is a list, expected text"):
        read(tmp_path, json.dumps({"instruction": ["a", "b"], "output": ["c"]}))


def test_a_file_of_columns_beyond_the_limit_is_named_and_one_beyond_a_record_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": f"Ask {n}.", "output": "x" * 1000} for n in range(5000)]
    text = json.dumps(in_columns(rows))
    assert len(read(tmp_path, text).records) == 5000
    monkeypatch.setattr(json_columns, "MAX_BYTES", 4_500_000)
    with pytest.raises(DataError, match="columns of over 4,500,000 bytes; write it as JSONL"):
        read(tmp_path, text)


@given(st.lists(st.fixed_dictionaries({"instruction": st.text(min_size=1), "output": st.text(min_size=1)}), min_size=2))
def test_what_is_read_of_columns_is_what_was_written(rows: list[dict[str, str]]) -> None:
    text = json.dumps(in_columns(rows)).encode()
    stream = _Bytes(text)
    found = json_columns.records_in_columns(stream, frozenset({"instruction", "output"}))  # type: ignore[arg-type]
    assert found == rows


class _Bytes:
    name = "data.json"

    def __init__(self, content: bytes) -> None:
        self._content = content

    def peek(self, size: int) -> bytes:
        return self._content[:size]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "sep=;\r"])
def test_the_line_that_names_excels_delimiter_is_no_header(tmp_path: Path, first: str) -> None:
    file = read(tmp_path, f"\ufeff{first}\ninstruction;output\nSay, please.;Hello.\n", "data.csv")
    assert raws(file) == [{"instruction": "Say, please.", "output": "Hello."}]
    assert places(file) == ["data.csv:3"]
    file = read(tmp_path, "sep=\t\nprompt\tcompletion\na\tb\n", "data.csv")
    assert raws(file) == [{"prompt": "a", "completion": "b"}]


def test_a_header_in_capitals_is_a_header_too(tmp_path: Path) -> None:
    assert len(read(tmp_path, "Instruction,Output\na,b\n", "data").records) == 1


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a pointer of Git LFS and not the file itself; fetch it: git lfs pull"):
        read(tmp_path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "data.parquet")


def labelled(rows: list[dict[str, Any]]) -> pa.Table:
    feature = {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    document = json.dumps({"info": {"features": feature}})
    return pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": document})


@pytest.mark.parametrize("name", ["data.parquet", "data.arrow"])
def test_class_labels_are_the_names_of_their_classes(tmp_path: Path, name: str) -> None:
    rows = [{"text": "Lovely.", "label": 1}, {"text": "Awful.", "label": 0}, {"text": "?", "label": -1}]
    table = labelled(rows)
    if name == "data.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    from tuneful.config import load_config

    config = load_config(None, ["data.columns=instruction=text,output=label"]).data
    file = read_data(str(tmp_path / name), config, on_error="skip")
    assert [record.conversation.turns[0].response for record in file.records] == ["positive", "negative"]
    assert [(row.raw, "is null" in row.reason) for row in file.refused] == [({"text": "?", "label": None}, True)]


def save(folder: Path, rows: list[dict[str, Any]], parts: int = 1) -> None:
    """As `datasets.Dataset.save_to_disk` does: Arrow streams, and a state.json that lists them."""
    folder.mkdir(parents=True)
    names = [f"data-{part:05}-of-{parts:05}.arrow" for part in range(parts)]
    for part, name in enumerate(names):
        table = pa.Table.from_pylist(rows[part::parts])
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_data_set_is_read_with_all_its_files(tmp_path: Path) -> None:
    save(tmp_path / "saved", ROWS, parts=2)
    file = read_data(str(tmp_path / "saved"))
    assert raws(file) == [ROWS[0], ROWS[2], ROWS[1]]
    assert file.records[0].source == f"{tmp_path}/saved/data-00000-of-00002.arrow:row 1"
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"state\.json: names data-00001-of-00002\.arrow, which is not there"):
        read_data(str(tmp_path / "saved"))


def test_of_saved_splits_train_is_read_and_another_by_its_folder(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    save(saved / "train", ROWS[:2])
    save(saved / "test", ROWS[2:])
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert raws(read_data(str(saved))) == ROWS[:2]
    assert raws(read_data(str(saved / "test"))) == ROWS[2:]
    assert len(read_data(f"{saved}/t*").records) == 3
    (saved / "dataset_dict.json").write_text('{"splits": ["test", "dev"]}')
    with pytest.raises(DataError, match=f"has no split train; name the split's folder: {saved}/test, {saved}/dev"):
        read_data(str(saved))
    (saved / "dataset_dict.json").write_text("[")
    with pytest.raises(DataError, match=r"dataset_dict\.json: cannot be read"):
        read_data(str(saved))


def test_a_clone_of_the_hub_is_read_as_its_card_says(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / "data").mkdir(parents=True)
    (clone / ".git").mkdir()
    (clone / ".git" / "x.json").write_text("{}")
    for name, row in (("train-00000.jsonl", ROWS[0]), ("test-00000.jsonl", ROWS[1]), ("more.jsonl", ROWS[2])):
        (clone / "data" / name).write_text(json.dumps(row))
    assert raws(read_data(str(clone))) == [ROWS[0]]
    (clone / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data/more.jsonl\n---\n")
    assert raws(read_data(str(clone))) == [ROWS[2]]


@pytest.mark.parametrize("mark", ["run.json", "config.json", "tokenizer.json"])
def test_a_folder_that_is_something_else_is_refused_with_what_lies_in_it(tmp_path: Path, mark: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / mark).write_text("{}")
    with pytest.raises(DataError, match=r"is a folder; name a file of it, or several: '.*/data/train\.jsonl'"):
        read_data(str(tmp_path))
