"""What one rank of a sharded model does; run by test_sharded.py, several at a time."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.doubles.engine import random_records, train_config

from tuneful.errors import CheckpointError
from tuneful.model.load import folder_model, mapped_model
from tuneful.model.lora import add_adapter
from tuneful.train import checkpoint
from tuneful.train.checkpoint import newest_checkpoint, save_checkpoint
from tuneful.train.distributed import (
    Collection,
    ProcessGroup,
    full_tensor,
    joined_group,
    local,
    own_rows,
    row_owners,
    sharded_like,
)
from tuneful.train.layout import choose_layout
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW
from tuneful.train.slices import let_go, shard_by_slices, weights_seen_in

CPU = torch.device("cpu")


def known(what: str, shape: torch.Size) -> torch.Tensor:
    """Numbers that every process knows."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(what.encode())))


def groups_of(model: Any) -> dict[str, dict[str, torch.Tensor]]:
    """What a training of `model` saves, with known numbers."""
    found: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "optimizer": {}, "best": {}}
    for name, parameter in model.named_parameters():
        start, stop = own_rows(parameter)
        for group, key in (
            ("weights", name),
            *(("optimizer", f"{kind}.{name}") for kind in ("exp_avg", "exp_avg_sq")),
            ("best", name),
        ):
            part = known(f"{group} {key}", parameter.shape)[start:stop].contiguous()
            found[group][key] = sharded_like(parameter, part)
    return {**found, "records": {"last": torch.arange(5, dtype=torch.float64)}}


def is_known(optimizer: AdamW) -> bool:
    """Whether `optimizer` stands where `groups_of` says, in each of its rows."""
    for tensor in optimizer._tensors:
        start, stop = own_rows(tensor.parameter)
        for what, part in (
            (f"weights {tensor.name}", tensor.master),
            (f"optimizer exp_avg.{tensor.name}", tensor.exp_avg),
            (f"optimizer exp_avg_sq.{tensor.name}", tensor.exp_avg_sq),
            (f"best {tensor.name}", tensor.kept),
        ):
            if part is None or not torch.equal(part, known(what, tensor.parameter.shape)[start:stop]):
                return False
    return True


def write_and_read(folder: Path, sizes: tuple[int, ...]) -> None:
    """Save a checkpoint as this many ranks, wait for those of others, read each of them."""
    torch.set_num_threads(1)
    with joined_group(CPU) as found:
        group = ProcessGroup(found.rank, found.size, found.local_rank, sharded=found.size > 1)
        model = mapped_model(folder / "model") if group.sharded else folder_model(folder / "model")
        if group.sharded:
            shard_by_slices(model, torch.float32, CPU)
        save_checkpoint(folder / f"by-{group.size}", 7, groups_of(model), {"by": group.size}, keep=2, group=group)
        deadline = time.monotonic() + 120
        while not all((folder / f"by-{size}" / "step-000007" / "manifest.json").exists() for size in sizes):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        read = {}
        for size in sizes:
            saved, damaged = newest_checkpoint(folder / f"by-{size}", group)
            assert saved is not None
            assert not damaged
            optimizer = AdamW(model, train_config(), torch.float32, group)
            optimizer.restore(saved.step, saved.tensors("weights"), saved.tensors("optimizer"), saved.tensors("best"))
            read[size] = is_known(optimizer) and saved.document == {"by": size}
        rows = group.gather([read])
        if group.is_main:
            (folder / f"read-by-{group.size}.json").write_text(json.dumps(rows))


def look(folder: Path) -> None:
    """Everything that is found out of a sharded model by two ranks in one go; rank 0 writes it down."""
    torch.set_num_threads(1)
    with joined_group(CPU) as found:
        group = ProcessGroup(found.rank, found.size, found.local_rank, sharded=True)
        seen = {**loaded(folder), **checked(folder, group), **refused(folder, group), **collected(folder, group)}
        rows = group.gather([seen])
        if group.is_main:
            (folder / "seen.json").write_text(json.dumps(rows))


def loaded(folder: Path) -> dict[str, Any]:
    """How a model is loaded: its numbers, which parts lie here, in what format."""
    whole, model = folder_model(folder / "model"), mapped_model(folder / "model")
    shard_by_slices(model, torch.float32, CPU)
    seen: dict[str, Any] = {
        "same numbers": all(torch.equal(full_tensor(one), whole.get_parameter(name)) for name, one in _named(model)),
        "one matrix": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "same buffers": all(torch.equal(one, whole.get_buffer(name)) for name, one in model.named_buffers()),
        "numbers here": sum(local(one).numel() for one in model.parameters()),
        "numbers": sum(one.numel() for one in whole.parameters()),
    }
    in_bfloat16 = mapped_model(folder / "bfloat16")
    torch.manual_seed(0)
    with weights_seen_in(in_bfloat16, torch.float32):
        add_adapter(in_bfloat16, _lora())
    shard_by_slices(in_bfloat16, torch.float32, CPU)
    formats = {"lora" if "lora_" in name else "base": str(one.dtype) for name, one in _named(in_bfloat16)}
    beside = folder_model(folder / "bfloat16")
    torch.manual_seed(0)
    add_adapter(beside, _lora())
    seen["formats"] = formats
    seen["same adapter"] = all(
        torch.equal(full_tensor(one).float(), beside.get_parameter(name)) for name, one in _named(in_bfloat16)
    )
    let_go(model)
    seen["numbers left"] = sum(local(one.data).untyped_storage().size() for one in model.parameters())
    return seen


def checked(folder: Path, group: ProcessGroup) -> dict[str, Any]:
    """The self-check of a sharded model, and of one whose code breaks off in the middle of a forward."""
    examples, config = random_records(8), train_config(batch_size=4)
    model = mapped_model(folder / "model").train()
    shard_by_slices(model, torch.float32, CPU)
    chosen = choose_layout(model, examples, config, torch.float32)
    wanted = micro_batch_loss(model, examples, "padded").total.item()
    layer = model.base_model.layers[1]

    def breaks_off(*_: Any) -> None:
        if model.config._attn_implementation == "tuneful_trie":
            raise NotImplementedError("of no use here")

    hook = layer.mlp.register_forward_pre_hook(breaks_off)
    broken = choose_layout(model, examples, config, torch.float32)
    hook.remove()
    after = micro_batch_loss(model, examples, "padded").total.item()
    return {"layout": [chosen.name, chosen.reason], "broken": [broken.name, broken.reason], "losses": [wanted, after]}


def refused(folder: Path, group: ProcessGroup) -> dict[str, Any]:
    """What becomes of a checkpoint that one rank cannot write, may not write, or that was damaged."""
    model, place = mapped_model(folder / "model"), folder / "refused"
    shard_by_slices(model, torch.float32, CPU)
    for step in (1, 2):
        save_checkpoint(place, step, groups_of(model), {}, keep=9, group=group)
    seen: dict[str, Any] = {}
    bad = groups_of(model)
    last = local(bad["optimizer"]["exp_avg.model.layers.1.mlp.up_proj.weight"])
    if group.rank == 1:
        last[-1, -1] = torch.nan
    seen["not finite"] = _said(place, bad, group)
    with pytest.MonkeyPatch.context() as patch:
        if group.rank == 1:
            patch.setattr(checkpoint, "_write", _no_room)
        seen["no room"] = _said(place, groups_of(model), group)
    group.wait()
    seen["left"] = sorted(entry.name for entry in place.iterdir())
    if group.is_main:
        file = place / "step-000002" / "optimizer-00002-of-00002.safetensors"
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    group.wait()
    whole, damaged = newest_checkpoint(place, group)
    assert whole is not None
    return {**seen, "after damage": [whole.step, [one.reason for one in damaged]]}


def collected(folder: Path, group: ProcessGroup) -> dict[str, Any]:
    """Tensors that come together on the main rank, in another order than they have, one of them twice."""
    model = mapped_model(folder / "model")
    shard_by_slices(model, torch.float32, CPU)
    state = model.state_dict()
    collection, names = Collection(list(state.values()), group), list(state)
    if not group.is_main:
        collection.bring()
        return {}
    whole = folder_model(folder / "model").state_dict()
    same = [torch.equal(collection.whole(number), whole[names[number]]) for number in (5, 1, 0, 5)]
    collection.done()
    assert [owner.rank for owner in row_owners(state[names[0]])] == [0, 1]
    return {"collected": same}


def save_and_be_killed(folder: Path, victim: int, when: str) -> None:
    """Save steps 1 and 2, and lose rank `victim` while step 3 is saved: with half a file written, or before the renaming."""
    torch.set_num_threads(1)
    with joined_group(CPU) as found:
        group = ProcessGroup(found.rank, found.size, found.local_rank, sharded=True)
        model, place = mapped_model(folder / "model"), folder / f"killed-{victim}"
        shard_by_slices(model, torch.float32, CPU)
        for step in (1, 2):
            save_checkpoint(place, step, groups_of(model), {}, keep=9, group=group)
        if group.rank == victim:
            setattr(checkpoint, {"half a file": "_write", "all but renamed": "_manifest"}[when], _killed)
        save_checkpoint(place, 3, groups_of(model), {}, keep=9, group=group)


def _killed(*arguments: Any) -> None:
    if isinstance(arguments[0], Path):
        arguments[0].write_bytes(next(iter(arguments[1])))
    os.kill(os.getpid(), signal.SIGKILL)


def _no_room(path: Path, _: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _said(place: Path, groups: dict[str, dict[str, torch.Tensor]], group: ProcessGroup) -> str:
    with pytest.raises(CheckpointError) as raised:
        save_checkpoint(place, 3, groups, {}, keep=9, group=group)
    return str(raised.value)


def _named(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def _lora() -> Any:
    from tuneful.config import LoraConfig

    return LoraConfig(r=4)
