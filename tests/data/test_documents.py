"""Files of plain text as documents, and settings by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneful.config import load_config
from tuneful.data import documents
from tuneful.data.formats import record_texts
from tuneful.data.read import Record, SkippedRow, read_data, stream_data, stream_side
from tuneful.data.split import TEST, VALIDATION
from tuneful.errors import ConfigError, DataError

TEXT = "The tide comes in.\nIt goes out.\n\n  \nA second one,\n\n\n x\n"


def settings(*overrides: str) -> Any:
    return load_config(None, ["train.objective=text", *overrides]).data


def texts(path: Path | str, *overrides: str) -> list[tuple[str, str]]:
    """(line, text) of each document."""
    found = read_data(str(path), settings(*overrides)).records
    assert all(one.conversation.is_document and one.conversation.turns[0].instruction == "" for one in found)
    return [(one.source.rpartition(":")[2], one.conversation.turns[0].response) for one in found]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "book.txt"
    file.write_text(TEXT)
    return file


def test_a_file_of_text_is_one_document_or_its_paragraphs_or_its_lines(book: Path) -> None:
    assert texts(book) == [("1", TEXT)]
    assert texts(book, "data.sample_by=paragraph") == [
        ("1", "The tide comes in.\nIt goes out."),
        ("5", "A second one,"),
        ("8", " x"),
    ]
    lines = [("1", "The tide comes in."), ("2", "It goes out."), ("5", "A second one,"), ("8", " x")]
    assert texts(book, "data.sample_by=line") == lines


@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
def test_ends_of_lines_are_line_feeds_and_a_byte_order_mark_is_no_text(tmp_path: Path, sample_by: str) -> None:
    file = tmp_path / "windows.md"
    file.write_bytes(b"\xef\xbb\xbf" + "[a] é\r\nb\r\n".encode())
    wanted = {"document": ["[a] é\nb\n"], "paragraph": ["[a] é\nb"], "line": ["[a] é", "b"]}[sample_by]
    assert [text for _, text in texts(file, f"data.sample_by={sample_by}")] == wanted


def test_records_with_a_text_are_documents_whatever_the_file(tmp_path: Path) -> None:
    rows = [{"text": "One.", "id": 1}, {"text": "Two.\n", "label": False}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.csv").write_text('text,id\nOne.,1\n"Two.\n",2\n')
    for name in ("a.jsonl", "b.json", "c.csv"):
        assert [text for _, text in texts(tmp_path / name)] == ["One.", "Two.\n"]
    (tmp_path / "d.jsonl").write_text(json.dumps({"body": "Three."}) + "\n")
    assert [text for _, text in texts(tmp_path / "d.jsonl", "data.columns=text=body")] == ["Three."]


def test_a_folder_holds_all_its_texts_and_records_in_order_and_no_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/two.md", "a.txt", "b/.hidden.txt", "b/image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "c.jsonl").write_text('{"text": "row"}\n')
    found = read_data(str(tmp_path), settings()).records
    assert [one.conversation.turns[0].response for one in found] == ["a.txt", "b/two.md", "row"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="without a file of text"):
        read_data(str(tmp_path / "empty"), settings())


def test_what_is_no_document_is_refused_by_name(tmp_path: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.txt").write_bytes("ein café\nnoch".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt:1: line 1 is not UTF-8 .* iconv -f WINDOWS-1252"):
        texts(tmp_path / "latin.txt")
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"blank\.txt:1: `text` is empty"):
        texts(tmp_path / "blank.txt")
    (tmp_path / "paper.txt").write_bytes(b"%PDF-1.4")
    with pytest.raises(DataError, match="this is a PDF"):
        texts(tmp_path / "paper.txt")
    (tmp_path / "asked.jsonl").write_text('{"instruction": "Say.", "output": "Said."}\n')
    with pytest.raises(DataError, match=r"asked\.jsonl:1: no `text`, which is a document's"):
        texts(tmp_path / "asked.jsonl")
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 20)
    with pytest.raises(DataError, match=r"data\.sample_by=paragraph"):
        texts(book)
    with pytest.raises(DataError, match=r"book\.txt:1: .* data\.sample_by=line"):
        texts(book, "data.sample_by=paragraph")
    assert len(texts(book, "data.sample_by=line")) == 4


def test_a_text_among_records_is_refused_unless_documents_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n')
    with pytest.raises(DataError, match=r"finished text.* train\.objective=text.* data\.formats=FILE=text"):
        read_data(str(tmp_path / "a.jsonl"))
    with pytest.raises(ConfigError, match=r"data\.format: a text .* train\.objective=text"):
        load_config(None, ["data.format=text"])
    with pytest.raises(ConfigError, match=r"messages holds no documents"):
        load_config(None, ["data.format=messages", "train.objective=text"])


def test_documents_stand_beside_records_where_their_file_is_named(tmp_path: Path, book: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "Say.", "output": "Said."}\n')
    config = load_config(None, ["data.formats=book.txt=text"]).data
    found = read_data([str(tmp_path / "a.jsonl"), str(book)], config)
    assert [one.conversation.is_document for one in found.records] == [False, True]
    assert found.format == "alpaca (1), text (1)"


def test_the_test_set_of_documents_may_be_prompts_and_the_validation_set_may_not(tmp_path: Path) -> None:
    file = tmp_path / "both.jsonl"
    file.write_text('{"instruction": "Say.", "output": "Said.", "text": "Say. Said."}\n{"text": "One."}\n')
    config = settings()
    rows = [row for row in stream_side(str(file), config, TEST) if isinstance(row, Record)]
    assert [row.conversation.is_document for row in rows] == [False, True]
    rows = [row for row in stream_side(str(file), config, VALIDATION) if isinstance(row, Record)]
    assert [row.conversation.is_document for row in rows] == [True, True]


@pytest.mark.parametrize("columns", ["text=body", "text=body,instruction=ask,output=say"])
def test_documents_of_a_test_file_may_have_their_text_in_another_column(tmp_path: Path, columns: str) -> None:
    file = tmp_path / "both.jsonl"
    asked = {"ask": "Say.", "say": "Said."} if "ask" in columns else {"instruction": "Say.", "output": "Said."}
    file.write_text("".join(json.dumps(row) + "\n" for row in ({**asked, "body": "Said."}, {"body": "One."})))
    config = settings(f"data.columns={columns}") if columns == "text=body" else beside(columns)
    rows = [row for row in stream_side(str(file), config, TEST) if isinstance(row, Record)]
    assert [row.conversation.is_document for row in rows] == [False, True]
    assert rows[1].conversation.turns[0].response == "One."


def beside(columns: str) -> Any:
    return load_config(None, [f"data.columns={columns}", "data.formats=book.txt=text"]).data


def test_a_record_that_is_refused_for_what_is_wrong_with_it_is_no_document(tmp_path: Path) -> None:
    file = tmp_path / "both.jsonl"
    faulty = {"messages": [{"role": "user", "content": "Say."}], "text": "Say."}
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"text": "One."}, faulty)))
    found = list(stream_side(str(file), settings("data.on_error=skip"), TEST))
    assert [isinstance(row, Record) for row in found] == [True, False]


def test_a_document_is_shown_as_far_as_a_reader_wants() -> None:
    assert record_texts({"text": "One."}).reference == "One."
    assert len(record_texts({"text": "x" * 10_000}).reference) < 2100


def two_files(folder: Path) -> list[str]:
    for name in ("a", "b"):
        row = {"instruction": f"Say {name}.", "output": name}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "weight": 2}) + "\n")
    return [str(folder / "a.jsonl"), str(folder / "b.jsonl")]


@pytest.mark.parametrize("weights", ["a.jsonl=0.5", "0.5,1", '{"a.jsonl": 0.5, "b.jsonl": 1}', "[0.5, 1]"])
def test_weights_by_file_multiply_those_of_its_records(tmp_path: Path, weights: str) -> None:
    config = load_config(None, [f"data.weights={weights}", "data.columns=weight=weight"]).data
    found = read_data(two_files(tmp_path), config).records
    assert [one.conversation.weight for one in found] == [0.5, 1.0, 1.0, 2.0]


def test_a_pattern_gives_its_weight_to_all_its_files(tmp_path: Path) -> None:
    two_files(tmp_path)
    pattern = f"{tmp_path}/*.jsonl"
    config = load_config(None, [f"data.weights={json.dumps({pattern: 3})}"]).data
    assert {one.conversation.weight for one in read_data(pattern, config).records} == {3.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.weights=c.jsonl=2", "c.jsonl is no file of the data; its files are .*a.jsonl, .*b.jsonl"),
        ("data.weights=1,2,3", "3 values for 2 names"),
        ("data.formats=c.jsonl=text", "c.jsonl is no file"),
        ("data.interleave_probs=a.jsonl=1", "says nothing of .*b.jsonl"),
    ],
)
def test_a_setting_by_file_that_names_no_file_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream_data(two_files(tmp_path), load_config(None, [override]).data)


@pytest.mark.parametrize(
    "override",
    [
        "data.weights=a.jsonl=0",
        "data.weights=a.jsonl=-1",
        "data.weights=a.jsonl=much",
        "data.interleave_probs=0.5,0.6",
        "data.formats=a.jsonl=book",
        "data.stopping_strategy=first_exhausted",
        "data.chunk_overlap=1024",
    ],
)
def test_a_setting_by_file_that_has_no_meaning_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [override])


def test_rows_of_documents_are_all_accounted_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n{"text": ""}\n{"other": 1}\n')
    found = read_data(str(tmp_path / "a.jsonl"), settings("data.on_error=skip"))
    assert len(found.records) == 1
    assert [row.source.rpartition(":")[2] for row in found.refused] == ["2", "3"]
    assert all(isinstance(row, SkippedRow) for row in found.refused)
