"""What computes attention on a GPU, on a CPU: its lists and sequences beside brute force, and its values and gradients beside the
dense oracle, with stand-ins for the kernels that only a GPU has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tests.doubles.engine import (
    assert_close,
    random_records,
    record,
    run_alone,
    run_batches,
    tiny_model,
    train_config,
    tries,
)
from torch.nn import functional as F

from tuneful.batch.trie import TrieBatch, build_trie, padded_trie, visible
from tuneful.model import attention, attention_flex, attention_varlen
from tuneful.model.attention import ask_for, gpu_attention, laid_out, plan_attention, trie_attention
from tuneful.model.attention_flex import padded_length, tile_lists, trie_mask_mod, window_mask_mod
from tuneful.model.attention_varlen import VarlenLayout, lay_out_varlen, summed_by_node
from tuneful.model.precision import say_computes_in
from tuneful.train.layout import choose_layout, self_check

CPU = torch.device("cpu")
SIZES = (1, 127, 128, 129, 255, 256, 257, 300)


def batch_of(num_nodes: int, seed: int = 0) -> TrieBatch:
    """A trie of exactly `num_nodes`: branches below one another, of any length."""
    rng = np.random.default_rng(seed)
    records = [record([1], [2])]
    while build_trie(records).num_nodes < num_nodes:
        base = records[rng.integers(len(records))].token_ids
        shared = base[: rng.integers(1, len(base))].tolist()
        records.append(record(shared, [*rng.integers(1, 20, rng.integers(1, 90)), 0]))
    more = build_trie(records).num_nodes - num_nodes
    last = records[-1].token_ids.tolist()
    records[-1] = record(last[: len(last) - more - 1], [0]) if more else records[-1]
    batch = build_trie(records)
    return batch if batch.num_nodes == num_nodes else batch_of(num_nodes, seed + 100)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The implementation of that name, as on a GPU, on this CPU."""
    name = str(request.param)
    monkeypatch.setattr(attention, "gpu_attention", lambda model: name)
    monkeypatch.setattr(attention, "kernels", lambda device, dtype: None)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *heads: None)
    monkeypatch.setattr(attention_varlen, "flash_forward", forward_by_sdpa)
    monkeypatch.setattr(attention_varlen, "flash_backward", backward_by_sdpa)
    return name


def each_sequence(layout: VarlenLayout) -> list[tuple[slice, slice, torch.Tensor]]:
    """Queries and keys of each sequence, and who sees whom: FlashAttention's rule under the options that it is given.

    It counts from the last query and key.
    """
    found, options = [], attention_varlen._options(layout, 1.0)
    left, right = options["window_size_left"], options["window_size_right"]
    for start, stop, first, last in zip(
        layout.query_starts[:-1], layout.query_starts[1:], layout.key_starts[:-1], layout.key_starts[1:], strict=True
    ):
        num_queries, num_keys = int(stop - start), int(last - first)
        assert num_queries <= layout.max_queries
        assert num_keys <= layout.max_keys
        distance = torch.arange(num_queries)[:, None] + num_keys - num_queries - torch.arange(num_keys)
        sees = distance >= -right
        if left >= 0:  # below 0: no window
            sees &= distance <= left
        found.append((slice(start, stop), slice(first, last), sees))
    return found


def forward_by_sdpa(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: VarlenLayout, scale: float
) -> list[torch.Tensor]:
    """In the place of FlashAttention: a sequence at a time."""
    parts = []
    for own, path, sees in each_sequence(layout):
        one, two, three = (rows.transpose(0, 1) for rows in (query[own], keys[path], values[path]))
        found = F.scaled_dot_product_attention(one, two, three, attn_mask=sees, scale=scale, enable_gqa=True)
        parts.append(found.transpose(0, 1))
    return [torch.cat(parts)]


def backward_by_sdpa(
    grad: Any, query: Any, keys: Any, values: Any, output: Any, kept: Any, layout: Any, scale: Any
) -> Any:
    with torch.enable_grad():
        one, two, three = leaves = [tensor.detach().requires_grad_() for tensor in (query, keys, values)]
        found = forward_by_sdpa(one, two, three, layout, scale)[0]
    assert torch.equal(found, output)
    return torch.autograd.grad(found, leaves, grad)


# Padding and lists of tiles


@pytest.mark.parametrize("num_nodes", SIZES)
def test_padding_gives_whole_tiles_of_nodes_that_see_themselves_alone_and_predict_nothing(num_nodes: int) -> None:
    batch = batch_of(num_nodes)
    padded = padded_trie(batch, padded_length(num_nodes))
    assert padded.num_nodes == {1: 256, 127: 256, 128: 256, 129: 256, 255: 256, 256: 256, 257: 384, 300: 384}[num_nodes]
    sees, before = visible(padded), visible(batch)
    assert np.array_equal(sees[:num_nodes, :num_nodes], before)
    sees[:num_nodes, :num_nodes] = np.eye(num_nodes)
    assert np.array_equal(sees, np.eye(padded.num_nodes))
    assert padded.target_rows is batch.target_rows
    assert padded_trie(padded, padded.num_nodes).num_nodes == padded.num_nodes


def ordered_lists(mask: Any) -> list[torch.Tensor]:
    names = ["kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"]
    names += ["q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"]
    return [getattr(mask, name) for name in names]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_nodes", [*SIZES, 700])
def test_lists_of_tiles_are_those_that_flex_attention_makes_of_all_pairs(num_nodes: int, seed: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    batch = batch_of(num_nodes, seed)
    batch = padded_trie(batch, padded_length(num_nodes))
    rule = trie_mask_mod(torch.from_numpy(batch.subtree_end))
    wanted = create_block_mask(rule, None, None, batch.num_nodes, batch.num_nodes, device="cpu")
    found = attention_flex.lay_out_flex(batch, None, CPU).block_mask
    assert found.shape == wanted.shape
    assert found.BLOCK_SIZE == wanted.BLOCK_SIZE
    for one, other in zip(ordered_lists(found), ordered_lists(wanted), strict=True):
        assert one.dtype is other.dtype is torch.int32
        assert torch.equal(one, other)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tries())
def test_lists_of_small_tiles_are_those_of_all_pairs(examples: Any) -> None:
    batch, size = build_trie(examples), 4
    batch = padded_trie(batch, -(-batch.num_nodes // size) * size)
    for window in (None, 1, 2, 5):
        sees = visible(batch, window).reshape(-1, size, batch.num_nodes // size, size)
        some, full = tile_lists(batch.subtree_end, batch.positions, window, size)
        assert np.array_equal(full, sees.all((1, 3)))
        partly = sees.any((1, 3)) & ~full
        assert np.array_equal(some, partly) if window is None else not (partly & ~some).any()


# FlexAttention's graphs


def test_flex_attention_is_compiled_whole_and_may_be_compiled_for_many_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """More kinds of calls than the limit would fall back, silently, to an implementation that holds all pairs."""
    seen: list[Any] = []

    def compiled(function: Any, **options: Any) -> Any:
        seen.append(options)
        return lambda *heads, **_: seen.append(torch._dynamo.config.recompile_limit)

    monkeypatch.setattr(torch, "compile", compiled)
    attention_flex._compiled_flex.cache_clear()
    before = torch._dynamo.config.recompile_limit
    try:
        attention_flex._flex_attention(torch.empty(1, device="meta"))
    finally:
        attention_flex._compiled_flex.cache_clear()
    assert seen == [{"dynamic": True, "fullgraph": True}, attention_flex.RECOMPILE_LIMIT]
    assert torch._dynamo.config.recompile_limit == before < attention_flex.RECOMPILE_LIMIT


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "out of resource: shared memory, Required: 131072, Hardware limit: 101376. Reducing block sizes may help"
        ),
        RuntimeError("LoweringException: NoValidChoicesError: No choices to select"),
    ],
)
@pytest.mark.parametrize("gpu", ["flex_attention"], indirect=True)
def test_a_kernel_that_does_not_compile_is_a_reason_for_the_padded_layout(
    error: Exception, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(attention_flex, "_flex_attention", fails)
    reason = self_check(tiny_model(), random_records(3))
    assert str(reason).startswith("the model cannot be computed as a trie (RuntimeError: ")
    assert str(error)[:40] in str(reason)
    found = choose_layout(tiny_model(), random_records(6), train_config(), torch.bfloat16)
    assert (found.name, found.reason) == ("padded", reason)
    assert found.max_tokens > 1


# Values and gradients


def assert_like_dense(batch: TrieBatch, window: int | None, softcap: float | None = None) -> None:
    model = tiny_model(dtype=torch.float64, num_key_value_heads=2)
    batch = laid_out(batch, model)
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, batch.num_nodes, heads, 8, dtype=torch.float64).transpose(1, 2).detach().requires_grad_()
        for heads in (4, 2, 2)
    ]
    upstream = torch.randn(1, batch.num_nodes, 4, 8, dtype=torch.float64)
    options: dict[str, Any] = {"scaling": 1.3, "softcap": softcap, "sliding_window": window}
    plan = plan_attention(batch, model)
    output, _ = trie_attention(model, inputs[0], inputs[1], inputs[2], None, trie_plan=plan, **options)
    query, key, value = (tensor.repeat_interleave(4 // tensor.shape[1], 1) for tensor in inputs)
    scores = query @ key.mT * 1.3
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    hidden = torch.from_numpy(~visible(batch, window))
    expected = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    found, wanted = (torch.autograd.grad(result, inputs, upstream) for result in (output, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore:The .grad attribute of a Tensor"
)
@pytest.mark.parametrize(("num_nodes", "window"), [(1, None), (127, 1), (129, None), (300, 30)])
@pytest.mark.parametrize("gpu", ["varlen", "flex_attention", "torch"], indirect=True)
def test_output_and_gradients_are_those_of_dense_scores(gpu: str, num_nodes: int, window: int | None) -> None:
    assert_like_dense(batch_of(num_nodes), window)


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore:The .grad attribute of a Tensor"
)
@pytest.mark.parametrize("gpu", ["flex_attention", "torch"], indirect=True)
def test_capped_scores_are_those_of_the_formula(gpu: str) -> None:
    assert_like_dense(batch_of(129), 30, softcap=0.5)


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore:The .grad attribute of a Tensor"
)
@pytest.mark.parametrize(
    ("gpu", "family"),
    [("varlen", "llama"), ("varlen", "gpt2"), ("varlen", "gemma3"), ("torch", "mistral"), ("flex_attention", "gemma3")],
    indirect=["gpu"],
)
def test_loss_and_gradients_of_a_model_are_those_of_each_record_alone(gpu: str, family: str) -> None:
    examples = random_records(6, prompt_weight=0.3)
    model = tiny_model(family, torch.float64)
    assert_close(run_batches(model, [examples], "trie"), run_alone(model, examples), 1e-6)


# Sequences


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tries())
def test_sequences_hold_each_node_once_with_the_path_that_it_sees(examples: Any) -> None:
    batch = build_trie(examples)
    for window in (None, 1, 3):
        layout = lay_out_varlen(batch, window, CPU)
        sees = np.zeros((batch.num_nodes, batch.num_nodes), dtype=bool)
        for own, path, seen in each_sequence(layout):
            for row, query in enumerate(range(own.start, own.stop)):
                sees[query, layout.path[path][seen[row]]] = True
        assert np.array_equal(sees, visible(batch, window))
        assert layout.counts.sum() == len(layout.path) == int(layout.key_starts[-1])


def test_what_several_branches_give_a_node_is_added_in_float32_and_in_one_order() -> None:
    layout = lay_out_varlen(build_trie(random_records(9)), None, CPU)
    torch.manual_seed(0)
    rows = torch.randn(len(layout.path), 2, 8)
    wanted = torch.zeros(len(layout.counts), 2, 8, dtype=torch.float64).index_add_(0, layout.path, rows.double())
    assert layout.counts.max() > 5
    torch.testing.assert_close(summed_by_node(rows, layout).double(), wanted, rtol=1e-6, atol=1e-6)
    low = summed_by_node(rows.bfloat16(), layout)
    assert low.dtype is torch.bfloat16
    exact = torch.zeros_like(wanted).index_add_(0, layout.path, rows.bfloat16().double())
    assert torch.equal(low, exact.bfloat16()) or (low - exact).abs().max() < 2e-2
    with torch.random.fork_rng():
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.equal(summed_by_node(rows, layout), summed_by_node(rows, layout))
        finally:
            torch.use_deterministic_algorithms(False)


# Which


class OnGpu:
    """A model as far as the choice reads it."""

    def __init__(self, dtype: torch.dtype, **config: Any) -> None:
        self.device, self.dtype = torch.device("cuda"), dtype
        self.config = tiny_model().config.get_text_config()
        for name, value in config.items():
            setattr(self.config, name, value)


@pytest.mark.parametrize(
    ("dtype", "config", "capability", "wanted"),
    [
        (torch.bfloat16, {}, (8, 0), "varlen"),
        (torch.float16, {"head_dim": 256}, (9, 0), "varlen"),
        (torch.bfloat16, {"head_dim": 264}, (9, 0), "torch"),
        (torch.bfloat16, {"head_dim": 12}, (9, 0), "torch"),
        (torch.bfloat16, {"attn_logit_softcapping": 50.0}, (9, 0), "torch"),
        (torch.float32, {}, (9, 0), "torch"),
        (torch.float16, {}, (7, 5), "torch"),
    ],
)
def test_flash_attention_computes_what_it_has_kernels_for_and_torch_the_rest(
    dtype: torch.dtype, config: Any, capability: Any, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "compute_capability", lambda device: capability)
    model: Any = OnGpu(dtype, **config)
    assert gpu_attention(model) == wanted
    ask_for(model, "flex_attention")
    assert gpu_attention(model) == "flex_attention"
    ask_for(model, "auto")
    assert gpu_attention(model) == wanted
    assert gpu_attention(tiny_model(dtype=torch.bfloat16)) == "torch"


def test_the_rule_of_a_window_counts_from_the_query_back() -> None:
    batch = batch_of(40)
    node, none = torch.arange(40), torch.zeros((), dtype=torch.long)
    rule = window_mask_mod(torch.from_numpy(batch.subtree_end), torch.from_numpy(batch.positions), 3)
    assert np.array_equal(rule(none, none, node[:, None], node).numpy(), visible(batch, 3))


def test_a_sharded_model_is_asked_for_what_it_computes_in_and_not_for_what_it_is_held_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "compute_capability", lambda device: (9, 0))
    model: Any = OnGpu(torch.float32)
    say_computes_in(model, torch.bfloat16)
    assert gpu_attention(model) == "varlen"
