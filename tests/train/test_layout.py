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
from tests.doubles.families import tiny_family
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

from tuneful.batch.collate import pad_examples
from tuneful.config import LoraConfig
from tuneful.errors import ModelError
from tuneful.model.attention import plan_attention
from tuneful.model.forward import own_attention
from tuneful.model.lora import add_adapter
from tuneful.model.nf4_layers import quantize_layers
from tuneful.runs.schema import Notice
from tuneful.train import loss, memory
from tuneful.train.layout import choose_layout, self_check, set_dropout, why_not_shared, why_random
from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW

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
WITH_WINDOWS = {
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=4)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, sliding_window=4, query_pre_attn_scalar=8)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **HEADS, sliding_window=4)),
}
UNSHARABLE = {
    "windows that layers keep to themselves": (
        "do not say which of them have a sliding window",
        lambda: tiny_family("qwen2_moe", use_sliding_window=True, max_window_layers=1),
    ),
    "attention sinks": ("have attention sinks", lambda: tiny_family("gpt_oss")),
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


@pytest.mark.parametrize("name", WITH_WINDOWS)
def test_models_with_sliding_windows_share(name):
    torch.manual_seed(0)
    model, examples = roughened(WITH_WINDOWS[name](), torch.float32).train(), random_records(6)
    layout = choose_layout(model, examples, train_config(), torch.float32)
    assert (layout.name, layout.reason) == ("trie", None)
    assert_close(run_batches(model, [examples], "trie"), run_alone(model, examples, own_attention(model)), 1e-5)


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


def test_a_cap_in_the_configuration_of_a_family_that_does_not_read_it_is_none():
    model, examples = tiny_model("gemma", attn_logit_softcapping=0.1), random_records(6)
    assert choose_layout(model, examples, train_config(), torch.float32).name == "trie"
    assert_close(run_batches(model, [examples], "trie"), run_alone(model, examples), 1e-5)


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


class Noisy(torch.nn.Module):
    """A part that shakes what it is given in training, under a name that nobody has heard of."""

    def __init__(self, inner, strength):
        super().__init__()
        self.inner, self.wobble = inner, strength

    def forward(self, hidden):
        shaken = self.inner(hidden)
        return shaken + self.wobble * torch.randn_like(shaken) if self.training else shaken


@pytest.mark.parametrize("strength", [1e-3, 0.1])
def test_random_numbers_are_seen_whatever_they_are_called(strength):
    model, examples = tiny_model().eval(), random_records(4)
    state = torch.get_rng_state()
    assert why_random(model, examples) is None
    model.model.layers[0].mlp = Noisy(model.model.layers[0].mlp, strength)
    layout = choose_layout(model, examples, train_config(), torch.float32)
    assert layout.name == "padded"
    assert "draws random numbers in training" in str(layout.reason)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("phimoe", {"router_jitter_noise": 0.1}, "router_jitter_noise 0.1 in its config.json"),
        ("seed_oss", {"residual_dropout": 0.1}, "dropout 0.1"),
        ("opt", {"layerdrop": 0.3}, "dropout 0.3"),
    ],
)
def test_jitter_and_dropouts_of_other_names_are_named(family, changes, said):
    layout = choose_layout(tiny_family(family, **changes), random_records(4), train_config(), torch.float32)
    assert layout.name == "padded"
    assert said in str(layout.reason)


def test_dropout_of_any_name_can_be_set_to_nothing():
    model = tiny_family("seed_oss", residual_dropout=0.1)
    set_dropout(model, 0.0)
    assert choose_layout(model, random_records(4), train_config(), torch.float32).name == "trie"


def test_records_that_switch_rotary_positions_of_those_beside_them_are_computed_alone():
    factors = {"short_factor": [1.0] * 4, "long_factor": [40.0, 30.0, 20.0, 10.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 24, **factors}

    def make():
        return tiny_family(
            "phi3", sliding_window=None, rope_parameters=rope, original_max_position_embeddings=24
        ).train()

    short, long = random_records(5, longest=6), random_records(1, longest=60, seed=3)
    assert max(map(len, short)) < 24 < len(long[0])
    assert choose_layout(make(), short, train_config(), torch.float32).name == "trie"
    for examples, others in (([*short, *long], []), (short, [long])):
        layout = choose_layout(make(), examples, train_config(), torch.float32, others)
        assert (layout.name, layout.max_tokens) == ("padded", 1)
        assert f"a record of {len(long[0]) - 1} tokens changes" in str(layout.reason)
    alone = run_alone(make(), [*short, *long], attention=None)
    assert_close(run_batches(make(), [[example] for example in [*short, *long]], "padded"), alone, 1e-5)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(run_batches(make(), [[*short, *long]], "padded"), alone, 1e-5)


def test_a_padded_batch_that_gives_another_loss_is_found_out_too(monkeypatch):
    def shifted(examples, pad_token_id):
        inputs, targets, weights = pad_examples(examples, pad_token_id)
        return (inputs.roll(1, 0) if len(examples) > 1 else inputs), targets, weights

    monkeypatch.setattr(loss, "pad_examples", shifted)
    model, examples = loaded("mamba"), random_records(5)
    for wanted in ("trie", "padded"):
        layout = choose_layout(model, examples, train_config(layout=wanted), torch.float32)
        assert (layout.name, layout.max_tokens) == ("padded", 1)
        assert "as a padded batch" in str(layout.reason)
        assert ("recurrent" in str(layout.reason)) == (wanted == "trie")


def test_a_model_that_sees_later_tokens_is_refused():
    with pytest.raises(ModelError, match="sees tokens that come later"):
        choose_layout(tiny_family("bert", is_decoder=False), random_records(4), train_config(), torch.float32)
    assert choose_layout(tiny_family("bert", is_decoder=True), random_records(4), train_config(), torch.float32)


def events_of(model, config):
    examples = random_records(4)
    layout = choose_layout(model, examples, config, torch.float32)
    return list(Training(model, AdamW(model, config, torch.float32), examples, [], config, layout).run())


def test_parameters_that_no_gradient_reaches_are_named_and_left_as_they_are():
    model = tiny_family("bart")
    set_dropout(model, 0.0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    events = events_of(model, train_config(max_steps=2, batch_size=4))
    [notice] = [event for event in events if isinstance(event, Notice)]
    assert (notice.step, notice.notice) == (1, "unused")
    assert "no gradient has reached model.decoder.layers.0.encoder_attn" in notice.sentence
    unused = [name for name in before if "encoder_attn" in name]
    assert unused
    assert {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])} == set(unused)


def test_a_training_in_which_no_gradient_reaches_anything_is_refused():
    model = tiny_family("bart")
    set_dropout(model, 0.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("encoder_attn" in name)
    with pytest.raises(ModelError, match=r"no gradient reaches any of .* lora\.target_modules"):
        events_of(model, train_config(max_steps=1, batch_size=4))


def test_beside_a_large_base_the_activations_are_bounded_however_much_memory_is_free(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 21 * 10**6)
    monkeypatch.setattr(memory, "MIN_TOKENS", 2)
    free = memory.affordable_tokens(tiny_model(), torch.float32, computed_again=False)
    monkeypatch.setattr(memory, "LARGE_BASE", 7 * 10**5)
    monkeypatch.setattr(memory, "_PART_OF_BASE", 1e-6)  # first what is no part of the base
    assert memory.affordable_tokens(tiny_model(), torch.float32, computed_again=False) == free, "all of it is trained"
    for quantized in (False, True):
        model = tiny_model("llama", hidden_size=256, intermediate_size=1024)
        if quantized:
            quantize_layers(model, torch.float32)
        add_adapter(model, LoraConfig(r=2, target_modules=("q_proj",)))
        bounded = memory.affordable_tokens(model, torch.float32, computed_again=False)
        monkeypatch.setattr(memory, "LARGE_BASE", 10**9)
        assert memory.affordable_tokens(model, torch.float32, computed_again=False) == pytest.approx(
            10 * bounded, rel=0.3
        )
        monkeypatch.setattr(memory, "LARGE_BASE", 7 * 10**5)
        with monkeypatch.context() as part:
            part.setattr(memory, "_PART_OF_BASE", memory._frozen_bytes(model) / (2 * 10**5))
            smaller = memory.affordable_tokens(model, torch.float32, computed_again=False)
            assert smaller == pytest.approx(bounded * 2 / 7, abs=1)
