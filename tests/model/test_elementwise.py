"""Rotary embedding and gated SiLU in one pass each: the values and gradients of the formulas, for what the kernels serve."""

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
from torch.nn import functional as F
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as rotate_olmos
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as rotate_part

from tuneful.model import native
from tuneful.model.elementwise import GatedSilu, Rotation, gated, rotated

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def library(compiled):
    return native.kernels(CPU, torch.float32)


def random(*shape, dtype=torch.float64, gradient=False):
    return torch.randn(shape).to(dtype).requires_grad_(gradient)


def angles(num_nodes, size, dtype=torch.float64):
    """Cosines and sines that differ between the two halves, as a model's never do: who mixes them up shows."""
    return random(1, num_nodes, size, dtype=dtype), random(1, num_nodes, size, dtype=dtype)


def assert_alike(found, wanted):
    assert type(found) is torch.Tensor
    assert found.shape == wanted.shape
    difference = (found.double() - wanted.double()).norm()
    assert difference <= TOLERANCE[found.dtype] * (1 + wanted.double().norm())


def node_of(tensor):
    return type(tensor.grad_fn).__name__


# ------------------------------------------------------------------------------------------------------------ rotation


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("num_nodes", "num_heads", "size"), [(1, 1, 2), (7, 3, 8), (50, 9, 64), (33, 2, 6)])
def test_a_rotation_and_its_gradient_are_those_of_the_formula(num_nodes, num_heads, size, dtype):
    torch.manual_seed(0)
    cosines, sines = angles(num_nodes, size, dtype)
    query = random(1, num_nodes, num_heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
    key = random(1, num_nodes, 1, size, dtype=dtype).transpose(1, 2).requires_grad_()
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key)]
    wanted = apply_rotary_pos_emb(*exact, cosines.double(), sines.double())
    for leaf, other, exactly in zip((query, key), wanted, exact, strict=True):
        one = rotated(leaf, cosines, sines)
        assert node_of(one) == "RotationBackward"
        assert_alike(one.detach(), other.detach())
        upstream = random(*one.shape, dtype=dtype)
        assert_alike(*torch.autograd.grad(one, leaf, upstream), *torch.autograd.grad(other, exactly, upstream.double()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("size", "part"), [(8, 6), (64, 48), (6, 2)])
def test_of_a_head_that_is_rotated_in_part_the_rest_stays(size, part, dtype):
    torch.manual_seed(0)
    cosines, sines = angles(9, part, dtype)
    query, key = (random(1, heads, 9, size, dtype=dtype, gradient=True) for heads in (3, 1))
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key)]
    wanted = rotate_part(*exact, cosines.double(), sines.double())
    for leaf, other, exactly in zip((query, key), wanted, exact, strict=True):
        one = rotated(leaf, cosines, sines)
        assert torch.equal(one[..., part:], leaf[..., part:])
        assert_alike(one.detach(), other.detach())
        upstream = random(*one.shape, dtype=dtype)
        assert_alike(*torch.autograd.grad(one, leaf, upstream), *torch.autograd.grad(other, exactly, upstream.double()))


def test_a_gradient_in_another_layout_is_rotated_back_as_well():
    torch.manual_seed(0)
    cosines, sines = angles(5, 4)
    query, upstream = random(1, 2, 5, 4, gradient=True), random(1, 2, 4, 5).transpose(2, 3)
    wanted, _ = apply_rotary_pos_emb(query, query.detach(), cosines, sines)
    found = rotated(query, cosines, sines)
    assert_alike(*torch.autograd.grad(found, query, upstream), *torch.autograd.grad(wanted, query, upstream))


@pytest.mark.parametrize("layout", ["numbers apart", "angles apart", "heads of a wider tensor"])
def test_values_in_another_layout_are_rotated_as_well(layout):
    torch.manual_seed(0)
    cosines, sines = angles(5, 4)
    query = random(1, 2, 5, 4)
    if layout == "numbers apart":
        query = random(1, 2, 4, 5).transpose(2, 3)
    elif layout == "angles apart":
        cosines, sines = (random(1, 4, 5).transpose(1, 2) for _ in range(2))
    else:
        query = random(1, 5, 6, 4)[:, :, 1:3].transpose(1, 2)
    wanted, _ = apply_rotary_pos_emb(query, query, cosines, sines)
    assert_alike(rotated(query, cosines, sines), wanted)


def test_angles_that_are_learnt_get_their_gradient():
    class LearntRotaryEmbedding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cosines, self.sines = (torch.nn.Parameter(random(1, 6, 8, dtype=torch.float32)) for _ in range(2))

        def forward(self, *_):
            return self.cosines, self.sines

    torch.manual_seed(0)
    module = LearntRotaryEmbedding()
    query, key = (random(1, heads, 6, 8, dtype=torch.float32) for heads in (3, 1))
    for frozen in ((), (module.cosines,), (module.sines,)):
        for parameter in module.parameters():
            parameter.requires_grad_(not any(parameter is other for other in frozen))
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        wanted = apply_rotary_pos_emb(query, key, *module())
        found = [rotated(values, *module()) for values in (query, key)]
        assert all(map(torch.equal, found, wanted))
        gradients, others = (torch.autograd.grad([one.sum() for one in both], trained) for both in (found, wanted))
        assert all(map(torch.equal, gradients, others))


@pytest.mark.parametrize("case", ["another dtype", "one angle for all", "two sequences"])
def test_a_rotation_that_the_kernels_do_not_serve_is_torchs(case):
    torch.manual_seed(0)
    (cosines, sines), query = angles(6, 8), random(1, 3, 6, 8, gradient=True)
    if case == "another dtype":
        cosines, sines = cosines.float(), sines.float()
    elif case == "one angle for all":
        cosines, sines = cosines[:, :1], sines[:, :1]
    else:
        query = random(2, 3, 6, 8, gradient=True)
    found, (wanted, _) = rotated(query, cosines, sines), apply_rotary_pos_emb(query, query, cosines, sines)
    assert node_of(found) != "RotationBackward"
    assert torch.equal(found, wanted)


def test_angles_in_float32_leave_values_their_precision():
    """OLMo's are; its own rotation gives back what it got."""
    torch.manual_seed(0)
    query, angles_of_it = random(1, 3, 6, 8, dtype=torch.bfloat16), angles(6, 8, torch.float32)
    found, (wanted, _) = rotated(query, *angles_of_it), rotate_olmos(query, query, *angles_of_it)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("num_nodes", [5, 7])
def test_angles_of_another_number_of_nodes_are_refused(num_nodes):
    with pytest.raises(RuntimeError):
        rotated(random(1, 3, 6, 8), *angles(num_nodes, 8))


# ---------------------------------------------------------------------------------------------------------------- gate


@pytest.mark.parametrize("activation", [torch.nn.SiLU(), SiLUActivation()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (1, 7, 1000), (2, 1025)])
def test_a_gate_and_its_gradient_are_those_of_the_formula(shape, dtype, activation):
    torch.manual_seed(0)
    gate, up = (random(*shape, dtype=dtype, gradient=True) for _ in range(2))
    exact = [tensor.detach().double().requires_grad_() for tensor in (gate, up)]
    found, wanted = gated(activation, gate, up), F.silu(exact[0]) * exact[1]
    assert node_of(found) == "GatedSiluBackward"
    assert_alike(found.detach(), wanted.detach())
    upstream = random(*shape, dtype=dtype)
    gradients = torch.autograd.grad(found, (gate, up), upstream)
    for one, other in zip(gradients, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        assert_alike(one, other)


def test_halves_of_one_tensor_and_gradients_in_another_layout():
    """As Phi 3 cuts gate and up out of one product."""
    torch.manual_seed(0)
    both, upstream = random(4, 12, gradient=True), random(6, 4).T
    exact = both.detach().clone().requires_grad_()
    found, wanted = gated(torch.nn.SiLU(), *both.chunk(2, -1)), F.silu(exact[:, :6]) * exact[:, 6:]
    assert_alike(found.detach(), wanted.detach())
    assert_alike(*torch.autograd.grad(found, both, upstream), *torch.autograd.grad(wanted, exact, upstream))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_gate_wide_open_and_shut(dtype, library):
    gate = torch.tensor([-1e4, -800, -100, -88.5, -20, 0, 20, 100, 800, 1e4], dtype=dtype, requires_grad=True)
    up = torch.full_like(gate, 3).requires_grad_()
    found = GatedSilu.apply(gate, up, library)
    assert_alike(found.detach(), F.silu(gate.detach().double()) * 3)
    for one, bound in zip(torch.autograd.grad(found.sum(), (gate, up)), (3.5, 1e4), strict=True):
        assert torch.isfinite(one).all()
        assert one.abs().max() <= bound


def test_a_number_that_is_none_stays_none(library):
    gate = torch.tensor([1.0, torch.nan, 1.0], requires_grad=True)
    found = GatedSilu.apply(gate, torch.ones(3), library)
    assert found.isnan().tolist() == [False, True, False]
    assert torch.autograd.grad(found.nansum(), gate)[0].isnan().tolist() == [False, True, False]


class Sharper(torch.nn.SiLU):
    def forward(self, rows):
        return super().forward(3 * rows)


GATES: dict[str, Any] = {
    "another activation": (torch.nn.GELU(), (3, 4), (3, 4), torch.float64),
    "a class that inherits": (Sharper(), (3, 4), (3, 4), torch.float64),
    "a function": (torch.tanh, (3, 4), (3, 4), torch.float64),
    "another dtype": (torch.nn.SiLU(), (3, 4), (3, 4), torch.float32),
    "one number for all": (torch.nn.SiLU(), (3, 4), (3, 1), torch.float64),
    "one gate for all": (torch.nn.SiLU(), (4,), (3, 4), torch.float64),
}


@pytest.mark.parametrize("case", GATES)
def test_a_gate_that_the_kernels_do_not_serve_is_torchs(case, monkeypatch):
    torch.manual_seed(0)
    activation, shape, other_shape, dtype = GATES[case]
    gate, up = random(*shape), random(*other_shape, dtype=dtype)
    monkeypatch.setattr(GatedSilu, "apply", lambda *_: pytest.fail("used"))
    assert torch.equal(gated(activation, gate, up), activation(gate) * up)


# ----------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_threads", [2, 3, 5])
def test_no_result_depends_on_the_number_of_threads(num_threads, dtype):
    torch.manual_seed(0)
    (cosines, sines), query = angles(31, 6, dtype), random(1, 3, 31, 6, dtype=dtype, gradient=True)
    gate, up = (random(7, 1025, dtype=dtype, gradient=True) for _ in range(2))

    def computed():
        turned, output = rotated(query, cosines, sines), gated(torch.nn.SiLU(), gate, up)
        whole = turned.square().sum() + output.square().sum()
        return turned, output, *torch.autograd.grad(whole, (query, gate, up))

    assert_the_same_in(num_threads, computed)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_nothing_is_written_past_the_end(dtype, monkeypatch):
    torch.manual_seed(0)
    (cosines, sines), query = angles(7, 6, dtype), random(1, 3, 7, 6, dtype=dtype)
    gate, up, surroundings = random(3, 1025, dtype=dtype), random(3, 1025, dtype=dtype), []

    def surrounded(shape, dtype):
        size = torch.Size(shape).numel()
        surroundings.append((torch.full((size + 256,), 7.0, dtype=dtype), size))
        return surroundings[-1][0][128 : 128 + size].view(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", lambda tensor, *shape: surrounded(shape, tensor.dtype))
        patch.setattr(torch, "empty", lambda size, dtype: surrounded((size,), dtype))
        patch.setattr(torch, "empty_like", lambda like: surrounded(like.shape, like.dtype))
        for leaf, compute in (
            (query, lambda leaf: rotated(leaf, cosines, sines)),
            (gate, lambda leaf: gated(torch.nn.SiLU(), leaf, up)),
        ):
            leaf.requires_grad_()
            output = compute(leaf)
            torch.autograd.grad(output, leaf, torch.ones(output.shape, dtype=dtype))
    assert len(surroundings) == 4 + 3  # a result and a workspace each way, and two gradients of one gate
    for around, size in surroundings:
        assert (around[:128] == 7).all()
        assert not (around[128 : size + 128] == 7).all()
        assert (around[size + 128 :] == 7).all()


# -------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_served_where_they_compute_that_and_stay_exact(family, monkeypatch):
    calls = {Rotation: 0, GatedSilu: 0}

    def counted(function):
        real = function.apply

        def apply(*arguments):
            calls[function] += 1
            return real(*arguments)

        monkeypatch.setattr(function, "apply", apply)

    for function in calls:
        counted(function)
    examples = random_records(5)
    models = [tiny_model(family, torch.float64) for _ in range(2)]
    assert_close(run_batches(models[0], [examples], "trie"), run_alone(models[1], examples), 1e-10)
    num_layers = models[0].config.num_hidden_layers
    assert calls[Rotation] == (0 if family == "gpt2" else 2 * num_layers)
    assert calls[GatedSilu] == (num_layers if family in ("llama", "qwen2", "qwen3") else 0)


@pytest.mark.parametrize("why", ["padded", "TUNEFUL_NATIVE=0"])
def test_a_model_that_attends_its_own_way_or_runs_without_kernels_uses_neither(why, monkeypatch):
    model, examples = tiny_model(), random_records(3)
    wanted = run_batches(model, [examples], "trie")
    monkeypatch.setattr(Rotation, "apply", lambda *_: pytest.fail("used"))
    monkeypatch.setattr(GatedSilu, "apply", lambda *_: pytest.fail("used"))
    if why != "padded":
        monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    assert_close(run_batches(model, [examples], "padded" if why == "padded" else "trie"), wanted, 1e-5)
