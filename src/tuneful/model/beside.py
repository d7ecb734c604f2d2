"""Several adapters beside one base: a model for each, all of them over the same weights in memory.

Stands over `lora.py`, for a server that answers with many at once. The trade: only plain LoRA beside a float32 base that the
compiled kernels answer for. They lay a model's weights out for themselves, and merge the adapter into that copy in the arithmetic
of `merge_adapter`, so answers are, bit for bit, those of the adapter merged into a base of its own. Any other adapter has to be
merged as it is loaded.
"""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tuneful.errors import ExportError, ModelError
from tuneful.model.adapter import read_adapter
from tuneful.model.adapter_limits import check_adapter, check_suits
from tuneful.model.lora import attach_adapter
from tuneful.model.names import adapter_base


def beside(base: PreTrainedModel, folder: Path) -> PreTrainedModel | None:
    """A model of the weights of `base`, which is not changed, with the adapter of `folder` beside them.

    None where the adapter is more than plain LoRA, or `base` is not in float32. Raises ModelError where the two do not belong
    together.
    """
    num_tensors = check_adapter(folder)
    adapter = read_adapter(folder)
    is_plain = adapter.kind == "LORA" and not adapter.more_than_lora and not adapter.settings.get("use_dora")
    if not is_plain or base.dtype is not torch.float32 or adapter_base(folder).quantization is not None:
        return None
    check_suits(num_tensors, base, folder)
    model = over_the_same_weights(base)
    try:
        attach_adapter(model, folder)
    except ExportError as error:
        raise ModelError(str(error)) from error
    return model.to(base.device)


def over_the_same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of everything of `model` but its parameters and buffers, which both then have."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copied: PreTrainedModel = copy.deepcopy(model, shared)  # what is in the memo already is not copied
    return copied
