"""Rotary embedding and gated SiLU in one pass each: the values of the formulas, and plain tensors for everybody else."""

import pytest
import torch
from tests.doubles.engine import FAMILIES, assert_close, random_records, run_alone, run_batches, tiny_model
from torch.nn import functional as F
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as apply_to_neighbours
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tuneful.model import deferred, native
from tuneful.model.attention import use_trie_attention
from tuneful.model.deferred import (
    CosSin,
    Deferred,
    GatedSilu,
    GateInput,
    RotatedTerm,
    Rotation,
    SiluOutput,
    defer_elementwise,
)

pytestmark = pytest.mark.usefixtures("compiled")
CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture
def library(compiled):
    return native.kernels(CPU, torch.float32)


def random(*shape, dtype=torch.float64, gradient=False):
    return torch.randn(shape).to(dtype).requires_grad_(gradient)


def angles(num_nodes, size, dtype, library):
    """Cosines and sines that differ between the two halves, as a model's never do: who mixes them up shows."""
    pair = random(1, num_nodes, size, dtype=dtype), random(1, num_nodes, size, dtype=dtype)
    return pair, tuple(CosSin(part, library) for part in pair)


def assert_alike(found, wanted):
    assert type(found) is torch.Tensor
    assert found.shape == wanted.shape
    difference = (found.double() - wanted.double()).norm()
    assert difference <= TOLERANCE[found.dtype] * (1 + wanted.double().norm())


# ------------------------------------------------------------------------------------------------------------ rotation


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("num_nodes", "num_heads", "size"), [(1, 1, 2), (7, 3, 8), (50, 9, 64), (33, 2, 6)])
def test_a_rotation_and_its_gradient_are_those_of_the_formula(num_nodes, num_heads, size, dtype, library):
    torch.manual_seed(0)
    (cosines, sines), own = angles(num_nodes, size, dtype, library)
    query = random(1, num_nodes, num_heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
    key = random(1, num_nodes, 1, size, dtype=dtype).transpose(1, 2).requires_grad_()
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key)]
    wanted = apply_rotary_pos_emb(*exact, cosines.double(), sines.double())
    found = apply_rotary_pos_emb(query, key, *own)
    for one, other, leaf, exactly in zip(found, wanted, (query, key), exact, strict=True):
        assert type(one.grad_fn).__name__ == "RotationBackward"
        assert_alike(one.detach(), other.detach())
        upstream = random(*one.shape, dtype=dtype)
        assert_alike(*torch.autograd.grad(one, leaf, upstream), *torch.autograd.grad(other, exactly, upstream.double()))


def test_a_sum_that_is_scaled_is_no_rotation(library):
    torch.manual_seed(0)
    values, angle = random(1, 3, 6, 8), CosSin(random(1, 1, 6, 8), library)
    rotated_half = torch.cat((-values[..., 4:], values[..., :4]), -1)
    plain = angle.parts[0]
    assert torch.equal(
        (values * angle).add(rotated_half * angle, alpha=2), (values * plain).add(rotated_half * plain, alpha=2)
    )


def test_a_gradient_in_another_layout_is_rotated_back_as_well(library):
    torch.manual_seed(0)
    (cosines, sines), own = angles(5, 4, torch.float64, library)
    query, upstream = random(1, 2, 5, 4, gradient=True), random(1, 2, 4, 5).transpose(2, 3)
    found, _ = apply_rotary_pos_emb(query, query.detach(), *own)
    wanted, _ = apply_rotary_pos_emb(query, query.detach(), cosines, sines)
    assert_alike(*torch.autograd.grad(found, query, upstream), *torch.autograd.grad(wanted, query, upstream))


def test_halves_exchanged_in_another_way_are_left_to_torch(library):
    torch.manual_seed(0)
    (cosines, sines), own = angles(6, 8, torch.float64, library)
    query, key = random(1, 3, 6, 8, gradient=True), random(1, 1, 6, 8)
    for one, other in zip(
        apply_to_neighbours(query, key, *own), apply_to_neighbours(query, key, cosines, sines), strict=True
    ):
        assert "Rotation" not in type(one.grad_fn).__name__
        assert torch.equal(one, other)


@pytest.mark.parametrize("change", [(0, 0, 0, 0), (0, 2, 5, 7), (0, 1, 3, 4)])
def test_a_single_number_out_of_place_is_noticed(change, library):
    torch.manual_seed(0)
    values, angle = random(1, 3, 6, 8), random(1, 1, 6, 8)
    rotated_half = torch.cat((-values[..., 4:], values[..., :4]), -1)
    assert deferred.rotate(values, angle, rotated_half, angle, library) is not None
    rotated_half[change] += 1e-9
    assert deferred.rotate(values, angle, rotated_half, angle, library) is None


def test_zeros_do_not_tell_how_halves_are_exchanged(library):
    nothing, angle = torch.zeros(1, 3, 6, 8), random(1, 1, 6, 8, dtype=torch.float32)
    assert deferred.rotate(nothing, angle, nothing, angle, library) is None


def test_arguments_by_name_are_left_to_torch(library):
    angle, gate = CosSin(random(1, 6, 8), library), random(3, 4)
    assert torch.equal(angle.unsqueeze(dim=0), angle.parts[0].unsqueeze(0))
    silu_output = F.silu(GateInput(gate, library))
    assert torch.equal(silu_output.mul(other=gate), F.silu(gate) * gate)


def test_angles_that_are_learnt_get_their_gradient():
    class LearntRotaryEmbedding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.angles = torch.nn.Parameter(torch.randn(1, 6, 8))
            self.device, self.dtype = CPU, torch.float32

        def forward(self):
            return self.angles.cos(), self.angles.sin()

    module = LearntRotaryEmbedding()
    defer_elementwise(module, lambda: True)
    assert all(type(part) is torch.Tensor for part in module())


# ---------------------------------------------------------------------------------------------------------------- gate


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (1, 7, 1000), (2, 1025)])
def test_a_gate_and_its_gradient_are_those_of_the_formula(shape, dtype, library):
    torch.manual_seed(0)
    gate, up = (random(*shape, dtype=dtype, gradient=True) for _ in range(2))
    exact = [tensor.detach().double().requires_grad_() for tensor in (gate, up)]
    found, wanted = F.silu(GateInput(gate, library)) * up, F.silu(exact[0]) * exact[1]
    assert type(found.grad_fn).__name__ == "GatedSiluBackward"
    assert_alike(found.detach(), wanted.detach())
    upstream = random(*shape, dtype=dtype)
    gradients = torch.autograd.grad(found, (gate, up), upstream)
    for one, other in zip(gradients, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        assert_alike(one, other)


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


# ----------------------------------------------------------------------------------------- everything else one may do

OTHERS = {
    "another dtype": lambda x: x.to(torch.float32),
    "a slice": lambda x: x[..., :2],
    "a number": lambda x: 2 * x,
    "a number added": lambda x: x.add(1, alpha=2),
    "minus": lambda x: -x,
    "one line": lambda x: torch.cat([x, torch.ones_like(x)]),
    "a product": lambda x: x @ torch.ones(x.shape[-1], 2, dtype=torch.float64),
    "itself": lambda x: x * x,
    "a sum with itself": lambda x: x + x,
    "another shape": lambda x: x * torch.ones(3, *x.shape, dtype=torch.float64),
    "another type": lambda x: x * torch.ones(x.shape, dtype=torch.float32),
    "another place": lambda x: x.unsqueeze(-1),
    "activated in place": lambda x: F.silu(x.clone(), inplace=True),
    "a layer": lambda x: F.linear(x, torch.ones(2, x.shape[-1], dtype=torch.float64)),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("kind", [CosSin, GateInput, SiluOutput, RotatedTerm])
def test_any_other_operation_gets_the_plain_tensor(kind, what, library):
    torch.manual_seed(0)
    leaf, angle = random(1, 2, 5, 4, gradient=True), random(1, 1, 5, 4)
    parts = (leaf, angle) if kind is RotatedTerm else (leaf,)
    tensor = kind(leaf, library, *parts)
    plain = {SiluOutput: lambda: F.silu(leaf), RotatedTerm: lambda: leaf * angle}.get(kind, lambda: leaf)()
    assert (tensor.shape, tensor.dtype, tensor.device, tensor.ndim) == (plain.shape, plain.dtype, plain.device, 4)
    found, wanted = OTHERS[what](tensor), OTHERS[what](plain)
    assert not isinstance(found, Deferred)
    assert torch.equal(found, wanted)
    (one,), (other,) = (torch.autograd.grad(tensor.sum(), leaf) for tensor in (found, wanted))
    assert torch.equal(one, other)


def test_an_operation_that_torchs_protocol_does_not_reach_is_refused_and_loses_no_gradient(library):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            with torch._C.DisableTorchFunctionSubclass():
                return tensor * 2

    with pytest.raises(NotImplementedError, match="has no value yet"):
        Double.apply(GateInput(random(3, gradient=True), library))


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


def test_a_model_is_hooked_once_and_its_own_way_of_attending_is_left_alone(monkeypatch):
    model = tiny_model()
    for _ in range(2):
        use_trie_attention(model)
    assert len(model.model.rotary_emb._forward_hooks) == 1
    assert {len(layer.mlp.act_fn._forward_pre_hooks) for layer in model.model.layers} == {1}
    monkeypatch.setattr(Rotation, "apply", lambda *_: pytest.fail("used"))
    monkeypatch.setattr(GatedSilu, "apply", lambda *_: pytest.fail("used"))
    run_batches(model, [random_records(3)], "padded")


def test_without_compiled_kernels_nothing_is_hooked(monkeypatch):
    monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    model = tiny_model()
    defer_elementwise(model, lambda: True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
