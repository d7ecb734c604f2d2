"""The benchmark of a GPU goes on where it was cut, and names the piece that took its process down; its pieces run on a CPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEW = ("facts", "attention", "step/tiny", "peer/transformers-padded/tiny/full")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def gpu() -> Any:
    return importlib.import_module("gpu")


def options(tmp_path: Path, only: tuple[str, ...] = FEW) -> Any:
    place = importlib.import_module("gpu_pieces").Place("cpu", tiny=True)
    return gpu().Options(place, tmp_path / "gpu.jsonl", only)


def test_every_piece_that_a_cpu_can_run_gives_its_figures(tmp_path: Path) -> None:
    asked = options(tmp_path)

    def here(group: str) -> None:
        gpu().measure(asked, group)

    assert gpu().drive(asked, here) == 0
    rows = gpu().read(asked)
    assert [name for name, row in rows.items() if "error" in row] == []
    exact = rows["attention/torch/float32/4x2x8/129"]
    assert exact["worst"] < 1e-5
    assert exact["finite"]
    assert exact["repeats"]
    assert rows["attention/torch/bfloat16/4x2x8/129"]["worst"] < 2e-2
    step, peer = rows["step/tiny/full/auto/130"], rows["peer/transformers-padded/tiny/full/130"]
    assert (step["layout"], step["reason"]) == ("trie", None)
    assert step["loss"] == pytest.approx(peer["loss"], rel=2e-2), "not the same work"
    assert step["floor_share"] > 0
    assert rows["step/tiny/lora/auto/130"]["layout"] == "trie"
    text = "\n".join(gpu().table(rows))
    assert "| step/tiny/full/auto/130 |" in text
    assert "None" not in text
    before = asked.output.read_text()
    assert gpu().drive(asked, here) == 0
    assert asked.output.read_text() == before, "measured twice"


def test_a_process_that_dies_takes_one_piece_down_and_the_rest_is_measured(tmp_path: Path) -> None:
    asked = options(tmp_path, ("attention",))
    names = [piece.name for piece in asked.pieces()]
    calls = []

    def dies_at_the_second(group: str) -> str | None:
        calls.append(group)
        for piece in gpu()._missing(asked, group):
            gpu().write(asked, piece.name, None)
            if piece.name == names[1]:
                return "exit code -6, CUDA error: an illegal memory access was encountered"
            gpu().write(asked, piece.name, {"ms": 1.0})
        return None

    assert gpu().drive(asked, dies_at_the_second) == 0
    rows = gpu().read(asked)
    assert list(rows) == names
    assert "illegal memory access" in rows[names[1]]["error"]
    assert rows[names[2]] == {"ms": 1.0}
    assert len(calls) == 2
    assert gpu().main(["--device", "cpu", "--tiny", "--only", "attention", "--output", str(asked.output)]) == 1
    assert json.loads(asked.output.with_suffix(".json").read_text())["pieces"] == rows


def test_a_process_that_never_begins_is_said_once_for_each_of_its_pieces(tmp_path: Path) -> None:
    asked = options(tmp_path, ("attention",))
    assert gpu().drive(asked, lambda group: "exit code 1, No module named 'pydantic'") == 0
    assert all("did not begin: exit code 1" in row["error"] for row in gpu().read(asked).values())


def test_what_a_time_limit_cut_is_measured_by_the_next_call(tmp_path: Path) -> None:
    place = importlib.import_module("gpu_pieces").Place("cpu", tiny=True)
    cut = gpu().Options(place, tmp_path / "gpu.jsonl", ("attention",), 0.0)
    left = gpu().drive(cut, lambda group: gpu().measure(cut, group))
    assert left == len(cut.pieces()) == 4
    first = cut.pieces()[0].name
    gpu().write(cut, first, {"ms": 2.0})
    with cut.output.open("a") as file:
        file.write('{"piece": "attention/tor')  # half a line
    assert gpu().read(cut) == {first: {"ms": 2.0}}
    second = cut.pieces()[1].name
    gpu().write(cut, second, {"ms": 3.0})
    assert gpu().read(cut) == {first: {"ms": 2.0}, second: {"ms": 3.0}}
    assert gpu()._begun(cut) is None


def test_on_a_gpu_every_implementation_is_measured_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = importlib.import_module("gpu_pieces")
    names = [one.name for one in pieces.attention_pieces(pieces.Place("cuda"))]
    assert {name.split("/")[1] for name in names} == {"varlen", "flex", "torch"}
    assert {int(name.rpartition("/")[2]) for name in names} >= {1, 127, 128, 129, 300, 4099}
    steps = [one.name for one in pieces.step_pieces(pieces.Place("cuda"))]
    assert "step/1b/full/auto/330" in steps
    assert "step/7b/lora/flex_attention/16384" in steps


def test_the_oracle_of_the_pieces_is_dense_attention_by_autograd() -> None:
    attention = importlib.import_module("gpu_pieces.attention")
    batch = importlib.import_module("gpu_pieces.records").trie_of(129)
    assert batch.num_nodes == 129
    inputs = attention._inputs(129, (4, 2, 8), torch.float64, torch.device("cpu"))
    upstream = torch.randn(1, 129, 4, 8, dtype=torch.float64)
    mask = torch.from_numpy(importlib.import_module("tuneful.batch.trie").visible(batch))
    query, key, value = inputs
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    wanted = [dense.transpose(1, 2), *torch.autograd.grad(dense.transpose(1, 2), inputs, upstream)]
    for found, one in zip(attention._oracle(batch, inputs, upstream, 0.3), wanted, strict=True):
        torch.testing.assert_close(found, one.detach(), rtol=1e-10, atol=1e-10)
