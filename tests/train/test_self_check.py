"""The proof before the first step finds what transformers computes otherwise than the way that will train, family by family, in
float32 and in bfloat16, and leaves the model as it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.doubles.decoders import small_model
from tests.doubles.engine import random_records, tiny_model, train_config

from tuneful.config import LoraConfig
from tuneful.model import decoder, elementwise
from tuneful.model.decoder import FAMILIES, is_served
from tuneful.model.lora import add_adapter
from tuneful.model.nf4_layers import quantize_layers
from tuneful.model.norms import epsilon_of
from tuneful.train import layout
from tuneful.train.layout import _why_not_in, choose_layout, self_check
from tuneful.train.loss import micro_batch_loss
from tuneful.types import Example

Plant = Callable[[pytest.MonkeyPatch, Any], None]
"""Changes the class of a part of a layer, as another version of transformers might; given that class."""


def around(change: Callable[..., Any]) -> Plant:
    """Plants `change(forward, module, *given, **named)` in the place of the forward."""

    def put(patch: pytest.MonkeyPatch, kind: Any) -> None:
        forward = kind.forward
        patch.setattr(kind, "forward", lambda *given, **named: change(forward, *given, **named))

    return put


def times(factor: float) -> Plant:
    """What the part gives is `factor` times as large."""

    def change(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        output = forward(*given, **named)
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    return around(change)


def of_output(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Plant:
    """A layer makes `change(given, output)` of what it is given and of its output."""
    return around(
        lambda forward, layer, given, *others, **named: change(given, forward(layer, given, *others, **named))
    )


def with_attribute(names: tuple[str, ...], factor: float) -> Plant:
    """Inside the forward each number called so, of the part or of a module in it, is `factor` times as large."""

    def change(forward: Callable[..., Any], part: Any, *given: Any, **named: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            places = [(module, name) for module in part.modules() for name in names if hasattr(module, name)]
            assert places
            for module, name in places:
                patch.setattr(module, name, getattr(module, name) * factor)
            return forward(part, *given, **named)

    return around(change)


PLANTED: dict[str, tuple[str, Plant]] = {
    "a scale": ("layer", of_output(lambda given, output: given + 2 * (output - given))),
    "a second residual": ("layer", of_output(lambda given, output: output + 0.3 * given)),
    "a branch left out": ("layer", of_output(lambda given, output: given + 0 * output)),
    "a scale of attention": ("attention", times(1.5)),
    "scores of another scale": ("attention", with_attribute(("scaling",), 3)),
    "a scale of the MLP": ("mlp", times(1.5)),
}
NORM_BEHIND, SCALED_PARTS = ("Olmo2", "Olmo3", "Gemma2", "Gemma3"), ("a scale of attention", "a scale of the MLP")
"""Families whose norm behind a part takes its scale away: there it is no change."""
EPSILONS = {
    f"epsilon times {factor}": ("layer", with_attribute(("variance_epsilon", "eps"), factor)) for factor in (10, 0.1)
}


def examples() -> list[Example]:
    """Records over the vocabulary of the small models."""
    return [
        Example(np.clip(one.token_ids, 0, 96).astype(np.int32), one.weights, one.num_prompt_tokens, one.source)
        for one in random_records(5)
    ]


def part_of(model: Any, name: str) -> Any:
    """The class of the layers of `model`, or of a part of them."""
    layer: Any = decoder._layers(model)[0]
    attention = layer.attn if hasattr(layer, "attn") else layer.self_attn
    return type({"layer": layer, "attention": attention, "mlp": layer.mlp}[name])


def as_trained(family: str) -> Any:
    """A random model in float32 whose layers add as much to the stream as those of a trained one."""
    model = small_model(family).float().train()
    for parameter in model.parameters():
        parameter.data *= 1 if parameter.ndim == 1 else 4
    assert is_served(model)
    return model


def proof(model: Any, dtype: torch.dtype) -> str | None:
    return self_check(model, examples()) if dtype == model.dtype else _why_not_in(dtype, model, [examples()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_another_transformers_computes_is_found(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = as_trained(family)
    assert proof(model, dtype) is None
    for name, (part, plant) in PLANTED.items():
        with monkeypatch.context() as patch:
            plant(patch, part_of(model, part))
            is_void = family in NORM_BEHIND and name in SCALED_PARTS
            assert is_void or "as a trie" in str(proof(model, dtype)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_epsilon_is_found_where_epsilons_are_as_large_as_what_they_are_added_to(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, few = as_trained(family), examples()
    assert _why_not_in(dtype, model, [few], raised=True) is None
    for name, (part, plant) in EPSILONS.items():
        with monkeypatch.context() as patch:
            plant(patch, part_of(model, part))
            assert "epsilons raised" in str(_why_not_in(dtype, model, [few], raised=True)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_planted_change_is_found_by_the_whole_choice_and_the_padded_batch_taken(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, few = tiny_model(family), random_records(8)
    for parameter in model.parameters():
        parameter.data *= 1 if parameter.ndim == 1 else 2
    for name, (part, plant) in {**PLANTED, **EPSILONS}.items():
        with monkeypatch.context() as patch:
            plant(patch, part_of(model, part))
            found = choose_layout(model, few, train_config(), dtype)
            assert (found.name, found.max_tokens > 1) == ("padded", True), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_code_that_no_test_has_seen_is_proved_on_two_more_batches_and_the_layout_says_so(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, records, checked = tiny_model("qwen3"), random_records(60), []
    before = [epsilon_of(module) for module in model.modules()]

    def check(model: Any, few: list[Example], *others: Any, **named: Any) -> str | None:
        checked.append((model.lm_head.weight.dtype, [one.source for one in few], model.model.norm.variance_epsilon))
        return self_check(model, few, *others, **named)

    monkeypatch.setattr(layout, "self_check", check)
    known = choose_layout(model, records, train_config(), dtype)
    assert (known.name, known.reason, known.note) == ("trie", None, None)
    usual = checked[:]
    checked.clear()

    times(1)(monkeypatch, part_of(model, "layer"))
    unknown = choose_layout(model, records, train_config(), dtype)
    assert (unknown.name, unknown.reason) == ("trie", None)
    assert unknown.note is not None
    assert unknown.note.startswith(
        f"the code of Qwen3 in transformers {transformers.__version__} is none of those tested"
    )
    assert unknown.note.endswith("the self-check compares two more batches")
    first, second, *raised = checked[len(usual) :]
    assert checked[: len(usual)] == usual
    assert first[0] is second[0] is dtype
    seen = {source for _, sources, _ in usual for source in sources}
    assert not seen & {*first[1], *second[1]}
    assert not set(first[1]) & set(second[1])
    assert [one[0] for one in raised] == [*dict.fromkeys((torch.float32, dtype))]
    assert all(one[1] == second[1] and one[2] > 1e-3 for one in raised)
    assert [epsilon_of(module) for module in model.modules()] == before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_records_are_enough_to_prove_unknown_code(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    times(1)(monkeypatch, part_of(model, "mlp"))
    found = choose_layout(model, random_records(count), train_config(), torch.bfloat16)
    assert found.name == "trie"
    assert found.note is not None


def test_unknown_code_matters_to_the_trie_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    times(1)(monkeypatch, part_of(model, "mlp"))
    assert choose_layout(model, random_records(6), train_config(layout="padded"), torch.float32).note is None
    monkeypatch.setattr(layout, "is_served", lambda _: False)
    assert choose_layout(model, random_records(6), train_config(), torch.float32).note is None


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
    found = choose_layout(model, few, train_config(), torch.bfloat16)
    assert found.name == "padded"
    assert str(found.reason).startswith("in bfloat16 the ")
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


def test_beside_a_base_in_4_bits_the_check_keeps_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama", hidden_size=64).bfloat16()
    seen = list[set[bool]]()
    quantize_layers(model, torch.bfloat16)
    add_adapter(model, LoraConfig(r=2))

    def watched(*given: Any) -> Any:
        seen.append({layer.gradient_checkpointing for layer in model.model.layers})
        return micro_batch_loss(*given)

    monkeypatch.setattr(layout, "micro_batch_loss", watched)
    assert self_check(model, random_records(3)) is None
    assert seen == [{True}] * 4
    assert not any(layer.gradient_checkpointing for layer in model.model.layers)
