"""What was trained beside a frozen base is saved: the adapter by itself, and merged; then the run goes on with that.

The end of a run takes no more memory than its training: the merged model is written tensor by tensor, the base leaves memory, and
what was saved is loaded in the compute dtype. Before that its logits are compared with those that base and adapter give, both in
float32 whatever the training computed in, out of its file and layer by layer; of weights that are merged and rounded, where the
folder holds less than float32. A base in 4 bits stays, with its adapter, for nothing else fits where it does.
Only a base whose tensors cannot be written one by one (in 4 bits on a GPU, or stored in another form than its model has) is read
whole, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tuneful.errors import ExportError
from tuneful.export.huggingface import Shipped, as_tested, complete_adapter, save_model, verify_export
from tuneful.export.merged import save_merged
from tuneful.export.parts import SHARPNESS
from tuneful.model.forward import own_attention
from tuneful.model.gguf_cache import unpacked_folder
from tuneful.model.load import base_for_peft, fingerprint, load_from, load_model, mapped_model
from tuneful.model.logits import largest_difference, some_logits
from tuneful.model.lora import MERGE_TOLERANCE, merge_adapter, restore_adapter, save_adapter
from tuneful.model.memory import drop_mapped_pages, give_back_freed_memory
from tuneful.model.merge import MergedTensor, computed_as_merged, merged_tensors
from tuneful.model.names import NF4, Base, is_adapter, save_trained_with
from tuneful.model.nf4_layers import is_in_4_bits
from tuneful.model.precision import cast_parameters
from tuneful.model.quantize import round_to_4_bits
from tuneful.model.stored import DTYPES, stored_tensors
from tuneful.model.widened import Change, as_it_is, leave_it, moved_as_by_rounding, rounded_to, widened
from tuneful.runs.card import describe_model
from tuneful.runs.setup import RunState


def save_with_adapter(run: RunState, shipped: Shipped, prompts: Sequence[Sequence[int]]) -> None:
    """Save the adapter of `run`, and merged into its base where `lora.merge` says so; `run` goes on with what was saved.

    Raises ExportError where that is not what was trained.
    """
    model, folder, base_name = run.model, run.folder, run.pretrained.name
    trained, in_4_bits, is_merged = _logits(model, prompts), is_in_4_bits(model), folder.trained == folder.model
    rounded = _rounded(run, trained, prompts) if is_merged else None
    save_adapter(run.method.adapter, folder.adapter, base_for_peft(run.pretrained))
    card = describe_model(run)
    complete_adapter(folder.adapter, shipped, replace(card, is_adapter=True))
    quantization = NF4 if run.config.train.method == "qlora" else None
    base = Base(base_name, fingerprint(run.pretrained.folder), quantization)
    save_trained_with(folder.adapter, run.encoder.text.template.name, base)
    restore_adapter(run.method.adapter, folder.adapter)
    is_written = True
    if is_merged:
        is_written = (in_4_bits or quantization is None) and save_merged(
            model, base_folder(run), folder.model, shipped, card, dtype=run.config.model.save_dtype
        )
    else:
        _compare_saved(run, trained, model, prompts)
    if not in_4_bits or not is_written:
        for tensor in (*model.parameters(), *model.buffers()):  # there may be no room for both
            tensor.data = torch.empty(0)
    give_back_freed_memory()
    if is_merged and is_written:
        saved = mapped_model(folder.model)
        _compare_saved(run, rounded or trained, saved, prompts, drop_mapped_pages, is_rounded=rounded is not None)
    if in_4_bits and is_written:
        return
    if is_written and quantization is None:
        run.take_model(load_model(str(folder.trained), dtype=run.dtype).model)
        return
    merged = _merged_whole(run)
    _compare_saved(run, trained, merged, prompts)
    if is_merged:
        save_model(merged, folder.model, shipped, card, dtype=run.config.model.save_dtype)
        verify_export(merged, folder.model, prompts)
    cast_parameters(merged, run.dtype)  # before it comes to a GPU that holds no more than a base in 4 bits
    run.take_model(merged)


def base_folder(run: RunState) -> Path | None:
    """The folder with the weights of the base; None where it is an adapter of another, or lies in no folder."""
    path = run.pretrained.folder
    if path.is_file():
        return unpacked_folder(path)
    return None if is_adapter(path) else path


def _merged_whole(run: RunState) -> PreTrainedModel:
    """The base, read again in float32 and on the CPU, with the saved adapter merged; of one in 4 bits the values that it was
    trained on."""
    base = load_from(run.pretrained.folder, run.pretrained.name).model
    if run.config.train.method == "qlora":
        round_to_4_bits(base, run.device)
    return merge_adapter(base, run.folder.adapter, ())[0]


# What was saved says what was trained


def _rounded(
    run: RunState, trained: Sequence[torch.Tensor], prompts: Sequence[Sequence[int]]
) -> list[torch.Tensor] | None:
    """The logits of what the folder should hold where that is coarser than float32: of weights that are merged, and then rounded.

    What a small adapter changes may be lost in the rounding, so it cannot be looked for behind it: before it the merged weights
    are compared with what was `trained`. None where nothing is rounded, or not tensor by tensor.
    """
    dtype: torch.dtype = getattr(torch, run.config.model.save_dtype)
    if dtype is torch.float32 or (run.config.train.method == "qlora" and not is_in_4_bits(run.model)):
        return None
    if (tensors := merged_tensors(run.model, base_folder(run))) is None:
        return None
    compare_logits(run, trained, lambda change: _logits(run.model, prompts, change, tensors=tensors), _coarsest(run))
    return _logits(run.model, prompts, rounded_to(dtype), tensors=tensors)


def _logits(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    change: Change = as_it_is,
    then: Callable[[torch.Tensor], None] = leave_it,
    tensors: Sequence[MergedTensor] = (),
) -> list[torch.Tensor]:
    """Logits of each prompt, computed by `widened` layers; of merged weights where their `tensors` are given."""
    with as_tested(model, own_attention(model)), widened(model, change, then), computed_as_merged(tensors, change):
        return [some_logits(model, prompt).cpu() for prompt in prompts]


def _compare_saved(
    run: RunState,
    wanted: Sequence[torch.Tensor],
    saved: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    then: Callable[[torch.Tensor], None] = leave_it,
    *,
    is_rounded: bool = False,
) -> None:
    """ExportError where `saved` says something else than it should, whose weights `wanted` had rounded like it or not."""
    is_exact = is_rounded and run.config.model.save_dtype == _name(run.dtype)
    rounding = torch.float32 if is_exact else _coarsest(run)
    difference = compare_logits(run, wanted, lambda change: _logits(saved, prompts, change, then), rounding)
    base = "its base as 4 bits hold it" if run.config.train.method == "qlora" else "its base"
    merged = f"merged and rounded to {run.config.model.save_dtype}" if is_rounded else "merged"
    run.terminal.say(f"the adapter and {base}, {merged}: the same logits to {difference:.0e} of the largest")


def compare_logits(
    run: RunState,
    wanted: Sequence[torch.Tensor],
    logits: Callable[[Change], list[torch.Tensor]],
    rounding: torch.dtype,
) -> float:
    """How far the `logits` of weights without a change are from the `wanted` ones at most, as a share of the largest; ExportError
    where that is more than rounding the weights to `rounding` explains.

    Rounding moves the logits of one model more than those of another, so where they are further apart than float32 explains, the
    model itself is asked, as `export/sharpness.py` does: with weights that are moved by chance as far as rounding moves them.
    """
    found = logits(as_it_is)
    difference, bound = largest_share(found, wanted), MERGE_TOLERANCE
    if not difference <= bound:
        bound = max(bound, SHARPNESS * largest_share(logits(moved_as_by_rounding(rounding)), found))
    if not difference <= bound:
        raise ExportError(
            f"{run.folder.trained}: merged into its base the adapter gives logits that differ by {difference:.2g} of the "
            f"largest, and rounding explains {bound:.2g}. The adapter is kept; report this with the output of `tuneful doctor`"
        )
    return difference


def largest_share(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """The largest difference of a logit, as a share of the largest logit of its prompt."""
    pairs = [largest_difference(one, other) for one, other in zip(found, wanted, strict=True)]
    return max((difference / scale for difference, scale in pairs), default=0.0)


def _coarsest(run: RunState) -> torch.dtype:
    """The type that the base was rounded to for the training: float32 where its files hold no more than what it computed in."""
    return torch.float32 if run.dtype is torch.float32 or _stored_types(run) == {_name(run.dtype)} else run.dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stored_types(run: RunState) -> set[str]:
    """The number formats of the weights in the base's files; none where they are not known."""
    folder = base_folder(run)
    tensors = stored_tensors(folder) if folder is not None else {}
    return {DTYPES[tensor.dtype] for tensor in tensors.values() if tensor.dtype in DTYPES}
