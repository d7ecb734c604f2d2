"""Linear layers by the compiled products: the same sums in another order, for the layers and rows that they are made for."""

import copy
from typing import Any

import peft
import pytest
import torch
from tests.doubles.engine import assert_the_same_in, random_records, run_batches, tiny_model
from tests.machine import require
from torch.nn import functional as F

from tuneful.model import layers, native, products
from tuneful.model.products import (
    MatrixProducts,
    is_served_linear,
    multiply,
    multiply_back,
    multiply_outer,
    projected,
)

CPU = torch.device("cpu")
LARGE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 128}


@pytest.fixture(autouse=True)
def library():
    require("compiled-products")
    found = native.kernels(CPU, torch.bfloat16)
    assert found is not None, native.describe()
    return found


def random(*shape):
    return torch.randn(shape, dtype=torch.float32).to(torch.bfloat16)


def assert_rounded_once(found, exact):
    """`found` is `exact` to the last bit of bfloat16 and what float32 sums of another order make of it."""
    assert found.dtype is torch.bfloat16
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-8 * exact.square().mean().sqrt().item())


FORMATS = [(1, 64), (5, 66), (6, 70), (97, 576), (13, 4100), (4100, 64)]
"""Rows and features: tiles that are not full, and more than one stretch of either."""


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("sizes", [(64,), (66, 200, 64), (130, 4100)])
@pytest.mark.parametrize(("num_rows", "depth"), FORMATS)
def test_products_and_their_gradients_are_those_of_exact_arithmetic(library, num_rows, depth, sizes, with_bias):
    torch.manual_seed(0)
    weights, biases = [random(size, depth) for size in sizes], [random(size) for size in sizes]
    leaves = [random(num_rows, depth), *weights, *(biases if with_bias else [])]
    upstreams = [random(num_rows, size) for size in sizes]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    rows, others = exact[0], exact[1:]
    wanted = [F.linear(rows, *others[i :: len(sizes)]) for i in range(len(sizes))]
    rows, *others = (leaf.requires_grad_() for leaf in leaves)
    parameters = [[*[*others[i :: len(sizes)], None][:2], None, None] for i in range(len(sizes))]
    found = MatrixProducts.apply(library, rows, [1.0 for _ in sizes], *(one for four in parameters for one in four))
    for one, other in zip(found, wanted, strict=True):
        assert_rounded_once(one.detach(), other.detach())
    gradients = torch.autograd.grad(found, leaves, upstreams)
    exactly = torch.autograd.grad(wanted, exact, [upstream.double() for upstream in upstreams])
    for one, other in zip(gradients[: 1 + len(sizes)], exactly, strict=False):
        assert_rounded_once(one, other)
    of_biases = gradients[1 + len(sizes) :]
    assert len(of_biases) == with_bias * len(sizes)
    assert all(torch.equal(one, upstream.sum(0)) for one, upstream in zip(of_biases, upstreams, strict=False))


# ------------------------------------------------------------------------------------------------------------- adapters

SCALINGS = (2.0, 0.7, 1.0)


def with_adapters(sizes, num_rows, depth, ranks):
    """Rows, and weight, bias, A and B of each layer; no adapter where the rank is 0."""
    torch.manual_seed(0)
    fours = [
        [random(size, depth), random(size)]
        + ([random(rank, depth) / depth**0.5, random(size, rank)] if rank else [None, None])
        for size, rank in zip(sizes, ranks, strict=True)
    ]
    leaves = [random(num_rows, depth), *(one for four in fours for one in four)]
    return [None if one is None else one.requires_grad_() for one in leaves]


def rounded(exact):
    """What passes between the two matrices of an adapter: rounded, and of the same gradient."""
    return exact + (exact.to(torch.bfloat16).double() - exact).detach()


class RoundedBack(torch.autograd.Function):
    """The same going backward."""

    @staticmethod
    def forward(ctx, rows):
        return rows.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0].to(torch.bfloat16).double()


@pytest.mark.parametrize("ranks", [(2, 0, 16), (64, 8, 0), (70, 6, 130)])
@pytest.mark.parametrize(("num_rows", "depth"), FORMATS)
def test_an_adapter_is_added_before_a_sum_is_rounded(library, num_rows, depth, ranks):
    leaves = with_adapters((66, 200, 64), num_rows, depth, ranks)
    found = MatrixProducts.apply(library, leaves[0], SCALINGS, *leaves[1:])
    exact: list[Any] = [None if one is None else one.detach().double().requires_grad_() for one in leaves]
    rows, *parameters = exact
    wanted = []
    for weight, bias, a, b, scaling in zip(*(parameters[i::4] for i in range(4)), SCALINGS, strict=True):
        output = F.linear(rows, weight, bias)
        between = None if a is None else rounded(RoundedBack.apply(rows @ a.T) * scaling)
        wanted.append(output if a is None else output + between @ b.T)
    for one, other in zip(found, wanted, strict=True):
        assert_rounded_once(one.detach(), other.detach())
    upstreams = [random(num_rows, size) for size in (66, 200, 64)]
    there = [i for i, one in enumerate(leaves) if one is not None]
    gradients = torch.autograd.grad(found, [leaves[i] for i in there], upstreams)
    exactly = torch.autograd.grad(wanted, [exact[i] for i in there], [one.double() for one in upstreams])
    for place, one, other in zip(there, gradients, exactly, strict=True):
        if place == 0 or place % 4 != 2:  # a bias's gradient is torch's sum
            assert_rounded_once(one, other)


def test_an_adapter_that_is_zero_changes_no_bit(library):
    rows, *fours = with_adapters((66, 200, 64), 50, 70, (16, 2, 8))
    for b in fours[3::4]:
        b.data.zero_()
    without = [None if i % 4 > 1 else one for i, one in enumerate(fours)]
    found, wanted = (MatrixProducts.apply(library, rows, SCALINGS, *each) for each in (fours, without))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_no_result_of_an_adapter_depends_on_the_number_of_threads(library, num_threads):
    rows, *fours = with_adapters((66, 200, 64), 50, 4100, (16, 2, 70))
    leaves, upstreams = [rows, *fours], [random(50, size) for size in (66, 200, 64)]

    def computed():
        found = MatrixProducts.apply(library, rows, SCALINGS, *fours)
        return *found, *torch.autograd.grad(found, leaves, upstreams)

    assert_the_same_in(num_threads, computed)


@pytest.mark.parametrize(
    ("trained", "to_rows", "kept"),
    [
        ("A B", True, ["rows", "low", "weight", "A", "B"]),
        ("A B", False, ["rows", "low", "B"]),
        ("B", False, ["low"]),
        ("A", True, ["rows", "weight", "A", "B"]),
        ("weight", False, ["rows"]),
        ("", True, ["weight", "A", "B"]),
    ],
)
def test_of_an_adapter_only_what_a_gradient_needs_is_kept(library, trained, to_rows, kept):
    shapes: dict[Any, str] = {(5, 64): "rows", (5, 4): "low", (80, 64): "weight", (4, 64): "A", (80, 4): "B"}
    found: list[str] = []
    rows, *four = with_adapters((80,), 5, 64, (4,))
    rows.requires_grad_(to_rows)
    for name, one in zip(("weight", "bias", "A", "B"), four, strict=True):
        one.requires_grad_(name in trained.split())
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: found.append(shapes[tuple(tensor.shape)]) or tensor, lambda x: x
    ):
        (output,) = MatrixProducts.apply(library, rows, [2.0], *four)
    assert found == kept
    output.sum().backward()
    assert (rows.grad is not None) == to_rows
    assert [one.grad is not None for one in four] == [name in trained.split() for name in ("weight", "bias", "A", "B")]


# ------------------------------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_no_result_depends_on_the_number_of_threads(library, num_threads):
    torch.manual_seed(0)
    rows, weights = random(50, 4100), [random(200, 4100), random(66, 4100)]
    upstreams = [random(50, 200), random(50, 66)]

    def computed():
        forward = multiply(library, rows, weights, [None, None])
        return *forward, multiply_back(library, upstreams, weights), *multiply_outer(library, upstreams, rows)

    assert_the_same_in(num_threads, computed)


def test_a_rows_result_does_not_depend_on_its_neighbours(library):
    torch.manual_seed(0)
    rows, weight = random(40, 96), random(96, 96)
    ways = (
        lambda part: multiply(library, part, [weight], [None])[0],
        lambda part: multiply_back(library, [part], [weight]),
    )
    for compute in ways:
        together = compute(rows)
        for start, stop in ((0, 1), (3, 17), (11, 40)):
            assert torch.equal(compute(rows[start:stop].clone()), together[start:stop])


def test_nothing_is_written_past_the_end(library, monkeypatch):
    """Rows and columns that fill no tile: what stands before and behind a result in memory stays as it was."""
    torch.manual_seed(0)
    rows, weights, upstreams = random(7, 70), [random(90, 70), random(66, 70)], [random(7, 90), random(7, 66)]
    surroundings = []

    def with_surroundings(tensor, *shape):
        size = torch.Size(shape).numel()
        surroundings.append((torch.full((size + 256,), 7.0, dtype=torch.bfloat16), size))
        return surroundings[-1][0][128 : 128 + size].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", with_surroundings)
    multiply(library, rows, weights, [None, random(66)])
    multiply_back(library, upstreams, weights)
    multiply_outer(library, upstreams, rows)
    low = random(7, 6)
    multiply(library, rows, weights, [None, None], [(low, random(90, 6)), (low, random(66, 6))], [0.5, None])
    multiply_back(library, upstreams, weights, [(low, random(6, 70)), (None, None)], 3.0)
    multiply_outer(library, upstreams, low)
    assert len(surroundings) == 10
    for around, size in surroundings:
        assert (around[:128] == 7).all()
        assert not (around[128 : size + 128] == 7).all()
        assert (around[size + 128 :] == 7).all()


def test_rows_and_weights_that_are_not_contiguous(library):
    torch.manual_seed(0)
    rows, weight, upstream = random(96, 20).T, random(96, 64).T, random(64, 20).T
    rows.requires_grad_(), weight.requires_grad_()
    (found,) = MatrixProducts.apply(library, rows, [1.0], weight, None, None, None)
    assert_rounded_once(found.detach(), rows.detach().double() @ weight.detach().double().T)
    to_rows, to_weight = torch.autograd.grad(found, (rows, weight), upstream)
    assert_rounded_once(to_rows, upstream.double() @ weight.detach().double())
    assert_rounded_once(to_weight, upstream.double().T @ rows.detach().double())


class Halved(torch.nn.Linear):
    def forward(self, rows):
        return super().forward(rows) / 2


def linear(num_in, num_out, dtype=torch.bfloat16):
    return torch.nn.Linear(num_in, num_out, dtype=dtype)


def used(layer, rows):
    """Whether what `layer` makes of rows came by the compiled matrix products, and it."""
    (output,) = projected([layer], rows)
    return type(output.grad_fn).__name__ == "MatrixProductsBackward", output


@pytest.mark.parametrize("other", [linear(64, 16), linear(16, 64), linear(65, 64), linear(64, 65), Halved(64, 64)])
def test_layers_of_another_kind_or_size_are_not_served(other):
    assert is_served_linear(linear(64, 64))
    assert not is_served_linear(other)
    rows = random(3, other.in_features)
    product, output = used(other.to(torch.bfloat16), rows)
    assert not product
    assert torch.equal(output, other(rows))


def test_a_layer_that_becomes_bfloat16_later_is_served_from_then_on():
    layer = linear(64, 64, dtype=torch.float32)
    assert not used(layer, torch.randn(3, 64))[0]
    assert used(layer.to(torch.bfloat16), random(3, 64))[0]


def test_what_the_products_do_not_serve_is_torchs(monkeypatch):
    layer = linear(64, 80)
    rows = random(3, 2, 64)
    assert used(layer, rows)[0]
    for other in (random(64), random(0, 64)):
        product, output = used(layer, other)
        assert not product
        assert output.shape == (*other.shape[:-1], 80)
        output.sum().backward()
    assert not used(layer.double(), random(3, 64).double())[0]
    monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    assert not used(layer.to(torch.bfloat16), rows)[0]


def test_rows_of_another_depth_are_refused():
    with pytest.raises((RuntimeError, AssertionError)):
        projected([linear(64, 80)], random(3, 66))


@pytest.mark.parametrize("what", ["too narrow", "a weight that is computed"])
def test_one_layer_that_is_made_otherwise_is_torchs_and_the_other_still_served(what):
    made = [linear(64, 80), linear(64, 32 if what == "too narrow" else 64)]
    if what == "a weight that is computed":
        torch.nn.utils.parametrize.register_parametrization(made[1], "weight", torch.nn.Tanh())
    rows = random(3, 64)
    found = projected(made, rows)
    assert [type(one.grad_fn).__name__ == "MatrixProductsBackward" for one in found] == [True, False]
    assert torch.equal(found[1], made[1](rows))


@pytest.mark.parametrize("to", [torch.float64, torch.device("meta")])
def test_a_layer_in_another_precision_or_place_is_left_to_torch_which_refuses_it(to, monkeypatch):
    made = [linear(64, 80), linear(64, 64).to(to)]
    monkeypatch.setattr(
        MatrixProducts,
        "apply",
        lambda _, *given: [
            pytest.fail("used") if any(one is made[1].weight for one in given) else F.linear(given[0], *given[2:4])
        ],
    )
    with pytest.raises(RuntimeError, match=r"same dtype|device"):
        projected(made, random(3, 64))


class Parent(torch.nn.Module):
    """Query, key and value as models have them."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (linear(64, size) for size in (80, 64, 66))

    def forward(self, rows):
        return projected([self.q_proj, self.k_proj, self.v_proj], rows)


@pytest.mark.parametrize("adapted", [False, True])
def test_layers_that_read_the_same_rows_are_one_call_and_beside_one_of_another_kind_each_is_its_own(adapted):
    parent = Parent()
    if adapted:
        peft.inject_adapter_in_model(peft.LoraConfig(r=3, target_modules=["v_proj"], init_lora_weights=False), parent)
    rows = random(5, 64).requires_grad_()
    made = (parent.q_proj, parent.k_proj, parent.v_proj)
    wanted = [layer(rows) for layer in made]
    for _ in range(2):
        outputs = parent(rows)
        nodes = [type(node).__name__ for node in {output.grad_fn for output in outputs}]
        assert len(nodes) == (3 if adapted else 1)
        assert nodes.count("MatrixProductsBackward") == (2 if adapted else 1)
        for output, other in zip(outputs, wanted, strict=True):
            assert (output - other).double().norm() <= 2**-7 * other.double().norm()
        (gradient,) = torch.autograd.grad([output.sum() for output in outputs], rows)
        (other,) = torch.autograd.grad([output.sum() for output in wanted], rows, retain_graph=True)
        assert (gradient.double() - other).norm() <= 2**-7 * other.double().norm()


def test_a_frozen_weight_still_passes_gradients_on():
    layer = linear(64, 80).requires_grad_(False)
    rows = random(3, 64).requires_grad_()
    product, output = used(layer, rows)
    assert product
    (gradient,) = torch.autograd.grad(output.sum(), rows)
    assert_rounded_once(gradient, torch.ones(3, 80).double() @ layer.weight.double())


def test_a_copy_of_a_model_multiplies_by_its_own_weights():
    parent = Parent()
    other = copy.deepcopy(parent)
    with torch.no_grad():
        other.q_proj.weight.zero_()
        other.q_proj.bias.zero_()
    assert not other(random(5, 64))[0].any()


@pytest.mark.parametrize("trained", ["all", "rows", "weights"])
def test_only_what_a_gradient_needs_is_kept(trained):
    parent, kept = Parent(), []
    parent.requires_grad_(trained != "rows")
    rows = random(5, 64).requires_grad_(trained != "weights")
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda x: x
    ):
        outputs = parent(rows)
    weights = [(80, 64), (64, 64), (66, 64)]
    assert kept == {"all": [(5, 64), *weights], "rows": weights, "weights": [(5, 64)]}[trained]
    sum(output.sum() for output in outputs).backward()
    assert (rows.grad is not None) == (trained != "weights")
    assert all((parameter.grad is not None) == (trained != "rows") for parameter in parent.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_model_in_bfloat16_learns_the_same_to_rounding(family, monkeypatch):
    """By the products, part by part; whole layers are tested in test_layers.py."""
    examples, calls = random_records(8), []
    sizes = {name: size for name, size in LARGE.items() if family != "qwen2" or name != "head_dim"}
    sizes["num_key_value_heads"] = 4  # of 16, as wide as the products need
    model, apply = tiny_model(family, torch.bfloat16, **sizes), MatrixProducts.apply
    monkeypatch.setattr(layers, "kernels", lambda *_: None)
    monkeypatch.setattr(MatrixProducts, "apply", lambda *arguments: calls.append(arguments) or apply(*arguments))
    own = run_batches(model, [examples], "trie")
    assert len(calls) == 4 * model.config.num_hidden_layers + 1  # of a layer qkv, o, gate and up, down; and the head
    monkeypatch.setattr(products, "kernels", lambda *_: None)
    torchs = run_batches(model, [examples], "trie")
    assert len(calls) == 4 * model.config.num_hidden_layers + 1
    assert own.loss == pytest.approx(torchs.loss, rel=5e-3)
    for name, gradient in torchs.gradients.items():
        difference = (own.gradients[name].double() - gradient.double()).norm()
        assert difference <= 0.03 * gradient.double().norm(), name


def test_a_model_that_attends_its_own_way_multiplies_by_torch(monkeypatch):
    model = tiny_model("llama", torch.bfloat16, **LARGE)
    run_batches(model, [random_records(3)], "trie")
    monkeypatch.setattr(MatrixProducts, "apply", lambda *_: pytest.fail("used"))
    run_batches(model, [random_records(3)], "padded")
