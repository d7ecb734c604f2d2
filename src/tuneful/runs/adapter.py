"""What was trained beside a frozen base is saved: the adapter by itself, and merged; then the run goes on with that.

The end of a run takes no more memory than its training: the merged model is written tensor by tensor, the base leaves memory, and
what was saved is loaded in the compute dtype. Its logits are compared with those that base and adapter gave before. A base in 4
bits stays, with its adapter, for nothing else fits where it does: the merged model is computed out of its file, layer by layer.
Only a base whose tensors cannot be written one by one (in 4 bits on a GPU, or stored in another form than its model has) is read
whole, in float32.
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
from tuneful.model.load import base_for_peft, fingerprint, load_from, load_model, mapped_model
from tuneful.model.logits import largest_difference, prompt_logits
from tuneful.model.lora import MERGE_TOLERANCE, merge_adapter, restore_adapter, save_adapter
from tuneful.model.memory import drop_mapped_pages, give_back_freed_memory
from tuneful.model.names import NF4, Base, is_adapter, save_trained_with
from tuneful.model.nf4_layers import is_in_4_bits
from tuneful.model.quantize import round_to_4_bits
from tuneful.model.structure import decoder_layers
from tuneful.runs.card import describe_model
from tuneful.runs.setup import RunState


def save_with_adapter(run: RunState, shipped: Shipped, prompts: Sequence[Sequence[int]]) -> None:
    """Save the adapter of `run`, and merged into its base where `lora.merge` says so; `run` goes on with what was saved.

    Raises ExportError where that is not what was trained.
    """
    model, folder, base_name = run.model, run.folder, run.pretrained.name
    wanted, in_4_bits = _logits(model, prompts), is_in_4_bits(model)
    save_adapter(run.method.adapter, folder.adapter, base_for_peft(run.pretrained))
    card = describe_model(run)
    complete_adapter(folder.adapter, shipped, replace(card, is_adapter=True))
    quantization = NF4 if run.config.train.method == "qlora" else None
    base = Base(base_name, fingerprint(run.pretrained.folder), quantization)
    save_trained_with(folder.adapter, run.encoder.text.template.name, base)
    is_merged, is_written = folder.trained == folder.model, True
    if is_merged:
        is_written = (in_4_bits or quantization is None) and save_merged(
            model, _base_folder(run), folder.model, shipped, card, dtype=run.config.model.save_dtype
        )
    if in_4_bits and is_written:
        restore_adapter(run.method.adapter, folder.adapter)
        _compare(run, wanted, _logits_of_files(folder.model, prompts) if is_merged else _logits(model, prompts))
        return
    for tensor in (*model.parameters(), *model.buffers()):  # there may be no room for both
        tensor.data = torch.empty(0)
    give_back_freed_memory()
    if not is_written or quantization is not None:
        whole = _merged_whole(run)
        if is_merged:
            save_model(whole, folder.model, shipped, card, dtype=run.config.model.save_dtype)
            verify_export(whole, folder.model, prompts)
        run.take_model(whole)
    else:
        run.take_model(load_model(str(folder.trained), dtype=run.dtype).model)
    _compare(run, wanted, _logits(run.model, prompts))


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


def _logits_of_files(folder: Path, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Those of the model in `folder`, of which no more than a layer is in memory at once."""

    def forget(layer: torch.nn.Module, *_: object) -> None:
        for parameter in layer.parameters():
            drop_mapped_pages(parameter.data)

    model = mapped_model(folder)
    for layer in decoder_layers(model) or ():
        layer.register_forward_hook(forget)
    return _logits(model, prompts)


def _compare(run: RunState, wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> None:
    """ExportError where what was saved says something else than the base with its adapter did."""
    pairs = [largest_difference(one.cpu(), other) for one, other in zip(found, wanted, strict=True)]
    largest = max((difference / scale for difference, scale in pairs), default=0.0)
    is_exact = run.dtype is torch.float32 and run.config.model.save_dtype == "float32"
    if not largest <= (MERGE_TOLERANCE if is_exact else SIXTEEN_BITS_TOLERANCE):
        raise ExportError(
            f"{run.folder.trained}: merged into its base the adapter gives logits that differ by {largest:.2g} of the largest one"
        )
    base = "its base as 4 bits hold it" if run.config.train.method == "qlora" else "its base"
    run.terminal.say(f"the adapter and {base}, merged: the same logits to {largest:.0e} of the largest")
