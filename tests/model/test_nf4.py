"""A matrix in 4 bits: what bitsandbytes makes of the same numbers, and the layers that compute with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.doubles.engine import tiny_model
from tests.machine import needs
from transformers.pytorch_utils import Conv1D

from tuneful.config import LoraConfig
from tuneful.errors import ModelError
from tuneful.model import nf4_layers
from tuneful.model.lora import add_adapter
from tuneful.model.nf4 import LEVELS, NF4, dequantize, quantize_nf4
from tuneful.model.nf4_layers import (
    NF4_LAYERS,
    NF4Conv1D,
    NF4Linear,
    dequantize_layers,
    num_weights,
    quantize_layers,
    quantized_of,
)
from tuneful.model.quantize import round_to_4_bits

# Computed by us with bitsandbytes 0.50.2 on a CPU: quantize_4bit(..., compress_statistics=True, quant_type="nf4").
GOLDEN = {
    "even": (
        "070707080808080808080809090909191919191a1a1a1a1a1a1a1a1a1b1b1b1b0d0d0d0d0d0d0d0d0d0e1e1e1e1e1e1e1e1e1e1e1e1e1e1f1f2f2f2f"
        "2f2f2f2f4e4e4e4e4e4e4e4e4e4e5e5e5e5e5e5e5e5e5f6f6f6f6f6f6f6f6f6f7f7f7f7f7070707080808080808080809090909191919191a1a1a1a1"
        "a1a1a1a1a1b1b1b1c0d0d0d0d0d0d0d0d0d0e1e1e1e1e1e1e1e1e1e1e1e1e1e1f1f2f2f2f2f2f2f2e4e4e4e4e4e4e4e4e4e4e5e5e5e5e5e5e5e5f5f6"
        "f6f6f6f6f6f6f6f6f7f7f7f7",
        [63, 37, 255, 24, 182, 195],
        "0x1.5ad8cp-1",
        "0x1.ca4e82p-2",
        ["0x1.800f5p-2", "0x1.04db38p-3", "0x1.2p+0", "0x1.ce61p-9", "0x1.ff17a8p-2", "0x1.1dc972p-1"],
    ),
    "odd": (
        "03ae28e16d04bf3ae28e16d04bf39e28e16c04bf39e27d15c04bf29e17d15c04bf29e17d15c03af28e17d15c03af28e16d15c03ae28e16d04bf3ae28"
        "e16d04bf2af18e07",
        [219, 219, 0],
        "0x1.8p-6",
        "0x1.78p-3",
        ["0x1.90099ap-3", "0x1.90099ap-3", "0x1.485666p-3"],
    ),
    "a block of zeros": (
        "7777777777777777777777777777777777777777777777777777777777777777070707080808080808080809090909191919191a1a1a1a1a1a1a1a1a"
        "1b1b1b1b0d",
        [0, 240, 198],
        "0x1.aaaaaap-3",
        "0x1.aaaaaap-3",
        ["0x1.8p-10", "0x1.7f2aaap-2", "0x1.012aaap-2"],
    ),
}


def numbers(count: int, step: int = 97, size: int = 193) -> torch.Tensor:
    return ((torch.arange(count, dtype=torch.float64) * step % size - size // 2) / 256).float()


TENSORS = {
    "even": numbers(384).view(6, 64) * torch.tensor([1, 0.5, 3, 0.01, 2, 1.5]).view(6, 1),
    "odd": numbers(135, 31, 101).view(3, 45),
    "a block of zeros": torch.cat([torch.zeros(64), numbers(66)]).view(2, 65),
}


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize("name", GOLDEN)
def test_codes_and_scales_are_those_of_bitsandbytes(name, native, monkeypatch):
    monkeypatch.setenv("TUNEFUL_NATIVE", native)
    codes, scale_codes, scale_scale, mean, scales = GOLDEN[name]
    found = quantize_nf4(TENSORS[name])
    assert found.codes.numpy().tobytes().hex() == codes
    assert found.scale_codes.tolist() == scale_codes
    assert found.scale_scales.tolist() == [float.fromhex(scale_scale)]
    assert found.mean_scale.item() == float.fromhex(mean)
    assert found.scales().tolist() == [float.fromhex(scale) for scale in scales]


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", GOLDEN)
def test_what_the_codes_stand_for_is_level_times_scale_rounded_once(name, dtype, native, monkeypatch):
    monkeypatch.setenv("TUNEFUL_NATIVE", native)
    quantized = quantize_nf4(TENSORS[name])
    codes = torch.stack([quantized.codes >> 4, quantized.codes & 15], dim=1).view(-1)[: TENSORS[name].numel()].long()
    expected = torch.tensor(LEVELS)[codes] * quantized.scales().repeat_interleave(64)[: len(codes)]
    assert torch.equal(dequantize(quantized, dtype), expected.view(TENSORS[name].shape).to(dtype))


@given(st.integers(1, 700), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_no_number_is_further_from_its_level_than_half_the_widest_gap_and_its_scales_rounding(count, seed, dtype):
    given_numbers = torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found = dequantize(quantize_nf4(given_numbers))
    largest = given_numbers.float().abs().max().item()
    assert (found - given_numbers.float()).abs().max().item() <= 0.16 * largest + 0.05 * largest


@needs("compiler")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernels_give_the_same_bits_as_torch_on_several_stretches(threads, monkeypatch):
    tensor, before = numbers((1 << 20) + 64 * 256 + 7, 31, 1009) * numbers(1), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled = quantize_nf4(tensor)
        compiled_numbers = dequantize(compiled)
        monkeypatch.setenv("TUNEFUL_NATIVE", "0")
        plain = quantize_nf4(tensor)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, plain.tensors[name]) for name, one in compiled.tensors.items())
    assert torch.equal(compiled_numbers, dequantize(plain))


def test_zeros_stay_zero_and_nothing_is_nothing():
    assert torch.equal(dequantize(quantize_nf4(torch.zeros(3, 50))), torch.zeros(3, 50))
    assert dequantize(quantize_nf4(torch.zeros(0, 4))).shape == (0, 4)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_the_name_of_their_tensor(number):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = number
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite"):
        quantize_layers(model, torch.float32)


# Layers


def quantized_and_rounded(family: str):
    """A model in 4 bits, and a plain one that holds the values which those stand for."""
    torch.manual_seed(0)
    model, rounded = tiny_model(family), tiny_model(family)
    rounded.load_state_dict(model.state_dict())
    round_to_4_bits(rounded, torch.device("cpu"))
    quantize_layers(model, torch.float32)
    return model, rounded


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_model_in_4_bits_computes_what_its_rounded_weights_do(family):
    model, rounded = quantized_and_rounded(family)
    ids = torch.tensor([[5, 9, 12, 4, 3]])
    torch.testing.assert_close(model(input_ids=ids).logits, rounded(input_ids=ids).logits, rtol=1e-5, atol=1e-6)
    assert num_weights(model) == sum(parameter.numel() for parameter in rounded.parameters())
    assert not any(isinstance(layer, NF4_LAYERS) for layer in (model.get_output_embeddings(),))
    dequantize_layers(model, torch.float32)
    assert {type(one) for one in model.modules()} == {type(one) for one in rounded.modules()}
    assert all(torch.equal(one, rounded.state_dict()[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize("made", [torch.nn.Linear(70, 6), Conv1D(6, 70)])
def test_the_gradient_of_what_goes_in_is_that_of_the_rounded_weight_which_is_not_kept(made):
    model: Any = torch.nn.Module()
    model.layer, model.get_output_embeddings = made, lambda: None
    quantize_layers(model, torch.float32)
    layer = model.layer
    assert isinstance(layer, NF4Linear if isinstance(made, torch.nn.Linear) else NF4Conv1D)
    rows = torch.randn(2, 5, 70, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        output = layer(rows)
    assert not any(one.numel() >= 6 * 70 for one in kept)
    (found,) = torch.autograd.grad(output.square().sum(), rows)
    weight = dequantize(quantized_of(layer))
    (expected,) = torch.autograd.grad((rows @ weight.T + layer.bias).square().sum(), rows)
    torch.testing.assert_close(found, expected)


def test_a_model_without_linear_layers_cannot_be_kept_in_4_bits():
    model: Any = torch.nn.Module()
    model.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match=r"no linear layers to keep in 4 bits; use train\.method=lora"):
        quantize_layers(model, torch.float32)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pefts_adapters_compute_beside_4_bits_what_they_compute_beside_the_rounded_weights(family, use_dora):
    logits = []
    for model in quantized_and_rounded(family):
        torch.manual_seed(1)
        adapter = add_adapter(model, LoraConfig(r=2, use_dora=use_dora))
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        logits.append(model(input_ids=torch.tensor([[5, 9, 12, 4, 3]])).logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_no_matrix_is_turned_back_to_put_an_adapter_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once were as much memory as the base in bfloat16."""
    model = tiny_model("llama", hidden_size=64)
    quantize_layers(model, torch.bfloat16)
    monkeypatch.setattr(nf4_layers, "dequantize", lambda *_: pytest.fail("a matrix was turned back"))
    add_adapter(model, LoraConfig(r=2))


def test_the_scales_of_a_whole_matrix_are_as_many_as_its_blocks():
    assert quantize_nf4(torch.ones(10, 10)).scales().shape == (2,)
    assert set(NF4.__slots__) == {"codes", "scale_codes", "scale_scales", "mean_scale", "shape"}
