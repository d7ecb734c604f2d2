"""A step of the compiled kernels gives the logits of transformers' own forward, whatever its shape, and serves what it knows."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles.engine import _make_norms_float64, assert_the_same_in, tiny_model
from tests.machine import needs
from tests.model.families import greedy_of_transformers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config

from tuneful.config import GenerateConfig, LoraConfig
from tuneful.infer import compiled, decode
from tuneful.infer.cached import CachedDecoder
from tuneful.infer.compiled import CompiledModel, compiled_model, why_not_compiled
from tuneful.infer.decode import attending, laid_out, make_decoder
from tuneful.infer.generate import generate
from tuneful.model.lora import add_adapter

pytestmark = needs("compiler")
VOCABULARY = 71
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "smollm3": (SmolLM3Config, {"no_rope_layers": [1, 0], "pad_token_id": None}),
}
HEADS = [(1, 1, 16), (6, 2, 22), (9, 3, 64), (7, 1, 32), (4, 4, 128), (40, 2, 2), (2, 1, 18)]
WIDTHS = [(10, 96), (22, 130), (6, 66), (2, 34)]
"""Features of the stream for each head, and features between gate and down."""
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}
CASES = [
    (family, heads, WIDTHS[turn % 4], 1 + turn % 7, 17 * (turn % 2))
    for turn, (family, heads) in enumerate([*itertools.product(CONFIGS, HEADS)][::2])
]


def small(family, heads=(6, 2, 16), widths=(10, 96), dtype=torch.float32, **others):
    """A random model of two layers whose norms and biases are not the 1 and 0 at which a fault would not show."""
    configuration, own = CONFIGS[family]
    num_heads, num_key_heads, size = heads
    torch.manual_seed(1)
    config = configuration(
        vocab_size=VOCABULARY,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=widths[0] * heads[0],
        intermediate_size=widths[1],
        num_hidden_layers=2,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_heads,
        **{"head_dim": size, "max_position_embeddings": 512, "initializer_range": 0.2, **own, **others},
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return model.to(dtype).eval()


def exact(model):
    """The same model in float64."""
    model = copy.deepcopy(model).double()
    _make_norms_float64(model)
    return model


def decoder_of(model, num_slots, num_shared=0):
    weights = compiled_model(model)
    assert weights is not None
    return CachedDecoder(model, num_slots, num_shared, weights)


def enter_and_leave(decoder, model, prompts, num_steps=70):
    """The rows' tokens and logits while they enter at two times and leave at others, until slots have grown."""
    tokens = [list(prompt) for prompt in prompts]
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    rows: list[int] = []
    rng = np.random.default_rng(3)

    def note(stepped, given):
        for row, own in zip(stepped, given, strict=True):
            logits[row].append(own.clone())
            tokens[row].append(int(rng.integers(VOCABULARY)))

    with attending(model, decoder.attention):
        for entering in ([0, 1, 2], [3, 4]):
            note(entering, decoder.admit([prompts[row] for row in entering]))
            rows += entering
            for step in range(num_steps):
                note(rows, decoder.step([tokens[row][-1] for row in rows]))
                if step == 2:
                    rows = [rows[at] for at in decoder.release({0})]
    return tokens, logits


def prompts_of(num_shared):
    rng = np.random.default_rng(0)
    shared = rng.integers(0, VOCABULARY, num_shared + 1).tolist()
    return [shared + rng.integers(0, VOCABULARY, length).tolist() for length in (3, 20, 0, 7, 1)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("family", "heads", "widths", "num_threads", "num_shared"), CASES)
def test_logits_are_those_of_each_row_alone(family, heads, widths, num_threads, num_shared, dtype):
    model = small(family, heads, widths, dtype)
    assert why_not_compiled(model) is None
    prompts, before = prompts_of(num_shared), torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        decoder = decoder_of(model, len(prompts), num_shared)
        tokens, logits = enter_and_leave(decoder, model, prompts)
    finally:
        torch.set_num_threads(before)
    oracle, far = exact(model), []
    for prompt, row, own in zip(prompts, tokens, logits, strict=True):
        with torch.no_grad():
            wanted = oracle(input_ids=torch.tensor([row[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        far.append((torch.stack(own).double() - wanted[: len(own)]).norm() / wanted[: len(own)].norm())
    assert max(far) < TOLERANCE[dtype], far


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(dtype):
    model = small("qwen3", (9, 3, 16), (22, 130), dtype)
    for num_threads in (2, 5):
        assert_the_same_in(
            num_threads,
            lambda: [
                own for row in enter_and_leave(decoder_of(model, 5, 9), model, prompts_of(9), 5)[1] for own in row
            ],
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_give_each_what_it_is_given_alone(dtype):
    """More rows than meet a panel at once, and a depth of more than one stretch."""
    model = small("llama", (2, 1, 16), (32, 4200), dtype)
    prompts = [[index % VOCABULARY, 3] for index in range(101)]
    with torch.no_grad():
        decoder = decoder_of(model, len(prompts))
        decoder.admit(prompts)
        together = decoder.step([5] * len(prompts)).clone()
        for row in (0, 60, 100):
            alone = decoder_of(model, 1)
            alone.admit([prompts[row]])
            assert torch.equal(alone.step([5])[0], together[row])


def test_more_rows_than_there_are_distinct_tokens_of_prompts_are_all_answered():
    model = small("llama")
    with torch.no_grad():
        logits = decoder_of(model, 40).admit([[3, 4]] * 39 + [[3]])
        alone = decoder_of(model, 1).admit([[3, 4]])
    assert torch.equal(logits[:39], alone.expand(39, -1))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_answers_in_float32_are_those_of_transformers(family, batch_size):
    model = small(family)
    prompts = [prompt or [1] for prompt in prompts_of(2)]
    config = GenerateConfig(temperature=0, max_new_tokens=10, batch_size=batch_size)
    assert isinstance(laid_out(model)[1], CompiledModel)
    found = dict(generate(model, prompts, config, ()))
    assert [list(found[at].token_ids) for at in range(len(prompts))] == [
        greedy_of_transformers(model, prompt) for prompt in prompts
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_prompts_that_are_nothing_but_what_all_share_are_answered(count):
    model, prompt = small("llama"), [*range(40)]
    config = GenerateConfig(temperature=0, max_new_tokens=5, batch_size=2)
    found = dict(generate(model, [prompt] * count, config, ()))
    assert {tuple(one.token_ids) for one in found.values()} == {tuple(greedy_of_transformers(model, prompt)[:5])}


def test_an_adapter_is_merged_into_the_copy_of_the_weights_and_the_model_stays_as_it_was():
    model = small("llama")
    config = LoraConfig(r=4, alpha=8)
    add_adapter(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.eval()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    choice, weights = laid_out(model)
    assert isinstance(weights, CompiledModel)
    assert choice.reason is None
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_step_neither_calls_the_model_nor_tells_it_how_to_attend(monkeypatch):
    model = small("llama")
    decoder, prompts = decoder_of(model, 5), prompts_of(3)
    wanted = enter_and_leave(decoder, model, prompts, num_steps=4)[1]

    def refuse(*given, **settings):
        raise AssertionError("the model is not called")

    monkeypatch.setattr(type(model), "set_attn_implementation", refuse)
    monkeypatch.setattr(type(model), "forward", refuse)
    found = enter_and_leave(decoder_of(model, 5), model, prompts, num_steps=4)[1]
    assert all(map(torch.equal, map(torch.stack, found), map(torch.stack, wanted)))


def test_what_is_not_served_is_said_and_answered_by_torch(monkeypatch):
    assert "not one of the families" in str(why_not_compiled(tiny_model("gemma")))
    assert "not SiLU" in str(why_not_compiled(small("llama", hidden_act="gelu")))
    assert why_not_compiled(small("mistral", sliding_window=8)) is None
    odd = small("llama", (3, 1, 16), (11, 66))
    assert why_not_compiled(odd) is None
    assert "odd number" in str(why_not_compiled(odd.to(torch.bfloat16)))
    other = small("llama")
    other.model.layers[1].mlp.extra = torch.nn.Parameter(torch.ones(3))
    assert "parameters that they do not know" in str(why_not_compiled(other))
    uneven = small("llama")
    uneven.model.layers[1].input_layernorm.variance_epsilon = 0.5
    assert "norms are of another kind" in str(why_not_compiled(uneven))
    hooked = small("llama")
    hooked.model.layers[0].register_forward_hook(lambda *given: None)
    assert "not one of the families" in str(why_not_compiled(hooked))
    for model in (tiny_model("gemma"), other, uneven):
        assert not isinstance(laid_out(model)[1], CompiledModel)
    monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    assert "there are no kernels" in str(why_not_compiled(small("llama")))
    assert not isinstance(laid_out(small("llama"))[1], CompiledModel)


def test_without_room_for_a_second_copy_of_the_weights_torch_answers(monkeypatch):
    monkeypatch.setattr(compiled, "room_for_a_copy", lambda _: False)
    assert compiled_model(small("llama")) is None


def test_a_step_that_gives_other_logits_is_found_out_and_torch_answers_with_the_reason(monkeypatch):
    model = small("llama")
    right = compiled.CompiledEngine.logits
    monkeypatch.setattr(
        compiled.CompiledEngine, "logits", lambda self, tokens: right(self, tokens) + torch.arange(VOCABULARY)
    )
    choice, weights = laid_out(model)
    assert not isinstance(weights, CompiledModel)
    assert choice.name == "shared"
    assert "by the compiled kernels" in str(choice)
    assert "differ by" in str(choice)
    assert isinstance(make_decoder(model, 1, 0), CachedDecoder)
    assert decode.choose_decoder(model).reason is None


def test_the_copy_holds_the_weights_of_the_moment_it_was_made():
    model = small("qwen2", (4, 2, 16))
    prompt = [1, 2, 3]
    with torch.no_grad():
        made = compiled_model(model)
        assert made is not None
        first = CachedDecoder(model, 1, 0, made).admit([prompt]).clone()
        with torch.no_grad():
            model.model.layers[-1].mlp.down_proj.weight.mul_(3)
        assert torch.equal(CachedDecoder(model, 1, 0, made).admit([prompt]), first)
        assert not torch.equal(decoder_of(model, 1).admit([prompt]), first)
