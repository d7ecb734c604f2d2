"""A small random model of each family of `tuneful.model.decoder`, what differs within a family, and the loss of a few records.

The oracle is transformers itself, each record alone; in another precision than float64 with what that precision costs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from tests.doubles.engine import Outcome, run_alone, run_batches

from tuneful.model.decoder import FAMILIES
from tuneful.model.forward import own_attention
from tuneful.types import Example

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TWO_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
OPTIONS: dict[str, dict[str, Any]] = {
    "GPT2": {
        "eos_token_id": 2,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
    },
    "Gemma2": {"attn_logit_softcapping": None, "query_pre_attn_scalar": 24, "sliding_window": 64},
    "Gemma3": {"query_pre_attn_scalar": 24, "sliding_window": 64, "layer_types": TWO_KINDS},
    "Granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
        "attention_multiplier": 0.2,
    },
    "SmolLM3": {"no_rope_layers": [1, 0, 1]},
    "Olmo3": {"sliding_window": 64, "layer_types": TWO_KINDS},
    "Mistral": {"sliding_window": None},
    "Phi3": {"hidden_size": 128},
    "Qwen2": {"hidden_size": 128},
}
PART = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LONG = {"short_factor": [1.5] * 8, "long_factor": [2.0] * 8, "rope_theta": 10000.0}
STRETCHED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "Llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "Llama, angles stretched": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, **STRETCHED}},
    ),
    "Llama with another activation": ("Llama", {"hidden_act": "gelu"}),
    "Qwen3 with biases": ("Qwen3", {"attention_bias": True}),
    "Phi3, half a head rotated": ("Phi3", {"rope_parameters": PART}),
    "Phi3, long": (
        "Phi3",
        {"rope_parameters": {"rope_type": "longrope", **LONG}, "original_max_position_embeddings": 64},
    ),
    "Gemma2 without a cap": ("Gemma2", {"final_logit_softcapping": None}),
    "Gemma3 of one kind": ("Gemma3", {"layer_types": None}),
    "Granite, tied": ("Granite", {"tie_word_embeddings": True}),
    "Olmo3 of two kinds of angles": (
        "Olmo3",
        {
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            }
        },
    ),
    "GPT2, scores scaled by layer": ("GPT2", {"scale_attn_by_inverse_layer_idx": True}),
}
NAMES = {"Gemma3": "Gemma3Text"}
"""How transformers calls a configuration, where that is not its family's name."""


def small_model(variant: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
    """A random model of three layers, attending as transformers does, in training mode."""
    family, options = VARIANTS[variant]
    torch.manual_seed(seed)
    sizes = (
        {name: SMALL[name] for name in ("vocab_size", "pad_token_id", "bos_token_id")} if family == "GPT2" else SMALL
    )
    config = getattr(transformers, f"{NAMES.get(family, family)}Config")(
        **{**sizes, **OPTIONS.get(family, {}), **options, **changes}
    )
    made = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(config)
    for parameter in made.parameters():
        if parameter.ndim == 1:  # norms and biases that are all 1 or 0 would hide much
            torch.nn.init.normal_(parameter, 0.3, 0.3)
    return made.to(dtype).train()


def records(num: int = 4) -> list[Example]:
    """Records that share a beginning, one of them another's beginning; where they part a node predicts several tokens."""
    rng = np.random.default_rng(1)
    shared = rng.integers(3, 97, 7)
    ids = [np.concatenate([shared, rng.integers(3, 97, length)]) for length in (3, 9, 5, 1)[:num]]
    made = []
    for one in [*ids, ids[0][:-1]]:
        weights = (np.arange(len(one)) % 3 > 0).astype(np.float32)
        weights[0] = 0
        made.append(Example(one.astype(np.int32), weights, 2, "here"))
    return made


EXAMPLES = records()


def run(model: Any) -> Outcome:
    return run_batches(model, [EXAMPLES], "trie")


def alone(model: Any) -> Outcome:
    """Each record in transformers' own forward."""
    return run_alone(model, EXAMPLES, own_attention(model))


def differences(found: Outcome, wanted: Outcome) -> dict[str, float]:
    """Of each gradient its distance from the one wanted, as a share of that; of one near 0 as a share of all of them."""
    assert found.gradients.keys() == wanted.gradients.keys()
    whole = torch.stack([gradient.double().norm() for gradient in wanted.gradients.values()]).norm()
    return {
        name: ((found.gradients[name].double() - gradient).norm() / max(gradient.double().norm(), 1e-2 * whole)).item()
        for name, gradient in wanted.gradients.items()
    }
