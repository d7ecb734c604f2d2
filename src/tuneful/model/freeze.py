"""Which weights may change, and what is kept of a forward for its backward.

Stands between loading and training. Freezing the lower layers saves their gradients, their moments and, because the
backward ends above them, a part of its time. Checkpointing keeps only what enters each layer and computes the rest of
the layer again when the backward comes by: far less memory for about a third more time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from tuneful.errors import ConfigError
from tuneful.model.structure import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def freeze_lower_layers(model: PreTrainedModel, num_frozen: int) -> str:
    """Freeze the lowest `num_frozen` layers of `model` and the embeddings under them; what is frozen, in words.

    Raises ConfigError where the model has fewer layers, or none that can be told apart.
    """
    layers = decoder_layers(model)
    if layers is None:
        raise ConfigError(f"`train.freeze_layers`: the layers of {type(model).__name__} cannot be told apart")
    if num_frozen > len(layers):
        raise ConfigError(f"`train.freeze_layers`: {num_frozen}, but this model has {len(layers)} layers")
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    for module in (*embeddings, *layers[:num_frozen]):
        module.requires_grad_(False)
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    return f"the lowest {num_frozen} of {len(layers)} layers and the embedding" + (
        ", which is the output head too" if tied else ""
    )


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let every layer of `model` compute its activations again in the backward; ConfigError for a model that cannot."""
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"`train.activation_checkpointing`: {type(model).__name__} cannot do without its activations")
    # Not reentrant: the old kind needs an input that requires a gradient, which frozen embeddings do not give.
    model._set_gradient_checkpointing(True, functools.partial(checkpoint, use_reentrant=False))


@contextlib.contextmanager
def activations_computed_again(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model that can computes its activations again in the backward, whatever it does otherwise."""
    before = [(one, one.gradient_checkpointing) for one in model.modules() if hasattr(one, "gradient_checkpointing")]
    if model.supports_gradient_checkpointing and not all(value for _, value in before):
        checkpoint_activations(model)
    try:
        yield
    finally:
        for module, value in before:
            module.gradient_checkpointing = value
