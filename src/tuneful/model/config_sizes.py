"""Does config.json describe the model that the weight files hold? Compared by their headers, before anything is built.

transformers builds what config.json asks for and looks at the files afterwards: a million layers take it minutes, a vocabulary of
a billion tokens all memory. Numbers that are repeated (layers, experts, labels) are compared one by one; the rest as the model
that comes of them, which is built without memory for its weights in a few milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneful.errors import ModelError
from tuneful.model.checks import LEGACY_BUFFERS, damaged_model, named, quiet
from tuneful.model.stored import StoredTensor

_LAYERS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks?)|(de|en)coder_layers|attention_types")
_EXPERTS = re.compile(r"(num|n)_(\w+_)?experts")
_MAX_LABELS, _MAX_LAYERS, _MAX_EXPERTS = 1 << 16, 10_000, 100_000
_SPARE_WEIGHTS, _SPARE_BYTES = 10**7, 10**8
"""What a model may have in memory beyond what its files hold: weights left out, and tables that are computed."""


def check_counts(config: Mapping[str, Any], folder: Path) -> None:
    """ModelError where what `config`, the config.json of `folder`, repeats is beyond all models: to be called before any library
    reads it, which makes a list of it. Needs no weights."""
    for key, value in _numbers(config):
        if (most := _most(key, _MAX_LAYERS, _MAX_EXPERTS)) is not None and not value <= most:
            raise ModelError(
                f"{folder / 'config.json'}: {key} is {str(value)[:40]}, and {most:,} is the most that is read; fetch it again"
            )


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """ModelError where `config`, the config.json of `folder`, asks for much more than its weight files hold as `tensors`."""
    widest = max((max(one.shape, default=1) for one in tensors.values()), default=0)
    check_counts(config, folder)
    for key, value in _numbers(config):
        if (most := _most(key, len(tensors), widest)) is not None and not value <= most:
            raise ModelError(
                f"{folder / 'config.json'}: {key} is {str(value)[:40]}, and the weight files hold {len(tensors):,} tensors, none "
                f"with a dimension above {widest:,}; config.json and weights belong to different models"
            )
    experts = max([1, *(int(value) for key, value in _numbers(config) if _EXPERTS.fullmatch(key))])
    _check_built(tensors, experts, folder)


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a document with the key that it stands under."""
    if isinstance(value, dict):
        for inner, one in value.items():
            yield from _numbers(one, inner)
    elif isinstance(value, list):
        for one in value:
            yield from _numbers(one, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def _most(key: str, num_tensors: int, widest: int) -> int | None:
    """How large the number under `key` can be; None where nothing follows from the number of tensors."""
    if _LAYERS.fullmatch(key):
        return num_tensors
    if _EXPERTS.fullmatch(key):
        return max(num_tensors, widest)
    return _MAX_LABELS if key == "num_labels" else None


def _check_built(tensors: Mapping[str, StoredTensor], num_experts: int, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:  # whatever a value of another type, or out of its range, brings about
            raise damaged_model(folder, error) from error
    held = {name: one for name, one in tensors.items() if not LEGACY_BUFFERS.search(name)}
    num_held, num_bytes = (
        sum(math.prod(one.shape) for one in held.values()),
        sum(one.num_bytes for one in held.values()),
    )
    num_asked = sum(parameter.numel() for parameter in model.parameters())
    computed = sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())
    num_places = 1_000 + 4 * (1 + num_experts) * sum(
        1 for _ in model.parameters()
    )  # experts may be files' own, and one here
    if len(held) > num_places:  # transformers takes a millisecond for each that has no place
        raise ModelError(
            f"{folder}: the weights are {len(held):,} tensors, for which the architecture in config.json has no place; "
            "config.json and weights belong to different models"
        )
    if num_asked > 2 * num_held + _SPARE_WEIGHTS:
        shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        others = [
            f"{name} {list(one.shape)} for {shapes[name]}"
            for name, one in held.items()
            if shapes.get(name, list(one.shape)) != list(one.shape)
        ]
        what = f": weights of another shape than config.json says: {named(others)}" if others else ""
        raise ModelError(
            f"{folder}: config.json asks for {num_asked:,} weights, and the files hold {num_held:,}{what}; config.json and "
            "weights belong to different models"
        )
    if computed > num_bytes + _SPARE_BYTES:
        raise ModelError(
            f"{folder}: config.json asks for tables of {computed / 1e6:,.0f} MB beside the {num_bytes / 1e6:,.0f} MB of weights "
            "(max_position_embeddings, head_dim); config.json is damaged, fetch it again"
        )
