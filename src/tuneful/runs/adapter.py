"""What was trained beside a frozen base is saved: the adapter by itself, and merged; then the run goes on with that.

The end of a run takes no more memory than its training: the merged model is written tensor by tensor, the base leaves memory, and
what was saved is loaded in the compute dtype. Its logits are compared with those that base and adapter gave before. Only a base
whose tensors cannot be written one by one (in 4 bits, or stored in another form than its model has) is read whole, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tuneful.errors import ExportError
from tuneful.export.huggingface import (
    SIXTEEN_BITS_TOLERANCE,
    Shipped,
    as_tested,
    complete_adapter,
    save_model,
    verify_export,
)
from tuneful.export.merged import save_merged
from tuneful.model.forward import own_attention
from tuneful.model.gguf_cache import unpacked_folder
from tuneful.model.load import base_for_peft, fingerprint, load_from, load_model
from tuneful.model.logits import largest_difference, prompt_logits
from tuneful.model.lora import MERGE_TOLERANCE, merge_adapter, save_adapter
from tuneful.model.memory import give_back_freed_memory
from tuneful.model.names import Base, is_adapter, save_trained_with
from tuneful.model.quantize import round_to_4_bits
from tuneful.runs.card import describe_model
from tuneful.runs.setup import RunState


def save_with_adapter(run: RunState, shipped: Shipped, prompts: Sequence[Sequence[int]]) -> None:
    """Save the adapter of `run`, and merged into its base where `lora.merge` says so; `run` goes on with what was saved.

    Raises ExportError where that is not what was trained.
    """
    model, folder, base_name = run.model, run.folder, run.pretrained.name
    wanted = _logits(model, prompts)
    save_adapter(run.method.adapter, folder.adapter, base_for_peft(run.pretrained))
    card = describe_model(run)
    complete_adapter(folder.adapter, shipped, replace(card, is_adapter=True))
    save_trained_with(
        folder.adapter, run.encoder.text.template.name, Base(base_name, fingerprint(run.pretrained.folder))
    )
    is_merged, is_written = folder.trained == folder.model, True
    if is_merged:
        is_written = run.config.train.method == "lora" and save_merged(
            model, _base_folder(run), folder.model, shipped, card, dtype=run.config.model.save_dtype
        )
    for parameter in model.parameters():  # there may be no room for both
        parameter.data = torch.empty(0)
    give_back_freed_memory()
    if not is_written or run.config.train.method == "qlora":
        whole = _merged_whole(run)
        if is_merged:
            save_model(whole, folder.model, shipped, card, dtype=run.config.model.save_dtype)
            verify_export(whole, folder.model, prompts)
        run.take_model(whole)
    else:
        run.take_model(load_model(str(folder.trained), dtype=run.dtype).model)
    _compare(run, wanted, prompts)


def _base_folder(run: RunState) -> Path | None:
    """The folder with the weights of the base; None where it is an adapter of another, or lies in no folder."""
    path = run.pretrained.folder
    if path.is_file():
        return unpacked_folder(path)
    return None if is_adapter(path) else path


def _merged_whole(run: RunState) -> PreTrainedModel:
    """The base, read again in float32, with the saved adapter merged; of one in 4 bits the values that it was trained on."""
    base = load_from(run.pretrained.folder, run.pretrained.name).model.to(run.device)
    if run.config.train.method == "qlora":
        round_to_4_bits(base, run.device)
    return merge_adapter(base, run.folder.adapter, ())[0]


def _logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    with as_tested(model, own_attention(model)):
        return [prompt_logits(model, prompt).cpu() for prompt in prompts]


def _compare(run: RunState, wanted: Sequence[torch.Tensor], prompts: Sequence[Sequence[int]]) -> None:
    """ExportError where the merged model says something else than the base with its adapter did."""
    found = _logits(run.model, prompts)
    pairs = [largest_difference(one.cpu(), other) for one, other in zip(found, wanted, strict=True)]
    largest = max((difference / scale for difference, scale in pairs), default=0.0)
    is_exact = run.dtype is torch.float32 and run.config.model.save_dtype == "float32"
    if not largest <= (MERGE_TOLERANCE if is_exact else SIXTEEN_BITS_TOLERANCE):
        raise ExportError(
            f"{run.folder.trained}: merged into its base the adapter gives logits that differ by {largest:.2g} of the largest one"
        )
    run.terminal.say(f"the adapter and its base, merged: the same logits to {largest:.0e} of the largest")
