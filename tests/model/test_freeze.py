"""Frozen layers stay bit for bit what they were, and what is computed again comes out the same."""

import pytest
import torch
from tests.doubles.engine import FAMILIES, TRIE, random_records, run_alone, run_batches, tiny_model, train_config

from tuneful.errors import ConfigError
from tuneful.model.freeze import activations_computed_again, checkpoint_activations, freeze_lower_layers
from tuneful.train.loop import Training
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(family, dtype):
    model, before = tiny_model(family), dict(tiny_model(family).named_parameters())
    said = freeze_lower_layers(model, 1)
    assert said.startswith("the lowest 1 of 2 layers and the embedding")
    assert said.endswith("output head too") == (model.lm_head.weight is model.get_input_embeddings().weight)
    config = train_config(batch_size=4, max_steps=2, learning_rate=1e-2)
    optimizer = AdamW(model, config, dtype)
    list(Training(model, optimizer, random_records(8), [], config, TRIE).run())
    optimizer.masters_to_model()
    for name, parameter in model.named_parameters():
        frozen = not parameter.requires_grad
        assert frozen == (".0." in name or "embed" in name or ".wte" in name or ".wpe" in name), name
        assert torch.equal(parameter, before[name]) == frozen, name
        assert parameter.dtype is torch.float32, name


def test_more_layers_than_there_are_cannot_be_frozen():
    with pytest.raises(ConfigError, match="freeze_layers`: 3, but this model has 2 layers"):
        freeze_lower_layers(tiny_model(), 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_computed_again_give_the_same_loss_and_gradients_bit_for_bit(family):
    examples = random_records(5)
    model, again = tiny_model(family), tiny_model(family)
    checkpoint_activations(again)
    one, other = (run_batches(each, [examples], "trie") for each in (model, again))
    assert one.loss == other.loss
    assert all(torch.equal(gradient, other.gradients[name]) for name, gradient in one.gradients.items())
    alone = run_alone(tiny_model(family), examples)
    assert other.loss == pytest.approx(alone.loss, rel=1e-5)


def test_less_is_kept_for_the_backward():
    examples = random_records(6, longest=40)

    def kept_bytes(checkpointed):
        model = tiny_model()
        if checkpointed:
            checkpoint_activations(model)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel() * tensor.element_size()) or tensor, lambda tensor: tensor
        ):
            micro_batch_loss(model, examples, "trie")
        return sum(sizes)

    assert kept_bytes(True) < kept_bytes(False) / 2


@pytest.mark.parametrize("before", [False, True])
def test_inside_activations_are_computed_again_and_afterwards_as_before(before):
    model = tiny_model()
    if before:
        checkpoint_activations(model)

    def flags():
        return [layer.gradient_checkpointing for layer in model.model.layers]

    with activations_computed_again(model):
        assert flags() == [True, True]
    assert flags() == [before, before]
