"""What transformers makes of an exported folder, beside its weights: token ids, rendered prompts, the end of an answer.

The tokenizer is loaded again from the folder, and asked for the texts and prompts that a GGUF file is tried with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tuneful.errors import ExportError
from tuneful.export.parts import listed
from tuneful.export.probes import probe_texts
from tuneful.export.runtime import differing, messages_of, renderable
from tuneful.export.source import Source
from tuneful.model.load import load_tokenizer
from tuneful.runs.schema import ExportPart

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IDS = "texts in the tokenizer of the folder, and its end token"
_PROMPTS = "prompts of the folder's chat template, and their ids"


def tokenizer_parts(folder: Path, source: Source) -> list[ExportPart]:
    """The tokenizer of `folder` against the one of training: ids of texts, prompts and their ids."""
    tokenizer = load_tokenizer(folder)
    texts, asked = probe_texts(tuple(source.encoder.text.control_token_ids.values())), renderable(source)
    return [
        listed("token ids", _IDS, len(texts) + 1, _id_faults(tokenizer, source, texts)),
        listed("prompts", _PROMPTS, len(asked), _prompt_faults(tokenizer, source)),
    ]


def check_range(model: PreTrainedModel) -> None:
    """ExportError for numbers that float16 cannot hold."""
    largest = torch.finfo(torch.float16).max
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.half().isfinite().all():
            size = float(tensor.abs().max())
            raise ExportError(f"{name} holds {size:.3g}, and f16 ends at {largest:g}: take bf16")


def _id_faults(tokenizer: Any, source: Source, texts: list[str]) -> Iterator[str]:
    for text in texts:
        found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        wanted = source.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if found != wanted:
            yield f"{text[:40]!r}: its ids begin {found[:3]}, not {wanted[:3]}"
    if tokenizer.eos_token_id not in source.encoder.text.stop_token_ids:
        yield f"the end token is {tokenizer.eos_token_id}, and token {source.encoder.text.end_token_id} ends a response"


def _prompt_faults(tokenizer: Any, source: Source) -> Iterator[str]:
    for conversation in renderable(source):
        given = {"conversation": messages_of(conversation), "add_generation_prompt": True}
        rendered = (tokenizer.apply_chat_template(tokenize=False, **given), source.encoder.prompt_text(conversation))
        found, wanted = (text.removeprefix(tokenizer.bos_token or "") for text in rendered)  # the ids tell of that one
        if found != wanted:
            yield differing("the prompt", found, wanted)
        ids = list(tokenizer.apply_chat_template(tokenize=True, return_dict=False, **given))
        if ids != (prompt_ids := source.encoder.prompt_ids(conversation)):
            yield f"the ids of a prompt begin {ids[:3]}, not {prompt_ids[:3]}"
