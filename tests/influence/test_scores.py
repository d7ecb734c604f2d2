"""Scores from gradients to ranking are those of the formula, computed dense and in float64 on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tuneful.config import LoraConfig
from tuneful.influence.curvature import DAMPING, SecondMoment, directions_of
from tuneful.influence.features import Featurizer
from tuneful.influence.parameters import trainable
from tuneful.influence.ranking import Sums
from tuneful.influence.sketch import Sketch
from tuneful.model.lora import add_adapter
from tuneful.train.loss import micro_batch_loss
from tuneful.types import Example

SIZES = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def adapted() -> PreTrainedModel:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, head_dim=8))
    add_adapter(model, LoraConfig(r=2, alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def records(num: int, seed: int) -> list[Example]:
    generator = np.random.Generator(np.random.PCG64(seed))
    found = []
    for number in range(num):
        length = int(generator.integers(4, 12))
        weights = np.zeros(length, np.float32)
        weights[length // 2 :] = 1.0
        found.append(Example(generator.integers(1, 60, length, dtype=np.int32), weights, length // 2, f"r:{number}"))
    return found


def gradient(model: PreTrainedModel, example: Example) -> torch.Tensor:
    """The whole gradient of one record by autograd, float64 [P]."""
    model.zero_grad()
    micro_batch_loss(model, [example], "unshared").total.backward()
    return torch.cat([one.grad.flatten() for one in trainable(model).values() if one.grad is not None])


@pytest.mark.parametrize("num_records", [12, 40])
def test_scores_are_those_of_the_formula_computed_dense(num_records: int) -> None:
    """In a sketch of 24 numbers, with fewer records than that and with more."""
    dim, model = 24, adapted()
    parameters = trainable(model)
    sketch = Sketch({name: one.numel() for name, one in parameters.items()}, dim, 0)
    scale = {name: 1.0 + torch.rand(one.shape, dtype=torch.float64) for name, one in parameters.items()}
    made_by = Featurizer(model, parameters, sketch, scale)
    examples, items = records(num_records, 1), records(2, 2)
    factors = np.random.Generator(np.random.PCG64(3)).random(num_records)

    features, own = made_by.features(examples), made_by.features(items)
    moment, of_directions, sums = SecondMoment(num_records, dim), SecondMoment(num_records, dim), Sums(2, num_records)
    moment.add(features)
    of_directions.add(directions_of(features))
    sums.add((moment.solve(own), of_directions.solve(own)), 0, features, factors, 1.0)

    matrix = torch.cat(
        [sketch.of(name, torch.eye(one.numel(), dtype=torch.float64)) for name, one in parameters.items()]
    )
    flat = torch.cat([one.flatten() for one in scale.values()])
    dense, asked = (
        (torch.stack([gradient(model, one) for one in of]) * flat @ matrix).numpy() for of in (examples, items)
    )

    def solved(of: np.ndarray) -> np.ndarray:
        second = of.T @ of / num_records
        return asked @ np.linalg.inv(second + DAMPING * np.trace(second) / min(num_records, dim) * np.eye(dim))

    wanted, found = solved(dense) @ dense.T * factors, sums.influence()
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    unit = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    directions = solved(unit)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    np.testing.assert_allclose(found.cosines, directions @ unit.T, rtol=0, atol=1e-3)
