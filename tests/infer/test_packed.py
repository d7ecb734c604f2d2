"""Packed weights multiply as plain ones do, only where they can, and only inside their context."""

from contextlib import nullcontext

import pytest
import torch
from tests.doubles.engine import VOCABULARY, tiny_model
from tests.machine import needs

from tuneful.config import GenerateConfig
from tuneful.infer.generate import generate
from tuneful.infer.packed import packed_weights

IDS = torch.arange(1, 12)[None] % VOCABULARY


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@needs("bfloat16")
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_logits_are_those_of_the_plain_weights_up_to_rounding(family):
    model = tiny_model(family, initializer_range=0.3).to(torch.bfloat16).eval()
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    assert bool(biases) == (family == "qwen2")
    for bias in biases:
        torch.nn.init.normal_(bias)  # a new model's are 0, and nobody would miss them
    plain, context = logits(model), packed_weights(model)
    for _ in range(2):  # it may be entered again
        with context:
            torch.testing.assert_close(logits(model), plain, rtol=0.02, atol=0.02 * plain.abs().max().item())
    assert torch.equal(logits(model), plain)


@needs("bfloat16")
def test_the_weights_are_those_of_the_moment_of_packing_and_no_others_are_touched():
    model = tiny_model("llama", initializer_range=0.3).to(torch.bfloat16).eval()
    context, before = packed_weights(model), logits(model)
    other = torch.nn.functional.linear(torch.ones(2, 4), torch.ones(3, 4))
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.mul_(3)
    with context:
        torch.testing.assert_close(logits(model), before, rtol=0.02, atol=0.02 * before.abs().max().item())
        assert torch.equal(torch.nn.functional.linear(torch.ones(2, 4), torch.ones(3, 4)), other)
    assert (logits(model) - before).abs().max() > 0.2 * before.abs().max()


@needs("bfloat16")
def test_a_bias_counts_however_it_is_given():
    model = tiny_model("llama").to(torch.bfloat16)
    layer, rows = model.model.layers[0].mlp.up_proj, torch.ones(2, model.config.hidden_size, dtype=torch.bfloat16)
    bias = torch.full((layer.out_features,), 3.0, dtype=torch.bfloat16)
    plain = torch.nn.functional.linear(rows, layer.weight, bias)
    with packed_weights(model):
        for found in (
            torch.nn.functional.linear(rows, layer.weight, bias=bias),
            torch.nn.functional.linear(input=rows, weight=layer.weight, bias=bias),
        ):
            torch.testing.assert_close(found, plain, rtol=0.02, atol=0.02)


@needs("bfloat16")
def test_generating_packs_the_weights_once(monkeypatch):
    model = tiny_model("gemma", initializer_range=0.3).to(torch.bfloat16)  # which the compiled step does not serve
    packed = []

    def counted(model):
        packed.append(packed_weights(model))
        return packed[-1]

    monkeypatch.setattr("tuneful.infer.decode.packed_weights", counted)
    config = GenerateConfig(temperature=0, max_new_tokens=5, batch_size=2)
    assert len(dict(generate(model, [[1, 2], [3], [4, 5, 6]], config, ()))) == 3
    assert len(packed) == 1
    assert not isinstance(packed[0], nullcontext)


def test_nothing_is_packed_in_float32_or_without_native_products_or_without_room(monkeypatch):
    model = tiny_model("llama")
    assert isinstance(packed_weights(model), nullcontext)
    model.to(torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr("tuneful.infer.packed.room_for_a_copy", lambda _: False)
        assert isinstance(packed_weights(model), nullcontext)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert isinstance(packed_weights(model), nullcontext)
