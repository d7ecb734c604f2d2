"""A tiny GGUF file, damaged in each number of its header: counts, lengths, types, dimensions, offsets; and in what it tells."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.doubles.damaged_bytes import ANY_FILE, NUMBERS, Mutation
from tests.model.test_builtin import tiny_gguf

from tuneful.model.gguf_header import read_gguf_header

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_BEGIN = 24  # behind magic, version and the two counts


def write_gguf(place: Path) -> Path:
    """Write the undamaged file."""
    tiny_gguf(place / "tiny.gguf")
    _rewrite(place / "tiny.gguf", {"llama.context_length": 512})
    return place / "tiny.gguf"


# Numbers of the header


def _numbers(data: bytes | bytearray) -> Iterator[tuple[str, int, int]]:
    """(what it says, where, how many bytes) of every number of a header that says how it is to be read; `end` last."""
    yield from (("version", 4, 4), ("tensors", 8, 8), ("entries", 16, 8))
    num_tensors, num_entries = struct.unpack_from("<QQ", data, 8)
    at = _BEGIN
    for _ in range(num_entries):
        yield "length", at, 8
        at += 8 + _number(data, at, 8)
        yield "type", at, 4
        kind, at = _number(data, at, 4), at + 4
        if kind == _ARRAY:
            yield from (("type", at, 4), ("count", at + 4, 8))
            kind, count, at = _number(data, at, 4), _number(data, at + 4, 8), at + 12
        else:
            count = 1
        for _ in range(count):
            yield ("length" if kind == _STRING else "value"), at, _SIZES.get(kind, 8)
            at += 8 + _number(data, at, 8) if kind == _STRING else _SIZES[kind]
    for _ in range(num_tensors):
        at += 8 + _number(data, at, 8)
        num_dimensions = _number(data, at, 4)
        yield "dimensions", at, 4
        at += 4
        for _ in range(num_dimensions):
            yield "dimension", at, 8
            at += 8
        yield from (("tensor type", at, 4), ("offset", at + 4, 8))
        at += 12
    yield "end", at, 0


def _number(data: bytes | bytearray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _change(file: Path, rng: random.Random, what: str, *more: int) -> None:
    data = bytearray(file.read_bytes())
    _, at, size = rng.choice([found for found in _numbers(data) if found[0] == what])
    old = _number(data, at, size)
    number = rng.choice((*NUMBERS, *more, old + 1, old - 1, old + 4, old * 2)) & ((1 << 8 * size) - 1)
    data[at : at + size] = number.to_bytes(size, "little")
    file.write_bytes(data)


def counts(file: Path, rng: random.Random) -> None:
    _change(file, rng, rng.choice(("tensors", "entries", "count")))


def lengths(file: Path, rng: random.Random) -> None:
    _change(file, rng, "length")


def types(file: Path, rng: random.Random) -> None:
    _change(file, rng, rng.choice(("type", "tensor type")), *range(45))


def dimensions(file: Path, rng: random.Random) -> None:
    _change(file, rng, rng.choice(("dimensions", "dimension")))


def offsets(file: Path, rng: random.Random) -> None:
    _change(file, rng, "offset", 32, 64)


def values(file: Path, rng: random.Random) -> None:
    _change(file, rng, "value")


def version(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[4:8] = rng.choice((1, 4, 0, 1 << 31, 3)).to_bytes(4, rng.choice(("little", "big")))
    file.write_bytes(data)


# What it tells


def _text(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def _entry(key: str, value: Any) -> bytes:
    """An entry of the metadata; bytes are a value as it is to stand there, type and all."""
    head = _text(key.encode())
    if isinstance(value, bytes):
        return head + value
    if isinstance(value, str):
        return head + struct.pack("<I", _STRING) + _text(value.encode())
    return head + (struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value))


def _rewrite(file: Path, changes: Mapping[str, Any]) -> None:
    """Take the entries of those keys out and put others in; offsets count from where the numbers begin, as before."""
    data, places = file.read_bytes(), _entries(file.read_bytes())
    end = next(at for what, at, _ in _numbers(data) if what == "end")
    begin = -(-end // 32) * 32
    kept = [data[start:stop] for key, (start, stop) in places.items() if key not in changes]
    added = [_entry(key, value) for key, value in changes.items() if value is not None]
    tensors = data[max([_BEGIN, *(stop for _, stop in places.values())]) : end]
    head = data[:16] + struct.pack("<Q", len(kept) + len(added)) + b"".join((*kept, *added)) + tensors
    file.write_bytes(head + b"\0" * (-len(head) % 32) + data[begin:])


def _entries(data: bytes) -> dict[str, tuple[int, int]]:
    found, at = {}, _BEGIN
    for _ in range(_number(data, 16, 8)):
        start, length = at, _number(data, at, 8)
        key, at = data[at + 8 : at + 8 + length].decode(), at + 8 + length
        kind, at, count = _number(data, at, 4), at + 4, 1
        if kind == _ARRAY:
            kind, count, at = _number(data, at, 4), _number(data, at + 4, 8), at + 12
        for _ in range(count):
            at += 8 + _number(data, at, 8) if kind == _STRING else _SIZES[kind]
        found[key] = (start, at)
    return found


def _array(kind: int, values: list[bytes], count: int | None = None) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, len(values) if count is None else count) + b"".join(values)


def entries(file: Path, rng: random.Random) -> None:
    keys = [key for key in read_gguf_header(file).metadata if not key.startswith("general")]
    odd: tuple[Any, ...] = (
        *(number & 0xFFFFFFFF for number in NUMBERS),
        1_000_000,
        math.nan,
        math.inf,
        -1.0,
        "",
        "16",
        "\x1b[31m",
        None,
    )
    odd += (b"\x07\0\0\0\x02", _array(_STRING, []), _array(4, [b"\1\0\0\0"] * 3))
    _rewrite(file, {key: rng.choice(odd) for key in rng.sample(keys, rng.choice((1, 1, 2)))})


def vocabulary(file: Path, rng: random.Random) -> None:
    tokens = [_text(f"t{number}".encode()) for number in range(rng.choice((1, 100, 20_000)))]
    kinds: tuple[tuple[str, bytes | None], ...] = (
        ("tokens", _array(_STRING, tokens)),
        ("tokens", _array(_STRING, [_text(b"\xff\xfe")] * 260)),
        ("tokens", _array(_STRING, [_text(b"a")] * 260)),
        ("tokens", _array(4, [b"\1\0\0\0"] * 260)),
        ("tokens", None),
        ("merges", _array(_STRING, [_text(rng.choice((b"a", b"a b c", b"no where", b"", b"\xc4\xa0 x" * 1_000)))] * 5)),
        ("merges", _array(5, [b"\1\0\0\0"] * 5)),
        ("token_type", _array(5, [b"\x09\0\0\0"] * 3)),
        ("scores", _array(6, [b"\0\0\xc0\x7f"] * 260)),
    )
    what, value = rng.choice(kinds)
    _rewrite(file, {f"tokenizer.ggml.{what}": value})


def nested(file: Path, rng: random.Random) -> None:
    deep = struct.pack("<IQ", _ARRAY, 1) * rng.choice((3, 900, 100_000))
    kinds = (
        struct.pack("<I", _ARRAY) + deep + struct.pack("<IQ", 4, 0),
        _array(_ARRAY, [struct.pack("<IQ", 4, 0)] * 500_000),
        _array(_STRING, [_text(b"")] * 1_000_000),
        _array(0, [b"\0" * 1_000_000], 1_000_000),
        _array(0, [], 1 << 63),
        _array(77, [], 3),
    )
    _rewrite(file, {"somebody.list": rng.choice(kinds)})


def architecture(file: Path, rng: random.Random) -> None:
    names = (
        "gpt2",
        "phi2",
        "whisper",
        "clip",
        "rwkv6",
        "deepseek2",
        "gemma3",
        "qwen3moe",
        "",
        "../x",
        "\x1b[31m",
        "llama4",
    )
    _rewrite(file, {"general.architecture": rng.choice((*names, None, 7, _array(_STRING, [_text(b"llama")])))})


def alignment(file: Path, rng: random.Random) -> None:
    _rewrite(file, {"general.alignment": rng.choice((0, 1, 3, 33, 64, 1 << 31, "32", 32.0))})


def splitter(file: Path, rng: random.Random) -> None:
    templates = ("{% for i in range(10**9) %}{{ i }}{% endfor %}", "{{", "{{ ''.__class__ }}", "(" * 100_000)
    kinds = (
        {"tokenizer.chat_template": rng.choice(templates)},
        {"tokenizer.ggml.pre": rng.choice(("nobody", "", "llama-bpe", 3))},
        {"tokenizer.ggml.model": rng.choice(("llama", "bert", "t5", "rwkv", "none", 3, None))},
    )
    _rewrite(file, rng.choice(kinds))


def doubled(file: Path, rng: random.Random) -> None:
    """An entry, or the name of a tensor, that stands there twice."""
    data = bytearray(file.read_bytes())
    one = rng.choice((b"blk.0.", b"blk.1."))
    if rng.random() < 0.5:
        data = data.replace(b"blk.0." if one == b"blk.1." else b"blk.1.", one)
    else:
        data = data.replace(b"bos_token_id", b"eos_token_id")
    file.write_bytes(data)


def weights(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    end = next(at for what, at, _ in _numbers(data) if what == "end")
    begin = -(-end // 32) * 32
    number = struct.pack("<f", rng.choice((math.nan, math.inf, 0.0, 1e30, 3e38, 1e-40)))
    data[begin:] = number * ((len(data) - begin) // 4)
    file.write_bytes(data)


MUTATIONS: Mapping[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        *(*ANY_FILE, counts, lengths, types, dimensions, offsets, values, version),
        *(entries, vocabulary, nested, architecture, alignment, splitter, doubled, weights),
    )
}
