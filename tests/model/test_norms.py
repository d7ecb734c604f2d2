"""RMS norms by the compiled kernels: values and gradient of the formula, and hands off everything else."""

import copy
from typing import Any

import pytest
import torch
from tests.doubles.engine import (
    FAMILIES,
    assert_close,
    assert_the_same_in,
    random_records,
    run_alone,
    run_batches,
    tiny_model,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from tuneful.model import native, norms
from tuneful.model.norms import RmsNorm, normalized
from tuneful.train.loss import micro_batch_loss

pytestmark = pytest.mark.usefixtures("compiled")
EPSILON = 0.01


def formula(rows, weight, shift):
    return (weight + shift) * rows * (rows.square().mean(-1, keepdim=True) + EPSILON).rsqrt()


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 50, 24), (1, 7, 4, 8), (3, 576), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_norm_and_its_gradient_are_those_of_the_formula(shift, shape, dtype):
    torch.manual_seed(0)
    rows, upstream = torch.randn(shape).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype).requires_grad_()
    exact = rows.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    wanted = formula(*exact, shift)
    found = RmsNorm.apply(rows, weight, EPSILON, shift, native.kernels(torch.device("cpu"), dtype))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    gradients = torch.autograd.grad(found, (rows, weight), upstream)
    others = torch.autograd.grad(wanted, exact, upstream.double())
    for one, other in zip((found.detach(), *gradients), (wanted.detach(), *others), strict=True):
        assert one.dtype is dtype
        assert (one.double() - other).norm() <= tolerance * (1 + other.norm())


@pytest.mark.parametrize(("norm", "shift"), [(LlamaRMSNorm, 0.0), (GemmaRMSNorm, 1.0)])
def test_in_bfloat16_it_is_rounded_where_transformers_rounds_it(norm, shift):
    torch.manual_seed(0)
    module, rows = norm(576, eps=1e-5).to(torch.bfloat16), torch.randn(40, 576).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.copy_(torch.randn(576))
        found = RmsNorm.apply(rows, module.weight, 1e-5, shift, native.kernels(torch.device("cpu"), torch.bfloat16))
        assert (found == module(rows)).float().mean() > 0.999  # sums of another order differ now and then


def test_rows_that_are_not_neighbours_in_memory_get_their_own_gradient():
    torch.manual_seed(0)
    rows = torch.randn(24, 9, dtype=torch.float64).T.requires_grad_()
    weight = torch.randn(24, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(24, 9, dtype=torch.float64).T
    wanted = formula(rows, weight, 0.0)
    found = RmsNorm.apply(rows, weight, EPSILON, 0.0, native.kernels(torch.device("cpu"), torch.float64))
    torch.testing.assert_close(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found, (rows, weight), upstream),
        torch.autograd.grad(wanted, (rows, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [2, 3, 5])
def test_no_result_depends_on_the_number_of_threads(num_threads, dtype):
    torch.manual_seed(0)
    rows, upstream = torch.randn(53, 24).to(dtype).requires_grad_(), torch.randn(53, 24).to(dtype)
    module = LlamaRMSNorm(24).to(dtype)

    def computed():
        found = normalized(module, rows)
        return found, *torch.autograd.grad(found, (rows, module.weight), upstream)

    assert_the_same_in(num_threads, computed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_is_written_past_the_end(dtype, monkeypatch):
    torch.manual_seed(0)
    rows, upstream = torch.randn(7, 23).to(dtype).requires_grad_(), torch.randn(7, 23).to(dtype)
    module, surroundings = LlamaRMSNorm(23).to(dtype), []

    def surrounded(shape, dtype):
        size = torch.Size(shape).numel()
        surroundings.append((torch.full((size + 256,), 7.0, dtype=dtype), size))
        return surroundings[-1][0][128 : 128 + size].view(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", lambda tensor, size, dtype: surrounded((size,), dtype))
        patch.setattr(torch, "empty_like", lambda like: surrounded(like.shape, like.dtype))
        torch.autograd.grad(normalized(module, rows), (rows, module.weight), upstream)
    assert len(surroundings) == 2 + 4  # output and workspace; two gradients, sums and workspace
    for around, size in surroundings:
        assert (around[:128] == 7).all()
        assert not (around[128 : size + 128] == 7).all()
        assert (around[size + 128 :] == 7).all()


class HalvedRMSNorm(LlamaRMSNorm):
    """Looks like one and computes something else."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) / 2


class BareRMSNorm(torch.nn.Module):
    """Another constructor."""

    def __init__(self):
        super().__init__()


def test_a_norm_is_known_by_what_it_computes():
    shifts = {
        norm: norms._tried(norm)
        for norm in (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, Olmo2RMSNorm, GemmaRMSNorm, Gemma3RMSNorm)
    }
    assert list(shifts.values()) == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert norms._tried(HalvedRMSNorm) is norms._tried(BareRMSNorm) is norms._tried(torch.nn.LayerNorm) is None


def test_a_weight_that_is_computed_is_used_and_what_it_is_computed_of_gets_its_gradient():
    module, rows = LlamaRMSNorm(8), torch.randn(3, 8)
    torch.nn.utils.parametrize.register_parametrization(module, "weight", torch.nn.Softplus())
    (parameter,) = module.parameters()
    found, wanted = normalized(module, rows), module(rows)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(both.sum(), parameter)[0] for both in (found, wanted)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_gives_the_same_loss_and_keeps_less(family, monkeypatch):
    model, examples = tiny_model(family), random_records(5)

    def forward():
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x
        ):
            return micro_batch_loss(model, examples, "trie").total.detach(), sum(kept)

    loss, less = forward()
    monkeypatch.setattr(norms, "kernels", lambda *_: None)
    other, kept = forward()
    torch.testing.assert_close(loss, other)
    assert less < kept or family == "gpt2"


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_norms_still_pass_gradients_on(family):
    models = [tiny_model(family), tiny_model(family)]
    for model in models:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim > 1)
    examples = random_records(5)
    assert_close(run_batches(models[0], [examples], "trie"), run_alone(models[1], examples), 1e-5)


@pytest.mark.parametrize("why", ["padded", "TUNEFUL_NATIVE=0"])
def test_a_model_that_attends_its_own_way_or_runs_without_kernels_leaves_norms_to_autograd(why, monkeypatch):
    model, examples = tiny_model(), random_records(3)
    wanted = run_batches(model, [examples], "trie")
    monkeypatch.setattr(RmsNorm, "apply", lambda *_: pytest.fail("used"))
    if why != "padded":
        monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    assert_close(run_batches(model, [examples], "padded" if why == "padded" else "trie"), wanted, 1e-5)


CASES: dict[str, Any] = {
    "rows of another dtype": (LlamaRMSNorm(8), torch.randn(3, 8).double()),
    "a weight of another dtype": (LlamaRMSNorm(8).double(), torch.randn(3, 8)),
    "no rows": (LlamaRMSNorm(8), torch.randn(0, 8)),
    "one weight for all": (LlamaRMSNorm(1), torch.randn(3, 8)),
    "another computation": (HalvedRMSNorm(8), torch.randn(3, 8)),
    "another norm": (torch.nn.LayerNorm(8), torch.randn(3, 8)),
    "no weight at all": (torch.nn.Identity(), torch.randn(3, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_kernels_do_not_serve_is_the_modules_own(case, monkeypatch):
    module, rows = copy.deepcopy(CASES[case][0]), CASES[case][1].clone().requires_grad_()
    monkeypatch.setattr(RmsNorm, "apply", lambda *_: pytest.fail("used"))
    found, wanted = normalized(module, rows), module(rows)
    assert torch.equal(found, wanted)
    for one, other in zip(*(torch.autograd.grad(both.sum(), rows) for both in (found, wanted)), strict=True):
        assert torch.equal(one, other)


def test_rows_of_another_size_are_refused():
    with pytest.raises(RuntimeError):
        normalized(LlamaRMSNorm(8), torch.randn(3, 9))


def test_a_single_row_is_normalized_as_well():
    module, row = LlamaRMSNorm(8), torch.randn(8, requires_grad=True)
    found, wanted = normalized(module, row), module(row)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(both.sum(), row)[0] for both in (found, wanted)))
