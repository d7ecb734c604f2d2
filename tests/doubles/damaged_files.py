"""Thousands of damaged files, and every bomb and odd place we know of: does reading lose a row, or its temper?

Each file is a small set of records in one of many formats with one mutation: of a row, whose fate is known, or of the
bytes, whose outcome is not. Checked for each, with `data.on_error` stop and skip and through the command line: nothing but
one message that names the place, exit code 2 or 0 and no traceback, exactly the rows that were good are used, and rows
used and refused add up to a count made by other means (the standard json and csv modules on the whole text, pyarrow's
own row counts). Files are read in child processes, so that a crash is a failure like any other: this file is their
program. Bombs (a 200 MB line, gzip and zstd of gigabytes, nesting, numbers, quotes, pages) run each in a process of its own
and may take 2 s of processor time and 300 MB. `benchmarks/fuzz_data.py` is the long campaign.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import gzip
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

MAX_SECONDS, MAX_MEGABYTES = 2.0, 300
CHUNK = 250
WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "haven",
    "inlet",
    "jetty",
    "knoll",
    "larch",
    "maple",
]
SPICES = [
    "",
    "",
    'a "quote"',
    "two\nlines",
    "tab\there",
    "naïve",
    "日本語",
    "\u2028",
    "\x85",
    "a;b,c|d",
    "😀",
    "\\n",
    "{",
    "[1]",
]
PLACED = re.compile(r":\d+(#\d+)?: |:row \d+: |: byte [\d,]+|.* byte [\d,]+|: damaged after row [\d,]+|: row group \d+")
WHOLE = re.compile(
    r": (the file is empty|no usable record in \d+ row|not a whole Parquet file|the Arrow file is cut off|"
    r"holds more than one array of records|the column `.*` stands twice|over [\d,]+ bytes of blank space)"
)
"""Messages about a file as a whole: there is no line to name."""


# Whole files


def make_rows(rng: random.Random, num: int) -> list[dict[str, str]]:
    """Good records with an `id` each."""

    def text(most: int) -> str:
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, most))]
        words.insert(rng.randint(0, len(words)), rng.choice(SPICES))
        return " ".join(filter(None, words))

    return [
        {"id": f"r{n}", "instruction": text(8), "input": rng.choice(["", text(5)]), "output": text(20)}
        for n in range(num)
    ]


def json_texts(rows: Sequence[Any], rng: random.Random) -> list[bytes]:
    return [json.dumps(row, ensure_ascii=rng.random() < 0.3).encode() for row in rows]


def as_array(texts: Sequence[bytes], rng: random.Random) -> bytes:
    gap = rng.choice([b"", b" ", b"\n", b"\n  "])
    return b"[" + gap + (b"," + gap).join(texts) + b"]\n"


def as_holder(texts: Sequence[bytes], rng: random.Random) -> bytes:
    return b'{"version": 1, "tags": ["a"],\n"data": ' + as_array(texts, rng).strip() + b', "n": null}'


def as_lines(texts: Sequence[bytes], rng: random.Random) -> bytes:
    return b"\n".join(texts) + rng.choice([b"", b"\n"])


def as_csv(rows: Sequence[dict[str, str]], rng: random.Random, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    quoting: Literal[0, 1] = rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: Sequence[dict[str, str]], rng: random.Random) -> bytes:
    sink = io.BytesIO()
    compression = rng.choice(["none", "snappy", "zstd", "gzip"])
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=rng.randint(1, 40), compression=compression)
    return sink.getvalue()


def as_arrow(rows: Sequence[dict[str, str]], rng: random.Random) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(list(rows))
    options = pa.ipc.IpcWriteOptions(compression=rng.choice([None, "zstd", "lz4"]))
    with rng.choice([pa.ipc.new_file, pa.ipc.new_stream])(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rng.randint(1, 40))
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())


JSON_FORMATS = {"json": as_array, "holder.json": as_holder, "jsonl": as_lines}
TABLE_FORMATS = {"parquet": as_parquet, "arrow": as_arrow}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": lambda b: gzip.compress(b, 1), ".zst": zstd}


# Mutations of a row of JSON: its text, and whether it is then `good`, `bad`, or `broken` (bad on a line of its own, and in
# an array the end of the file)


def _with(row: dict[str, str], **changes: Any) -> bytes:
    return json.dumps({**row, **changes}).encode()


def _spliced(row: dict[str, str], more: bytes) -> bytes:
    return json.dumps(row).encode()[:-1] + more


ROW_MUTATIONS: dict[str, Callable[[dict[str, str], random.Random], tuple[bytes, str]]] = {
    "a wrong type": lambda row, rng: (
        _with(row, **{rng.choice(["instruction", "output"]): rng.choice([["x"], [5], [], {}, {"a": "b"}])}),
        "bad",
    ),
    "a missing key": lambda row, rng: (json.dumps({k: v for k, v in row.items() if k != "output"}).encode(), "bad"),
    "a missing input": lambda row, rng: (json.dumps({k: v for k, v in row.items() if k != "input"}).encode(), "good"),
    "extra keys": lambda row, rng: (_with(row, more={"a": [1, None, {"b": "c"}]}, score=0.5), "good"),
    "null for an output": lambda row, rng: (_with(row, output=None), "bad"),
    "null for an input": lambda row, rng: (_with(row, input=None), "good"),
    "an empty output": lambda row, rng: (_with(row, output=rng.choice(["", " ", "\n"])), "bad"),
    "a number or a truth value": lambda row, rng: (_with(row, output=rng.choice([5, 1.5, True, 0, False])), "good"),
    "NaN": lambda row, rng: (_spliced(row, b', "x": NaN}'), "good"),
    "Infinity": lambda row, rng: (_spliced(row, b', "x": ' + rng.choice([b"Infinity", b"-Infinity"]) + b"}"), "bad"),
    "a number out of range": lambda row, rng: (_spliced(row, b', "x": -1e999}'), "bad"),
    "a number of 5,000 digits": lambda row, rng: (_spliced(row, b', "x": ' + b"7" * 5000 + b"}"), "bad"),
    "a key twice": lambda row, rng: (_spliced(row, b', "output": "again"}'), "bad"),
    "a key twice inside": lambda row, rng: (_spliced(row, b', "x": [{"a": 1, "a": 2}]}'), "bad"),
    "a lone surrogate": lambda row, rng: (_with(row, output="x" + chr(rng.randint(0xD800, 0xDFFF))), "bad"),
    "a pair of surrogates": lambda row, rng: (_spliced(row, b', "x": "\\ud83d\\ude00"}'), "good"),
    "200 levels": lambda row, rng: (_spliced(row, b', "x": ' + b"[" * 200 + b"]" * 200 + b"}"), "bad"),
    "60 levels": lambda row, rng: (_spliced(row, b', "x": ' + b"[" * 60 + b"]" * 60 + b"}"), "good"),
    "100,000 levels": lambda row, rng: (_spliced(row, b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "broken"),
    "no record": lambda row, rng: (rng.choice([b"5", b'"x"', b"null", b"[]", b"[[]]", b"true", b"{}"]), "bad"),
    "another shape": lambda row, rng: (
        json.dumps({"id": row["id"], "question": row["instruction"], "answer": row["output"]}).encode(),
        "good",
    ),
    "text alone": lambda row, rng: (json.dumps({"text": row["output"]}).encode(), "bad"),
    "a tool call": lambda row, rng: (
        json.dumps(
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}]}
        ).encode(),
        "bad",
    ),
    "a comma too many": lambda row, rng: (_spliced(row, b",}"), "broken"),
    "two values": lambda row, rng: (json.dumps(row).encode() * 2, "broken"),
    "single quotes": lambda row, rng: (str({"a": 1}).encode(), "broken"),
    "bad UTF-8": lambda row, rng: (_spliced(row, b', "x": "' + bytes([rng.randint(0x80, 0xFF)]) + b'"}'), "broken"),
    "NUL": lambda row, rng: (_spliced(row, b', "x": "\0"}'), "broken"),
    "an unclosed string": lambda row, rng: (_spliced(row, b', "x": "}'), "broken"),
    "an unclosed record": lambda row, rng: (json.dumps(row).encode()[:-1], "broken"),
}
CSV_MUTATIONS: dict[str, Callable[[list[bytes], bytes], bytes]] = {
    "a cell too few": lambda cells, comma: comma.join(cells[:-1]),
    "a cell too many": lambda cells, comma: comma.join([*cells, b"x"]),
    "an empty output": lambda cells, comma: comma.join([*cells[:-1], b""]),
    "NUL": lambda cells, comma: comma.join([*cells[:-1], b"a\0b"]),
    "bad UTF-8": lambda cells, comma: comma.join([*cells[:-1], b"a\xffb"]),
    "an empty row": lambda cells, comma: comma.join([b""] * len(cells)),
}


# Mutations of bytes, whose outcome is open


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randint(0, len(content) - 1)]


def _spot(rng: random.Random, content: bytes, most: int) -> tuple[int, int]:
    start = rng.randint(0, len(content) - 1)
    return start, min(len(content), start + rng.randint(1, most))


def _replaced(make: Callable[[bytes, random.Random], bytes], most: int) -> Callable[[bytes, random.Random], bytes]:
    def mutate(content: bytes, rng: random.Random) -> bytes:
        start, end = _spot(rng, content, most)
        return content[:start] + make(content[start:end], rng) + content[end:]

    return mutate


BYTE_MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": _cut,
    "a bit flipped": _replaced(lambda b, rng: bytes([b[0] ^ (1 << rng.randint(0, 7))]) + b[1:], 1),
    "random bytes": _replaced(lambda b, rng: rng.randbytes(len(b)), 64),
    "bytes deleted": _replaced(lambda b, rng: b"", 64),
    "bytes doubled": _replaced(lambda b, rng: b + b, 200),
    "NUL inserted": _replaced(lambda b, rng: b"\0" + b, 1),
    "a quote inserted": _replaced(lambda b, rng: b'"' + b, 1),
    "a bracket inserted": _replaced(lambda b, rng: rng.choice([b"[", b"]", b"{", b"}", b",", b":"]) + b, 1),
    "a backslash inserted": _replaced(lambda b, rng: b"\\" + b, 1),
    "a line end inserted": _replaced(lambda b, rng: rng.choice([b"\n", b"\r", b"\r\n", b"\xe2\x80\xa8"]) + b, 1),
    "UTF-16": lambda content, rng: content.decode("utf-8", "replace").encode(
        rng.choice(["utf-16", "utf-16-le", "utf-16-be"])
    ),
    "Latin-1": lambda content, rng: content.decode("utf-8", "replace").encode("latin-1", "replace"),
    "a mark in front": lambda content, rng: b"\xef\xbb\xbf" + content,
    "a mark inside": _replaced(lambda b, rng: b"\xef\xbb\xbf" + b, 1),
    "CRLF": lambda content, rng: content.replace(b"\n", b"\r\n"),
    "CR": lambda content, rng: content.replace(b"\n", b"\r"),
    "blank lines": lambda content, rng: content.replace(b"\n", b"\n\n \t\n", 3) + b"\n\n",
    "twice in a row": lambda content, rng: content + content,
    "something after it": lambda content, rng: content + rng.choice([b"x", b"[]", b"{}", b"\0", b",", b'"']),
    "something before it": lambda content, rng: rng.choice([b"x", b",", b"\0", b"//\n", b'"']) + content,
    "nothing at all": lambda content, rng: rng.choice([b"", b"\n", b" \r\n", b"\xef\xbb\xbf"]),
    "noise": lambda content, rng: rng.randbytes(rng.randint(1, 2000)),
}


@dataclass(frozen=True)
class Case:
    """A file to read: its ending and content; where its rows' fate is known, the ids to be used and the number refused."""

    what: str
    ending: str
    content: bytes
    originals: list[dict[str, str]]
    used: list[str] | None = None
    num_refused: int | None = None
    fatal: bool = False
    packing: str = ""


def make_case(seed: int, index: int) -> Case:
    """File `index` of the campaign `seed`."""
    rng = random.Random(f"{seed}/{index}")
    rows = make_rows(rng, rng.randint(1, 30))
    kind = rng.random()
    packing = rng.choice(["", "", "", ".gz", ".zst"])
    if kind < 0.4:
        return json_case(rows, rng, packing)
    if kind < 0.5:
        return csv_case(rows, rng, packing)
    ending = rng.choice([*JSON_FORMATS, "csv", "tsv", *TABLE_FORMATS, *TABLE_FORMATS])
    what = rng.choice(list(BYTE_MUTATIONS))
    content = whole_file(ending, rows, rng)
    if ending in TABLE_FORMATS:
        return Case(what, ending, BYTE_MUTATIONS[what](content, rng), rows)
    if packing and rng.random() < 0.5:  # the damage is in the packed bytes
        return Case(
            f"{what}, packed",
            ending + packing,
            BYTE_MUTATIONS[what](PACKINGS[packing](content), rng),
            rows,
            packing=packing,
        )
    return Case(what, ending + packing, PACKINGS[packing](BYTE_MUTATIONS[what](content, rng)), rows, packing=packing)


def whole_file(ending: str, rows: list[dict[str, str]], rng: random.Random) -> bytes:
    """`rows` as an undamaged file."""
    if ending in JSON_FORMATS:
        return JSON_FORMATS[ending](json_texts(rows, rng), rng)
    if ending in TABLE_FORMATS:
        return TABLE_FORMATS[ending](rows, rng)
    return as_csv(rows, rng, "\t" if ending == "tsv" else rng.choice(",;|"))


def json_case(rows: list[dict[str, str]], rng: random.Random, packing: str) -> Case:
    """One to three rows of JSON mutated."""
    ending = rng.choice(list(JSON_FORMATS))
    texts = json_texts(rows, rng)
    mutated = dict.fromkeys(rng.sample(range(len(rows)), min(len(rows), rng.randint(1, 3))), "")
    names = []
    for index in mutated:
        names.append(rng.choice(list(ROW_MUTATIONS)))
        texts[index], mutated[index] = ROW_MUTATIONS[names[-1]](rows[index], rng)
    used = [row["id"] for index, row in enumerate(rows) if mutated.get(index, "good") == "good"]
    fatal = not used or (ending != "jsonl" and "broken" in mutated.values())
    content = PACKINGS[packing](JSON_FORMATS[ending](texts, rng))
    return Case(names[0], ending + packing, content, rows, used, len(rows) - len(used), fatal, packing)


def csv_case(rows: list[dict[str, str]], rng: random.Random, packing: str) -> Case:
    """One row of CSV mutated."""
    what, index = rng.choice(list(CSV_MUTATIONS)), rng.randrange(len(rows))
    comma = rng.choice([b",", b";", b"\t"])
    cells = ['"{}"'.format(value.replace('"', '""')).encode() for value in rows[index].values()]
    lines = as_csv(rows, random.Random(1), comma.decode())
    reader = list(csv.reader(io.StringIO(lines.decode(), newline=""), delimiter=comma.decode()))
    out = []
    for number, row in enumerate(reader):
        given = ['"{}"'.format(value.replace('"', '""')).encode() for value in row]
        out.append(CSV_MUTATIONS[what](cells, comma) if number == index + 1 else comma.join(given))
    used = [row["id"] for number, row in enumerate(rows) if number != index]
    content = PACKINGS[packing](b"\n".join(out) + b"\n")
    return Case(f"{what} of CSV", "csv" + packing, content, rows, used, 1, not used, packing)


# The count by other means


def unpacked(case: Case) -> bytes | None:
    """The text of a case, by the standard library; None where it cannot be unpacked."""
    try:
        if case.packing == ".gz":
            return gzip.decompress(case.content)
        if case.packing == ".zst":
            return bytes(pa.input_stream(pa.BufferReader(case.content), compression="zstd").read())
    except (OSError, EOFError, pa.ArrowException, ValueError, gzip.zlib.error):  # type: ignore[attr-defined]
        return None
    return case.content


def count_rows(case: Case) -> int | None:
    """The rows of a file that was read, by other means than ours; -1 where those find none, None where they cannot say."""
    ending = case.ending.removesuffix(case.packing)
    if ending in TABLE_FORMATS:
        return count_table(case.content, ending)
    content = unpacked(case)
    if content is None:
        return -1
    content = content.removeprefix(b"\xef\xbb\xbf")
    if ending == "jsonl" and not content.lstrip(b" \t\r\n").startswith(b"["):
        return sum(bool(line.strip(b" \t\r\n")) for line in content.split(b"\n"))
    if ending in ("csv", "tsv"):
        return count_csv(content, ending)
    try:
        value = json.loads(content.decode(), parse_int=str)
    except (ValueError, RecursionError):
        return -1
    if isinstance(value, dict):
        held = [
            rows for rows in value.values() if isinstance(rows, list) and any(isinstance(row, dict) for row in rows)
        ]
        return len(held[0]) if len(held) == 1 and "output" not in value else 1
    return len(value) if isinstance(value, list) else 1


def count_csv(content: bytes, ending: str) -> int:
    return sum(map(bool, csv_cells(content, ending))) - 1


def csv_cells(content: bytes, ending: str) -> Iterator[list[str]]:
    text = content.decode("utf-8", "backslashreplace")
    header = text.split("\n", 1)[0]
    delimiter = "\t" if ending == "tsv" else max(",\t;|", key=header.count)
    return iter(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


def originals_by_id(case: Case) -> tuple[str, dict[str, dict[str, str]]]:
    """(the key of the id, the undamaged rows by it): of CSV under the names that its header, damaged perhaps, gives."""
    ending, key, rows = case.ending.removesuffix(case.packing), "id", case.originals
    if case.used is None and ending in ("csv", "tsv") and (content := unpacked(case)) is not None:
        header = next(filter(None, csv_cells(content.removeprefix(b"\xef\xbb\xbf"), ending)))
        names = [cell.strip() or f"column {number}" for number, cell in enumerate(header, start=1)]
        key, rows = names[0], [dict(zip(names, row.values(), strict=False)) for row in rows]
    return key, {original["id"]: row for original, row in zip(case.originals, rows, strict=True)}


def count_table(content: bytes, ending: str) -> int | None:
    try:
        if ending == "parquet":
            return int(pq.read_metadata(io.BytesIO(content)).num_rows)
        open_any = pa.ipc.open_file if content.startswith(b"ARROW1") else pa.ipc.open_stream
        return int(open_any(io.BytesIO(content)).read_all().num_rows)
    except (pa.ArrowException, OSError, ValueError, EOFError):
        return None


# Checks


def complaints(case: Case, folder: Path) -> Iterator[str]:
    """What reading a case did wrong."""
    from tuneful.data.read import read_data
    from tuneful.errors import DataError

    path = folder / f"data.{case.ending}"
    path.write_bytes(case.content)
    outcomes: dict[str, Any] = {}
    for on_error in ("stop", "skip"):
        try:
            outcomes[on_error] = read_data(str(path), on_error=on_error)
        except DataError as error:
            outcomes[on_error] = str(error)
            yield from bad_message(str(error), str(path))
        except BaseException as error:
            outcomes[on_error] = str(error)
            yield f"{on_error}: {type(error).__name__}: {error}"[:300]
    stopped, skipped = outcomes["stop"], outcomes["skip"]
    if isinstance(skipped, str) and not isinstance(stopped, str):
        yield "skip refuses what stop reads"
    code, said = command(path)
    if code != (2 if isinstance(stopped, str) else 0) or "Traceback" in said:
        yield f"the command ended with {code}: {said[-300:]}"
    if isinstance(stopped, str) and code == 2 and not said.startswith(f"error: {path}"):
        yield f"the command said: {said[:300]}"
    if case.used is not None and case.fatal != isinstance(skipped, str):
        yield f"expected {'an error' if case.fatal else 'records'}, found {str(skipped)[:200]}"
    if not isinstance(skipped, str):
        yield from unaccounted(case, skipped, str(path))
        if skipped.refused and not isinstance(stopped, str):
            yield "stop reads on over a row that skip refuses"


def bad_message(message: str, path: str) -> Iterator[str]:
    rest = message.removeprefix(path)
    if rest == message or not (PLACED.match(rest) or WHOLE.match(rest)):
        yield f"no place: {message[:300]}"
    if len(rest) > 700 or "\n" in message or not message.isprintable():
        yield f"not one readable line: {message[:300]!r}"


def unaccounted(case: Case, file: Any, path: str) -> Iterator[str]:
    """Rows that are lost, doubled, changed or refused without a reason."""
    found = [record.raw.get("id") for record in file.records]
    num_rows = len(file.records) + len(file.refused)
    if case.used is not None and (found != case.used or len(file.refused) != case.num_refused):
        yield f"expected {case.used} and {case.num_refused} refused, found {found} and {len(file.refused)}"
    counted = count_rows(case)
    if counted is not None and counted != num_rows:
        yield f"{len(file.records)} used + {len(file.refused)} refused, counted {counted}"
    key, originals = originals_by_id(case)
    changed = sum(record.raw != originals.get(record.raw.get(key)) for record in file.records)
    is_text = (
        "packed" not in case.what and case.ending not in TABLE_FORMATS
    )  # others spread a change, and carry no checksum
    if case.used is None and is_text and case.what not in CHANGES_ALL and changed > 3:
        yield f"{changed} of {len(found)} rows are not what they were"
    for refusal in file.refused:
        if not refusal.reason or not PLACED.match(refusal.source.removeprefix(path) + ": "):
            yield f"a refusal without a place or reason: {refusal.source}: {refusal.reason}"


CHANGES_ALL = {"Latin-1", "CRLF", "CR", "blank lines"}
"""Mutations that may change the text of every row."""


def command(path: Path) -> tuple[int, str]:
    """(exit code, stderr) of `tuneful show --text` in this process."""
    from tuneful import cli

    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["tuneful", "show", "--text", "--rows", "1000", str(path)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        return 99, f"Traceback: {type(error).__name__}: {error}"
    finally:
        sys.argv = argv
    return (code if isinstance(code, int) else 0 if code is None else 1), err.getvalue()


def run_chunk(seed: int, start: int, end: int) -> None:
    """The child's part: files `start` to `end`, a line of JSON each."""
    import warnings

    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        for index in range(start, end):
            case = make_case(seed, index)
            print(json.dumps({"index": index, "what": case.what, "ending": case.ending}), flush=True)
            problems = list(complaints(case, Path(folder)))
            print(json.dumps({"index": index, "problems": problems}), flush=True)


# Bombs and odd places


def _repeated(head: bytes, block: bytes, num: int, pack: Callable[[bytes], bytes] = bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(pack(head) if head else b"")
            packed = pack(block)
            for _ in range(num):
                file.write(packed)

    return write


MIB = 1 << 20
GZ, ZST = PACKINGS[".gz"], PACKINGS[".zst"]
GOOD = b'{"instruction": "a", "output": "b"}\n'


def _huge_page(path: Path) -> None:
    pq.write_table(pa.table({"instruction": ["a"], "output": ["x" * (400 * MIB)]}), path, compression="zstd")


BOMBS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a line of 200 MB": ("jsonl", _repeated(GOOD + b'{"instruction": "', b"x" * MIB, 200)),
    "a record of 200 MB in an array": ("json", _repeated(b'[{"instruction": "', b"x" * MIB, 200)),
    "a line of 200 MB, no end": ("txt", _repeated(b"", b"x" * MIB, 200)),
    "a CSV row of 200 MB": ("csv", _repeated(b"instruction,output\n", b"a," * (MIB // 2), 200)),
    "a CSV header of 200 MB": ("csv", _repeated(b"", b"a," * (MIB // 2), 200)),
    "a CSV quote never closed": ("csv", _repeated(b'instruction,output\n"', b"a,b\n" * (MIB // 4), 200)),
    "200 MB of spaces": ("json", _repeated(b"", b" " * MIB, 200)),
    "200 MB of spaces in an array": ("json", _repeated(b"[", b" " * MIB, 200)),
    "200 MB of line ends": ("jsonl", _repeated(GOOD, b"\n" * MIB, 200)),
    "200 MB of open brackets": ("json", _repeated(b"", b"[" * MIB, 200)),
    "200 MB of open objects": ("jsonl", _repeated(b"", b'{"a":' * (MIB // 5), 200)),
    "a key of 200 MB": ("json", _repeated(b'{"', b"k" * MIB, 200)),
    "4 MB of empty lists": ("jsonl", _repeated(GOOD + b'{"a": [[]', b",[]" * MIB, 2)),
    "4 MB of empty lists, closed": (
        "jsonl",
        lambda path: path.write_bytes(GOOD + b'{"a": [[]' + b",[]" * (1350 * 1024) + b"]}\n"),
    ),  # type: ignore[dict-item]
    "4 MB of keys": (
        "jsonl",
        lambda path: path.write_bytes(GOOD + b"{" + b",".join(b'"%d":0' % n for n in range(375_000)) + b"}\n"),
    ),  # type: ignore[dict-item]
    "a key 300,000 times": (
        "jsonl",
        lambda path: path.write_bytes(GOOD + b"{" + b",".join([b'"aaaa":0'] * 300_000) + b"}\n"),
    ),  # type: ignore[dict-item]
    "a number of 3,000,000 digits": ("jsonl", _repeated(GOOD + b'{"a": ', b"7" * MIB, 3)),
    "an array of 4 MB of numbers": (
        "json",
        lambda path: path.write_bytes(b'[{"a": [' + b"1," * (2 * MIB - 99) + b"1]}]"),
    ),  # type: ignore[dict-item]
    "gzip of 4 GB of zeros": ("jsonl.gz", _repeated(b"", bytes(32 * MIB), 128, GZ)),
    "gzip of 4 GB of line ends": ("jsonl.gz", _repeated(GOOD, b"\n" * (32 * MIB), 128, GZ)),
    "gzip of 4 GB of spaces": ("json.gz", _repeated(b"[", b" " * (32 * MIB), 128, GZ)),
    "gzip of a 4 GB string": ("json.gz", _repeated(b'[{"instruction": "', b"x" * (32 * MIB), 128, GZ)),
    "gzip of a 4 GB line": ("jsonl.gz", _repeated(GOOD + b'{"instruction": "', b"x" * (32 * MIB), 128, GZ)),
    "gzip of a 4 GB cell": ("csv.gz", _repeated(b'instruction,output\n"', b"x" * (32 * MIB), 128, GZ)),
    "zstd of 4 GB of zeros": ("jsonl.zst", _repeated(b"", bytes(32 * MIB), 128, ZST)),
    "zstd of a 4 GB line": ("jsonl.zst", _repeated(GOOD + b'{"instruction": "', b"x" * (32 * MIB), 128, ZST)),
    "zstd of a 4 GB string": ("json.zst", _repeated(b'[{"instruction": "', b"x" * (32 * MIB), 128, ZST)),
    "a Parquet page of 400 MB": ("parquet", _huge_page),
}

CHILD = """
import json, sys, time
from tuneful.data.read import read_data, stream_data
from tuneful.config import DataConfig
from tuneful.errors import DataError
import tuneful.cli
path = sys.argv[1]
begun, clock = time.process_time(), time.perf_counter()
try:
    num = 0
    for row in stream_data(path, DataConfig()):
        num += 1
    said = f"{num} rows"
except DataError as error:
    said = str(error)
seconds, waited = time.process_time() - begun, time.perf_counter() - clock
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(json.dumps({"seconds": round(seconds, 2), "waited": round(waited, 2), "peak_mb": round(peak), "said": said[:500]}))
"""


def run_bomb(name: str, folder: Path) -> dict[str, Any]:
    """Read one bomb in a process of its own and then by the command; what it took, said, and did wrong."""
    ending, write = BOMBS[name]
    path = folder / f"bomb.{ending}"
    write(path)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"problems": [f"ended with {done.returncode}: {done.stderr[-300:]}"]}
    found: dict[str, Any] = json.loads(done.stdout)
    problems = list(bad_message(found["said"], str(path)))
    if found["seconds"] > MAX_SECONDS:
        problems.append(f"took {found['seconds']} s")
    if found["peak_mb"] > MAX_MEGABYTES:
        problems.append(f"took {found['peak_mb']} MB")
    shown = subprocess.run(
        [sys.executable, "-m", "tuneful.cli", "show", "--text", str(path)], capture_output=True, text=True, check=False
    )
    if shown.returncode != 2 or "Traceback" in shown.stderr or not shown.stderr.startswith("error: "):
        problems.append(f"the command ended with {shown.returncode}: {shown.stderr[-300:]}")
    path.unlink()
    return {**found, "said": found["said"].replace(str(folder) + "/", ""), "problems": problems}


def odd_places(folder: Path, growing_mib: int = 40) -> Iterator[tuple[str, list[str]]]:
    """(what, what was wrong) of everything that a name can lead to beside a file; one of them grows from `growing_mib`."""
    from tuneful.data.read import read_data, stream_data  # noqa: F401
    from tuneful.errors import DataError

    def said(name: str) -> str:
        try:
            return f"read {len(read_data(str(folder / name), on_error='skip').records)} records"
        except DataError as error:
            return str(error)

    os.mkfifo(folder / "pipe")
    (folder / "folder.json").mkdir()
    (folder / "loop").symlink_to(folder / "pool")
    (folder / "pool").symlink_to(folder / "loop")
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "secret").write_bytes(GOOD)
    (folder / "secret").chmod(0)
    expected = {
        "pipe": "is a pipe or a device",
        "folder.json": "is a folder",
        "loop": "Too many levels of symbolic links",
        "gone": "a link to a file that does not exist",
        "nowhere.json": "no such file",
        "*.nothing": "no file matches this pattern",
    }
    for name, part in expected.items():
        found = said(name)
        yield name, [] if part in found and found.startswith(str(folder)) else [found]
    yield "no permission", [] if "Permission denied" in (found := as_nobody(lambda: said("secret"))) else [found]
    yield "a file that grows", growing(folder / "grows.jsonl", growing_mib)


def as_nobody(run: Callable[[], str]) -> str:
    """What `run` gives without root's right to read everything."""
    if os.geteuid() != 0:
        return run()
    os.seteuid(65534)
    try:
        return run()
    finally:
        os.seteuid(0)


def growing(path: Path, size_mib: int) -> list[str]:
    """Somebody appends records while so much is read: refused, or read whole up to where it ended."""
    from tuneful.data.read import read_data
    from tuneful.errors import DataError

    path.write_bytes(GOOD * (size_mib * MIB // len(GOOD)))
    stop = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(GOOD)
                time.sleep(0.001)

    writer = threading.Thread(target=append)
    writer.start()
    try:
        file = read_data(str(path))
    except DataError as error:
        return [] if "changed while it was read" in str(error) else [str(error)]
    finally:
        stop.set()
        writer.join()
    return [f"read {len(file.records)} records of a file that grew"]


# The campaign


def campaign(num_files: int, seed: int) -> tuple[collections.Counter[str], list[dict[str, Any]]]:
    """(files by mutation, failures) of `num_files` files, in child processes."""
    kinds: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, Any]] = []
    for start in range(0, num_files, CHUNK):
        end = min(num_files, start + CHUNK)
        chunk = [sys.executable, __file__, str(seed), str(start), str(end)]
        done = subprocess.run(chunk, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"index"')]
        cases = {line["index"]: line for line in lines if "what" in line}
        kinds.update(line["what"] for line in cases.values())
        failures += [{**cases[line["index"]], **line} for line in lines if line.get("problems")]
        if done.returncode:
            last = lines[-1] if lines else {}
            failures.append({**last, "problems": [f"the process ended with {done.returncode}: {done.stderr[-500:]}"]})
        if sys.stderr.isatty():
            print(f"\r{end} files, {len(failures)} failures", end="", file=sys.stderr)
    return kinds, failures


if __name__ == "__main__":
    run_chunk(*map(int, sys.argv[1:]))
