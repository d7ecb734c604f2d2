"""Weights in 4 bits in the compiled products: bit for bit what the whole matrix in bfloat16 gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.doubles.engine import random_records, run_batches, tiny_model
from tests.machine import require

from tuneful.config import LoraConfig
from tuneful.model import native
from tuneful.model.layers import DecoderLayer
from tuneful.model.lora import add_adapter
from tuneful.model.nf4 import dequantize, quantize_nf4
from tuneful.model.nf4_layers import NF4_LAYERS, dequantize_layers, quantize_layers
from tuneful.model.precision import cast_parameters
from tuneful.model.products import MatrixProducts, projected

BFLOAT16 = torch.bfloat16
WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
}


@pytest.fixture(autouse=True)
def library() -> Any:
    require("compiled-products")
    return native.kernels(torch.device("cpu"), BFLOAT16)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(BFLOAT16)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("num_rows", "depth"), [(1, 64), (7, 192), (50, 2112)])
def test_products_and_gradients_are_those_of_the_whole_matrix(num_rows, depth, threads, library):
    torch.manual_seed(0)
    before, found = torch.get_num_threads(), []
    rows, fours = random(num_rows, depth), []
    for size in (64, 130):
        fours.append([random(size, depth), random(size), random(16, depth), random(size, 16)])
    upstreams = [random(num_rows, four[0].shape[0]) for four in fours]
    torch.set_num_threads(threads)
    try:
        for in_4_bits in (True, False):
            given = rows.clone().requires_grad_()
            parameters: list[Any] = []
            for weight, bias, *low in fours:
                quantized = quantize_nf4(weight)
                parameters += [quantized if in_4_bits else dequantize(quantized, BFLOAT16), bias]
                parameters += [one.clone().requires_grad_() for one in low]
            outputs = MatrixProducts.apply(library, given, [2.0, 0.5], *parameters)
            torch.autograd.backward(outputs, upstreams)
            learned = [one.grad for place, one in enumerate(parameters) if place % 4 > 1]
            found.append([*outputs, given.grad, *learned])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("settings", [{}, {"target_modules": ("q_proj", "down_proj")}, {"use_dora": True}])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_layer_in_4_bits_is_one_node_and_learns_what_the_rounded_one_does(family, settings, monkeypatch):
    nodes, found = [], []
    forward = DecoderLayer.forward
    monkeypatch.setattr(DecoderLayer, "forward", lambda *arguments: nodes.append(1) or forward(*arguments))
    for in_4_bits in (True, False):
        sizes: dict[str, Any] = WIDE | ({"head_dim": 16} if family == "llama" else {})
        model = tiny_model(family, **sizes)
        quantize_layers(model, BFLOAT16)
        if not in_4_bits:
            dequantize_layers(model, BFLOAT16)
        torch.manual_seed(1)
        adapter = add_adapter(model, LoraConfig(r=4, **settings))
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        cast_parameters(model, BFLOAT16)
        assert any(isinstance(layer, NF4_LAYERS) for layer in model.modules()) == in_4_bits
        found.append(run_batches(model, [random_records(7, longest=30)], "trie"))
    assert len(nodes) == (0 if "use_dora" in settings else 4)
    one, wanted = found
    assert one.loss == wanted.loss
    assert one.gradients.keys() == wanted.gradients.keys()
    learned = {name for name in wanted.gradients if "lora_" in name}
    assert learned
    assert all(torch.equal(one.gradients[name], wanted.gradients[name]) for name in learned)


@pytest.mark.parametrize("size", [70, 96])
def test_rows_that_are_not_whole_blocks_are_computed_by_torch(size):
    layer: Any = torch.nn.Module()
    layer.linear, layer.get_output_embeddings = torch.nn.Linear(size, 64), lambda: None
    quantize_layers(layer, BFLOAT16)
    layer.to(BFLOAT16)
    rows = random(3, size)
    (found,) = projected([layer.linear], rows)
    expected = torch.nn.functional.linear(rows, layer.linear.weight, layer.linear.bias)
    assert torch.equal(found, expected)
