"""Linear layers by the compiled products: the same sums in another order, for the layers and rows that they are made for."""

import pytest
import torch
from tests.engine import random_records, run_batches, tiny_model
from torch.nn import functional as F

from tuneful.model import native, products
from tuneful.model.attention import use_trie_attention
from tuneful.model.products import Product, multiply_compiled

CPU = torch.device("cpu")
LARGE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 128}


@pytest.fixture(autouse=True)
def library(compiled):
    found = native.kernels(CPU, torch.bfloat16)
    if not found.has_products():
        pytest.skip("this processor has no dot product of bfloat16, or a matrix unit besides")
    return found


def random(*shape):
    return torch.randn(shape, dtype=torch.float32).to(torch.bfloat16)


def assert_rounded_once(found, exact):
    """`found` is `exact` to the last bit of bfloat16 and what float32 sums of another order make of it."""
    assert found.dtype is torch.bfloat16
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-8 * exact.square().mean().sqrt().item())


SHAPES = [
    (1, 64, 64),
    (5, 66, 64),
    (6, 64, 130),
    (7, 112, 66),
    (97, 80, 576),
    (13, 200, 4100),  # deeper than one stretch of the depth
    (4100, 72, 64),
]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("num_rows", "num_outputs", "depth"), SHAPES)
def test_a_product_and_its_gradients_are_those_of_exact_arithmetic(library, num_rows, num_outputs, depth, with_bias):
    torch.manual_seed(0)
    leaves = [random(num_rows, depth), random(num_outputs, depth), *([random(num_outputs)] if with_bias else [])]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    upstream = random(num_rows, num_outputs)
    wanted = F.linear(*exact)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    found = Product.apply(*leaves, *([] if with_bias else [None]), library)
    assert_rounded_once(found.detach(), wanted.detach())
    gradients = torch.autograd.grad(found, leaves, upstream)
    for one, other in zip(gradients[:2], torch.autograd.grad(wanted, exact, upstream.double()), strict=False):
        assert_rounded_once(one, other)
    assert not with_bias or torch.equal(gradients[2], upstream.sum(0))


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_no_result_depends_on_the_number_of_threads(library, num_threads):
    torch.manual_seed(0)
    rows, weight, upstream = random(50, 4100), random(200, 4100), random(50, 200)

    def computed():
        found = products._product(library, rows, weight, None, transposed=True)
        return found, products._product(library, upstream, weight, None, transposed=False), outer()

    def outer():
        return products._outer_product(library, rows, upstream)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = computed()
        torch.set_num_threads(num_threads)
        assert all(map(torch.equal, computed(), wanted))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_rows_result_does_not_depend_on_its_neighbours(library, transposed):
    torch.manual_seed(0)
    rows = random(40, 96)
    weight = random(72, 96) if transposed else random(96, 72)
    together = products._product(library, rows, weight, None, transposed=transposed)
    for start, stop in ((0, 1), (3, 17), (11, 40)):
        alone = products._product(library, rows[start:stop].clone(), weight, None, transposed=transposed)
        assert torch.equal(alone, together[start:stop])


def test_nothing_is_written_past_the_end(library):
    """Rows and columns that fill no tile: what stands before and behind the result in memory stays as it was."""
    torch.manual_seed(0)
    rows, weight, upstream = random(7, 70), random(90, 70), random(7, 90)
    room = torch.empty(1 << 20, dtype=torch.uint8)
    assert library.product_room(2, 7, 70) + library.outer_product_room(2, 7, 70) <= len(room)

    def product(out):
        library.product(2, 1, 7, 90, 70, rows.data_ptr(), weight.data_ptr(), None, out, room.data_ptr())

    def outer_product(out):
        library.outer_product(2, 7, 90, 70, upstream.data_ptr(), rows.data_ptr(), out, room.data_ptr())

    for size, compute in ((7 * 90, product), (90 * 70, outer_product)):
        around = torch.full((size + 256,), 7.0, dtype=torch.bfloat16)
        compute(around[128:].data_ptr())
        assert (around[:128] == 7).all()
        assert not (around[128 : size + 128] == 7).all()
        assert (around[size + 128 :] == 7).all()


def test_rows_and_weights_that_are_not_contiguous(library):
    torch.manual_seed(0)
    rows, weight, upstream = random(96, 20).T, random(96, 64).T, random(64, 20).T
    rows.requires_grad_(), weight.requires_grad_()
    found = Product.apply(rows, weight, None, library)
    assert_rounded_once(found.detach(), rows.detach().double() @ weight.detach().double().T)
    to_rows, to_weight = torch.autograd.grad(found, (rows, weight), upstream)
    assert_rounded_once(to_rows, upstream.double() @ weight.detach().double())
    assert_rounded_once(to_weight, upstream.double().T @ rows.detach().double())


class Halved(torch.nn.Linear):
    def forward(self, rows):
        return super().forward(rows) / 2


def hooked(layer, wanted=lambda: True):
    layer.device, layer.dtype = CPU, layer.weight.dtype
    multiply_compiled(layer, wanted)
    return layer


def used(layer, *arguments):
    """Whether a forward of `layer` came by the compiled products, and its output."""
    output = layer(*arguments)
    return type(output.grad_fn).__name__ == "ProductBackward", output


def test_layers_are_served_once_and_those_of_another_kind_never():
    served = hooked(hooked(torch.nn.Linear(64, 64, dtype=torch.bfloat16)))
    assert len(served._forward_pre_hooks) == 1
    for other in (
        torch.nn.Linear(64, 64),
        torch.nn.Linear(64, 16, dtype=torch.bfloat16),
        torch.nn.Linear(65, 64, dtype=torch.bfloat16),
        Halved(64, 64, dtype=torch.bfloat16),
    ):
        assert not hooked(other)._forward_pre_hooks


def test_what_the_products_do_not_serve_is_torchs():
    wanted = [True]
    layer = hooked(torch.nn.Linear(64, 80, dtype=torch.bfloat16), lambda: bool(wanted))
    rows = random(3, 2, 64)
    assert used(layer, rows)[0]
    for other in (random(64), random(0, 64)):
        product, output = used(layer, other)
        assert not product
        assert output.shape == (*other.shape[:-1], 80)
    wanted.clear()
    assert not used(layer, rows)[0]


def test_a_frozen_weight_still_passes_gradients_on():
    layer = hooked(torch.nn.Linear(64, 80, dtype=torch.bfloat16)).requires_grad_(False)
    rows = random(3, 64).requires_grad_()
    product, output = used(layer, rows)
    assert product
    (gradient,) = torch.autograd.grad(output.sum(), rows)
    assert_rounded_once(gradient, torch.ones(3, 80).double() @ layer.weight.double())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_model_in_bfloat16_learns_the_same_to_rounding(family, monkeypatch):
    examples = random_records(8)
    sizes = {name: size for name, size in LARGE.items() if family != "qwen2" or name != "head_dim"}
    models = [tiny_model(family, torch.bfloat16, **sizes) for _ in range(2)]
    own = run_batches(models[0], [examples], "trie")
    calls = []
    monkeypatch.setattr(products, "multiply_compiled", lambda *_: calls.append("none"))
    monkeypatch.setattr("tuneful.model.attention.multiply_compiled", lambda *_: calls.append("none"))
    torchs = run_batches(models[1], [examples], "trie")
    assert calls
    assert any(module._forward_pre_hooks for module in models[0].modules() if type(module) is torch.nn.Linear)
    assert own.loss == pytest.approx(torchs.loss, rel=5e-3)
    for name, gradient in torchs.gradients.items():
        difference = (own.gradients[name].double() - gradient.double()).norm()
        assert difference <= 0.03 * gradient.double().norm(), name


def test_a_model_that_attends_its_own_way_multiplies_by_torch(monkeypatch):
    model = tiny_model("llama", torch.bfloat16, **LARGE)
    use_trie_attention(model)
    monkeypatch.setattr(Product, "apply", lambda *_: pytest.fail("used"))
    run_batches(model, [random_records(3)], "padded")
