"""The decoder layers of a model, by its configuration."""

import pytest
import torch
from tests.doubles.engine import FAMILIES, tiny_model

from tuneful.model.structure import decoder_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_are_found_in_every_family(family):
    model = tiny_model(family)
    layers = decoder_layers(model)
    assert layers is not None
    assert len(layers) == model.config.num_hidden_layers
    assert all("Layer" in type(layer).__name__ or "Block" in type(layer).__name__ for layer in layers)


def test_a_longer_list_inside_a_layer_is_not_taken_for_them():
    model = tiny_model()
    model.model.layers[0].experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(8))
    assert decoder_layers(model) is model.model.layers


def test_a_model_with_another_number_of_layers_than_its_configuration_says_has_none():
    model = tiny_model()
    model.config.num_hidden_layers = 5
    assert decoder_layers(model) is None
