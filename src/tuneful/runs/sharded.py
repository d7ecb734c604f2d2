"""The end of a run whose model is sharded: saved, loaded again and compared, and no rank ever has more than its share of it.

What was saved is loaded as it was before the training: made in its files, cut up, each rank its own rows. Then both compute the
same prompts, all ranks together. An adapter is merged by the main rank alone, from file to file; what it is compared with is the
base and the saved adapter beside each other, in float32 out of their files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from tuneful.errors import ExportError
from tuneful.export.huggingface import SAME_WEIGHTS_TOLERANCE, Shipped, as_tested, complete_adapter, save_model
from tuneful.export.merged import save_merged
from tuneful.export.sharded import save_sharded
from tuneful.model.forward import own_attention
from tuneful.model.load import base_for_peft, fingerprint, load_from, mapped_model
from tuneful.model.logits import prompt_logits
from tuneful.model.lora import attach_adapter, merge_adapter, save_adapter
from tuneful.model.memory import give_back_freed_memory
from tuneful.model.merge import computed_as_merged, merged_tensors
from tuneful.model.names import Base, save_trained_with
from tuneful.model.widened import ADAPTER_MARK, Change, as_it_is, rounded_to
from tuneful.runs.adapter import base_folder, compare_logits, largest_share
from tuneful.runs.card import describe_model
from tuneful.runs.setup import RunState
from tuneful.train.checkpoint import check_finite
from tuneful.train.distributed import Collection, local
from tuneful.train.slices import fill, let_go, shard_by_slices


def save_model_of_all_ranks(run: RunState, shipped: Shipped, prompts: Sequence[Sequence[int]]) -> None:
    """Save the model of `run`, or its adapter and what `lora.merge` asks for, and go on with what was saved; every rank calls.

    Raises ExportError where that is not what was trained, and CheckpointError where a number is not finite.
    """
    check_finite({name: one for name, one in run.model.named_parameters() if one.requires_grad}, run.group)
    if run.method.adapter is None:
        _save_whole(run, shipped, prompts)
    else:
        _save_beside_base(run, shipped, prompts)


def take_saved(run: RunState) -> None:
    """Go on with the model that was saved."""
    if run.method.adapter is None:
        fill(run.model, dict(mapped_model(run.folder.model).named_parameters()))
        return
    let_go(run.model)
    run.take_model(_adapted(run, run.dtype) if run.folder.trained != run.folder.model else _saved(run, run.dtype))


def _save_whole(run: RunState, shipped: Shipped, prompts: Sequence[Sequence[int]]) -> None:
    folder, dtype = run.folder.model, run.config.model.save_dtype
    card = describe_model(run) if run.group.is_main else None
    save_sharded(run.model, folder, shipped, card, run.group, dtype=dtype)
    if dtype != "float32":
        take_saved(run)  # what is measured is what was saved
    trained = _logits(run.model, prompts)
    saved = _saved(run, run.dtype)
    difference = largest_share(_logits(saved, prompts), trained)
    let_go(saved)
    give_back_freed_memory()
    if not difference <= SAME_WEIGHTS_TOLERANCE:
        raise ExportError(
            f"{folder}: logits of the saved model differ by {difference:.3g} of the largest from the trained one's (at most "
            f"{SAME_WEIGHTS_TOLERANCE:g} is rounding); do not use it, and report this with the output of `tuneful doctor`"
        )


def _save_beside_base(run: RunState, shipped: Shipped, prompts: Sequence[Sequence[int]]) -> None:
    is_merged = run.folder.trained == run.folder.model
    _save_adapter(run, shipped)
    let_go(run.model)
    if is_merged and run.group.is_main:
        _merge_from_files(run, shipped)
    run.group.wait()
    if is_merged:
        beside = _adapted(run, torch.float32)
        trained = _logits(beside, prompts)
        let_go(beside)
        rounded = _rounded(run, trained, prompts)
        saved = _saved(run, torch.float32)

        def logits(change: Change) -> list[torch.Tensor]:
            for parameter in saved.parameters() if change is not as_it_is else ():
                local(parameter.data).copy_(change(local(parameter.data).float()))
            return _logits(saved, prompts)

        rounding = getattr(torch, run.config.model.save_dtype) if rounded is None else torch.float32
        difference = compare_logits(run, rounded or trained, logits, rounding)
        let_go(saved)
        run.terminal.say(f"the adapter and its base, merged: the same logits to {difference:.0e} of the largest")
    run.take_model(_saved(run, run.dtype) if is_merged else _adapted(run, run.dtype))
    give_back_freed_memory()


def _rounded(
    run: RunState, trained: Sequence[torch.Tensor], prompts: Sequence[Sequence[int]]
) -> list[torch.Tensor] | None:
    """The logits of what the merged folder should hold where that is coarser than float32, as `runs/adapter.py` has them of a
    model that is whole; each rank merges one matrix at a time, out of the files. None where that cannot be, or nothing is
    rounded."""
    dtype = getattr(torch, run.config.model.save_dtype)
    if dtype is torch.float32:
        return None
    model = load_from(run.pretrained.folder, run.pretrained.name, mapped=True).model
    attach_adapter(model, run.folder.adapter)
    tensors = merged_tensors(model, base_folder(run))
    if tensors is None:
        return None
    model = _cut(run, model, torch.float32)

    def logits(change: Change) -> list[torch.Tensor]:
        with computed_as_merged(tensors, change):
            return _logits(model, prompts)

    compare_logits(run, trained, logits, torch.float32)
    change = rounded_to(dtype)
    for name, parameter in model.named_parameters():
        is_merged = name.endswith(".base_layer.weight")  # rounded when it is
        if ADAPTER_MARK not in name and not is_merged:
            local(parameter.data).copy_(change(local(parameter.data)))
    found = logits(change)
    let_go(model)
    give_back_freed_memory()
    return found


def _save_adapter(run: RunState, shipped: Shipped) -> None:
    """The adapter, which is small, comes together on the main rank, which writes its folder."""
    adapter = run.method.adapter
    assert adapter is not None
    trained = {name: one for name, one in adapter.named_parameters() if one.requires_grad}
    collection = Collection(list(trained.values()), run.group)
    if not run.group.is_main:
        collection.bring()
        return
    try:
        state = {name: collection.whole(number) for number, name in enumerate(trained)}
    finally:
        collection.done()
    folder, pretrained = run.folder.adapter, run.pretrained
    if fingerprint(pretrained.begun_with) != run.model_sha256:
        raise ExportError(
            f"{pretrained.begun_with} is not what the run was begun with: its files have changed. Put them back and resume the "
            "run, which goes on from its newest checkpoint"
        )
    save_adapter(adapter, folder, base_for_peft(pretrained), state)
    complete_adapter(folder, shipped, replace(describe_model(run), is_adapter=True))
    save_trained_with(
        folder, run.encoder.text.template.name, Base(pretrained.name, fingerprint(pretrained.folder), None)
    )


def _merge_from_files(run: RunState, shipped: Shipped) -> None:
    """The merged model, written by the main rank tensor by tensor; where that cannot be, made whole in float32."""
    folder, pretrained, dtype = run.folder, run.pretrained, run.config.model.save_dtype
    card, base = describe_model(run), load_from(pretrained.folder, pretrained.name, mapped=True).model
    attach_adapter(base, folder.adapter)
    if not save_merged(base, base_folder(run), folder.model, shipped, card, dtype=dtype):
        del base
        merged, _ = merge_adapter(load_from(pretrained.folder, pretrained.name).model, folder.adapter, ())
        save_model(merged, folder.model, shipped, card, dtype=dtype)


def _saved(run: RunState, dtype: torch.dtype) -> PreTrainedModel:
    """The model that was saved, sharded, to be computed with in `dtype`."""
    return _cut(run, mapped_model(run.folder.model), dtype)


def _adapted(run: RunState, dtype: torch.dtype) -> PreTrainedModel:
    """The base and the adapter that was saved beside it, sharded, to be computed with in `dtype`."""
    model = load_from(run.pretrained.folder, run.pretrained.name, mapped=True).model
    attach_adapter(model, run.folder.adapter)
    return _cut(run, model, dtype)


def _cut(run: RunState, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    model.requires_grad_(False)
    shard_by_slices(model, dtype, run.device, run.group.replicas)
    return model.eval()


def _logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The logits of each prompt, which all ranks compute together."""
    with as_tested(model, own_attention(model)):
        return [prompt_logits(model, prompt).cpu() for prompt in prompts]
