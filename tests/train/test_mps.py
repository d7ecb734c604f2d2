"""Training and answering on the GPU of an Apple processor, as far as that can be shown without one: on a device that is pretended
(tests/doubles/pretended.py), with the rules of MPS and the arithmetic of this processor. It has not run on a Mac."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles.engine import PADDED, TRIE, random_records, tiny_model, train_config
from tests.doubles.pretended import Pretended, pretended_device

from tuneful.config import GenerateConfig, load_config
from tuneful.infer.generate import generate
from tuneful.model.behaviour import relative_difference
from tuneful.model.memory import available_bytes, shared_bytes, total_bytes
from tuneful.model.nf4_layers import quantize_layers
from tuneful.model.precision import choose_device, in_float64
from tuneful.runs.environment import peak_memory_bytes
from tuneful.runs.method import begin_method
from tuneful.runs.schema import Layout, Step
from tuneful.train.layout import choose_layout
from tuneful.train.loop import Training
from tuneful.train.loss import micro_batch_loss
from tuneful.train.optimizer import AdamW
from tuneful.train.preference import response_logps


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setenv(
        "TUNEFUL_NATIVE", "0"
    )  # what the processor would compute by its own kernels, the device does not
    with pretended_device(monkeypatch) as found:
        yield found


def trained(dtype: torch.dtype, layout: Layout, device: torch.device | str, **changes: Any) -> tuple[list[float], Any]:
    """The losses of four steps of a tiny model, and its weights at the end."""
    model, config = tiny_model("llama").to(device), train_config(max_steps=4, **changes)
    optimizer = AdamW(model, config, dtype)
    events = list(Training(model, optimizer, random_records(8), random_records(3), config, layout).run())
    optimizer.masters_to_model()
    weights = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    return [event.loss for event in events if isinstance(event, Step)], weights


@pytest.mark.parametrize("layout", [TRIE, PADDED], ids=["trie", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_on_the_device_is_that_of_the_host(dtype: torch.dtype, layout: Layout, device: torch.device) -> None:
    """With its validation, its clipping and its checkpointed weights, and nothing in float64 on the device."""
    changes = {"max_grad_norm": 0.05, "micro_batch_tokens": 40}
    losses, weights = trained(dtype, layout, device, **changes)
    wanted, kept = trained(dtype, layout, "cpu", **changes)
    # In bfloat16 torch's attention has another kernel for processors, and rows of a tied matrix are added in another order. In
    # float32 a gradient of the size of rounding moves a weight by AdamW as one would: 1e-6 is a thousandth of a step.
    exact = dtype is torch.float32
    np.testing.assert_allclose(losses, wanted, rtol=1e-6 if exact else 1e-3)
    for name, weight in weights.items():
        assert not isinstance(weight, Pretended)
        torch.testing.assert_close(weight, kept[name], rtol=1e-6, atol=1e-6 if exact else 1e-3)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_trained_on_the_device_as_on_the_host(method: str, device: torch.device) -> None:
    config = load_config(None, [f"train.method={method}", "train.max_steps=3", "train.warmup_steps=0"])

    def losses(place: torch.device) -> list[float]:
        model = tiny_model("llama")
        if method == "qlora":
            quantize_layers(model, torch.float32)
        begin_method(model, config, place)
        optimizer = AdamW(model, config.train, torch.float32)
        events = Training(model, optimizer, random_records(8), [], config.train, TRIE).run()
        return [event.loss for event in events if isinstance(event, Step)]

    np.testing.assert_allclose(losses(device), losses(torch.device("cpu")), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_self_check_proves_the_trie_on_the_device(dtype: torch.dtype, device: torch.device) -> None:
    found = choose_layout(tiny_model("llama").to(device), random_records(6), train_config(), dtype)
    assert (found.name, found.note) == ("trie", None)


def test_the_slopes_of_a_preference_reach_the_device(device: torch.device) -> None:
    def slopes(place: torch.device | str) -> torch.Tensor:
        model = tiny_model("llama").to(place)
        found = micro_batch_loss(model, random_records(2), "trie")
        response_logps(found, found.record_targets).square().sum().backward()
        found_slopes: torch.Tensor = model.model.layers[0].mlp.up_proj.weight.grad.cpu()
        return found_slopes

    assert relative_difference(slopes(device), slopes("cpu")) < 1e-6


def test_answers_of_the_device_are_those_of_the_host(device: torch.device) -> None:
    prompts, settings = [[1, 2, 3], [4, 5]], GenerateConfig(max_new_tokens=4, temperature=0.7, top_p=0.9)

    def answers(place: torch.device | str) -> dict[int, Any]:
        found = generate(tiny_model("llama").to(place).eval(), prompts, settings, {0})
        return {number: generated.token_ids for number, generated in found}

    assert answers(device) == answers("cpu")


def test_memory_is_what_the_system_gives_the_device(device: torch.device) -> None:
    assert total_bytes(device) == 8 << 30
    assert 0 < available_bytes(device) <= (8 << 30) - (1 << 20)
    assert shared_bytes(device) == 1 << 20
    assert shared_bytes(torch.device("cpu")) == 0
    assert (peak_memory_bytes(device) or 0) > (peak_memory_bytes(torch.device("cpu")) or 0)


def test_out_of_several_processes_each_computes_on_its_processor(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device("auto").type != "mps"


# The pretended device is as strict as the real one


def test_the_device_refuses_float64(device: torch.device) -> None:
    there = torch.ones(3).to(device)
    for made in (
        lambda: there.double(),
        lambda: torch.zeros(2, dtype=torch.float64, device=device),
        lambda: torch.from_numpy(np.ones(2)).to(device),
        lambda: there.sum(dtype=torch.float64),
        lambda: torch.zeros(2, dtype=torch.uint16, device=device),
    ):
        with pytest.raises(TypeError, match="MPS"):
            made()
    assert in_float64(there).sum().item() == 3


def test_the_device_refuses_tensors_of_the_host(device: torch.device) -> None:
    there = torch.ones(3, 2).to(device)
    with pytest.raises(AssertionError, match="tensors of the host"):
        there.index_select(0, torch.tensor([1]))
    with pytest.raises(RuntimeError):
        there.numpy()
    assert there[torch.tensor([1])].device.type == "mps"
    assert (there + 1).cpu().tolist() == [[2.0, 2.0]] * 3


def test_attention_with_its_indices_on_the_host_would_be_found(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneful.model.attention.moved", lambda groups, _: groups)
    with pytest.raises(AssertionError, match="tensors of the host"):
        micro_batch_loss(tiny_model("llama").to(device), random_records(2), "trie")
