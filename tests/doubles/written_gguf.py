"""A tiny model of any family as a GGUF file, under llama.cpp's names: for architectures that are read here and not exported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

ARCHITECTURES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
_BESIDES = {
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
}


def write_tiny_gguf(model: PreTrainedModel, file: Path) -> None:
    """Write `model` to `file`, in float32 and with a vocabulary of names without a meaning."""
    config: Any = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in {**dict(_keys(config)), **_angles(config)}.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"t{number}" for number in range(config.vocab_size)])
    for name, numbers in _tensors(model, architecture):
        writer.add_tensor(name, np.ascontiguousarray(numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _keys(config: Any) -> Iterator[tuple[str, int | float]]:
    for key, name in {**GGUF_CONFIG_MAPPING[config.model_type], **_BESIDES}.items():
        value = getattr(config, name, None) if isinstance(name, str) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value
    if inner := getattr(config, "ffn_hidden_size", None):
        yield "feed_forward_length", inner


def _angles(config: Any) -> dict[str, int | float]:
    angles = getattr(config, "rope_parameters", None)
    if not angles:
        return {}
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = int(head_size * (angles.get("partial_rotary_factor") or 1))
    return {"rope.freq_base": float(angles["rope_theta"]), "rope.dimension_count": turned}


def _tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    (kind,) = (kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for name, tensor in model.state_dict().items():
        numbers, layer = tensor.float().numpy(), re.search(r"\.(\d+)\.", name)
        if name == "lm_head.weight" and is_tied:
            continue
        if name.endswith("experts.gate_up_proj"):
            assert layer is not None
            gate, up = np.split(numbers, 2, axis=1)
            yield from ((f"blk.{layer[1]}.ffn_{which}_exps.weight", one) for which, one in (("gate", gate), ("up", up)))
        elif name.endswith("experts.down_proj"):
            assert layer is not None
            yield f"blk.{layer[1]}.ffn_down_exps.weight", numbers
        else:
            yield names.get_name(name, try_suffixes=(".weight", ".bias")), _as_stored(name, numbers, architecture)


def _as_stored(name: str, numbers: np.ndarray[Any, Any], architecture: str) -> np.ndarray[Any, Any]:
    if architecture == "nemotron" and "norm" in name and name.endswith("weight"):
        more: np.ndarray[Any, Any] = np.add(numbers, 1)
        return more
    if name.endswith("A_log"):
        negated: np.ndarray[Any, Any] = -np.exp(numbers)
        return negated
    if "conv1d.weight" in name or name.endswith("shared_expert_gate.weight"):
        return numbers.squeeze(1 if "conv1d" in name else 0)
    return numbers
