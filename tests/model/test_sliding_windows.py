"""Families with sliding windows share prefixes: loss and gradients are those of transformers, each record alone."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles.decoders import differences, small_model
from tests.doubles.engine import random_records, record, run_alone, run_batches, train_config
from tests.doubles.families import FAMILIES, tiny_family
from tests.machine import needs

from tuneful.batch import trie
from tuneful.infer.decode import why_not_cached
from tuneful.model import attention, attention_native, decoder, layers
from tuneful.model.attention import has_windows, plan_attention, use_trie_attention, why_no_trie, window_of
from tuneful.model.decoder import is_served
from tuneful.model.forward import own_attention
from tuneful.train.layout import choose_layout, set_dropout

WINDOW = 4
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
QWEN = {"use_sliding_window": True, "max_window_layers": 1}
SERVED: Mapping[str, Mapping[str, Any]] = {
    "Mistral": {},
    "Phi3": {},
    "Qwen2": QWEN,
    "Qwen3": QWEN,
    "SmolLM3": {"use_sliding_window": True, "layer_types": ALTERNATING},
    "Olmo3": {"layer_types": ALTERNATING},
    "Gemma2": {"layer_types": ALTERNATING, "attn_logit_softcapping": 0.7},
    "Gemma3": {"layer_types": ALTERNATING},
}
"""Of the families of `decoder.py` those with windows, and what turns them on."""
_OTHERS = (
    *("afmoe", "beam", "cohere2", "cohere2_moe", "cwm", "exaone4", "exaone_moe", "gemma3n_text", "gemma4_text"),
    *("kolibri1", "ministral", "ministral3", "mixtral", "modernbert-decoder", "starcoder2", "vaultgemma"),
)
OTHERS = [family for family in _OTHERS if family in FAMILIES]
"""Families of the installed transformers whose layers say their windows to its own forward."""


def sliding(family, dtype=torch.float64, window=WINDOW, seed=0):
    return small_model(family, dtype, seed, **SERVED[family], sliding_window=window)


def records():
    """Of 2, 3, 4, 5, 6 and 20 tokens that predict, over three that all but the first share."""
    responses = ([7], [7, 8], [7, 9, 8], [7, 9, 10, 8], range(20, 38))
    return [record([30], [5, 6]), *(record([3, 4, 5], response) for response in responses)]


def alone(model, examples):
    return run_alone(model, examples, own_attention(model))


def assert_alike(found, wanted, loss, gradients):
    assert found.loss == pytest.approx(wanted.loss, rel=loss)
    assert max(differences(found, wanted).values()) < gradients


def test_the_records_are_shorter_than_the_window_as_long_longer_and_much_longer():
    assert [len(example) - 1 for example in records()] == [2, 3, 4, 5, 6, 20]


@pytest.mark.parametrize("window", [1, 2, WINDOW, 20])
@pytest.mark.parametrize("family", SERVED)
def test_in_float64(family, window, arithmetic):
    model = sliding(family, window=window)
    assert is_served(model)
    assert_alike(run_batches(model, [records()], "trie"), alone(model, records()), 1e-6, 1e-5)


@pytest.mark.parametrize("family", SERVED)
def test_in_float32(family, arithmetic):
    model = sliding(family, torch.float32)
    exact = alone(copy.deepcopy(model).double(), records())
    assert_alike(run_batches(model, [records()], "trie"), exact, 1e-5, 1e-4)
    one_node = [record([5], [6])]
    exact = alone(copy.deepcopy(model).double(), one_node)
    assert_alike(run_batches(model, [one_node], "trie"), exact, 1e-5, 1e-4)


@pytest.mark.parametrize("family", SERVED)
def test_in_bfloat16_as_near_to_exact_ones_as_transformers_own(family, arithmetic):
    own, theirs = [], []
    for seed in range(3):
        model = sliding(family, torch.bfloat16, seed=seed)
        exact = alone(copy.deepcopy(model).double(), records())
        found = run_batches(model, [records()], "trie")
        assert abs(found.loss - exact.loss) <= 4e-3 * exact.loss
        own.append(sum(differences(found, exact).values()))
        theirs.append(sum(differences(alone(model, records()), exact).values()))
    assert sum(own) <= 1.2 * sum(theirs)


@pytest.mark.parametrize("family", OTHERS)
def test_in_transformers_own_forward_too(family, arithmetic):
    model = tiny_family(family).train()
    set_dropout(model, 0.0)
    assert has_windows(model)
    assert not is_served(model)
    examples = random_records(6)
    assert max(map(len, examples)) > 2 * WINDOW
    assert_alike(run_batches(model, [examples], "trie"), alone(model, examples), 1e-5, 1e-3)


@pytest.mark.parametrize("family", SERVED)
def test_each_layer_has_the_window_that_transformers_hands_on(family, monkeypatch):
    model, said = sliding(family), []
    homes = type(model).__module__
    monkeypatch.setattr(
        f"{homes}.ALL_ATTENTION_FUNCTIONS.get_interface",
        lambda *_: (
            lambda module, query, *rest, sliding_window, **options: (
                said.append((sliding_window, options.get("softcap"))) or query.transpose(1, 2),
                None,
            )
        ),
    )
    model(input_ids=torch.arange(3, 9)[None], use_cache=False)
    own = [layer.self_attn for layer in decoder._layers(model)]
    assert [window for window, _ in said] == [window_of(attention) for attention in own]
    assert WINDOW in {window for window, _ in said}
    assert {cap for _, cap in said} == ({0.7} if family == "Gemma2" else {None})


def test_a_cap_that_gemma_3_does_not_read_is_not_applied():
    model = small_model("Gemma3", attn_logit_softcapping=0.5)
    assert_alike(run_batches(model, [records()], "trie"), alone(model, records()), 1e-6, 1e-5)


def test_no_cap_is_left_out_where_prefixes_are_not_shared(monkeypatch):
    """transformers 5.20 computes Gemma 2 by SDPA, which knows no cap."""
    model = sliding("Gemma2", torch.float32)
    monkeypatch.setattr(type(model), "_supports_sdpa", True)
    assert own_attention(model) == "eager"
    assert own_attention(small_model("Gemma3")) == "sdpa"
    assert_alike(run_batches(model, [records()], "padded"), run_alone(model, records(), "eager"), 1e-5, 1e-4)


def test_a_number_that_llama_does_not_read_is_no_window():
    model = small_model("Llama", torch.float32, sliding_window=2)
    assert_alike(run_batches(model, [records()], "trie"), alone(model, records()), 1e-5, 1e-4)


@needs("compiled-products")
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("family", ["Mistral", "Qwen2"])
def test_a_whole_layer_of_the_kernels_takes_the_layout_of_its_window(family, monkeypatch):
    model, plans = sliding(family, torch.bfloat16), []
    lay_out = attention_native.lay_out_plan
    monkeypatch.setattr(layers, "lay_out_plan", lambda *given: plans.append(lay_out(*given).window) or lay_out(*given))
    run_batches(model, [records()], "trie")
    wanted = [WINDOW] * 3 if family == "Mistral" else [20, WINDOW, WINDOW]
    assert plans == [*wanted, *reversed(wanted)]


@pytest.mark.parametrize("family", SERVED)
def test_where_no_record_is_longer_than_the_window_it_changes_no_bit(family, arithmetic):
    short = [example for example in records() if len(example) - 1 <= WINDOW]
    model = sliding(family, torch.float32)
    found = run_batches(model, [short], "trie")
    without = sliding(family, torch.float32, window=1000)
    wanted = run_batches(without, [short], "trie")
    assert found.loss == wanted.loss
    assert all(torch.equal(gradient, wanted.gradients[name]) for name, gradient in found.gradients.items())


def test_each_window_is_laid_out_once_and_what_no_layer_asks_for_is_not(monkeypatch):
    asked, cut = [], trie.cut_blocks
    monkeypatch.setattr(attention, "cut_blocks", lambda *given: asked.append(given[2]) or cut(*given))
    for family, wanted in (("Mistral", [WINDOW]), ("Gemma3", [WINDOW, None])):
        model = sliding(family, torch.float32)
        use_trie_attention(model)
        batch, asked[:] = trie.build_trie(records()), []
        ids, positions = (torch.from_numpy(one).long()[None] for one in (batch.input_ids, batch.positions))
        plan = plan_attention(batch, model)
        for _ in range(2):
            decoder.target_logits(model, {"input_ids": ids}, positions, plan, torch.arange(batch.num_nodes))
        assert asked == wanted


@pytest.mark.parametrize("family", SERVED)
def test_the_layout_is_the_trie_and_answers_take_our_cache(family):
    model = sliding(family, torch.float32)
    assert why_no_trie(model) is None
    layout = choose_layout(model, records(), train_config(), torch.float32)
    assert (layout.name, layout.reason) == ("trie", None)
    assert why_not_cached(model.eval()) is None


def test_layers_that_see_later_tokens_are_refused():
    model = tiny_family("gemma3_text", use_bidirectional_attention=True)
    assert why_no_trie(model) == "the model sees tokens that come later"
    assert why_not_cached(model) == "the model sees tokens that come later"


@pytest.mark.parametrize("planted", [None, WINDOW - 1, WINDOW + 1])
def test_a_wrong_window_is_found_out_by_a_record_that_is_longer(planted, monkeypatch):
    """The first records, which the self-check takes, are shorter; a longer one is added to them."""
    short = [replace(example) for example in records() * 2 if len(example) - 1 < WINDOW]
    examples = [*short, *records()]
    assert len(short) >= 4
    model = sliding("Mistral", torch.float32)
    assert choose_layout(model, examples, train_config(), torch.float32).name == "trie"
    monkeypatch.setattr(decoder, "window_of", lambda attention: planted)
    layout = choose_layout(model, examples, train_config(), torch.float32)
    assert layout.name == "padded"
    assert "as a trie" in str(layout.reason)
    assert choose_layout(model, short, train_config(), torch.float32).name == "trie"


def test_a_family_that_keeps_its_windows_to_itself_is_computed_without_sharing():
    for family in ("moshi", "doge"):
        layout = choose_layout(tiny_family(family), random_records(4), train_config(), torch.float32)
        assert layout.name == "padded"
        assert "its layers" in str(layout.reason)
    assert np.isfinite(alone(tiny_family("moshi").train(), random_records(2)).loss)
