"""What a model of transformers is made of, found by its configuration and not by the names of its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList | None:
    """The repeated layers of `model`, lowest first: its first list of as many modules as `num_hidden_layers` says.

    None where there is no such list. The experts of a layer are such a list only in a model with as many experts as layers,
    and there the layers come first.
    """
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList))
    return next((layers for layers in lists if len(layers) == num_layers), None)
