"""The gradient of each record, taken from a batch, is what autograd gives for that record alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config
from transformers import Qwen2ForCausalLM as Qwen2

from tuneful.config import LoraConfig
from tuneful.influence import features as module
from tuneful.influence.features import Featurizer, batches, kept_features, num_kept
from tuneful.influence.gradients import gradients_alone, gradients_together, linear_layers
from tuneful.influence.parameters import last_matrices, preconditioner, trainable
from tuneful.influence.sketch import Sketch
from tuneful.model.lora import add_adapter
from tuneful.train.loss import micro_batch_loss
from tuneful.types import Example

SIZES = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, head_dim=8))


def qwen() -> PreTrainedModel:
    return Qwen2(Qwen2Config(**SIZES, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=64, n_embd=16, n_layer=2, n_head=2))


def adapted(dora: bool = False) -> PreTrainedModel:
    model = llama()
    add_adapter(model, LoraConfig(r=3, alpha=6, use_dora=dora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"llama": llama, "qwen": qwen, "gpt2": gpt2, "lora": adapted}

TOLERANCE = {"llama": 1e-5, "qwen": 1e-5, "gpt2": 1e-12, "lora": 1e-5}
"""The norms of transformers are computed in float32, those of GPT-2 aside."""


def made(name: str) -> tuple[PreTrainedModel, dict[str, torch.nn.Parameter]]:
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    return model, trainable(model) if name == "lora" else last_matrices(model)


def records() -> list[Example]:
    """Of several lengths, one with weights of its own."""
    generator = np.random.Generator(np.random.PCG64(1))
    found = []
    for number, length in enumerate((5, 12, 9, 2)):
        weights = np.zeros(length, np.float32)
        weights[length // 2 :] = 0.3 if number == 2 else 1.0
        found.append(Example(generator.integers(1, 60, length, dtype=np.int32), weights, length // 2, f"r:{number}"))
    return found


def by_autograd(model: PreTrainedModel, name: str, example: Example) -> torch.Tensor:
    model.zero_grad()
    micro_batch_loss(model, [example], "unshared").total.backward()
    gradient = dict(model.named_parameters())[name].grad
    assert gradient is not None
    copied: torch.Tensor = gradient.clone()
    return copied


class Gathered(dict[str, torch.Tensor]):
    def sink(self, name: str, gradients: torch.Tensor) -> None:
        self[name] = self.get(name, 0) + gradients.clone()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_a_batch_are_those_of_each_record_alone_by_autograd(name: str) -> None:
    model, parameters = made(name)
    examples, together, alone = records(), Gathered(), Gathered()
    layers = linear_layers(model, parameters)
    assert layers is not None
    losses = gradients_together(model, examples, layers, together.sink)
    assert losses == pytest.approx(gradients_alone(model, examples, parameters, alone.sink), rel=1e-12)
    assert together.keys() == alone.keys() == parameters.keys()
    for parameter in parameters:
        for number, example in enumerate(examples):
            wanted = by_autograd(model, parameter, example)
            for found in (together, alone):
                # of a record with one target queries and keys have a gradient of 0, but for rounding
                assert (found[parameter][number] - wanted).norm() <= TOLERANCE[name] * max(wanted.norm(), 1e-3)


def test_what_could_be_trained_before_can_be_afterwards_and_has_no_gradient() -> None:
    model, parameters = made("lora")
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    layers = linear_layers(model, parameters)
    assert layers is not None
    gradients_together(model, records(), layers, Gathered().sink)
    gradients_alone(model, records(), parameters, Gathered().sink)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def featurizer(model: PreTrainedModel, parameters: dict[str, torch.nn.Parameter]) -> Featurizer:
    sketch = Sketch({name: one.numel() for name, one in parameters.items()}, 64, 0)
    return Featurizer(model, parameters, sketch, {})


def test_what_is_no_linear_layer_is_computed_record_by_record() -> None:
    torch.manual_seed(0)
    model = adapted(dora=True).double().eval()
    made_by = featurizer(model, trainable(model))
    assert made_by.why_alone(records()) == "some of what was trained is no linear layer"
    found = made_by.features(records())
    one_by_one = np.concatenate([made_by.features([example]) for example in records()])
    np.testing.assert_allclose(found, one_by_one, rtol=1e-5)


def test_features_are_in_the_order_of_the_examples_however_they_are_batched() -> None:
    made_by = featurizer(*made("llama"))
    examples = records() * 3
    assert made_by.why_alone(examples[:4]) is None
    found = made_by.features(examples)
    np.testing.assert_allclose(found[:4], found[4:8], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[2:3], made_by.features(examples[2:3]), rtol=1e-5, atol=1e-8)


def test_a_batch_whose_gradients_are_not_those_of_each_record_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by = featurizer(*made("llama"))
    whole = gradients_together

    def swapped(model: PreTrainedModel, batch: list[Example], layers: Any, sink: Any) -> Any:
        return whole(model, batch, layers, lambda name, found: sink(name, found.flip(0)))

    monkeypatch.setattr(module, "gradients_together", swapped)
    reason = made_by.why_alone(records())
    assert reason is not None
    assert reason.startswith("computed together their gradients differ by")


def test_batches_hold_every_record_once_and_records_of_like_length() -> None:
    lengths = [3, 1000, 7, 500, 900, 2]
    found = list(batches(lengths, 2048))
    assert sorted(place for batch in found for place in batch) == list(range(6))
    assert found[0] == [1, 4]
    assert list(batches(lengths, 1)) == [[1], [4], [3], [2], [0], [5]]
    assert list(batches([], 2048)) == []


def test_the_scale_is_adamws_own_and_what_never_had_a_gradient_weighs_nothing() -> None:
    second = torch.tensor([4e-4, 0.0])
    names = {"w": torch.nn.Parameter(torch.zeros(2))}
    scale = preconditioner({"exp_avg_sq.w": second}, names, 3, 0.9, 1e-8)["w"]
    v = 4e-4 / (1 - 0.9**3)
    assert scale.tolist() == pytest.approx([(v**0.5 + 1e-8) ** -0.5, 0.0], rel=1e-6)


def test_the_last_matrices_are_those_that_fit_and_no_embedding() -> None:
    model, _ = made("qwen")
    assert all(".1." in name for name in last_matrices(model, 16 * 24 * 2))
    assert list(last_matrices(model, 0)) == [min(last_matrices(model), key=lambda n: last_matrices(model)[n].numel())]
    assert not any("embed" in name or "lm_head" in name for name in last_matrices(model))


def test_what_was_computed_before_a_kill_is_not_computed_again_and_a_damaged_file_is(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    examples, asked = (records() * 40)[:150], list[int]()

    def compute(chunk: object) -> np.ndarray:
        asked.append(len(chunk))  # type: ignore[arg-type]
        if len(asked) == 2:
            raise KeyboardInterrupt
        return np.full((len(chunk), 8), len(asked), np.float32)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        list(kept_features(folder, examples, 8, compute))
    assert num_kept(folder, 150) == 64
    again = list(kept_features(folder, examples, 8, compute))
    assert [start for start, _ in again] == [0, 64, 128]
    assert asked == [64, 64, 64, 22]
    assert num_kept(folder, 150) == 150
    (folder / "records-00000064.safetensors").write_bytes(b"damaged")
    list(kept_features(folder, examples, 8, compute))
    assert asked == [64, 64, 64, 22, 64]
