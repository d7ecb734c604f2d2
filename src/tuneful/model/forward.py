"""One call of a model, whatever its family takes: token ids in, the logits of some places out.

Families differ in what their forward takes: some know no `logits_to_keep`, no `position_ids` or no cache. Everything that trains
or answers through transformers' own forward calls it here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

# Legend of shapes: B rows, N tokens of a row, M places wanted, V vocabulary


def compute_logits(model: PreTrainedModel, keep: torch.Tensor | int, **inputs: Any) -> torch.Tensor:
    """The logits [B, M, V] at the columns `keep` (int64 [M]) of each row of `inputs`, or at its last `keep` columns.

    Only what is kept reaches the output head, where the family allows that. Of `inputs`, those that its forward does not know are
    left out, if they are of `_OPTIONAL`. Others raise TypeError.
    """
    given = {name: value for name, value in inputs.items() if name not in _OPTIONAL or takes(model, name)}
    if takes(model, "logits_to_keep", by_name=True):
        kept: torch.Tensor = model(**given, logits_to_keep=keep).logits
        return kept
    logits: torch.Tensor = model(**given).logits
    return logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]


_OPTIONAL = frozenset(("use_cache", "position_ids", "attention_mask"))
"""What a family that does not know it computes without. Whether that gives the same, a self-check decides."""


def takes(model: PreTrainedModel, argument: str, *, by_name: bool = False) -> bool:
    """Whether the forward of `model` has this argument; unless `by_name`, arguments that it hands on without a name count."""
    names, hands_on = _arguments(type(model).forward)
    return argument in names or (hands_on and not by_name)


def cache_argument(model: PreTrainedModel) -> str:
    """What the forward of `model` calls its cache: `cache` from transformers 5.24 on, which warns of the name before."""
    names, _ = _arguments(type(model).forward)
    if "past_key_values" in names:
        return "past_key_values"
    renamed = "cache" in _arguments(GenerationMixin.prepare_inputs_for_generation)[0]
    return "cache" if renamed else "past_key_values"


def own_attention(model: PreTrainedModel) -> str:
    """The name of the attention that transformers itself would compute `model` with.

    Not SDPA for capped scores: transformers before 5.23 would take it, and leave the cap out.
    """
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return "sdpa" if model._supports_sdpa and not capped else "eager"


@functools.cache
def _arguments(forward: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """The names of what `forward` takes, and whether it takes others too."""
    parameters = inspect.signature(forward).parameters
    return frozenset(parameters), any(one.kind is one.VAR_KEYWORD for one in parameters.values())
