"""Formats: whatever a file is packed in or written as, its rows are the same, and each fault is named by its place."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.config import DataConfig
from tuneful.data import compression, sources, tables, text_files
from tuneful.data.read import DataFile, Record, read_data, stream_data
from tuneful.errors import ConfigError, DataError

ROWS = [
    {"instruction": "Say hello.", "input": "", "output": "Hello, you.\nHow are you?"},
    {"instruction": 'Quote "it".', "input": "a;b\tc", "output": '"it"'},
    {"instruction": "Grüße", "input": "日本", "output": "\u2028 and \x85 end no line"},
]


def as_csv(rows: list[dict[str, Any]], **dialect: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def as_arrow(rows: list[dict[str, Any]], *, stream: bool = False) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "data.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "holder.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "data.jsonl": as_jsonl,
    "data.csv": as_csv,
    "semicolons.csv": lambda rows: as_csv(rows, delimiter=";"),
    "data.tsv": lambda rows: as_csv(rows, delimiter="\t"),
    "marked.csv": lambda rows: b"\xef\xbb\xbf" + as_csv(rows, quoting=csv.QUOTE_ALL),
    "unnamed": as_csv,
    "data.parquet": as_parquet,
    "groups.parquet": lambda rows: as_parquet(rows, row_group_size=1, compression="zstd"),
    "data.arrow": as_arrow,
    "stream.arrow": lambda rows: as_arrow(rows, stream=True),
    "data.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "members.jsonl.gz": lambda rows: b"".join(gzip.compress(as_jsonl([row])) for row in rows) + b"\0" * 512,
    "data.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "data.json.zst": lambda rows: zstd(json.dumps(rows).encode()),
    "data.jsonl.zst": lambda rows: zstd(as_jsonl(rows)),
    "frames.jsonl.zst": lambda rows: b"".join(zstd(as_jsonl([row])) for row in rows),
}
PACKED = ["data.jsonl.gz", "data.jsonl.zst"]


def written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def refusal(name: str | list[str], config: DataConfig | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_data(name, config)
    return str(caught.value).replace(str(Path(name if isinstance(name, str) else name[0]).parent) + "/", "")


def raws(file: DataFile) -> list[Any]:
    return [record.raw for record in file.records]


def places(file: DataFile) -> list[str]:
    return [Path(record.source).name for record in file.records]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    content = WRITERS[name](ROWS)
    file = read_data(written(tmp_path, name, content))
    assert raws(file) == ROWS
    assert (file.format, file.refused) == ("alpaca", ())
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert len(set(places(file))) == len(ROWS)


def test_places_of_csv_are_lines_and_those_of_tables_are_rows(tmp_path: Path) -> None:
    assert places(read_data(written(tmp_path, "a.csv", as_csv(ROWS)))) == ["a.csv:2", "a.csv:4", "a.csv:5"]
    file = read_data(written(tmp_path, "a.parquet", as_parquet(ROWS, row_group_size=2)))
    assert places(file) == ["a.parquet:row 1", "a.parquet:row 2", "a.parquet:row 3"]


@given(
    st.lists(
        st.fixed_dictionaries({key: st.text(st.characters(codec="utf-8", exclude_characters="\0\r")) for key in "abc"}),
        min_size=1,
    )
)
def test_whatever_the_csv_module_writes_is_read_back(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    name = written(tmp_path, "data.csv", as_csv(rows, quoting=csv.QUOTE_ALL))
    with sources.ByteStream(sources.find_files(name)[0]) as stream:
        found = list(text_files.text_rows(stream, frozenset(), frozenset()))
    rows = [row for row in rows if any(map(str.strip, row.values()))]  # a row of empty cells is a blank line
    assert [(value, fault) for _, value, fault in found] == [(row, None) for row in rows]


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", ["data.json", "holder.json", "data.jsonl", "data.csv"])
def test_where_a_block_ends_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    """Records, strings, escapes, numbers and characters are cut at every byte."""
    rows = [{**row, "n": "-1.5e3"} for row in ROWS]
    path = written(
        tmp_path, name, WRITERS[name](rows).replace(b'"-1.5e3"', b"-1.5e3" if "json" in name else b'"-1.5e3"')
    )
    before = read_data(path)
    monkeypatch.setattr(sources, "BLOCK_BYTES", size)
    monkeypatch.setattr(compression, "BLOCK_BYTES", size)
    assert read_data(path) == before
    assert len(before.records) == len(rows)


def test_bare_numbers_in_an_array_are_not_cut_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 3)
    file = written(tmp_path, "data.json", json.dumps([ROWS[0], 12345678, 1.25e10]).encode())
    assert [one.raw for one in read_data(file, on_error="skip").refused] == [12345678, 1.25e10]


# Several files


def test_several_files_and_patterns_are_one_stream(tmp_path: Path) -> None:
    for number, name in enumerate(["b.jsonl", "a.csv", "more1.parquet", "more2.parquet"]):
        written(tmp_path, name, WRITERS["data" + Path(name).suffix]([{**ROWS[0], "output": str(number)}]))
    file = read_data([str(tmp_path / "b.jsonl"), str(tmp_path / "a.csv"), str(tmp_path / "more*.parquet")])
    assert [record.raw["output"] for record in file.records] == ["0", "1", "2", "3"]
    assert places(file) == ["b.jsonl:1", "a.csv:2", "more1.parquet:row 1", "more2.parquet:row 1"]
    digests = [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("b.jsonl", "a.csv", "more1.parquet", "more2.parquet")
    ]
    assert file.sha256 == hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def test_a_file_given_twice_counts_once_or_not_at_all(tmp_path: Path) -> None:
    name = written(tmp_path, "a.jsonl", as_jsonl(ROWS))
    (tmp_path / "link.jsonl").symlink_to(name)
    assert "given twice" in refusal([name, str(tmp_path / "*.jsonl")])
    assert "given twice" in refusal([name, str(tmp_path / "link.jsonl")])


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "*.jsonl")) == "*.jsonl: no file matches this pattern"


def test_a_name_that_looks_like_a_pattern_may_be_a_file(tmp_path: Path) -> None:
    assert raws(read_data(written(tmp_path, "data[1].jsonl", as_jsonl(ROWS)))) == ROWS


def test_standard_input_is_read_as_any_file(tmp_path: Path) -> None:
    program = (
        "from tuneful.data.read import read_data\n"
        "try:\n"
        "    file = read_data('-')\n"
        "    print(len(file.records), file.records[-1].source, file.sha256)\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    for content, last in [(as_jsonl(ROWS), "stdin:3"), (gzip.compress(as_csv(ROWS)), "stdin:5")]:
        done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, check=True)
        assert done.stdout.decode().split() == ["3", last, hashlib.sha256(content).hexdigest()]
    done = subprocess.run([sys.executable, "-c", program], input=as_parquet(ROWS), capture_output=True, check=True)
    assert done.stdout.decode().startswith("stdin: byte 0: Parquet and Arrow are read from files only")


# What is no file of records

TURNED_AWAY: dict[str, tuple[bytes, str]] = {
    "UTF-16 without its mark": ('{"a": 1}'.encode("utf-16-le"), "byte 0: this looks like UTF-16 text"),
    "UTF-32": ("[]".encode("utf-32"), "byte 0: this is UTF-32 text"),
    "a spreadsheet": (b"PK\x03\x04....", "byte 0: this is a ZIP archive or a spreadsheet"),
    "packed twice": (gzip.compress(gzip.compress(as_jsonl(ROWS))), "byte 0: this is packed twice"),
    "packed Parquet": (gzip.compress(as_parquet(ROWS)), "byte 0: this is Parquet inside a compressed file"),
    "a cut gzip": (gzip.compress(as_jsonl(ROWS))[:-9], "the gzip data is cut off at byte"),
    "a damaged gzip": (gzip.compress(as_jsonl(ROWS))[:60] + b"x" * 500, "damaged gzip data before byte"),
    "a cut zstd": (zstd(as_jsonl(ROWS))[:-3], "damaged or cut off zstd data before byte"),
    "a damaged zstd": (zstd(os.urandom(999))[:9] + b"x" * 500, "damaged or cut off zstd data before byte"),
    "a cut Parquet": (as_parquet(ROWS)[:-9], "not a whole Parquet file"),
    "a cut Arrow file": (as_arrow(ROWS)[:-9], "damaged after row 0"),
    "a cut Arrow stream": (as_arrow(ROWS, stream=True)[:-300], "damaged after row 2"),
    "blank space": (b" \n" * (10 << 20), "over 4,194,304 bytes of blank space"),
    "blank lines after a record": (as_jsonl(ROWS) + b"\n" * 1_000_001, "data:1000004: over 1,000,000 blank lines"),
    "an endless array": (b"[" + b" " * (9 << 20), "over 4,194,304 bytes of blank space"),
    "an array that is cut off": (
        json.dumps(ROWS, indent=1).encode()[:-30],
        "; the file ends in the record that begins at line ",
    ),
    "an array without a comma": (
        b'[{"instruction": "a"\n"output": "b"}]' + b" " * 99,
        "data:2: not valid JSON: expecting",
    ),
    "a string that never ends": (b'[{"instruction": "' + b"a" * (9 << 20), "1: the record that begins here is over"),
    "an object too large for a record": (
        b'{"a": "' + b"a" * (9 << 20) + b'"}',
        "1: the record that begins here is over",
    ),
    "two arrays in a large object": (
        b'{"a": ["' + b"a" * (9 << 20) + b'"], "x": [' + as_jsonl(ROWS[:1]) + b'], "y": [{}]}',
        "1: the record that begins here is over",
    ),
}


@pytest.mark.parametrize("what", TURNED_AWAY)
def test_what_is_no_file_of_records_is_one_message(tmp_path: Path, what: str) -> None:
    content, message = TURNED_AWAY[what]
    for skip in ("stop", "skip"):
        found = refusal(written(tmp_path, "data", content), DataConfig(on_error=skip))
        assert message in found
        assert found.startswith("data:")
        assert len(found) < 250


def test_a_holder_larger_than_a_record_is_read_as_it_comes(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "n": number, "more": "x" * 1000} for number in range(10_000)]
    document = {"version": 1, "about": [1, [2]], "data": rows, "end": {"a": [1]}}
    file = read_data(written(tmp_path, "data.json", json.dumps(document, indent=1).encode()))
    assert (len(file.records), raws(file)[-1], places(file)[-1]) == (
        10_000,
        rows[-1],
        f"data.json:{10_003 + 6 * 10_000}",
    )
    content = json.dumps({**document, "more": rows[:1]}).encode()
    assert "more than one array of records (`data`, `more`)" in refusal(written(tmp_path, "data.json", content))


def test_places_that_are_no_files_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert "pipe: is a pipe or a device, not a file" in refusal(str(tmp_path / "pipe"))
    assert "loop: cannot be read: Too many levels of symbolic links" in refusal(str(tmp_path / "loop"))
    assert "gone: is a link to a file that does not exist" in refusal(str(tmp_path / "gone"))


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    path = Path(written(tmp_path, name, WRITERS[name](ROWS)))
    stream = iter(stream_data(str(path), DataConfig()))
    assert isinstance(next(stream), Record)
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(DataError, match=r"changed while it was read \(\d+ bytes before, \d+ after\)"):
        list(stream)


def test_a_line_that_does_not_end_is_a_damaged_file(tmp_path: Path) -> None:
    packed = b"".join(gzip.compress(block) for block in (as_jsonl(ROWS), *[b"x" * (16 << 20)] * 18))
    name = written(tmp_path, "data.jsonl.gz", packed)
    assert refusal(name).startswith("data.jsonl.gz:4: a line of over 4,194,304 bytes, which is no record. Fix the row")
    assert refusal(name, DataConfig(on_error="skip")).startswith("data.jsonl.gz: a line of over 26")


def test_a_long_line_is_refused_and_the_next_ones_are_read(tmp_path: Path) -> None:
    bad = b'{"instruction": "\xff"}\n'
    content = as_jsonl(ROWS[:1]) + b'{"a": "' + b"x" * (30 << 20) + b'"}\n' + as_jsonl(ROWS[1:]) + bad
    name = written(tmp_path, "data.jsonl", content)
    assert refusal(name).startswith("data.jsonl:2: a line of over 4,194,304 bytes, which is no record. Fix the row")
    file = read_data(name, on_error="skip")
    assert raws(file) == ROWS
    assert [one.source.rpartition(":")[2] for one in file.refused] == ["2", "5"]
    assert f"byte {content.index(bytes([255]))} is not UTF-8" in file.refused[1].reason
    assert len(file.refused[0].raw) <= 10_000


# CSV

CSV_FAULTS: dict[str, tuple[bytes, str]] = {
    "a column twice": (b"instruction,output,output\na,b,c\n", "data.csv:1: the column `output` stands twice"),
    "a quote never closed": (
        b'instruction,output\na,b\na,"b\nc,d\n',
        "data.csv:3: a quote of this row is never closed",
    ),
    "a first line of NUL": (b"\0\ninstruction,output\na,b\n", "data.csv:1: the header cannot be read: byte 0 is NUL"),
    "a stray quote": (b'instruction,output\n\na,"b"c\n', "data.csv:3: a quote that neither opens nor closes a cell"),
    "carriage returns": (b"instruction,output\ra,b\r", "data.csv:1: a lone carriage return outside quotes"),
    "a quote never closed in a long file": (
        b'instruction,output\n"a,b\n' + b"a,b\n" * 110_000,
        "data.csv:2: the row that begins here is over 4,194,304 bytes",
    ),
    "no rows": (b"instruction,output\n", "data.csv: no usable record in 0 row(s)"),
}


@pytest.mark.parametrize("what", CSV_FAULTS)
def test_a_fault_of_a_csv_file_is_named_by_its_line(tmp_path: Path, what: str) -> None:
    content, message = CSV_FAULTS[what]
    for skip in ("stop", "skip"):
        assert refusal(written(tmp_path, "data.csv", content), DataConfig(on_error=skip)).startswith(message)


def test_what_excel_leaves_at_the_end_of_a_csv_is_no_row(tmp_path: Path) -> None:
    content = 'Frage;Antwort;Preis;;\r\nWas?;"Zwei\nZeilen";3,50;;\r\n;;;;\r\nWo?;;;;\r\n; ;;;\r\n;;;;\r\n'
    settings = DataConfig(columns={"instruction": "Frage", "output": "Antwort"}, on_error="skip")
    file = read_data(written(tmp_path, "faq.csv", content.encode()), settings)
    assert places(file) + [row.source.rpartition("/")[2] for row in file.refused] == ["faq.csv:2", "faq.csv:5"]


def test_faulty_rows_of_csv_are_refused_and_blanks_are_empty_texts(tmp_path: Path) -> None:
    content = b'instruction;input;output\na;;b\na;b\na;b;c;d\n;;\n\nx\0y;;z\n\xff;;b\na;"1\n2";b\n\0\n\0\0'
    file = read_data(written(tmp_path, "data.csv", content), on_error="skip")
    assert raws(file) == [
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "input": "1\n2", "output": "b"},
    ]
    assert [(one.source.rpartition(":")[2], one.reason.split(".")[0]) for one in file.refused] == [
        ("3", "2 cell(s), where the header names 3 column(s)"),
        ("4", "4 cell(s), where the header names 3 column(s)"),
        ("7", f"byte {content.index(0)} is NUL, which is no text"),
        ("8", f"byte {content.index(255)} is not UTF-8 (invalid start byte)"),
        ("11", f"byte {len(content) - 4} is NUL, which is no text"),
        ("12", f"byte {len(content) - 2} is NUL, which is no text"),
    ]
    assert places(file) == ["data.csv:2", "data.csv:9"]


# Tables


def test_cells_of_tables_become_what_json_knows(tmp_path: Path) -> None:
    table = pa.table(
        {
            "instruction": ["a"],
            "output": ["b"],
            "score": pa.array([float("nan")]),
            "when": pa.array([0], pa.timestamp("s")),
            "image": pa.array([b"\x89PNG"]),
            "tags": pa.array([[1, None]]),
            "amount": pa.array([12], pa.decimal128(5, 2)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (raw,) = raws(read_data(str(tmp_path / "a.parquet")))
    assert raw == {
        "instruction": "a",
        "output": "b",
        "score": None,
        "when": "1970-01-01T00:00:00",
        "image": "<4 bytes>",
        "tags": [1, None],
        "amount": "12.00",
    }
    json.dumps(raw, allow_nan=False)


def test_a_cell_that_is_no_text_refuses_its_row_alone(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers())
    pq.write_table(pa.table({"instruction": bad, "output": ["1", "2", "3"]}), tmp_path / "a.parquet")
    file = read_data(str(tmp_path / "a.parquet"), on_error="skip")
    assert [record.raw["output"] for record in file.records] == ["1", "3"]
    assert [(Path(one.source).name, one.reason[:32]) for one in file.refused] == [
        ("a.parquet:row 2", "`instruction` cannot be read: 'u")
    ]


def test_names_of_columns_are_escaped_in_messages(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    columns = [bad, pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.table(columns, ["in\nput", "instruction", "output"]), tmp_path / "a.parquet")
    assert refusal(str(tmp_path / "a.parquet")).startswith("a.parquet:row 1: `in\\nput` cannot be read: ")
    pq.write_table(pa.table(columns[1:], ["x\u200b", "x\u200b"]), tmp_path / "b.parquet")
    assert refusal(str(tmp_path / "b.parquet")) == "b.parquet: the column `x\\u200b` stands twice; rename one of them"


def test_damage_inside_a_table_is_named_by_the_last_whole_row(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "output": os.urandom(40).hex()} for _ in range(300)]
    content = bytearray(as_parquet(rows, row_group_size=100, compression="zstd"))
    content[len(content) // 2 : len(content) // 2 + 2000] = b"x" * 2000
    assert "data.parquet: damaged after row" in refusal(written(tmp_path, "data.parquet", bytes(content)))


def test_a_page_that_unpacks_to_more_than_a_record_is_refused_unopened(tmp_path: Path) -> None:
    content = as_parquet([{"instruction": "a", "output": "b" * (9 << 20)}], compression="zstd")
    assert len(content) < 20_000
    message = refusal(written(tmp_path, "data.parquet", content))
    assert message.startswith("data.parquet: row group 1: the values of `output` take 9,437")


def test_tables_are_told_by_their_first_bytes() -> None:
    assert all(
        tables.is_table(content[:16]) for content in (as_parquet(ROWS), as_arrow(ROWS), as_arrow(ROWS, stream=True))
    )
    assert not tables.is_table(b"[{}]")


def test_columns_that_suit_no_format_are_refused_before_a_file_is_read() -> None:
    with pytest.raises(ConfigError, match=r"data.columns: `question`, `output` are not fields of one format"):
        stream_data("starter", DataConfig(columns={"question": "a", "output": "b"}))
