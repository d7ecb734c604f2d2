"""Every causal family of the installed transformers as a tiny random model, built from its own configuration class.

A family's default configuration is shrunk by the names that sizes have in it; what a family wants besides stands in `OWN`. One
that no tiny model was made of is named with its reason by `BuildError`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 24
FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
MAX_PARAMETERS = 8_000_000
LENGTH = 512

SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim_model", "emb_dim", "embedding_size", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("swa_num_attention_heads",), 4),
    **dict.fromkeys(("head_dim", "attention_head_dim", "global_head_dim", "dim_head", "swa_head_dim", "d_kv"), 8),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_inner", "n_inner", "dim_ff"), 48
    ),
    **dict.fromkeys(("ffn_hidden_size", "dff", "d_ff", "moe_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(
        ("expert_ffn_hidden_size", "shared_intermediate_size", "intermediate_size_mlp", "dense_intermediate_size"), 48
    ),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "moe_latent_size"), 48),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "context_length"), LENGTH
    ),
    **dict.fromkeys(("max_sequence_length", "max_target_positions"), LENGTH),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rope_head_dim"), 8),
    **dict.fromkeys(("sliding_window", "attention_window_size", "sliding_window_size", "local_attention"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "lru_width": 32,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "attention_hidden_size": 32,
    "rotary_dim": 8,
    "index_n_heads": 16,  # with few heads, many scores are 0, and which of equals are chosen is nobody's to say
    "index_head_dim": 16,
    "index_topk": 4,
    "hidden_size_per_layer_input": 8,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "attention_chunk_size"), 8),
    **dict.fromkeys(("block_size", "index_block_size", "keep_window_size"), 4),
    **dict.fromkeys(("index_topk_blocks",), 2),
    "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    "num_kv_shared_layers": 0,
    "initializer_range": 0.1,
    "init_std": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "layer_types": None,
    "mlp_layer_types": None,
    "is_decoder": True,
}
"""Attribute of a configuration -> its value in a tiny one, where the family has it."""

_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLUTED = {"layer_types": ["conv", "full_attention"]}
_WIDE = {"attention_head_dim": ..., "attention_hidden_size": ...}
_PADDED = {"vocab_size": VOCABULARY + 1, "pad_token_id": VOCABULARY}
OWN: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text", "granitemoehybrid"), _HYBRID),
    **dict.fromkeys(("camembert", "data2vec-text", "emu3", "modernbert-decoder", "roberta"), _PADDED),
    **dict.fromkeys(("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "gemma4", "gemma4_unified"), _PADDED),
    **dict.fromkeys(("lfm2", "lfm3"), _CONVOLUTED),
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"kv_n_heads": 2}, "ffn_config": {"ffn_hidden_size": 48}},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma4_text": {**_PADDED, "vocab_size_per_layer_input": VOCABULARY + 1},
    "gemma4_unified_text": _PADDED,
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _HYBRID,
    "lfm2_moe": {**_CONVOLUTED, **_PADDED},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "prophetnet": {"num_hidden_layers": ..., "pad_token_id": 0},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_key_value_heads": 1},
    "roc_bert": {
        "pronunciation_vocab_size": VOCABULARY,
        "shape_vocab_size": VOCABULARY,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [16, 32],
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh"],
    },
    "xlm": {"causal": True},
    "xlnet": {"max_position_embeddings": ...},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", **_PADDED},
    "zamba": {"layers_block_type": ["hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 3, **_WIDE},
    "zamba2": {
        **_WIDE,
        "layers_block_type": ["linear_attention", "hybrid"],
        "adapter_rank": 8,
        "num_key_value_heads": 4,
    },
    "xlstm": {"qk_dim_factor": 1.0},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""What a family needs besides, or instead: values of `SIZES` that its own checks refuse; `...` for none."""


class BuildError(Exception):
    """A family that no tiny configuration was found for, and why."""


def tiny_family(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny random model of the family, in float32 and eval mode, as loading one gives it. Raises BuildError."""
    torch.manual_seed(seed)
    try:
        with _silent():
            config = tiny_config(CONFIG_MAPPING[model_type], **{**OWN.get(model_type, {}), **changes})
            kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            if kind.config_class is not type(config):
                config = config.get_text_config()  # as transformers loads the text part of a model that sees
            with torch.device("meta"):
                num_parameters = sum(parameter.numel() for parameter in kind(config).parameters())
            if num_parameters > MAX_PARAMETERS:
                raise BuildError(f"{num_parameters:,} parameters")
            model = kind(config).eval()
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    return roughened(model)


def tiny_config(make: type[PreTrainedConfig], **own: Any) -> PreTrainedConfig:
    """A configuration of the class with everything small, and with what is its `own`."""
    default = make()
    wanted = {**SIZES, **own}
    values = {name: value for name, value in wanted.items() if name in own or _is_given(make, default, name)}
    if "kv_lora_rank" in values:
        values["num_key_value_heads"] = values.get("num_attention_heads", 4)
    for name in ("text_config", "decoder", "vision_config", "audio_config"):
        if isinstance(inner := getattr(default, name, None), PreTrainedConfig):
            values[name] = tiny_config(type(inner), **OWN.get(inner.model_type, {})).to_dict()
    return make(**{name: value for name, value in values.items() if value is not ...})


def roughened(model: PreTrainedModel) -> PreTrainedModel:
    """The model with vectors away from the 1 and 0 at which a mistake in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 and parameter.is_floating_point():
                parameter.add_(torch.empty_like(parameter).uniform_(-0.2, 0.2))
    return model


def _is_given(make: type[PreTrainedConfig], default: PreTrainedConfig, name: str) -> bool:
    if name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        return True
    fixed = isinstance(found := getattr(make, name, None), property) and found.fset is None
    return not fixed and name not in make.attribute_map and (name in vars(default) or hasattr(make, name))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
