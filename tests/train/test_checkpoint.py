"""A checkpoint is whole or it is not there: cut off at every file operation, on a full disk, and damaged in every way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.doubles.engine import TRIE, random_records, tiny_model, train_config

from tuneful import files
from tuneful.errors import CheckpointError
from tuneful.runs.schema import Step, TrainingState
from tuneful.train import checkpoint
from tuneful.train.checkpoint import (
    Checkpoint,
    CorruptCheckpoint,
    clear_leftovers,
    newest_checkpoint,
    quarantine,
    read_checkpoint,
    save_checkpoint,
)
from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW


def groups(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of every kind that a training has, filled with `step`: what is read back tells which save it was."""
    weights = {"a.weight": torch.full((3, 5), float(step)), "b": torch.full((), float(step)), "c": torch.zeros(0, 2)}
    return {"weights": weights, "optimizer": {"exp_avg.a": torch.full((7,), float(step))}, "best": {}}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, groups(step), {"state": {"step": step}}, keep=keep)


def is_whole(found: Checkpoint, step: int) -> bool:
    return (
        found.step == step
        and found.document == {"state": {"step": step}}
        and all(
            found.tensors(name).keys() == tensors.keys()
            and all(torch.equal(found.tensors(name)[key], tensor) for key, tensor in tensors.items())
            for name, tensors in groups(step).items()
        )
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Whole


def test_what_was_saved_is_what_is_read_and_others_can_read_it_too(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 117)
    assert path == tmp_path / "checkpoints" / "step-000117"
    assert names(path) == ["manifest.json", "optimizer.safetensors", "weights.safetensors"]
    found, damaged = newest_checkpoint(path.parent)
    assert found is not None
    assert is_whole(found, 117)
    assert damaged == []
    with safe_open(path / "weights.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["a.weight", "b", "c"]


def test_the_newest_are_kept_by_number_and_not_by_name(tmp_path: Path) -> None:
    for step in (8, 999_999, 1_000_000, 1_000_001):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-1000000", "step-1000001"]


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])
    assert newest_checkpoint(tmp_path) == (None, [])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["weights", "optimizer", "best"])
def test_a_number_that_is_not_finite_is_never_saved(tmp_path: Path, bad: float, where: str) -> None:
    save(tmp_path, 1)
    tensors = groups(2)
    tensors[where] = {"layer.7": torch.ones(4, 4)}
    tensors[where]["layer.7"][2, 3] = bad
    with pytest.raises(CheckpointError, match=r"layer\.7: 1 of its 16 numbers are not finite"):
        save_checkpoint(tmp_path, 2, tensors, {}, keep=2)
    assert names(tmp_path) == ["step-000001"]


def test_large_numbers_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"weights": {"a": torch.full((8,), 3e38)}}, {}, keep=2)
    assert newest_checkpoint(tmp_path)[0] is not None


# Cut off


class FaultyOs:
    """`os`, except that the `fatal`-th operation that changes files does `fault` instead, half done where it is a write.

    Operations are counted in the order in which they come, those on files that `files.py` opens and writes included.
    """

    CHANGING = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir", "close")

    def __init__(self, fatal: int, fault: Callable[[], Any]) -> None:
        self.fatal, self.fault = fatal, fault
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self.counted(name, real) if name in self.CHANGING else real

    def counted(
        self, name: str, real: Callable[..., Any], half: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        """`real`, counted as one operation; where it is the fatal one, `half` of it is done before the fault."""

        def operation(*arguments: Any, **options: Any) -> Any:
            self.done.append(name)
            if len(self.done) == self.fatal:
                if half is not None:
                    half(*arguments)
                if real is os.close:
                    real(*arguments)
                self.fault()
            return real(*arguments, **options)

        return operation

    def open_file(self, path: Path, mode: str, **options: Any) -> FaultyFile:
        """`open` as `files.py` calls it."""
        return FaultyFile(self, self.counted("open", open)(path, mode, **options))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, checkpoints are saved through these operations."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "os", self)
            patch.setattr(files, "os", self)
            patch.setattr(files, "open", self.open_file, raising=False)
            yield


class FaultyFile:
    """A file that is being written, each of whose writes and whose end is an operation of `faulty`."""

    def __init__(self, faulty: FaultyOs, file: Any) -> None:
        self._faulty, self._file = faulty, file
        self.fileno, self.flush = file.fileno, file.flush
        self.write = faulty.counted("write", file.write, self._write_half)

    def _write_half(self, content: Any) -> None:
        self._file.write(content[: len(content) // 2])
        self._file.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self._faulty.counted("close", self._file.close, self._file.close)()


def operations(folder: Path) -> list[str]:
    """The file operations that the third save of a folder takes, the removal of the first included."""
    for step in (1, 2):
        save(folder, step)
    counting = FaultyOs(0, lambda: None)
    with counting.in_place():
        save(folder, 3)
    shutil.rmtree(folder)
    return counting.done


def test_every_file_is_written_flushed_and_put_in_place_before_the_folder_is_and_before_anything_is_removed(
    tmp_path: Path,
) -> None:
    done = operations(tmp_path / "count")
    assert done.count("write") >= 2 * 2 + 1  # of both tensor files the header and the tensors, and the manifest
    assert done.count("replace") == 3
    renamed = done.index("rename")
    assert "write" not in done[renamed:]
    assert done[renamed : renamed + 4] == ["rename", "open", "fsync", "close"]
    assert set(done[renamed + 4 :]) == {"rename", "unlink", "rmdir"}


def survives(folder: Path) -> None:
    """What holds after a save of step 3, over those of 1 and 2, was cut off somewhere; and the next save finds its way."""
    found, damaged = newest_checkpoint(folder)
    assert damaged == []
    assert found is not None
    assert found.step in (2, 3)
    assert is_whole(found, found.step)
    clear_leftovers(folder)
    assert all(name.startswith("step-") for name in names(folder))
    save(folder, 3)
    assert names(folder) == ["step-000002", "step-000003"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_killed_at_every_file_operation_of_a_save_the_folder_holds_this_checkpoint_or_the_one_before(
    tmp_path: Path,
) -> None:
    total = len(operations(tmp_path / "count"))
    assert total > 20
    for fatal in range(1, total + 1):
        folder = tmp_path / str(fatal)
        for step in (1, 2):
            save(folder, step)
        child = os.fork()
        if child == 0:
            with FaultyOs(fatal, lambda: os.kill(os.getpid(), signal.SIGKILL)).in_place():
                save(folder, 3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        survives(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_refuses_at_any_file_operation_leaves_the_checkpoint_before_and_nothing_half_done(
    tmp_path: Path, code: int
) -> None:
    total = len(operations(tmp_path / "count"))

    def refuse() -> None:
        raise OSError(code, os.strerror(code))

    for fatal in range(1, total + 1):
        folder = tmp_path / str(fatal)
        for step in (1, 2):
            save(folder, step)
        refused = pytest.raises(
            CheckpointError, match=rf"a checkpoint of .* cannot be written: {os.strerror(code)}.*are free"
        )
        with refused, FaultyOs(fatal, refuse).in_place():
            save(folder, 3)
        assert not [name for name in names(folder) if name.startswith(".part")]
        survives(folder)


# Damaged


def damage_somehow(path: Path, dice: random.Random) -> str:
    """Flip a bit of, cut, lengthen or delete one file of a checkpoint; what was done."""
    file = dice.choice(sorted(path.iterdir()))
    content = bytearray(file.read_bytes())
    kind = dice.choice(["flip", "flip", "cut", "lengthen", "delete"])
    if kind == "delete":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[: dice.randrange(len(content))])
    elif kind == "lengthen":
        file.write_bytes(content + b"\0")
    else:
        at = dice.randrange(len(content))
        content[at] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
    return f"{kind} {file.name}"


def test_damage_is_found_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    dice = random.Random(5)
    for step in (1, 2):
        save(tmp_path / "sound", step)
    manifest = json.loads((tmp_path / "sound" / "step-000002" / "manifest.json").read_bytes())
    folder = tmp_path / "damaged"
    shutil.copytree(tmp_path / "sound", folder)
    for attempt in range(500):
        done = damage_somehow(folder / "step-000002", dice)
        found, damaged = newest_checkpoint(folder)
        assert found is not None
        if found.step == 2:  # a manifest that says the same in other bytes, such as a space for a line's end
            assert done == "flip manifest.json", (attempt, done)
            assert json.loads((folder / "step-000002" / "manifest.json").read_bytes()) == manifest
        else:
            assert [one.path.name for one in damaged] == ["step-000002"], (attempt, done)
            assert is_whole(found, 1)
        for file in (tmp_path / "sound" / "step-000002").iterdir():
            shutil.copyfile(file, folder / "step-000002" / file.name)


def test_damage_is_said_and_set_aside_and_its_number_is_free_again(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    file = tmp_path / "step-000002" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    _, [damage] = newest_checkpoint(tmp_path)
    assert "weights.safetensors: " in damage.reason
    assert "bytes" in damage.reason
    assert quarantine(damage).name == "damaged-step-000002"
    assert newest_checkpoint(tmp_path)[1] == []
    save(tmp_path, 2)
    assert names(tmp_path) == ["damaged-step-000002", "step-000001", "step-000002"]


def test_where_every_checkpoint_is_damaged_training_does_not_begin_anew_unasked(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole: .*step-000002: optimizer.safetensors: missing"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_under_another_name_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "step-000009")
    assert isinstance(read_checkpoint(tmp_path / "step-000009"), CorruptCheckpoint)


# Going on


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2 with dropout"])
def test_a_training_that_goes_on_from_any_step_ends_in_the_same_bits(
    tmp_path: Path, dtype: torch.dtype, family: str
) -> None:
    """Seven records in steps of three: steps cross the edge of an epoch."""
    examples, validation = random_records(7), random_records(3, seed=1)
    config = train_config(batch_size=3, max_steps=9, eval_steps=2, learning_rate=3e-2, lr_scheduler_type="cosine")
    layout = TRIE
    changes: dict[str, Any] = {}
    if family != "llama":
        layout = type(TRIE)("padded", 40)
        changes = {"resid_pdrop": 0.2, "attn_pdrop": 0.2, "embd_pdrop": 0.2}

    def begun() -> tuple[Any, AdamW]:
        model = tiny_model(family.split()[0], **changes)
        return model, AdamW(model, config, dtype)

    def outcome(model: Any, optimizer: AdamW, state: TrainingState, events: list[Any]) -> Any:
        optimizer.masters_to_model()
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        rows = [{**asdict(event), "step_seconds": 0} for event in events]
        return weights.view(torch.int32).tolist(), rows, asdict(state)

    model, optimizer = begun()
    state, events = TrainingState(), []
    for event in Training(model, optimizer, examples, validation, config, layout, state=state).run():
        events.append(event)
        if isinstance(event, Step):
            tensors = {"weights": optimizer.weights(), "optimizer": optimizer.moments(), "best": {}}
            if state.best_step not in (None, state.step):
                tensors["best"] = optimizer.kept_weights()
            save_checkpoint(tmp_path, state.step, tensors, {"state": asdict(state), "num": len(events)}, keep=99)
    straight = outcome(model, optimizer, state, events)
    assert state.best_step not in (None, 9), "the best weights are to be those of an earlier step"

    for step in range(1, 10):
        found = read_checkpoint(tmp_path / f"step-{step:06d}")
        assert isinstance(found, Checkpoint)
        model, optimizer = begun()
        torch.manual_seed(step)  # whatever came before
        optimizer.restore(step, found.tensors("weights"), found.tensors("optimizer"), found.tensors("best"))
        state = TrainingState(**found.document["state"])
        rest = list(Training(model, optimizer, examples, validation, config, layout, state=state).run())
        again = outcome(model, optimizer, state, [*events[: found.document["num"]], *rest])
        assert again == straight, f"from step {step}"
