"""The decoder's own forward gives transformers' logits and gradients, family by family, in float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tuneful.batch.trie import build_trie
from tuneful.model import decoder
from tuneful.model.attention import plan_attention, use_trie_attention
from tuneful.model.decoder import FAMILIES, is_served, target_logits
from tuneful.types import Example

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "Gemma2": {"attn_logit_softcapping": None, "query_pre_attn_scalar": 24, "sliding_window": 64},
    "Gemma3": {"query_pre_attn_scalar": 24, "sliding_window": 64},
    "Granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
        "attention_multiplier": 0.2,
    },
    "SmolLM3": {"no_rope_layers": [1, 0, 1]},
    "Olmo3": {"sliding_window": 64},
    "Mistral": {"sliding_window": None},
}
NAMES = {"Gemma3": "Gemma3Text"}


def small_model(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    if family == "GPT2":
        config = transformers.GPT2Config(
            vocab_size=97, n_embd=64, n_layer=3, n_head=4, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
        made: Any = transformers.GPT2LMHeadModel(config)
    else:
        config = getattr(transformers, f"{NAMES.get(family, family)}Config")(
            **{**SMALL, **OPTIONS.get(family, {}), **options}
        )
        made = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in made.parameters():
        if parameter.ndim == 1:  # norms and biases that are all 1 or 0 would hide much
            torch.nn.init.normal_(parameter, 0.3, 0.3)
    return made.double().eval()


def records(num: int = 4) -> list[Example]:
    """Records that share a beginning, one of them another's beginning."""
    rng = np.random.default_rng(1)
    shared = rng.integers(3, 97, 7)
    ids = [np.concatenate([shared, rng.integers(3, 97, length)]) for length in (3, 9, 5, 1)[:num]]
    made = []
    for one in [*ids, ids[0][:-1]]:
        weights = (np.arange(len(one)) % 3 > 0).astype(np.float32)
        weights[0] = 0
        made.append(Example(one.astype(np.int32), weights, 2, "here"))
    return made


def shared_logits(model: Any, examples: list[Example]) -> tuple[torch.Tensor, Any]:
    use_trie_attention(model)
    batch = build_trie(examples)
    inputs = {"input_ids": torch.from_numpy(batch.input_ids).long()[None]}
    positions = torch.from_numpy(batch.positions).long()[None]
    rows = torch.from_numpy(batch.target_rows).long()
    return target_logits(model, inputs, positions, plan_attention(batch, model, only_targets=True), rows), batch


def nll(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.target_ids).long(), reduction="none")
    return (losses * torch.from_numpy(batch.target_weights)).sum()


def alone(model: Any, examples: list[Example]) -> torch.Tensor:
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    total = torch.zeros((), dtype=torch.float64)
    for example in examples:
        ids = torch.from_numpy(example.token_ids).long()[None]
        logits = model(input_ids=ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + (losses * torch.from_numpy(example.weights[1:])).sum()
    return total


def gradients(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers_for_each_record_alone(family: str, arithmetic: str) -> None:
    model, examples = small_model(family), records()
    assert is_served(model)
    logits, batch = shared_logits(model, examples)
    shared = nll(logits, batch)
    shared.backward()
    found = dict(gradients(model))
    model.zero_grad(set_to_none=True)
    expected = alone(model, examples)
    expected.backward()
    # transformers' norms, and the softmax of Gemma 2's attention, are computed in float32 whatever the model's precision
    close = 1e-6 if arithmetic == "compiled" or family == "Gemma2" else 1e-9
    assert shared.item() == pytest.approx(expected.item(), rel=close)
    for name, gradient in gradients(model):
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_other_models_are_not_served() -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    assert not is_served(transformers.GPTNeoXForCausalLM(config))
    model = small_model("Llama")
    model.model.layers[1] = torch.nn.Identity()
    assert not is_served(model)


def test_every_family_has_a_layer_that_is_read_here() -> None:
    assert set(decoder.FAMILIES.values()) == {decoder._PRE_NORM, decoder._POST_NORM, decoder._BOTH, None}
