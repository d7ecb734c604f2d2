"""The proof before the first step finds what transformers computes otherwise than the way that will train, family by family, in
float32 and in bfloat16, and leaves the model as it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles.decoders import small_model
from tests.doubles.engine import random_records, tiny_model, train_config

from tuneful.model import decoder, elementwise
from tuneful.model.decoder import FAMILIES, is_served
from tuneful.train.layout import _why_not_in, choose_layout, self_check
from tuneful.types import Example

Planted = Callable[[Any, torch.Tensor], Any]
PLANTED: dict[str, Planted] = {
    "a scale": lambda given, output: given + 2 * (output - given),
    "a second residual": lambda given, output: output + 0.3 * given,
    "a branch left out": lambda given, output: given + 0 * output,
}
"""What a layer might make of `given` and its `output`."""


def examples() -> list[Example]:
    """Records over the vocabulary of the small models."""
    return [
        Example(np.clip(one.token_ids, 0, 96).astype(np.int32), one.weights, one.num_prompt_tokens, one.source)
        for one in random_records(5)
    ]


def plant(monkeypatch: pytest.MonkeyPatch, model: Any, planted: Planted) -> None:
    """Change the class of the model's layers, as another version of transformers might."""
    kind: Any = type(decoder._layers(model)[0])
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, given, *others, **named: planted(given, forward(self, given, *others, **named))
    )


def proof(model: Any, dtype: torch.dtype) -> str | None:
    return self_check(model, examples()) if dtype == model.dtype else _why_not_in(dtype, model, [examples()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_another_transformers_computes_is_found(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(family).float().train()
    for parameter in model.parameters():
        parameter.data *= 1 if parameter.ndim == 1 else 4  # as much as the layers of a trained model add to the stream
    assert is_served(model)
    assert proof(model, dtype) is None
    for name, planted in PLANTED.items():
        with monkeypatch.context() as patch:
            plant(patch, model, planted)
            assert "as a trie" in str(proof(model, dtype)), name


def test_a_fault_of_the_training_precision_alone_is_found_and_the_padded_batch_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, few = tiny_model("qwen3"), random_records(6)
    before = {name: (parameter.data, parameter.data.clone()) for name, parameter in model.named_parameters()}
    assert choose_layout(model, few, train_config(), torch.bfloat16).name == "trie"
    gate = elementwise.gated

    def faulty(activation: Any, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return gate(activation, one, other) * (1.3 if one.dtype is torch.bfloat16 else 1)

    monkeypatch.setattr(decoder, "gated", faulty)
    assert choose_layout(model, few, train_config(), torch.float32).name == "trie"
    layout = choose_layout(model, few, train_config(), torch.bfloat16)
    assert layout.name == "padded"
    assert str(layout.reason).startswith("in bfloat16 the ")
    for name, parameter in model.named_parameters():
        data, values = before[name]
        assert parameter.data.data_ptr() == data.data_ptr(), name
        assert torch.equal(parameter.data, values), name
        assert parameter.grad is None, name


def test_a_gradient_that_is_turned_and_as_long_as_it_should_be_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and norm of the gradient are right: only its direction is not."""

    class Turned(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
            return rows.view_as(rows)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return -grads[0]

    model = tiny_model("qwen3")
    attend = decoder.attend
    monkeypatch.setattr(decoder, "attend", lambda *given: Turned.apply(attend(*given)))
    assert "the gradient differs as a trie" in str(self_check(model, random_records(4)))
