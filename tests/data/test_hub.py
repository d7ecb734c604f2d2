"""A Hub id: its split's files are found by card or by name, fetched once, and read like any others; no code is fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tuneful.data import hub
from tuneful.data.sources import find_files
from tuneful.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"]
CONFIGS = [
    {"config_name": "other", "data_files": "other/*.jsonl"},
    {
        "config_name": "default",
        "data_files": [{"split": "train", "path": ["a/*.jsonl", "b.jsonl"]}, {"split": "extra", "path": "**/x.csv"}],
    },
]

CHOICES: dict[str, tuple[list[str], list[Any], str, list[str]]] = {
    "shards": (SHARDS, [], "train", SHARDS[:2]),
    "shards of a split": (SHARDS, [], "test", SHARDS[2:]),
    "one file": (["README.md", "alpaca.json", "dataset_infos.json"], [], "train", ["alpaca.json"]),
    "a split in a folder": (["dev/1.jsonl.gz", "train/1.jsonl.gz"], [], "validation", ["dev/1.jsonl.gz"]),
    "files without a split beside others": (["train.csv", "notes.json"], [], "train", ["train.csv"]),
    "a card": (["a/1.jsonl", "b.jsonl", "c/x.csv", "z.jsonl", "a/1.py"], CONFIGS, "train", ["a/1.jsonl", "b.jsonl"]),
    "another split of a card": (["a/1.jsonl", "c/x.csv"], CONFIGS, "extra", ["c/x.csv"]),
    "a card without files": (SHARDS, [{"config_name": "default"}], "train", SHARDS[:2]),
    "a card of one pattern": (["q/1.json", "r.json"], [{"data_files": "q/*"}], "train", ["q/1.json"]),
}


@pytest.mark.parametrize("what", CHOICES)
def test_the_files_of_a_split_are_those_of_the_card_or_of_their_names(what: str) -> None:
    files, configs, split, chosen = CHOICES[what]
    assert hub.choose(files, configs, split, "o/n") == chosen


@pytest.mark.parametrize(
    ("files", "configs", "split", "message"),
    [
        (SHARDS, [], "validation", "has no split `validation`; there are o/n:test, o/n:train"),
        (["n.py", "README.md"], [], "train", r"made by a program \(n.py\), and no code of a repository is run"),
        (["weights.bin"], [], "train", "no file of records to read: it holds none"),
        (
            ["a.json"],
            [{"config_name": c, "data_files": "a.json"} for c in "xy"],
            "train",
            r"several configurations \(x, y\)",
        ),
    ],
)
def test_a_split_that_cannot_be_had_is_named(files: list[str], configs: list[Any], split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hub.choose(files, configs, split, "o/n")


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("nowhere/train.jsonl", "data/train", "train", "./a/b", "/a/b", "a/b/c", "runs/first"):
        with pytest.raises(DataError, match=r"no such file\. Give a file of records"):
            find_files(name)


class Handler(BaseHTTPRequestHandler):
    """A repository's description and its files."""

    files: dict[str, bytes]
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        name = path.partition(f"/datasets/tester/set/resolve/{COMMIT}/")[2]
        if path == "/api/datasets/tester/set":
            described = {"id": "tester/set", "sha": COMMIT, "siblings": [{"rfilename": file} for file in self.files]}
            self.answer(200, json.dumps(described).encode())
        elif name in self.files:
            self.answer(200, self.files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        elif "gated" in path:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    row = json.dumps({"question": "a", "answer": "b"}).encode() + b"\n"
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: part*.jsonl\n---\n# Set\n"
    Handler.files = {
        "README.md": card.encode(),
        "part1.jsonl": row * 2,
        "part2.jsonl": row,
        "secret.jsonl": row,
        "set.py": b"1/0",
    }
    Handler.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def read_in_a_process(name: str, home: Path, endpoint: str) -> str:
    program = (
        "import sys\nfrom tuneful.data.read import read_data\n"
        f"try:\n    file = read_data({name!r})\n"
        "    print(file.name, file.format, *[record.source for record in file.records])\n"
        "except ValueError as error:\n    print(error)\n"
    )
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**kept, **settings}, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def test_a_hub_id_is_read_file_by_file_and_its_program_is_left_alone(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    endpoint = f"http://127.0.0.1:{server.server_port}"
    read = read_in_a_process("tester/set", tmp_path, endpoint)
    assert read == (
        "tester/set question-answer tester/set/part1.jsonl:1 tester/set/part1.jsonl:2 tester/set/part2.jsonl:1"
    )
    fetched = {path.rpartition("/")[2] for path in Handler.asked if "/resolve/" in path}
    assert fetched == {"README.md", "part1.jsonl", "part2.jsonl"}
    assert read_in_a_process("tester/set:test", tmp_path, endpoint) == (
        "tester/set: has no split `test`; there are tester/set:train"
    )
    assert "tester/nothing: no such file, and the Hub at" in read_in_a_process("tester/nothing", tmp_path, endpoint)
    assert "tester/gated: gated; accept its terms" in read_in_a_process("tester/gated", tmp_path, endpoint)


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    said = read_in_a_process("tester/set", tmp_path, "http://127.0.0.1:9")
    assert said.startswith("tester/set: no such file, and it could not be had from the Hub at http://127.0.0.1:9 (")
    assert said.count("\n") == 0
