"""Text that is not UTF-8: what says that it is UTF-16 is read, and of the rest the message says how to convert it."""

from __future__ import annotations

import codecs
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.data.encodings import as_utf8
from tuneful.data.read import read_data
from tuneful.errors import DataError

CSV = "instruction;output\r\nSag Grün.;grün\r\nSag \U0001f600.;\U0001f600\r\n"
JSON = '[{"instruction": "Sag Grün.", "output": "grün"}, {"instruction": "Sag \U0001f600.", "output": "\U0001f600"}]'
ORDERS = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "text"), [("a.csv", CSV), ("a.txt", CSV.replace(";", "\t")), ("a.json", JSON)])
def test_utf_16_with_its_mark_is_read(order: str, name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ORDERS[order] + text.encode(order))
    records = read_data(str(tmp_path / name)).records
    assert [record.conversation.turns[0].response for record in records] == ["grün", "\U0001f600"]


@given(text=st.text(min_size=1), sizes=st.lists(st.integers(1, 9), min_size=1), order=st.sampled_from(sorted(ORDERS)))
def test_however_the_bytes_come_the_text_is_the_same(text: str, sizes: list[int], order: str) -> None:
    stored, at = ORDERS[order] + text.encode(order), 0
    blocks: list[bytes] = []
    while at < len(stored):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(stored[at : at + size])
        at += size
    assert b"".join(as_utf8(iter(blocks), "a")).decode() == text


@given(st.lists(st.binary(min_size=1)))
def test_other_bytes_stay_as_they_are(blocks: list[bytes]) -> None:
    stored = b"\x7b" + b"".join(blocks)
    assert b"".join(as_utf8(iter([b"\x7b", *blocks]), "a")) == stored


def test_utf_16_that_is_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes((codecs.BOM_UTF16_LE + CSV.encode("utf-16-le"))[:-1])
    with pytest.raises(DataError, match=r"a\.csv: damaged UTF-16 text before byte"):
        read_data(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("WINDOWS-1252", "Grün \u20ac"),
        ("WINDOWS-1252", "Größe und Füße"),
        ("GB18030", "\u4e16\u754c\uff0c\u4f60\u597d"),
    ],
)
@pytest.mark.parametrize("name", ["an answer.csv", "a.jsonl", "a.json"])
def test_the_advice_is_a_command_that_converts_the_file(
    encoding: str, text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = (
        f"instruction,output\n{text},b\n" if name.endswith("csv") else f'{{"instruction": "{text}", "output": "b"}}\n'
    )
    Path(name).write_bytes((f"[{content}]" if name == "a.json" else content).encode(encoding))
    with pytest.raises(DataError) as refused:
        read_data(name)
    command = str(refused.value).partition("onvert the file: ")[2].partition(". Fix")[0]
    assert f"iconv -f {encoding} -t UTF-8" in command
    subprocess.run(command, shell=True, check=True)
    converted = name.replace(".", "-utf8.")
    assert read_data(converted).records[0].conversation.turns[0].instruction == text
