"""A sharded model: loaded by slices, checked, saved by all ranks and read by any number of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.doubles.engine import tiny_model
from tests.doubles.processes import Process
from tests.train.sharded_ranks import known, look, save_and_be_killed, write_and_read
from tests.train.test_distributed import free_port

from tuneful.train.checkpoint import Checkpoint, CorruptCheckpoint, newest_checkpoint, read_checkpoint

SIZES = (1, 2, 3, 4)


def begin(size: int, work: Any, *arguments: Any) -> list[Process]:
    """The ranks of a group, each of which does `work`."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Process(work, *arguments, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)
    ]


def ended(ranks: list[Process]) -> list[tuple[int | None, str]]:
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    return [(rank.returncode, one) for rank, one in zip(ranks, said, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model, with a vocabulary that no number of ranks divides, in two number formats."""
    place = tmp_path_factory.mktemp("sharded")
    model = tiny_model("llama", vocab_size=25)
    model.save_pretrained(place / "model")
    model.to(torch.bfloat16).save_pretrained(place / "bfloat16")
    return place


@pytest.fixture(scope="module")
def written(folder: Path) -> Path:
    """Checkpoints by one, two, three and four ranks, each read by each."""
    groups = [begin(size, write_and_read, folder, SIZES) for size in SIZES]
    for ranks in groups:
        for code, said in ended(ranks):
            assert code == 0, said
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks found of a sharded model."""
    for code, said in ended(begin(2, look, folder)):
        assert code == 0, said
    rows: list[dict[str, Any]] = json.loads((folder / "seen.json").read_text())
    return rows


# Loading


def test_each_rank_reads_its_own_rows_and_together_they_are_the_model(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["same numbers"]
        assert rank["one matrix"]
        assert rank["same buffers"]
    assert sum(rank["numbers here"] for rank in seen) == seen[0]["numbers"]


def test_a_frozen_base_keeps_its_number_format_and_the_adapter_begins_as_in_one_process(
    seen: list[dict[str, Any]],
) -> None:
    for rank in seen:
        assert rank["formats"] == {"base": "torch.bfloat16", "lora": "torch.float32"}
        assert rank["same adapter"]


def test_a_model_that_is_done_with_takes_no_memory(seen: list[dict[str, Any]]) -> None:
    assert [rank["numbers left"] for rank in seen] == [0, 0]


def test_tensors_come_together_on_the_main_rank_as_often_as_it_asks(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["collected"] == [True] * 4


# The self-check


def test_a_sharded_model_is_checked_by_all_ranks_before_the_first_step(seen: list[dict[str, Any]]) -> None:
    assert [rank["layout"] for rank in seen] == [["trie", None]] * 2


def test_code_that_breaks_off_in_the_middle_is_a_reason_and_the_next_forward_is_as_before(
    seen: list[dict[str, Any]],
) -> None:
    for rank in seen:
        assert rank["broken"][0] == "padded"
        assert "of no use here" in rank["broken"][1]
        assert rank["losses"][0] == rank["losses"][1]


# Checkpoints


@pytest.mark.parametrize("reading", SIZES)
def test_a_checkpoint_of_any_number_of_ranks_is_read_by_any_number(written: Path, reading: int) -> None:
    rows = json.loads((written / f"read-by-{reading}.json").read_text())
    assert rows == [{str(size): True for size in SIZES}] * reading


@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_of_several_ranks_holds_every_number_once(written: Path, size: int) -> None:
    found = read_checkpoint(written / f"by-{size}" / "step-000007")
    assert isinstance(found, Checkpoint)
    weights = found.tensors("weights")
    assert len(weights) > 10
    for name, tensor in weights.items():
        assert torch.equal(tensor, known(f"weights {name}", tensor.shape))
    assert found.tensors("records")["last"].tolist() == [0, 1, 2, 3, 4]
    stored = {file.name: file.stat().st_size for file in found.path.glob("weights*.safetensors")}
    num_numbers = sum(tensor.numel() for tensor in weights.values())
    assert len(stored) == size
    assert sum(stored.values()) < 4 * num_numbers + 3000 * size  # the headers


def test_every_rank_says_that_the_disk_is_full_or_a_number_not_finite_and_nothing_half_done_is_left(
    seen: list[dict[str, Any]],
) -> None:
    for rank in seen:
        assert "exp_avg.model.layers.1.mlp.up_proj.weight: 1 of its 1,536 numbers are not finite" in rank["not finite"]
        assert "cannot be written: No space left on device" in rank["no room"]
    assert seen[0]["left"] == ["step-000001", "step-000002"]


def test_damage_that_one_rank_finds_makes_all_of_them_use_the_checkpoint_before(seen: list[dict[str, Any]]) -> None:
    wanted = [1, ["optimizer-00002-of-00002.safetensors: its checksum differs"]]
    assert [rank["after damage"] for rank in seen] == [wanted] * 2


@pytest.mark.parametrize("missing", ["weights-00002-of-00003.safetensors", "manifest.json"])
def test_a_checkpoint_that_lacks_the_file_of_a_rank_is_damaged(written: Path, missing: str) -> None:
    path = written / "by-3" / "step-000007"
    content = (path / missing).read_bytes()
    (path / missing).unlink()
    try:
        found = read_checkpoint(path)
    finally:
        (path / missing).write_bytes(content)
    assert isinstance(found, CorruptCheckpoint)
    assert found.reason == f"{missing}: missing"


@pytest.mark.parametrize(("victim", "when"), [(1, "half a file"), (0, "all but renamed")])
def test_a_rank_that_is_killed_while_all_save_leaves_the_checkpoint_before(
    folder: Path, victim: int, when: str
) -> None:
    codes = [code for code, _ in ended(begin(2, save_and_be_killed, folder, victim, when))]
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    found, damaged = newest_checkpoint(folder / f"killed-{victim}")
    assert found is not None
    assert found.step == 2
    assert damaged == []
