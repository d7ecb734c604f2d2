"""GGUF files of others: a header is held against its file, and what is wrong with it is one message."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.doubles import damaged_gguf
from tests.machine import needs
from tests.model.test_builtin import tiny_gguf

from tuneful.errors import ModelError
from tuneful.model.gguf_header import read_gguf_header
from tuneful.model.load import load_model
from tuneful.model.size import size_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path / "cache"))


def refused(model: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(model))
    assert "\n" not in str(caught.value)


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def at(what: str, number: int = 0) -> Callable[[Path, int], None]:
    """Writes a number in the place of the `number`th that says `what` in the header."""

    def write(file: Path, value: int) -> None:
        data = bytearray(file.read_bytes())
        _, place, size = [found for found in damaged_gguf._numbers(data) if found[0] == what][number]
        data[place : place + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        file.write_bytes(data)

    return write


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        (at("version"), 1, "GGUF version 1"),
        (at("version"), 4, "GGUF version 4"),
        (at("version"), 3 << 24, "big-endian"),
        (at("tensors"), 1 << 63, "run past the end"),
        (at("entries"), 1 << 63, "run past the end"),
        (at("length"), 1 << 63, "run past the end"),
        (at("count"), 1 << 62, "run past the end"),
        (at("type"), 77, "damaged"),
        (at("tensor type"), 77, "type 77"),
        (at("dimensions"), 1 << 30, "dimensions"),
        (at("dimension"), 1 << 63, "past the end|begins within"),
        (at("offset", 1), 0, "begins within"),
        (at("offset", -1), 1 << 62, "past the end"),
    ],
)
def test_a_number_of_a_gguf_header_that_cannot_be_is_one_message(
    change: Callable[[Path, int], None], value: int, words: str, gguf_file: Path
) -> None:
    change(gguf_file, value)
    refused(gguf_file, words)
    assert size_of(gguf_file) is None


@pytest.mark.parametrize("alignment", [0, 3, 1 << 31, "32", 32.0])
def test_an_alignment_that_is_no_power_of_two_is_refused(alignment: Any, gguf_file: Path) -> None:
    damaged_gguf._rewrite(gguf_file, {"general.alignment": alignment})
    refused(gguf_file, r"general\.alignment")


def test_a_gguf_file_is_refused_where_it_was_cut_or_has_grown(gguf_file: Path) -> None:
    size = gguf_file.stat().st_size
    os.truncate(gguf_file, size - 1)
    refused(gguf_file, "cut off")
    os.truncate(gguf_file, 1 << 36)
    refused(gguf_file, "follow the last tensor")


def test_an_architecture_that_transformers_cannot_read_is_named_with_what_to_do(gguf_file: Path) -> None:
    damaged_gguf._rewrite(gguf_file, {"general.architecture": "rwkv9"})
    refused(gguf_file, "rwkv9.*safetensors")


def test_a_list_of_lists_and_one_of_too_many_elements_are_refused(gguf_file: Path) -> None:
    whole = gguf_file.read_bytes()
    damaged_gguf._rewrite(gguf_file, {"a": damaged_gguf._array(9, [struct.pack("<IQ", 4, 0)])})
    refused(gguf_file, "a list holds lists")
    gguf_file.write_bytes(whole)
    damaged_gguf._rewrite(gguf_file, {"a": damaged_gguf._array(0, [bytes(5_000_000)], 5_000_000)})
    refused(gguf_file, "elements")


@needs("posix")
def test_a_gguf_file_that_shrinks_while_its_header_is_read_is_one_message(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneful.model import gguf_header

    check = gguf_header._Reader._check_version

    def shrink(self: Any, version: int) -> None:
        os.truncate(gguf_file, 8)
        self._stream.seek(8)
        check(self, version)

    monkeypatch.setattr(gguf_header._Reader, "_check_version", shrink)
    with pytest.raises(ModelError, match="damaged"):
        read_gguf_header(gguf_file)
