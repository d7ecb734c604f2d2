"""OpenAI's GPT-2 folders, damaged. Of those whose index is rewritten the checksums are right: what is wrong has to be seen."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tests.doubles import openai_gpt2 as written
from tests.doubles.damaged_bytes import ANY_FILE, MARKER, NUMBERS, Mutation

INDEX, DATA = f"{written.PREFIX}.index", f"{written.PREFIX}.data-00000-of-00001"


# The index, its checksums right


def _entry(folder: Path, rng: random.Random) -> None:
    entries = written.read_entries(folder)
    name = rng.choice(list(entries))
    what = rng.choice(("dtype", "shard", "offset", "num_bytes", "masked_crc"))
    value: Any = rng.choice(NUMBERS) & 0xFFFFFFFF if what == "masked_crc" else rng.choice(NUMBERS)
    written.rewrite_index(folder, name, **{what: value})


def _shape(folder: Path, rng: random.Random) -> None:
    name = rng.choice(list(written.read_entries(folder)))
    written.rewrite_index(folder, name, shape=tuple(rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 3, 200)))))


def _overlap(folder: Path, rng: random.Random) -> None:
    entries = written.read_entries(folder)
    one, other = rng.sample(list(entries), 2)
    written.rewrite_index(folder, one, offset=max(0, entries[other].offset - 4))


def _extra(folder: Path, rng: random.Random) -> None:
    extra = rng.choice(
        (b"\x3a\x00", b"\x3a\x02\x0a\x00", b"\x0b\x0c", b"\x42", b"\x2a\xff\xff\xff\xff\x7f", b"\xff" * 11)
    )
    written.rewrite_index(folder, "model/wte", extra=extra)


def _names(folder: Path, rng: random.Random) -> None:
    entries = written.read_entries(folder)
    name = rng.choice(list(entries))
    entries[rng.choice(("../../x", "\x1b[31m", "a" * 5_000, "model/h99/ln_1/g", "é", name + "/Adam"))] = entries.pop(
        name
    )
    _write(folder, written.index_file(entries))


def _header(folder: Path, rng: random.Random) -> None:
    number = written.varint(rng.choice(NUMBERS))
    header = rng.choice((b"", b"\x08" + number, b"\x08\x01\x10\x01", b"\x0a\x01\x01", b"\x08", number))
    _write(folder, written.index_file(written.read_entries(folder), header=header))


def _table(folder: Path, rng: random.Random) -> None:
    entries = written.read_entries(folder)
    plain = written.index_file(entries)
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: written.index_file(entries, compression=rng.choice((1, 2, 9))),
        lambda: written.index_file(entries, block_bytes=1),
        lambda: _with_footer(plain, written.varint(rng.choice(NUMBERS)) + written.varint(rng.choice(NUMBERS))),
        lambda: _raw_block(b"\0" * 4),
        lambda: _raw_block(b"\xff" * 4),
        lambda: _raw_block(b"\x00\x01\x00a" + (b"\xff\x07\x01\x00b" * 1_000) + b"\0\0\0\0\1\0\0\0"),
        lambda: _raw_block((b"\x00\x00\x00" * 200_000) + b"\0\0\0\0\1\0\0\0"),
        lambda: _many_keys(200_000),
        lambda: _repeated_block(100_000),
        lambda: rng.randbytes(200) + plain[-48:],
    )
    _write(folder, rng.choice(kinds)())


def _write(folder: Path, index: bytes) -> None:
    (folder / INDEX).write_bytes(index)


def _with_footer(index: bytes, handles: bytes) -> bytes:
    return index[:-48] + (handles * 2)[:40].ljust(40, b"\0") + index[-8:]


def _raw_block(content: bytes) -> bytes:
    """A table whose one data block is `content`, with the checksum of it."""
    out = bytearray()
    handle = written.append(out, content, 0)
    place = written.append(out, written.block([(b"z", handle)], 1), 0)
    return bytes(out) + (place + place).ljust(40, b"\0") + written.MAGIC.to_bytes(8, "little")


def _many_keys(count: int) -> bytes:
    """Keys of 900 bytes each that take 7 in the file."""
    content = b"\x00\x84\x07\x00" + b"a" * 900
    for number in range(count):
        content += b"\x81\x07\x03\x00" + number.to_bytes(3, "big")
    return _raw_block(content + b"\0\0\0\0\1\0\0\0")


def _repeated_block(count: int) -> bytes:
    """An index that names one data block again and again."""
    out = bytearray()
    handle = written.append(out, written.block([(b"k", b"v" * 1_000)], 16), 0)
    place = written.append(out, written.block([(number.to_bytes(4, "big"), handle) for number in range(count)], 1), 0)
    return bytes(out) + (place + place).ljust(40, b"\0") + written.MAGIC.to_bytes(8, "little")


# The documents


def _hparams(folder: Path, rng: random.Random) -> None:
    odd: tuple[Any, ...] = (*NUMBERS, math.nan, math.inf, 1e308, 2.0, "16", True, None, [16], {}, 3, 10**4_000)
    sizes = {**written.HPARAMS, rng.choice(list(written.HPARAMS)): rng.choice(odd), "auto_map": {"AutoModel": "code.M"}}
    text = json.dumps(sizes)
    shapes = (
        text,
        text,
        text,
        text,
        f"[{text}]",
        '{"a": ' + "[" * 100_000,
        '{"n_layer": ' + '{"a":' * 10_000,
        "",
        "null",
    )
    (folder / "hparams.json").write_text(rng.choice(shapes))


def _encoder(folder: Path, rng: random.Random) -> None:
    document = json.loads((folder / "encoder.json").read_text())
    one, other = rng.sample(list(document), 2)
    lost = {token: number for token, number in document.items() if token != one}
    kinds: tuple[Any, ...] = (
        list(document),
        {**document, one: document[other]},
        {**document, one: rng.choice((*NUMBERS, math.nan, 1.5, "1", None, [], True))},
        lost,
        {**lost, "\ud800": document[one]},
        {token: number for number, token in enumerate(set(document) - {written.END})},
        {**document, **{f"more{number}": len(document) + number for number in range(500)}},
        "[" * 100_000,
        {str(number): number for number in range(300)},
    )
    kind = rng.choice(kinds)
    (folder / "encoder.json").write_text(kind if isinstance(kind, str) else json.dumps(kind))


def _merges(folder: Path, rng: random.Random) -> None:
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    place = rng.randrange(1, len(lines) - 1)
    kinds = (
        [*lines[:-1], lines[place], ""],
        [*lines[:place], *lines[place:][::-1]],
        [*lines[:place], "a b c", *lines[place:]],
        [*lines[:place], "nowhere tobefound", *lines[place:]],
        [*lines[:place], "\0", *lines[place:]],
        [*lines[:place], " ", *lines[place:]],
        [*lines[:place], "a" * 10_000_000, *lines[place:]],
        [f"{line}\r" for line in lines],
        lines[1:],
        lines[:1],
    )
    content = "\n".join(rng.choice(kinds)).encode()
    (folder / "vocab.bpe").write_bytes(rng.choice((content, content, content, b"\xff\xfe" + content)))


def _state(folder: Path, rng: random.Random) -> None:
    names = ("", "nowhere", "../../../etc/passwd", "/etc/hostname", "a\0b", "é", "a" * 5_000, "*", written.PREFIX)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{rng.choice(names)}"\n')


def _numbers(folder: Path, rng: random.Random) -> None:
    variables = written.random_variables()
    name = rng.choice(list(variables))
    variables[name] = np.full_like(variables[name], rng.choice((math.nan, math.inf, 0.0, 1e30)))
    written.write_checkpoint(folder, variables)


def _code(folder: Path, rng: random.Random) -> None:
    program = f"open({str(folder.parent / MARKER)!r}, 'w')"
    for name in ("modeling.py", "code.py", "conftest.py", "setup.py", "tokenization.py"):
        (folder / name).write_text(program)
    pickle = b"cbuiltins\nexec\n(V" + program.encode() + b"\ntR."
    for name in ("pytorch_model.bin", rng.choice((f"{written.PREFIX}.meta", "hparams.json", DATA, INDEX))):
        (folder / name).write_bytes(pickle)


MUTATIONS: Mapping[str, Mutation] = {
    name.__name__.strip("_"): name
    for name in (
        *ANY_FILE,
        *(_entry, _shape, _overlap, _extra, _names, _header, _table),
        *(_hparams, _encoder, _merges, _state, _numbers, _code),
    )
}
