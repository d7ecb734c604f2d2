"""Which models may share: the ones that may not are named, and run padded with the loss of plain transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.doubles.engine import (
    FAMILIES,
    VOCABULARY,
    assert_close,
    random_records,
    roughened,
    run_alone,
    run_batches,
    tiny_model,
    train_config,
)
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from tuneful.model.attention import plan_attention
from tuneful.train import loss
from tuneful.train.layout import choose_layout, self_check, why_not_shared

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
UNSHARABLE = {
    "mistral": ("sliding-window", lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=4))),
    "qwen2 with a window": (
        "sliding-window",
        lambda: Qwen2ForCausalLM(
            Qwen2Config(**SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
        ),
    ),
    "gemma2": (
        "sliding-window",
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, sliding_window=4, query_pre_attn_scalar=8)),
    ),
    "gemma3": ("sliding-window", lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **HEADS, sliding_window=4))),
    "mamba": (
        "recurrent",
        lambda: MambaForCausalLM(
            MambaConfig(
                vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, pad_token_id=None, use_mambapy=False
            )
        ),
    ),
    "recurrent gemma": (
        "",
        lambda: RecurrentGemmaForCausalLM(
            RecurrentGemmaConfig(**SIZES, num_key_value_heads=1, lru_width=32, attention_window_size=16)
        ),
    ),
    "mixtral with a router loss": (
        "router loss",
        lambda: MixtralForCausalLM(
            MixtralConfig(**SIZES, **HEADS, num_local_experts=3, num_experts_per_tok=2, output_router_logits=True)
        ),
    ),
}


def loaded(name):
    torch.manual_seed(0)
    return roughened(UNSHARABLE[name][1](), torch.float32).train()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_common_families_share(family):
    model = tiny_model(family)
    assert why_not_shared(model) is None
    layout = choose_layout(model, random_records(6), train_config(), torch.float32)
    assert (layout.name, layout.reason) == ("trie", None)
    assert layout.max_tokens >= 256


@pytest.mark.parametrize("name", UNSHARABLE)
def test_a_model_that_may_not_share_is_named_and_computes_plain_losses(name):
    model, examples = loaded(name), random_records(5, longest=8)
    layout = choose_layout(model, examples, train_config(), torch.float32)
    assert layout.name == "padded"
    assert UNSHARABLE[name][0] in str(layout.reason)
    alone = run_alone(loaded(name), examples, attention=None)
    assert np.isfinite(alone.loss)
    assert_close(run_batches(model, [examples], layout.name), alone, 1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("gpt2", {"resid_pdrop": 0.1}), ("gpt2", {"attn_pdrop": 0.1}), ("llama", {"attention_dropout": 0.1})],
)
def test_dropout_is_named_with_its_value(family, changes):
    model, examples = tiny_model(family, **changes), random_records(4)
    layout = choose_layout(model, examples, train_config(), torch.float32)
    assert layout.name == "padded"
    assert "dropout 0.1" in str(layout.reason)
    model.train()
    assert np.isfinite(run_batches(model, [examples], "padded").loss)
    model.eval()
    assert_close(run_batches(model, [examples], "padded"), run_alone(model, examples), 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),  # as Pythia: classifier_dropout 0.1, all others 0
        lambda: tiny_model("gpt2", summary_first_dropout=0.1),  # GPT-2's default
    ],
    ids=["gpt-neox", "gpt2"],
)
def test_a_dropout_of_a_head_that_the_model_does_not_have_is_no_reason(make):
    assert why_not_shared(make()) is None


def test_values_narrower_than_keys_are_shared_exactly_or_named():
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **SIZES,
        num_key_value_heads=4,
        first_k_dense_replace=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
    )
    model = roughened(DeepseekV3ForCausalLM(config), torch.float32).train()
    examples = random_records(5)
    alone = run_alone(model, examples, attention=None)
    layout = choose_layout(model, examples, train_config(), torch.float32)
    assert_close(run_batches(model, [examples], layout.name), alone, 1e-5)


def test_capped_attention_scores_are_named():
    assert "caps its attention scores" in str(why_not_shared(tiny_model("gemma", attn_logit_softcapping=50.0)))


@pytest.mark.parametrize("wanted", ["unshared", "padded"])
def test_the_layout_that_is_asked_for_is_taken(wanted):
    layout = choose_layout(
        tiny_model(), random_records(4), train_config(layout=wanted, micro_batch_tokens=77), torch.float32
    )
    assert (layout.name, layout.max_tokens, layout.reason) == (wanted, 77, None)


def full_causal(batch, model, *, only_targets):
    """A plan that knows no branches: every node sees every node before it."""
    positions = np.arange(batch.num_nodes, dtype=np.int32)
    ends = np.full(batch.num_nodes, batch.num_nodes, dtype=np.int32)
    ordinary = replace(batch, positions=positions, subtree_end=ends)
    return plan_attention(ordinary, model, only_targets=only_targets)


def test_a_wrong_plan_is_found_out_before_anything_is_trained(monkeypatch):
    model, examples = tiny_model(), random_records(6)
    assert self_check(model, examples) is None
    monkeypatch.setattr(loss, "plan_attention", full_causal)
    assert "as a trie" in str(self_check(model, examples))
    layout = choose_layout(model, examples, train_config(), torch.float32)
    assert layout.name == "padded"
    assert "as a trie" in str(layout.reason)
    assert_close(run_batches(model, [examples], layout.name), run_alone(model, examples), 1e-5)


def test_the_self_check_leaves_no_gradients_behind():
    model = tiny_model()
    self_check(model, random_records(4))
    assert all(parameter.grad is None for parameter in model.parameters())
