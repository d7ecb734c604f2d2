"""Weights laid out for answering stay so while the model only answers, and no longer than they are what they were."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from tests.doubles.engine import tiny_model

from tuneful.config import GenerateConfig, LoraConfig
from tuneful.infer import decode
from tuneful.infer.compiled import CompiledModel
from tuneful.infer.decode import keep_laid_out, laid_out
from tuneful.infer.generate import generate
from tuneful.model.lora import add_adapter

CONFIG = GenerateConfig(temperature=0, max_new_tokens=4)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that is laid out."""
    found: list[Any] = []
    lay_out = decode._lay_out

    def counted(model: Any) -> Any:
        found.append(lay_out(model))
        return found[-1]

    monkeypatch.setattr(decode, "_lay_out", counted)
    return found


def small() -> Any:
    return tiny_model("llama", initializer_range=0.3).eval()


def answered(model: Any) -> tuple[int, ...]:
    return dict(generate(model, [[1, 2, 3]], CONFIG, ()))[0].token_ids


def test_a_second_call_finds_the_weights_as_the_first_laid_them_out(made: list[Any]) -> None:
    model = small()
    keep_laid_out(model)
    first, second = answered(model), answered(model)
    assert first == second
    assert len(made) == 1
    assert isinstance(made[0][1], CompiledModel)
    assert answered(small()) == first
    assert len(made) == 2


def test_a_model_that_is_not_asked_to_keep_them_does_not(made: list[Any]) -> None:
    model = small()
    answered(model)
    answered(model)
    assert len(made) == 2
    weights = weakref.ref(made.pop()[1])
    made.clear()
    assert weights() is None, "the copy is freed with the answers"


def _written(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.mul_(-3)


def _replaced(model: Any) -> None:
    model.model.layers[-1].mlp.down_proj.weight.data = model.model.layers[-1].mlp.down_proj.weight.data * -3


def _loaded(model: Any) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["model.layers.1.mlp.down_proj.weight"] *= -3
    model.load_state_dict(state)


@pytest.mark.parametrize("change", [_written, _replaced, _loaded])
def test_weights_that_have_changed_are_laid_out_anew_and_the_old_are_freed(change: Any, made: list[Any]) -> None:
    model, plain = small(), small()
    keep_laid_out(model)
    answered(model)
    old = weakref.ref(made.pop()[1])
    change(model)
    change(plain)
    assert answered(model) == answered(plain)
    assert old() is None
    assert laid_out(model)[1] is laid_out(model)[1]


def _hooked(model: Any) -> Any:
    return model.model.layers[-1].mlp.register_forward_hook(lambda module, given, found: -3 * found).remove


def _own_forward(model: Any) -> Any:
    layer = model.model.layers[-1].mlp
    layer.forward = lambda rows: -3 * type(layer).forward(layer, rows)
    return lambda: vars(layer).pop("forward")


def _stronger(model: Any) -> Any:
    scalings = [module.scaling for module in model.modules() if hasattr(module, "lora_A")]
    for scaling in scalings:
        scaling["default"] *= 40
    return lambda: [scaling.update(default=scaling["default"] / 40) for scaling in scalings]


def _switched_off(model: Any) -> Any:
    adapters = [module for module in model.modules() if hasattr(module, "lora_A")]
    for one in adapters:
        one.enable_adapters(False)
    return lambda: [one.enable_adapters(True) for one in adapters]


@pytest.mark.parametrize("change", [_hooked, _own_forward, _stronger, _switched_off])
def test_what_computes_otherwise_with_the_same_weights_is_seen(change: Any) -> None:
    model, plain = small(), small()
    for one in (model, plain):
        torch.manual_seed(1)
        add_adapter(one, LoraConfig(r=2))
        for name, parameter in one.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.05)
    keep_laid_out(model)
    before = answered(model)
    back = change(model)
    change(plain)
    assert answered(model) == answered(plain) != before
    back()
    assert answered(model) == before


def test_a_copy_of_the_model_has_its_own_and_both_are_freed_at_once(made: list[Any]) -> None:
    model = small()
    keep_laid_out(model)
    answered(model)
    other = copy.deepcopy(model)
    _written(other)
    assert laid_out(other)[1] is not laid_out(model)[1]
    gone = [weakref.ref(one[1]) for one in made]
    made.clear()
    gc.disable()
    try:
        del model, other
        assert [one() for one in gone] == [None, None], "no cycle keeps them until the collector comes by"
    finally:
        gc.enable()


def test_where_there_was_no_room_it_is_tried_again(made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    keep_laid_out(model)
    with monkeypatch.context() as patch:
        patch.setattr("tuneful.infer.compiled.room_for_a_copy", lambda _: False)
        answered(model)
    answered(model)
    answered(model)
    assert [isinstance(one[1], CompiledModel) for one in made] == [False, True]
