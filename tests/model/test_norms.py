"""RMS norms by the compiled kernels: values and gradient of the formula, and hands off everything else."""

from typing import Any

import pytest
import torch
from tests.doubles.engine import FAMILIES, assert_close, random_records, run_alone, run_batches, tiny_model
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from tuneful.model import native, norms
from tuneful.model.attention import use_trie_attention
from tuneful.model.deferred import SiluOutput
from tuneful.model.norms import RmsNorm, normalize_compiled

pytestmark = pytest.mark.usefixtures("compiled")
EPSILON = 0.01


def formula(rows, weight, shift):
    return (weight + shift) * rows * (rows.square().mean(-1, keepdim=True) + EPSILON).rsqrt()


def num_hooks(module):
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


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


class HalvedRMSNorm(LlamaRMSNorm):
    """Looks like one and computes something else."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) / 2


class BareRMSNorm(torch.nn.Module):
    """Another constructor."""

    def __init__(self):
        super().__init__()


def test_a_norm_is_known_by_what_it_computes():
    shifts = {norm: norms._tried(norm) for norm in (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, GemmaRMSNorm)}
    assert list(shifts.values()) == [0.0, 0.0, 0.0, 1.0]
    assert norms._tried(HalvedRMSNorm) is norms._tried(BareRMSNorm) is norms._tried(torch.nn.LayerNorm) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_gives_the_same_logits_and_keeps_less(family):
    model = tiny_model(family)
    wanted: list[Any] = []
    ids = torch.arange(12)[None]

    def forward():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x
        ):
            return model(input_ids=ids, use_cache=False).logits, sum(kept)

    logits, kept = forward()
    normalize_compiled(model, lambda: bool(wanted))
    unwanted = forward()
    wanted.append("now")
    others, less = forward()
    torch.testing.assert_close(others, logits)
    assert unwanted[1] == kept
    assert less < kept or family == "gpt2"


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_norms_still_pass_gradients_on(family):
    models = [tiny_model(family), tiny_model(family)]
    for model in models:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim > 1)
    examples = random_records(5)
    assert_close(run_batches(models[0], [examples], "trie"), run_alone(models[1], examples), 1e-5)


def test_a_model_is_hooked_once_and_its_own_way_of_attending_leaves_norms_to_autograd(monkeypatch):
    model = tiny_model()
    for _ in range(2):
        use_trie_attention(model)
    assert {num_hooks(module) for module in model.modules() if type(module) is LlamaRMSNorm} == {2}
    monkeypatch.setattr(RmsNorm, "apply", lambda *_: pytest.fail("used"))
    run_batches(model, [random_records(3)], "padded")


def test_without_compiled_kernels_nothing_is_hooked(monkeypatch):
    monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    model = tiny_model()
    use_trie_attention(model)
    assert not any(num_hooks(module) for module in model.modules())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", ["another dtype", "a deferred tensor", "one dimension"])
def test_what_the_kernels_do_not_serve_is_the_modules_own(case, monkeypatch):
    module, library = LlamaRMSNorm(8), native.kernels(torch.device("cpu"), torch.float32)
    assert library is not None
    leaf = torch.randn(3, 8, requires_grad=True)
    rows, wanted = {
        "another dtype": lambda: (leaf.double(), leaf.double()),
        "a deferred tensor": lambda: (SiluOutput(leaf, library, leaf), torch.nn.functional.silu(leaf)),
        "one dimension": lambda: (leaf[0], leaf[0]),
    }[case]()
    expected = torch.autograd.grad(module(wanted).sum(), leaf)[0]
    norms._hook(module, 0.0, library, lambda: True)
    monkeypatch.setattr(RmsNorm, "apply", lambda *_: pytest.fail("used"))
    assert torch.equal(torch.autograd.grad(module(rows).sum(), leaf)[0], expected)
