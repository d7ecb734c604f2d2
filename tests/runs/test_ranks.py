"""Whole runs of two processes, beside one of a single process: the same files, the same weights, resumable either way."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.doubles.processes import Process, tuneful

from tuneful.config import TrainConfig

SETTINGS = [
    "train.max_steps=8",
    "train.batch_size=4",
    "train.save_steps=2",
    "train.learning_rate=1e-3",
    "generate.max_new_tokens=4",
    "model.dtype=float32",
    "data.split=random",
]
NO_GENERAL = "report.general=none"
"""Half the time of a run of the tiny model; one test of ranks leaves it in."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"instruction": f"Say {number} " * (1 + number % 3), "output": f"{number} it is"}) + "\n"
            for number in range(30)
        ),
        encoding="utf-8",
    )
    return file


def start(
    size: int, rows: Path, model: Path, output: Path, *more: str, begin: Callable[..., Process] = tuneful
) -> list[Process]:
    """The ranks of a run, each begun by `begin`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = ["run", str(rows), *SETTINGS, *more, "--model", str(model), "--output", str(output)]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [begin(*command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)]


def ended(ranks: Sequence[Process]) -> tuple[list[int | None], list[str]]:
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said


def finish(size: int, rows: Path, model: Path, output: Path, *more: str) -> list[str]:
    """Run to the end; what each rank said."""
    codes, said = ended(start(size, rows, model, output, *more))
    assert set(codes) == {0}, said
    return said


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
    weights, other_weights = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert weights.keys() == other_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other_weights[name], rtol=0, atol=2e-5, msg=name)


@pytest.fixture(scope="module")
def alone(rows: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    finish(1, rows, tiny_llama, output, NO_GENERAL)
    return output


LORA = ("train.method=lora", "lora.r=4", "train.max_steps=4", NO_GENERAL)


@pytest.mark.parametrize(
    "more", [(), LORA, (*LORA, "train.strategy=fsdp")], ids=["full", "lora", "lora beside a sharded base"]
)
def test_two_ranks_make_the_run_of_one(more: tuple[str, ...], rows: Path, tiny_llama: Path, tmp_path: Path) -> None:
    for size in (1, 2):
        finish(size, rows, tiny_llama, tmp_path / str(size), *more)
    assert_same_training(tmp_path / "1", tmp_path / "2")


def killed_in_step_5(*arguments: str) -> None:
    """`tuneful ARGUMENTS`, of which rank 1 is gone by SIGKILL in the middle of step 5."""
    from tuneful.cli import main
    from tuneful.train import loop
    from tuneful.train.optimizer import learning_rate

    rate = learning_rate

    def killed(config: TrainConfig, step: int, num_steps: int) -> float:
        if step == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return rate(config, step, num_steps)

    setattr(loop, "learning_rate", killed)  # noqa: B010
    sys.argv = ["tuneful", *arguments]
    main()


def merged_wrongly(*arguments: str) -> None:
    """`tuneful ARGUMENTS`, whose merged model has one matrix of the adapter twice as strong as it was trained."""
    from tuneful.cli import main
    from tuneful.runs import sharded

    merge = sharded._merge_from_files

    def wrongly(run: Any, shipped: Any) -> None:
        file = run.folder.adapter / "adapter_model.safetensors"
        right = load_file(file)
        name = next(one for one in right if "lora_B" in one)
        save_file({**right, name: 2 * right[name]}, file, {"format": "pt"})
        merge(run, shipped)
        save_file(right, file, {"format": "pt"})

    setattr(sharded, "_merge_from_files", wrongly)  # noqa: B010
    sys.argv = ["tuneful", *arguments]
    main()


SHARDED = ("train.strategy=fsdp", NO_GENERAL)


@pytest.fixture(scope="module")
def two_sharded(rows: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing happened to."""
    output = tmp_path_factory.mktemp("two") / "run"
    finish(2, rows, tiny_llama, output, *SHARDED)
    return output


@pytest.mark.parametrize(
    ("size", "others", "copies"),
    [(2, 1, ()), (2, 2, ()), (4, 2, ("train.shard_ranks=2",))],
    ids=["2 then 1", "2 then 2", "2 copies then 2"],
)
def test_sharded_ranks_are_killed_and_others_go_on(
    size: int,
    others: int,
    copies: tuple[str, ...],
    rows: Path,
    tiny_llama: Path,
    alone: Path,
    two_sharded: Path,
    tmp_path: Path,
) -> None:
    """Of four ranks, two hold a copy in shards and two another: how they held it, the checkpoint does not tell."""
    output = tmp_path / "run"
    ranks = start(size, rows, tiny_llama, output, *SHARDED, *copies, begin=partial(Process, killed_in_step_5))
    codes, said = ended(ranks)
    assert codes == [1, -signal.SIGKILL, *[1] * (size - 2)], said
    assert all("another rank of the job is gone" in said[rank] for rank in range(size) if rank != 1), said
    assert num_steps(output) == 4
    said = finish(others, rows, tiny_llama, output, *SHARDED)
    assert "going on after step 4" in said[0], said  # and not from the beginning
    assert_same_training(alone, output)
    if size == others:  # as many as before: to the last bit
        one, other = (run / "model" / "model.safetensors" for run in (output, two_sharded))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sharded_model_that_was_merged_wrongly_is_refused(
    dtype: str, rows: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    low = (f"model.dtype={dtype}", f"model.save_dtype={dtype}", "train.strategy=fsdp", "train.learning_rate=3e-2")
    ranks = start(2, rows, tiny_llama, tmp_path / "run", *LORA, *low, begin=partial(Process, merged_wrongly))
    codes, said = ended(ranks)
    assert codes == [1, 1], said
    assert all("merged into its base the adapter gives logits that differ by" in " ".join(one.split()) for one in said)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_sharded_base_in_bfloat16_is_trained_beside_and_merged_in_that_format(
    rows: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    low = ("model.dtype=bfloat16", "model.save_dtype=bfloat16", "train.strategy=fsdp")
    said = [finish(size, rows, tiny_llama, tmp_path / str(size), *LORA, *low) for size in (1, 2)]
    # What was saved is compared with what is rounded, and not with what rounding may have taken of a small adapter.
    (compared,) = re.findall(r"its base, merged: the same logits to (\S+) of the", " ".join(said[1][0].split()))
    assert float(compared) < 1e-5
    adapters = [load_file(tmp_path / size / "adapter" / "adapter_model.safetensors") for size in ("1", "2")]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(tensor, adapters[1][name], rtol=0, atol=2e-3, msg=name)
    for name, tensor in load_file(tmp_path / "2" / "model" / "model.safetensors").items():
        assert tensor.dtype is torch.bfloat16, name


def test_a_base_in_4_bits_is_not_sharded(rows: Path, tiny_llama: Path, tmp_path: Path) -> None:
    codes, said = ended(start(2, rows, tiny_llama, tmp_path / "run", "train.method=qlora", "train.strategy=fsdp"))
    assert codes == [2, 2]
    assert "a base in 4 bits is trained beside under ddp; use train.method=lora" in said[0]


def without_memory_in_step_5(*arguments: str) -> None:
    """`tuneful ARGUMENTS`, of which rank 1 runs out of memory in the middle of step 5, and no other does."""
    from tuneful.cli import main
    from tuneful.train import failures, loop
    from tuneful.train.loss import micro_batch_loss

    real, rank = micro_batch_loss, os.environ["RANK"]
    num_steps = 0

    def small(model: Any, *more: Any) -> Any:
        nonlocal num_steps
        num_steps += torch.is_grad_enabled()
        if num_steps == 5 and rank == "1":
            raise torch.OutOfMemoryError("out of memory")
        return real(model, *more)

    setattr(loop, "micro_batch_loss", small)  # noqa: B010
    setattr(failures, "POLL_SECONDS", 0.1)  # noqa: B010
    sys.argv = ["tuneful", *arguments]
    main()


def test_of_sharded_ranks_one_runs_out_of_memory_and_all_say_so(rows: Path, tiny_llama: Path, tmp_path: Path) -> None:
    codes, said = ended(
        start(2, rows, tiny_llama, tmp_path / "run", *SHARDED, begin=partial(Process, without_memory_in_step_5))
    )
    assert codes == [1, 1], said
    assert num_steps(tmp_path / "run") == 4
    assert "error: out of memory at a micro-batch of" in said[1]
    assert "error: rank 0 ends because rank 1 failed: out of memory at a micro-batch of" in said[0]
    assert "give train.micro_batch_tokens=" in said[0]


def test_two_ranks_estimate_a_run_by_steps_that_both_take(rows: Path, tiny_llama: Path, tmp_path: Path) -> None:
    codes, said = ended(start(2, rows, tiny_llama, tmp_path / "run", NO_GENERAL, "--dry-run"))
    assert codes == [0, 0], said
    assert "Estimate" in said[0], said
    assert said[1] == ""
    assert not (tmp_path / "run").exists()


def test_torchrun_starts_again_after_a_rank_died_and_the_run_goes_on(
    rows: Path, tiny_llama: Path, alone: Path, tmp_path: Path
) -> None:
    """Real processes of `python -m tuneful`, real kills from outside."""
    output, log = tmp_path / "run", tmp_path / "log"
    command = ["run", str(rows), *SETTINGS, NO_GENERAL, "--model", str(tiny_llama), "--output", str(output)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    with (
        log.open("w") as said,
        subprocess.Popen([*torchrun, "-m", "tuneful", *command], stdout=said, stderr=said) as agent,
    ):
        while not ((output / "checkpoints").exists() and num_steps(output) >= 3):
            assert agent.poll() is None, log.read_text()
            time.sleep(0.02)
        workers = psutil.Process(agent.pid).children()
        next(worker for worker in workers if worker.environ().get("RANK") == "1").kill()
    assert agent.returncode == 0, log.read_text()
    assert "going on after step" in log.read_text()
    assert_same_training(alone, output)
