"""float16: gradients of a multiple of the loss, which is halved where one is too large; a training that goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.doubles.engine import TRIE, random_records, tiny_model, train_config

from tuneful.config import LoraConfig
from tuneful.errors import DivergedError
from tuneful.model.lora import add_adapter
from tuneful.runs.schema import Event, Notice, Step, TrainingState
from tuneful.train import loop, loss_scale
from tuneful.train.layout import choose_layout
from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW

SETTINGS = {"batch_size": 4, "max_steps": 6, "eval_steps": 100, "learning_rate": 5e-3, "keep": "last"}


def begun(dtype: torch.dtype, method: str = "lora", **changes: Any) -> Training:
    """A training of a tiny model, or of an adapter beside it, that computes in `dtype`."""
    model: Any = tiny_model()
    if method == "lora":
        torch.manual_seed(0)
        add_adapter(model, LoraConfig(r=2))
    config = train_config(**{**SETTINGS, "method": method, **changes})
    return Training(model, AdamW(model, config, dtype), random_records(12), [], config, replace(TRIE, max_tokens=40))


def steps_of(training: Training, number: int | None = None) -> list[Event]:
    events = []
    for event in training.run():
        events.append(event)
        if isinstance(event, Step) and event.step == number:
            break
    return events


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Step)]


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.optimizer.weights().items()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_float16_learns_what_float32_learns_with_float32_masters(method: str) -> None:
    low, high = begun(torch.float16, method), begun(torch.float32, method)
    found, wanted = losses(steps_of(low)), losses(steps_of(high))
    assert found == pytest.approx(wanted, rel=5e-3)
    assert {tensor.dtype for tensor in low.optimizer.weights().values()} == {torch.float32}
    assert {one.dtype for one in low.model.parameters()} == {torch.float16}
    assert low.state.loss_scale in (loss_scale.FIRST_SCALE, loss_scale.FIRST_SCALE / 4)
    assert low.state.steps_at_scale == 6
    assert high.state.loss_scale is None


def test_gradients_that_float16_cannot_hold_survive_by_the_scale() -> None:
    """Of a loss a millionth as large, most would be 0."""
    parameter = torch.nn.Parameter(torch.full((4,), 1.0, dtype=torch.float16))
    for scale in (1.0, loss_scale.FIRST_SCALE):
        (gradient,) = torch.autograd.grad((parameter * torch.tensor(1e-9) * scale).sum(), parameter)
        assert gradient.all() == gradient.any() == (scale > 1)


class Overflowing:
    """`micro_batch_loss` whose gradient is too large for float16 from a scale on, in one step: a planted overflow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_step: int, factor: float) -> None:
        self.training: Training | None = None
        real = getattr(loop, "micro_batch_loss")  # noqa: B009

        def planted(model: Any, *given: Any) -> Any:
            found = real(model, *given)
            assert self.training is not None
            if self.training.state.step + 1 != at_step or not torch.is_grad_enabled():
                return found
            parameter = next(one for one in model.parameters() if one.requires_grad)
            nothing = (
                parameter.float() * factor
            ).sum()  # worth 0, with a gradient that float16 holds at a small scale alone
            return replace(found, total=found.total + (nothing - nothing.detach()) * 1.0)

        monkeypatch.setattr(loop, "micro_batch_loss", planted)


def test_a_gradient_that_is_too_large_halves_the_scale_and_the_step_is_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = Overflowing(monkeypatch, 3, 4000.0)
    planted.training = training = begun(torch.float16)
    events = steps_of(training)
    notices = [event for event in events if isinstance(event, Notice)]
    assert {(one.step, one.notice) for one in notices} == {(1, "loss_scale"), (3, "loss_scale")}
    assert "too large for float16 at a loss scale of 65536: the step is computed again at 32768" in notices[0].sentence
    assert sum(one.step == 3 for one in notices) >= 3
    assert len(losses(events)) == 6, "no step is left out"
    assert training.state.loss_scale == 2.0**16 / 2 ** len(notices)
    assert training.state.steps_at_scale == 4
    planted.training = straight = begun(torch.float32)
    assert losses(events) == pytest.approx(losses(steps_of(straight)), rel=5e-3)


def test_a_training_goes_on_with_its_scale_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Overflowing(monkeypatch, 2, 4000.0)
    planted.training = straight = begun(torch.float16)
    wanted = losses(steps_of(straight))
    planted.training = first = begun(torch.float16)
    steps_of(first, 3)
    kept, moments = weights(first), {name: one.clone() for name, one in first.optimizer.moments().items()}
    state = replace(first.state)
    assert (state.loss_scale or 0) < loss_scale.FIRST_SCALE
    second = begun(torch.float16)
    second.optimizer.restore(3, kept, moments, {})
    second.state = state
    planted.training = second
    assert losses(steps_of(second)) == wanted[3:]
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, second.optimizer.weights()[name]), name
    assert (second.state.loss_scale, second.state.steps_at_scale) == (
        straight.state.loss_scale,
        straight.state.steps_at_scale,
    )


def test_where_no_scale_helps_the_training_ends_and_names_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Overflowing(monkeypatch, 2, 1e9)
    planted.training = training = begun(torch.float16)
    steps_of(training, 1)
    before = weights(training)
    with pytest.raises(DivergedError, match=r"step 2: the gradient's norm is inf: not finite"):
        steps_of(training)
    assert training.state.loss_scale == loss_scale.LEAST_SCALE
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(training).items())


def test_after_many_steps_a_larger_scale_is_tried_and_the_least_is_not_halved() -> None:
    state = TrainingState()
    assert loss_scale.current(state, is_scaled=False) == 1.0
    loss_scale.count(state)
    assert (state.loss_scale, state.steps_at_scale) == (None, 0)
    assert loss_scale.lower(state, 1) is None
    assert loss_scale.current(state, is_scaled=True) == loss_scale.FIRST_SCALE
    for _ in range(loss_scale.STEPS_AT_A_SCALE):
        loss_scale.count(state)
    assert (state.loss_scale, state.steps_at_scale) == (2 * loss_scale.FIRST_SCALE, 0)
    state.loss_scale = loss_scale.LARGEST_SCALE
    for _ in range(loss_scale.STEPS_AT_A_SCALE):
        loss_scale.count(state)
    assert state.loss_scale == loss_scale.LARGEST_SCALE
    while loss_scale.lower(state, 1):
        pass
    assert state.loss_scale == loss_scale.LEAST_SCALE


def test_a_model_in_float16_is_proved_in_float16_and_shares_prefixes() -> None:
    model: Any = tiny_model(dtype=torch.float16)
    add_adapter(model, LoraConfig(r=2))
    found = choose_layout(model, random_records(8), train_config(method="lora"), torch.float16)
    assert (found.name, found.reason) == ("trie", None)
