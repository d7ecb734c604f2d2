"""Models with sliding windows answer from our cache as transformers does from its own, token for token, far beyond the window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.doubles.decoders import small_model
from tests.doubles.families import tiny_family
from tests.model.families import greedy_of_transformers
from tests.model.test_sliding_windows import SERVED, sliding

from tuneful.config import GenerateConfig
from tuneful.infer import cache, decode
from tuneful.infer.cached import NOT_PACKED, CachedDecoder
from tuneful.infer.compiled import CompiledModel, compiled_model, why_not_compiled
from tuneful.infer.decode import attending, laid_out, make_decoder, why_not_cached
from tuneful.infer.generate import generate
from tuneful.model.forward import compute_logits, own_attention

COMPILED = ("Mistral", "Qwen2", "Qwen3", "SmolLM3")
NUM_STEPS = 40


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    return str(request.param)


def prompts_of(model: Any) -> list[list[int]]:
    """Shorter than the window, as long, longer and much longer; the last two begin alike."""
    rng = np.random.default_rng(0)
    words = model.get_input_embeddings().weight.shape[0]
    rows = [rng.integers(3, words, length).tolist() for length in (2, 4, 5, 19, 30)]
    rows[-1][:12] = rows[-2][:12]
    return rows


@pytest.mark.parametrize("family", SERVED)
def test_greedy_answers_in_float32_are_those_of_transformers(family: str, way: str) -> None:
    model = sliding(family, torch.float32).eval()
    choice, weights = laid_out(model)
    assert (choice.name, choice.reason) == ("shared", None)
    assert isinstance(weights, CompiledModel) == (way == "compiled" and family in COMPILED)
    config = GenerateConfig(temperature=0, max_new_tokens=10, batch_size=3)
    prompts = prompts_of(model)
    found = dict(generate(model, prompts, config, ()))
    assert [list(found[at].token_ids) for at in range(len(prompts))] == [
        greedy_of_transformers(model, prompt)[:10] for prompt in prompts
    ]


@pytest.mark.parametrize("window", [1, 3, 16, 17])
@pytest.mark.parametrize("family", SERVED)
def test_logits_are_those_of_each_row_alone_as_rows_come_and_go(family: str, window: int, way: str) -> None:
    model = sliding(family, torch.float32, window=window).eval()
    prompts = prompts_of(model)
    weights = compiled_model(model) if way == "compiled" and family in COMPILED else NOT_PACKED
    assert weights is not None
    decoder = CachedDecoder(model, len(prompts), 0, weights)
    tokens, logits = [list(prompt) for prompt in prompts], [list[torch.Tensor]() for _ in prompts]
    rng, rows = np.random.default_rng(1), [0, 1, 2]

    def note(stepped: list[int], given: torch.Tensor) -> None:
        for row, own in zip(stepped, given, strict=True):
            logits[row].append(own.clone())
            tokens[row].append(int(rng.integers(3, 20)))

    with attending(model, decoder.attention):
        note(rows, decoder.admit([prompts[row] for row in rows]))
        for step in range(NUM_STEPS):
            if step == 5:
                note([3, 4], decoder.admit(prompts[3:]))
                rows += [3, 4]
            note(rows, decoder.step([tokens[row][-1] for row in rows]))
            if step == 8:
                rows = [rows[at] for at in decoder.release({1})]
    with attending(model, own_attention(model)):
        for row, own in enumerate(logits):
            ids = torch.tensor([tokens[row][:-1]])
            wanted = compute_logits(model, len(own), input_ids=ids, use_cache=False)[0]
            found = torch.stack(own).float()
            assert (found - wanted).norm() <= 2e-5 * wanted.norm()


def test_in_bfloat16_too_the_compiled_step_proves_itself_beyond_the_window() -> None:
    for family in COMPILED:
        choice, weights = laid_out(sliding(family, torch.bfloat16).eval())
        assert choice.reason is None
        assert isinstance(weights, CompiledModel)


def test_what_all_prompts_share_is_not_kept_apart_where_windows_slide_over_it() -> None:
    model = sliding("Mistral", torch.float32).eval()
    prompts = [[*range(3, 53), last] for last in (7, 8)]
    assert make_decoder(model, 2, 50, 80)._num_shared == 0  # type: ignore[attr-defined]
    found = dict(generate(model, prompts, GenerateConfig(temperature=0, max_new_tokens=8), ()))
    assert [list(found[at].token_ids) for at in range(2)] == [greedy_of_transformers(model, one)[:8] for one in prompts]


def test_scores_that_are_capped_are_capped_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with what all prompts share, which is kept apart where no layer has a window, too."""
    model = small_model("Gemma2", torch.float32, attn_logit_softcapping=0.02, layer_types=["full_attention"] * 3).eval()
    monkeypatch.setattr(decode, "has_windows", lambda model: False)  # the setting stands there, and no layer reads it
    monkeypatch.setattr(decode, "LEAST_SHARED", 3)
    assert why_not_cached(model) is None
    prompts = [[*range(3, 40), last] for last in (7, 8)]
    assert make_decoder(model, 2, 37)._num_shared == 37  # type: ignore[attr-defined]
    config = GenerateConfig(temperature=0, max_new_tokens=8)
    found = dict(generate(model, prompts, config, ()))
    assert [list(found[at].token_ids) for at in range(2)] == [greedy_of_transformers(model, one)[:8] for one in prompts]
    capped = cache._capped
    monkeypatch.setattr(cache, "_capped", lambda scores, softcap: capped(scores, None))
    assert "the logits of a few tokens differ by" in str(why_not_cached(model))


def test_a_family_that_was_not_tested_takes_transformers_cache_where_its_window_is_too_long_to_be_tried() -> None:
    assert why_not_cached(tiny_family("mixtral", sliding_window=8).eval()) is None
    reason = "its family is not among those that were tested"
    assert reason in str(why_not_cached(tiny_family("mixtral", sliding_window=400).eval()))
    assert why_not_cached(sliding("Gemma3", torch.float32, window=400).eval()) is None


def test_layers_that_do_not_say_their_windows_are_not_served() -> None:
    assert "do not say which of them have a sliding window" in str(why_not_cached(tiny_family("moshi").eval()))


def test_a_window_that_the_steps_forget_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    model = sliding("Mistral", torch.float32).eval()
    right = cache.TorchEngine._step

    def forgetful(engine: Any, tokens: Any) -> Any:
        step = right(engine, tokens)
        if step.hidden is None:
            return step
        hidden = step.hidden
        return cache.DecodeStep(step.key_values, tokens, hidden=lambda window: hidden(None))

    monkeypatch.setattr(cache.TorchEngine, "_step", forgetful)
    assert "the logits of a few tokens differ by" in str(why_not_cached(model))


def test_layers_of_unlike_windows_are_not_the_compiled_steps() -> None:
    model = sliding("Qwen2", torch.float32).eval()
    assert why_not_compiled(model) is None
    model.model.layers[-1].self_attn.sliding_window = 7
    assert why_not_compiled(model) == "its layers have windows of several sizes"
