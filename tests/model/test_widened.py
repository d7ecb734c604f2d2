"""A model held in another precision computes in float32, one layer at a time, and is afterwards what it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.doubles.engine import FAMILIES, SLIDING_FAMILIES, tiny_model

from tuneful.config import LoraConfig
from tuneful.model.logits import prompt_logits
from tuneful.model.lora import add_adapter
from tuneful.model.nf4_layers import dequantize_layers, quantize_layers
from tuneful.model.widened import moved_as_by_rounding, rounded_to, widened

PROMPT = [3, 5, 7, 9, 11]
KINDS = {"plain": None, "lora": LoraConfig(r=2), "dora": LoraConfig(r=2, use_dora=True)}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [*FAMILIES, *SLIDING_FAMILIES])
def test_a_model_in_bfloat16_gives_the_logits_of_a_copy_in_float32_and_stays_as_it_was(family: str, kind: str) -> None:
    model = tiny_model(family).bfloat16().eval()
    if (config := KINDS[kind]) is not None:
        add_adapter(model, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    held = {name: one.data for name, one in model.named_parameters()}
    wanted = prompt_logits(copy.deepcopy(model).float(), PROMPT)
    with widened(model):
        found = prompt_logits(model, PROMPT)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert not torch.equal(prompt_logits(model, PROMPT).float(), wanted)
    assert all(one.data_ptr() == held[name].data_ptr() for name, one in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_base_in_4_bits_computes_with_the_values_that_these_stand_for(family: str) -> None:
    model = tiny_model(family, torch.bfloat16, hidden_size=64, n_embd=64).eval()
    quantize_layers(model, torch.bfloat16)
    plain = copy.deepcopy(model)
    dequantize_layers(plain, torch.float32)
    with widened(model):
        found = prompt_logits(model, PROMPT)
    torch.testing.assert_close(found, prompt_logits(plain.float(), PROMPT), rtol=0, atol=2e-6)
    assert {module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")} == {torch.bfloat16}


def test_a_model_that_failed_inside_has_its_weights_again() -> None:
    model = tiny_model("llama").bfloat16().eval()
    with pytest.raises(IndexError), widened(model):
        prompt_logits(model, [10**6])
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


def test_weights_that_were_read_are_named_one_by_one() -> None:
    model, seen = tiny_model("llama", tie_word_embeddings=False).bfloat16().eval(), list[int]()
    with widened(model, then=lambda weight: seen.append(weight.data_ptr())):
        prompt_logits(model, PROMPT)
    embedding = model.get_input_embeddings().weight
    assert set(seen) == {one.data_ptr() for one in model.parameters() if one is not embedding}


@pytest.mark.parametrize("bias", [False, True])
def test_an_output_head_computes_a_few_rows_at_a_time(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneful.model.widened.STRETCH", 5 * 32)
    model: Any = tiny_model("llama").bfloat16().eval()
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(model.lm_head.out_features).bfloat16())
    wanted, seen = prompt_logits(copy.deepcopy(model).float(), PROMPT), list[tuple[int, ...]]()
    with widened(model, then=lambda weight: seen.append(tuple(weight.shape))):
        torch.testing.assert_close(prompt_logits(model, PROMPT), wanted, rtol=0, atol=1e-5)
    assert seen[-5:] == [(5, 32)] * 4 + [(4, 32)]
    assert "forward" not in vars(model.lm_head)


def test_rounded_weights_are_computed_with_in_float32() -> None:
    model = tiny_model("llama").eval()
    with widened(model, rounded_to(torch.bfloat16)):
        found = prompt_logits(model, PROMPT)
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    torch.testing.assert_close(found, prompt_logits(rounded, PROMPT), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_moved_by_chance_as_far_as_rounding_moves_them(dtype: torch.dtype) -> None:
    weight = torch.randn(300, 200)
    moved, again = (moved_as_by_rounding(dtype)(weight) for _ in range(2))
    assert torch.equal(moved, again)
    by_chance, by_rounding = moved - weight, weight.to(dtype).float() - weight
    assert by_chance.std().item() == pytest.approx(by_rounding.std().item(), rel=0.02)
    share = by_chance.abs() / weight.abs()
    assert share.max() <= torch.finfo(dtype).eps / 2
    assert torch.equal(moved_as_by_rounding(dtype)(torch.zeros(3)), torch.zeros(3))
