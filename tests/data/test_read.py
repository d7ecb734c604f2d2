"""Reading: every row is used or refused by name, and every fault of a file is one message that names its line."""

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.data.formats import FORMATS
from tuneful.data.read import DataFile, read_data
from tuneful.data.sources import STARTER_FILE
from tuneful.errors import DataError

GOOD = {"instruction": "Say hello.", "input": "", "output": "Hello."}
OTHER = {"instruction": "Add one.", "input": "2", "output": "3", "id": 7}


def written(folder: Path, content: str | bytes, name: str = "data.json") -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def read(folder: Path, content: str | bytes, name: str = "data.json", **options: Any) -> DataFile:
    return read_data(str(written(folder, content, name)), **options)


def refusal(folder: Path, content: str | bytes, name: str = "data.json", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, content, name, **options)
    return str(caught.value).replace(str(folder) + "/", "")


def raws(file: DataFile) -> list[Any]:
    return [record.raw for record in file.records]


def places(file: DataFile) -> list[str]:
    return [Path(record.source).name for record in file.records]


def test_an_array_of_records_is_read_with_the_line_each_begins_on(tmp_path: Path) -> None:
    file = read(tmp_path, "[\n  " + json.dumps(GOOD) + ",\n\n  " + json.dumps(OTHER, indent=2) + "\n]\n")
    assert raws(file) == [GOOD, OTHER]
    assert places(file) == ["data.json:2", "data.json:4"]
    turn = file.records[1].conversation.turns[0]
    assert (turn.instruction, turn.input, turn.response) == ("Add one.", "2", "3")


def test_records_that_share_a_line_have_different_sources(tmp_path: Path) -> None:
    file = read(tmp_path, json.dumps([GOOD, OTHER, GOOD]))
    assert places(file) == ["data.json:1", "data.json:1#2", "data.json:1#3"]


def test_jsonl_is_read_a_record_a_line_blank_lines_left_out(tmp_path: Path) -> None:
    file = read(tmp_path, f"\n{json.dumps(GOOD)}\n\n{json.dumps(OTHER)}", "data.jsonl")
    assert raws(file) == [GOOD, OTHER]
    assert places(file) == ["data.jsonl:2", "data.jsonl:4"]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
def test_what_a_file_is_called_does_not_decide_what_it_holds(tmp_path: Path, name: str) -> None:
    assert raws(read(tmp_path, json.dumps([GOOD, OTHER]), name)) == [GOOD, OTHER]
    assert raws(read(tmp_path, f"{json.dumps(GOOD)}\n{json.dumps(OTHER)}\n", name)) == [GOOD, OTHER]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_holding_one_array_of_records_is_read(tmp_path: Path, indent: int | None) -> None:
    document = {"version": 1, "tags": ["a"], "note": "[{", "data": [GOOD, OTHER], "end": None}
    assert raws(read(tmp_path, json.dumps(document, indent=indent))) == [GOOD, OTHER]


def test_lines_are_right_inside_an_object(tmp_path: Path) -> None:
    text = '{"version": 1,\n "data": [\n' + json.dumps(GOOD) + ",\n" + json.dumps(OTHER) + "\n]}"
    assert places(read(tmp_path, text)) == ["data.json:3", "data.json:4"]
    assert refusal(tmp_path, text.replace('"3"', "3x")).startswith("data.json:4: not valid JSON")


def test_two_arrays_of_records_in_one_object_are_refused_not_half_read(tmp_path: Path) -> None:
    message = refusal(tmp_path, json.dumps({"train": [GOOD], "test": [OTHER]}))
    assert "more than one array of records (`train`, `test`)" in message


@pytest.mark.parametrize("format", [format.name for format in FORMATS])
def test_an_object_with_a_key_that_a_format_needs_is_a_record_and_holds_none(tmp_path: Path, format: str) -> None:
    for need in next(one.needs for one in FORMATS if one.name == format):
        file = read(tmp_path, json.dumps([GOOD, {need: "x", "tags": [OTHER]}]), on_error="skip")
        assert len(file.refused) == 1
        message = refusal(tmp_path, json.dumps({need: "x", "tags": [OTHER]}))
        assert message.startswith(f"data.json:1: {file.refused[0].reason}")


def test_a_single_record_is_a_file_too_on_one_line_or_on_many(tmp_path: Path) -> None:
    record = {**GOOD, "tags": [{"a": 1}]}
    assert raws(read(tmp_path, json.dumps(record))) == [record]
    assert raws(read(tmp_path, "\n" + json.dumps(record, indent=2))) == [record]


@pytest.mark.parametrize("content", [[GOOD, OTHER], GOOD], ids=["array", "jsonl"])
def test_a_byte_order_mark_and_crlf_line_ends_change_nothing(tmp_path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1) if isinstance(content, list) else f"{json.dumps(GOOD)}\n{json.dumps(OTHER)}\n"
    file = read(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert raws(file) == [GOOD, OTHER]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + json.dumps([GOOD]).encode()
    assert read(tmp_path, content).sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_line_separators_inside_a_string_end_no_line(tmp_path: Path, name: str) -> None:
    record = {**GOOD, "output": "one\u2028two\u2029three\x85four\x0bfive"}
    content = json.dumps(record, ensure_ascii=False) + "\n" + json.dumps(OTHER)
    if name == "data.json":
        content = "[" + content.replace("\n", ",\n") + "]"
    file = read(tmp_path, content, name)
    assert raws(file) == [record, OTHER]
    assert places(file)[1] == f"{name}:2"


def test_starter_is_the_built_in_data() -> None:
    assert raws(read_data("starter")) == json.loads(STARTER_FILE.read_text(encoding="utf-8"))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
record_lists = st.lists(
    st.builds(
        lambda extra, instruction, output: {**extra, "instruction": instruction, "output": output},
        st.dictionaries(texts.filter(lambda key: key not in ("input", "system")), values, max_size=3),
        texts,
        texts,
    ),
    min_size=1,
    max_size=4,
)


@given(record_lists, st.sampled_from(["array", "indented", "object", "jsonl"]), st.booleans())
def test_whatever_json_writes_is_read_back_as_it_was(
    records: list[dict[str, Any]], form: str, ensure_ascii: bool
) -> None:
    text = {
        "array": lambda: json.dumps(records, ensure_ascii=ensure_ascii),
        "indented": lambda: json.dumps(records, ensure_ascii=ensure_ascii, indent=2),
        "object": lambda: json.dumps({"about": "x", "rows": records}, ensure_ascii=ensure_ascii, indent=1),
        "jsonl": lambda: "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records),
    }[form]()
    with tempfile.TemporaryDirectory() as folder:
        file = read(Path(folder), text)
    assert raws(file) == records
    assert len({record.source for record in file.records}) == len(records)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: no such file"):
        read_data(str(tmp_path / "nowhere.json"))


def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_data(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf \n"])
def test_an_empty_file_is_named(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path, content) == "data.json: the file is empty"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_bytes_that_are_no_utf8_are_named_by_their_place_in_the_file(tmp_path: Path, mark: bytes) -> None:
    content = mark + json.dumps([GOOD]).encode() + b"\xff"
    message = refusal(tmp_path, content)
    assert message.startswith(f"data.json: byte {len(content) - 1} is not UTF-8")


SYNTAX = {
    "a missing comma in an array": ('[\n{"instruction": "a",\n "output": "b"\n "x": 1}\n]', 4),
    "a missing comma between records": ('[\n{"instruction": "a", "output": "b"}\n\n{"x": 1}\n]', 4),
    "an array that never ends": ('[\n{"instruction": "a", "output": "b"}\n', 3),
    "a comma before the end": ('[\n{"instruction": "a", "output": "b"},\n]', 3),
    "a string over two lines": ('[\n{"instruction": "a\nb", "output": "b"}]', 2),
    "something after the array": ('[{"instruction": "a", "output": "b"}]\n[{"instruction": "c", "output": "d"}]', 2),
    "nesting of 100,000 levels": ("[\n" + "[" * 100_000 + "]" * 100_000 + "]", 2),
    "nesting of 100,000 levels, unclosed": ('[\n{"a": ' + "[" * 100_000, 2),
    "an empty array": ("\n\n[ ]", 3),
    "no JSON at all": ("Say hello.\nHello.\n", 1),
    "a broken object": ('{"data": [\n{"instruction": "a", "output": "b"},\n{"instruction": }]}', 3),
}


@pytest.mark.parametrize("what", SYNTAX)
def test_a_fault_of_the_file_is_named_by_its_line(tmp_path: Path, what: str) -> None:
    content, line = SYNTAX[what]
    for on_error in ("stop", "skip"):
        message = refusal(tmp_path, content, on_error=on_error)
        assert message.startswith(f"data.json:{line}: "), message[:200]
        assert len(message) < 200


ROW_SYNTAX = {
    "Infinity": ('{"instruction": "a", "output": "b", "x": -Infinity}', "not valid JSON: -Infinity is no JSON number"),
    "a key twice": ('{"instruction": "a", "output": "c", "output": "b"}', "the key `output` stands twice"),
    "a key twice inside": ('{"instruction": "a", "output": "b", "x": {"y": 1, "y": 1}}', "the key `y` stands twice"),
    "a number of 5,000 digits": (
        '{"instruction": "a", "output": "b", "x": ' + "9" * 5000 + "}",
        "a whole number of over 4300 digits",
    ),
    "a number out of range": ('{"instruction": "a", "output": "b", "x": 1e999}', "the number 1e999 is too large"),
    "nesting of 200 levels": (
        '{"instruction": "a", "output": "b", "x": ' + "[" * 200 + "]" * 200 + "}",
        "nested over 64 levels deep",
    ),
}
"""Faults of one row: where it ends is not in doubt."""


@pytest.mark.parametrize("what", ROW_SYNTAX)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_fault_that_is_one_rows_alone_leaves_the_others_be(tmp_path: Path, what: str, name: str) -> None:
    row, reason = ROW_SYNTAX[what]
    lines = [json.dumps(GOOD), row, json.dumps(OTHER)]
    text = "\n".join(lines) if name == "data.jsonl" else "[" + ",\n".join(lines) + "]"
    message = refusal(tmp_path, text, name)
    assert message.startswith(f"{name}:2: {reason}")
    assert len(message) < 200
    file = read(tmp_path, text, name, on_error="skip")
    assert raws(file) == [GOOD, OTHER]
    assert [(one.reason.startswith(reason), one.raw) for one in file.refused] == [(True, row)]


JSONL_SYNTAX = {
    "a broken line": "{'instruction': 1}",
    "an unclosed line": '{"instruction": "a", "output": "b"',
    "two records on a line": json.dumps(GOOD) + json.dumps(GOOD),
    "nesting of 100,000 levels": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
}


@pytest.mark.parametrize("what", JSONL_SYNTAX)
@pytest.mark.parametrize("line", [1, 3])
def test_a_fault_of_a_jsonl_line_is_named_by_its_line(tmp_path: Path, what: str, line: int) -> None:
    lines = [json.dumps(GOOD)] * 3
    lines[line - 1] = JSONL_SYNTAX[what]
    message = refusal(tmp_path, "\n".join(lines), "data.jsonl")
    assert message.startswith(f"data.jsonl:{line}: "), message[:200]
    skipped = read(tmp_path, "\n".join(lines), "data.jsonl", on_error="skip")
    assert (raws(skipped), len(skipped.refused)) == ([GOOD, GOOD], 1)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("between", ["\n", "\n\n", ""])
def test_records_over_several_lines_without_an_array_are_read_one_after_the_other(
    tmp_path: Path, name: str, between: str
) -> None:
    text = json.dumps(GOOD, indent=1) + between + json.dumps(OTHER, indent=1)
    file = read(tmp_path, text, name)
    assert raws(file) == [GOOD, OTHER]
    assert places(file) == [f"{name}:1", f"{name}:{5 + between.count(chr(10))}"]


@pytest.mark.parametrize("follows", [",", "]", "x", '"x"', "{", '{"instruction": '])
def test_what_follows_such_records_and_is_none_ends_the_read_with_its_line(tmp_path: Path, follows: str) -> None:
    text = json.dumps(GOOD, indent=1) + "\n" + follows
    for on_error in ("stop", "skip"):
        assert refusal(tmp_path, text, on_error=on_error).startswith("data.json:6: ")


ROWS: dict[str, tuple[Any, str]] = {
    "a number": (5, "expected a record"),
    "a text": ("x", "expected a record"),
    "a list": (["x"], "expected a record"),
    "null": (None, "expected a record"),
    "no output": ({"instruction": "a"}, "no `output`; keys are `instruction`"),
    "an output under another name": (
        {"instruction": "a", "target": "b"},
        "no `output`; found `target`: data.columns=output=target",
    ),
    "no instruction": ({"output": "a"}, "no `instruction`; keys are `output`"),
    "an empty record": ({}, "an empty record"),
    "an object for an output": ({"instruction": "a", "output": {"b": 4}}, "`output` is an object, expected text"),
    "null for an output": ({"instruction": "a", "output": None}, "`output` is null, expected text"),
    "a list for an instruction": ({"instruction": ["a"], "output": "b"}, "`instruction` is a list, expected text"),
    "a list for an input": ({"instruction": "a", "input": [1], "output": "b"}, "`input` is a list, expected text"),
    "a list for a system": ({"instruction": "a", "system": [1], "output": "b"}, "`system` is a list, expected text"),
    "an empty output": ({"instruction": "a", "output": ""}, "`output` is empty"),
    "a blank output": ({"instruction": "a", "output": " \n\u3000"}, "`output` is empty"),
    "nothing asked": ({"instruction": " ", "input": "\n", "output": "b"}, "`instruction` and `input` are both empty"),
    "a lone surrogate": ({"instruction": "a", "output": "\ud800"}, "`output` holds a lone surrogate (\\ud800)"),
    "a lone surrogate in a key": ({"\ud800": "a"}, "no instruction and answer known by name; keys are `\\ud800`"),
    "signs in keys that nobody sees": (
        {"instr\ufeffuction": "a", "out\nput\x1b": "b", "x\u202e\xa0": 1, "Größe": 2},
        "no instruction and answer known by name; keys are "
        "`instr\\ufeffuction`, `out\\nput\\x1b`, `x\\u202e\\xa0`, `Größe`. ",
    ),
    "a key of signs that nobody sees": (
        {"\U000e0001" * 1000: "a"},
        "no instruction and answer known by name; keys are `" + "\\U000e0001" * 4 + "...`",
    ),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_row_that_cannot_be_used_stops_the_read_by_name(tmp_path: Path, what: str) -> None:
    raw, reason = ROWS[what]
    message = refusal(tmp_path, "[\n" + json.dumps(GOOD) + ",\n" + json.dumps(raw) + "]")
    assert message.startswith(f"data.json:3: {reason}")
    assert message.endswith("Fix the row, or pass data.on_error=skip to leave it out")
    assert message.isprintable()


def test_a_skipped_row_is_refused_with_its_reason_and_kept_as_it_was_read(tmp_path: Path) -> None:
    rows = [row for row, _ in ROWS.values()]
    content = "\n".join(map(json.dumps, [GOOD, *rows, OTHER]))
    file = read(tmp_path, content, "data.jsonl", on_error="skip")
    assert raws(file) == [GOOD, OTHER]
    assert [refused.raw for refused in file.refused] == rows
    assert all(
        refused.reason.startswith(reason) for refused, (_, reason) in zip(file.refused, ROWS.values(), strict=True)
    )
    assert [Path(refused.source).name for refused in file.refused] == [
        f"data.jsonl:{line}" for line in range(2, 2 + len(rows))
    ]
    assert len(file.records) + len(file.refused) == len(content.splitlines())


def test_a_file_without_one_usable_row_names_the_first_skipped_row(tmp_path: Path) -> None:
    message = refusal(tmp_path, '[{"instruction": "a"},\n{}]', on_error="skip")
    assert message.startswith("data.json: no usable record in 2 row(s); the first skipped row: ")
    assert message.endswith("data.json:1: no `output`; keys are `instruction`")


@pytest.mark.parametrize("content", ["5", '""', '"x"', "true", "null", "{}", "[1]"])
def test_a_file_of_one_value_that_is_no_record_is_refused_by_its_line(tmp_path: Path, content: str) -> None:
    assert re.match(r"data\.json:1: (expected a record|an empty record)", refusal(tmp_path, content))


def test_missing_and_null_inputs_are_empty_and_a_system_text_is_kept(tmp_path: Path) -> None:
    rows = [{**GOOD, "input": None, "system": None}, {"instruction": "a", "output": "b", "system": "Be brief."}]
    file = read(tmp_path, json.dumps(rows))
    assert [record.conversation.turns[0].input for record in file.records] == ["", ""]
    assert [record.conversation.system for record in file.records] == ["", "Be brief."]
    assert raws(file) == rows
