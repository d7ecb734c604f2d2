"""Trie attention beside dense masked attention, and the FlexAttention rule beside the dense rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tests.doubles.engine import random_records, record, tiny_model, tries
from torch.nn import functional as F

from tuneful.batch.trie import build_trie, visible
from tuneful.model.attention import (
    UnsupportedAttentionError,
    plan_attention,
    trie_attention,
    use_trie_attention,
)
from tuneful.model.attention_flex import softcap_score_mod, trie_mask_mod, window_mask_mod

pytestmark = pytest.mark.usefixtures("arithmetic")


def heads(batch, num_heads, num_key_heads, size, dtype, seed=0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query, key and value [1, heads, N, D], laid out as a model's projections leave them."""
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(1, batch.num_nodes, count, size, dtype=dtype).transpose(1, 2).detach().requires_grad_()
        for count in (num_heads, num_key_heads, num_key_heads)
    )
    return query, key, value


def in_float32(query, key, value) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return query.detach().float(), key.detach().float(), value.detach().float()


def dense(query, key, value, batch, scale):
    """The oracle: every pair scored, hidden ones masked; [1, N, H, D]."""
    mask = torch.from_numpy(visible(batch))
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return output.transpose(1, 2)


def relative(one, other):
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def random_batch(kind):
    rng = np.random.default_rng(3)
    return {
        "short branches": lambda: build_trie(random_records(12)),
        "unshared": lambda: build_trie(random_records(5), share=False),
        "one long branch": lambda: build_trie([record([1], rng.integers(1, 20, 700))]),
        "a node": lambda: build_trie([record([1], [2])]),
        "long and short": lambda: build_trie(
            [record(range(1, 100), rng.integers(1, 20, length)) for length in (300, 1, 65, 64, 63, 2)]
        ),
    }[kind]()


@pytest.mark.parametrize("kept_path", [1024, 0], ids=["kept", "computed again"])
@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", ["short branches", "unshared", "one long branch", "a node", "long and short"])
def test_output_and_gradients_are_those_of_dense_masked_attention(kind, num_key_heads, kept_path, monkeypatch):
    monkeypatch.setattr("tuneful.model.attention_torch.KEPT_PATH", kept_path)
    batch = random_batch(kind)
    model = tiny_model(dtype=torch.float64, num_key_value_heads=num_key_heads)
    inputs = heads(batch, 4, num_key_heads, 8, torch.float64)
    upstream = torch.randn(1, batch.num_nodes, 4, 8, dtype=torch.float64)
    for scale in (None, 0.7):
        output, _ = trie_attention(model, *inputs, None, scaling=scale, trie_plan=plan_attention(batch, model))
        expected = dense(*inputs, batch, scale)
        assert output.shape == expected.shape
        assert relative(output, expected) < 1e-12
        found, wanted = (torch.autograd.grad(result, inputs, upstream) for result in (output, expected))
        for name, one, other in zip(("query", "key", "value"), found, wanted, strict=True):
            assert (one - other).norm() <= 1e-12 * (1 + other.norm()), name


def dense_scores(query, key, value, batch, scale, window, softcap):
    """The oracle of windows and caps, in the steps of the formula; [1, N, H, D]."""
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    scores = query @ key.mT * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = torch.from_numpy(~visible(batch, window))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def assert_like_dense(batch, window=None, softcap=None, dtype=torch.float64, num_key_heads=2, tolerance=1e-12):
    model = tiny_model(dtype=dtype, num_key_value_heads=num_key_heads)
    inputs = heads(batch, 4, num_key_heads, 8, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    upstream = torch.randn(1, batch.num_nodes, 4, 8, dtype=dtype)
    options = {"scaling": 1.3, "softcap": softcap, "sliding_window": window}
    output, _ = trie_attention(model, *inputs, None, trie_plan=plan_attention(batch, model), **options)
    expected = dense_scores(exact[0], exact[1], exact[2], batch, 1.3, window, softcap)
    assert relative(output, expected) < tolerance
    found = torch.autograd.grad(output, inputs, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    whole = torch.stack([gradient.norm() for gradient in wanted]).norm()  # who sees one node alone gives its query none
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() <= tolerance * whole


@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", ["short branches", "unshared", "one long branch", "a node", "long and short"])
def test_under_a_window_a_node_sees_the_nearest_nodes_of_its_path_alone(kind, num_key_heads):
    batch = random_batch(kind)
    longest = int(batch.positions.max()) + 1
    for window in {1, 2, min(65, longest), max(1, longest - 1)}:
        assert_like_dense(batch, window, num_key_heads=num_key_heads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [0.3, 2.0, 50.0])
def test_capped_scores_have_the_values_and_the_slope_of_the_cap(softcap, window, dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    for kind in ("long and short", "a node"):
        assert_like_dense(random_batch(kind), window, softcap, dtype, tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 2, 16, 100])
def test_windows_in_lower_precision(window, dtype):
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    assert_like_dense(random_batch("long and short"), window, dtype=dtype, tolerance=tolerance)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(tries())
def test_random_tries_under_random_windows(examples):
    batch = build_trie(examples)
    for window in range(1, int(batch.positions.max()) + 2):
        assert_like_dense(batch, window)


def test_a_window_that_no_path_is_longer_than_gives_the_bits_of_none():
    batch, model = random_batch("long and short"), tiny_model()
    inputs, longest = heads(batch, 4, 2, 8, torch.float32), int(batch.positions.max()) + 1
    plan = plan_attention(batch, model)
    assert plan.within(longest) is plan.within(None)
    assert plan.within(longest - 1) is not plan.within(None)
    found = [
        trie_attention(model, *inputs, None, trie_plan=plan, sliding_window=window)[0] for window in (longest, None)
    ]
    assert torch.equal(*found)


def test_a_layer_that_does_not_say_its_window_is_refused_where_there_may_be_one():
    batch, inputs = random_batch("a node"), heads(random_batch("a node"), 4, 2, 8, torch.float32)
    model = tiny_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    plan = plan_attention(batch, model)
    assert trie_attention(model, *inputs, None, trie_plan=plan, sliding_window=None)
    with pytest.raises(UnsupportedAttentionError, match="do not say which of them have a sliding window"):
        trie_attention(model, *inputs, None, trie_plan=plan)
    with pytest.raises(UnsupportedAttentionError, match="a window of 0"):
        trie_attention(model, *inputs, None, trie_plan=plan, sliding_window=0)


@pytest.mark.parametrize("argument", ["s_aux", "sinks", "position_bias", "indices"])
def test_what_else_changes_the_scores_is_refused(argument):
    batch, model = random_batch("a node"), tiny_model()
    plan, more = plan_attention(batch, model), {argument: torch.zeros(4)}
    with pytest.raises(UnsupportedAttentionError, match="its layers"):
        trie_attention(model, *heads(batch, 4, 2, 8, torch.float32), None, None, 0.0, plan, None, **more)


@pytest.mark.parametrize(("size", "value_size"), [(80, 48), (48, 80), (256, 128), (24, 40), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_heads_may_have_any_size_and_values_another(size, value_size, dtype):
    batch = random_batch("long and short")
    model = tiny_model(dtype=dtype, num_key_value_heads=2)
    query, key, _ = heads(batch, 4, 2, size, dtype)
    value = heads(batch, 4, 2, value_size, dtype, seed=1)[2]
    upstream = torch.randn(1, batch.num_nodes, 4, value_size, dtype=dtype)
    output, _ = trie_attention(model, query, key, value, None, trie_plan=plan_attention(batch, model))
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    expected = dense(exact[0], exact[1], exact[2], batch, size**-0.5)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    assert relative(output, expected) < tolerance
    found = torch.autograd.grad(output, (query, key, value), upstream)
    for one, other in zip(found, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        assert (one.double() - other).norm() <= tolerance * (1 + other.norm())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_heads_of_mixed_precision_are_attended_in_the_higher_and_come_back_as_the_values_came(which):
    """As where a model normalises queries and keys in float32."""
    batch = random_batch("short branches")
    model = tiny_model(dtype=torch.bfloat16)
    inputs = [tensor.detach().bfloat16() for tensor in heads(batch, 4, 2, 8, torch.float32)]
    inputs[which] = inputs[which].float()
    query, key, value = (tensor.requires_grad_() for tensor in inputs)
    output, _ = trie_attention(model, query, key, value, None, trie_plan=plan_attention(batch, model))
    assert output.dtype is value.dtype
    assert relative(output, dense(*in_float32(query, key, value), batch, None)) < 4e-3
    output.float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype is tensor.dtype for tensor in (query, key, value))


def test_bfloat16_heads_come_back_in_bfloat16_and_are_summed_in_float32():
    batch = random_batch("long and short")
    model = tiny_model(dtype=torch.bfloat16)
    inputs = heads(batch, 4, 2, 8, torch.bfloat16)
    output, _ = trie_attention(model, *inputs, None, trie_plan=plan_attention(batch, model))
    expected = dense(*in_float32(*inputs), batch, None)
    assert output.dtype is torch.bfloat16
    assert relative(output, expected) < 4e-3  # half a unit in the last place is 2e-3
    output.float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype is torch.bfloat16 for tensor in inputs)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(tries())
def test_the_mask_rule_is_the_dense_rule_on_all_pairs(examples):
    batch = build_trie(examples)
    rule = trie_mask_mod(torch.from_numpy(batch.subtree_end))
    node = torch.arange(batch.num_nodes)
    none = torch.zeros((), dtype=torch.long)
    assert np.array_equal(rule(none, none, node[:, None], node[None, :]).numpy(), visible(batch))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(tries())
def test_the_mask_rule_of_a_window_is_the_dense_rule_on_all_pairs(examples):
    batch = build_trie(examples)
    node, none = torch.arange(batch.num_nodes), torch.zeros((), dtype=torch.long)
    for window in (1, 2, 4):
        rule = window_mask_mod(torch.from_numpy(batch.subtree_end), torch.from_numpy(batch.positions), window)
        assert np.array_equal(rule(none, none, node[:, None], node[None, :]).numpy(), visible(batch, window))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_of_a_window_and_a_cap_is_that_of_dense_scores():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch = random_batch("long and short")
    rule = window_mask_mod(torch.from_numpy(batch.subtree_end), torch.from_numpy(batch.positions), 50)
    block_mask = create_block_mask(rule, None, None, batch.num_nodes, batch.num_nodes, device="cpu")
    query, key, value = (tensor.detach() for tensor in heads(batch, 4, 2, 16, torch.float32))
    output = flex_attention(query, key, value, softcap_score_mod(0.5), block_mask, scale=0.3, enable_gqa=True)
    assert relative(output.transpose(1, 2), dense_scores(query, key, value, batch, 0.3, 50, 0.5)) < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_under_the_rule_is_dense_masked_attention():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch = random_batch("long and short")
    rule = trie_mask_mod(torch.from_numpy(batch.subtree_end))
    block_mask = create_block_mask(rule, None, None, batch.num_nodes, batch.num_nodes, device="cpu")
    query, key, value = (tensor.detach() for tensor in heads(batch, 4, 2, 16, torch.float32))
    output = flex_attention(query, key, value, block_mask=block_mask, scale=0.3, enable_gqa=True)
    assert relative(output.transpose(1, 2), dense(query, key, value, batch, 0.3)) < 1e-5


def test_a_prepared_model_refuses_to_run_without_a_plan():
    model = tiny_model()
    use_trie_attention(model)
    with pytest.raises(AssertionError, match="without trie_plan"):
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)


def test_attention_dropout_is_refused():
    batch = random_batch("short branches")
    model = tiny_model()
    with pytest.raises(AssertionError, match=r"dropout 0\.1"):
        trie_attention(
            model, *heads(batch, 4, 2, 8, torch.float32), None, dropout=0.1, trie_plan=plan_attention(batch, model)
        )


def test_a_plan_of_another_batch_is_refused():
    batch, other = random_batch("short branches"), random_batch("a node")
    model = tiny_model()
    with pytest.raises(AssertionError):
        trie_attention(model, *heads(batch, 4, 2, 8, torch.float32), None, trie_plan=plan_attention(other, model))
