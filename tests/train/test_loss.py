"""The weighted cross-entropy, beside torch's own and beside finite differences."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tuneful.train.loss import TiedLookup, WeightedCrossEntropy, micro_batch_loss
from tuneful.types import Example

pytestmark = pytest.mark.usefixtures("arithmetic")


def case(dtype, rows=7, vocabulary=11, spread=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    ids = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator) * 3
    return logits.to(dtype).requires_grad_(), ids, weights.to(torch.promote_types(dtype, torch.float32))


def torchs_own(logits, ids, weights):
    return (F.cross_entropy(logits, ids, reduction="none") * weights).sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sum_and_gradient_are_torchs_own(dtype):
    logits, ids, weights = case(dtype)
    total, nll = WeightedCrossEntropy.apply(logits, ids, weights)
    torch.testing.assert_close(total, torchs_own(logits, ids, weights))
    torch.testing.assert_close(nll, F.cross_entropy(logits, ids, reduction="none").detach())
    found = torch.autograd.grad(2.5 * total, logits)[0]
    expected = torch.autograd.grad(2.5 * torchs_own(logits, ids, weights), logits)[0]
    torch.testing.assert_close(found, expected)


def test_the_gradient_is_the_slope_by_finite_differences():
    logits, ids, weights = case(torch.float64)
    total, _ = WeightedCrossEntropy.apply(logits, ids, weights)
    gradient = torch.autograd.grad(total, logits)[0]
    step = 1e-6
    for row in range(logits.shape[0]):
        for column in range(logits.shape[1]):
            ends = []
            for sign in (1, -1):
                moved = logits.detach().clone()
                moved[row, column] += sign * step
                ends.append(WeightedCrossEntropy.apply(moved, ids, weights)[0].item())
            assert gradient[row, column].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_however_many_logits_are_turned_into_probabilities_at_once_the_bits_are_the_same(dtype, monkeypatch):
    monkeypatch.setattr("tuneful.train.loss.kernels", lambda device, dtype: None)
    found = []
    for elements in (1 << 26, 1 << 19, 4 * 11, 1):
        monkeypatch.setattr("tuneful.train.loss.SOFTMAX_ELEMENTS", elements)
        logits, ids, weights = case(dtype, rows=90)
        total, nll = WeightedCrossEntropy.apply(logits, ids, weights)
        found.append((total.detach(), nll.detach(), torch.autograd.grad(total, logits)[0]))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_bfloat16_logits_are_summed_in_float32_and_get_a_bfloat16_gradient():
    logits, ids, weights = case(torch.bfloat16, rows=400)
    total, nll = WeightedCrossEntropy.apply(logits, ids, weights)
    assert total.dtype is nll.dtype is torch.float32
    exact = logits.detach().double().requires_grad_()
    torch.testing.assert_close(total.double(), torchs_own(exact, ids, weights.double()), rtol=1e-6, atol=0)
    found = torch.autograd.grad(total, logits)[0]
    expected = torch.autograd.grad(torchs_own(exact, ids, weights.double()), exact)[0]
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)


def test_large_logits_neither_overflow_nor_lose_the_answer():
    logits = torch.tensor([[1e4, -1e4, 0.0], [3e4, 3e4, -3e4]], requires_grad=True)
    total, nll = WeightedCrossEntropy.apply(logits, torch.tensor([0, 1]), torch.ones(2))
    assert nll.tolist() == pytest.approx([0.0, 0.6931472], abs=1e-3)
    assert torch.autograd.grad(total, logits)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_slopes_of_a_function_of_the_nll_are_further_weights_of_either_sign(dtype):
    logits, ids, weights = case(dtype)
    slopes = torch.linspace(-2, 2, len(ids), dtype=dtype)
    total, nll = WeightedCrossEntropy.apply(logits, ids, weights)
    found = torch.autograd.grad(0.5 * total + (slopes * nll).sum(), logits)[0]
    expected = torch.autograd.grad(torchs_own(logits, ids, 0.5 * weights + slopes), logits)[0]
    torch.testing.assert_close(found, expected)
    _, nll = WeightedCrossEntropy.apply(logits, ids, weights)
    torch.testing.assert_close(
        torch.autograd.grad((slopes * nll).sum(), logits)[0],
        torch.autograd.grad(torchs_own(logits, ids, slopes), logits)[0],
    )


def test_a_tied_matrix_has_the_heads_gradient_before_the_look_up_adds_to_it(monkeypatch):
    """Were it the other way round, a second dense gradient of the vocabulary's size would be made and added."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )
    order = []
    weight = model.get_input_embeddings().weight
    weight.register_post_accumulate_grad_hook(lambda parameter: order.append("head"))
    backward = TiedLookup.backward
    monkeypatch.setattr(TiedLookup, "backward", lambda ctx, *grads: (order.append("look-up"), backward(ctx, *grads))[1])
    ids = np.arange(3, 12, dtype=np.int32)
    weights = np.ones(len(ids), dtype=np.float32)
    weights[0] = 0
    micro_batch_loss(model, [Example(ids, weights, 1, "record")], "trie").total.backward()
    assert order == ["head", "look-up"]
