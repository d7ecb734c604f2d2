"""Whole runs of two processes, beside one of a single process: the same files, the same weights, resumable either way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

SETTINGS = [
    "train.max_steps=8",
    "train.batch_size=4",
    "train.save_steps=2",
    "train.learning_rate=1e-3",
    "generate.max_new_tokens=4",
    "model.dtype=float32",
    "data.split=random",
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"instruction": f"Say {number} " * (1 + number % 3), "output": f"{number} it is"}) + "\n"
            for number in range(30)
        ),
        encoding="utf-8",
    )
    return file


def start(size: int, rows: Path, model: Path, output: Path, *more: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "tuneful", "run", str(rows), *SETTINGS, *more, "--model", str(model)]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [*command, "--output", str(output)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(ranks: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said


def finish(*arguments: object) -> list[str]:
    codes, said = ended(start(*arguments))
    assert set(codes) == {0}, said
    return said


def until(ranks: list[subprocess.Popen[str]], condition) -> None:
    while not condition():
        assert all(rank.poll() is None for rank in ranks), ended(ranks)
        time.sleep(0.02)


def num_steps(output: Path) -> int:
    metrics = output / "metrics.jsonl"
    return metrics.read_text().count('"loss"') if metrics.exists() else 0


def assert_same_training(one: Path, other: Path) -> None:
    """Files and rows alike; weights to rounding, because a sum over two ranks is taken in another order."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    steps, others = (
        [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)
    )
    assert steps == others
    for name in ("data/train.jsonl", "answers/base.jsonl"):
        assert (one / name).read_text() == (other / name).read_text()
    weights, others = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=2e-5, msg=name)


@pytest.fixture(scope="module")
def alone(rows, tiny_llama, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    finish(1, rows, tiny_llama, output)
    return output


def test_two_ranks_make_the_run_of_one(rows, tiny_llama, alone, tmp_path):
    finish(2, rows, tiny_llama, tmp_path / "run")
    assert_same_training(alone, tmp_path / "run")


def test_two_ranks_train_the_adapter_that_one_trains(rows, tiny_llama, tmp_path):
    lora = ("train.method=lora", "lora.r=4", "train.max_steps=4")
    for size in (1, 2):
        finish(size, rows, tiny_llama, tmp_path / str(size), *lora)
    assert_same_training(tmp_path / "1", tmp_path / "2")


@pytest.mark.parametrize("size", [1, 4])
def test_two_sharded_ranks_are_killed_and_others_go_on(size, rows, tiny_llama, alone, tmp_path):
    output = tmp_path / "run"
    ranks = start(2, rows, tiny_llama, output, "train.strategy=fsdp")
    until(ranks, lambda: (output / "checkpoints").exists() and num_steps(output) >= 4)
    ranks[1].send_signal(signal.SIGKILL)
    codes, said = ended(ranks)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] in (0, 1)
    if codes[0]:  # it was not done by then
        assert "another rank of the job is gone" in said[0]
        said = finish(size, rows, tiny_llama, output, "train.strategy=fsdp")
        assert "going on after step" in said[0], said  # and not from the beginning
    assert_same_training(alone, output)


def test_torchrun_starts_again_after_a_rank_died_and_the_run_goes_on(rows, tiny_llama, alone, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = ["-m", "tuneful", "run", str(rows), *SETTINGS, "--model", str(tiny_llama), "--output", str(output)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    with (
        log.open("w") as said,
        subprocess.Popen([*torchrun, *arguments], stdout=said, stderr=said) as agent,
    ):
        until([agent], lambda: (output / "checkpoints").exists() and num_steps(output) >= 3)
        workers = psutil.Process(agent.pid).children(recursive=True)
        next(worker for worker in workers if worker.environ().get("RANK") == "1").kill()
    assert agent.returncode == 0, log.read_text()
    assert "going on after step" in log.read_text()
    assert_same_training(alone, output)
