"""Which models GGUF files are written of, and what llama.cpp calls what their configurations say: a few lines each.

The names of keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What llama.cpp would compute otherwise
than the model was trained (another activation, another scaling of its angles) is refused here, before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from tuneful.errors import ModelError

Value = int | float | bool | str | list[str] | list[int] | list[float]
"""What a key of a GGUF file holds."""

_ANGLES = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of model as llama.cpp has it: `name` is its `general.architecture`.

    `permutes` says that the rows of queries and keys stand in another order there, `raises_norms` that 1 is added to the weights
    of norms, `transposes` names the layers whose weights are [inputs, outputs]. `window_every` is the pattern of layers with a
    window that llama.cpp has built in; a model without one is exported up to the length of its window.
    """

    name: str
    activation: str
    permutes: bool = False
    raises_norms: bool = False
    transposes: tuple[str, ...] = ()
    window_every: int | None = None
    scales_by_scalar: bool = False


_LLAMA = Shape("llama", "silu", permutes=True)
_GEMMA = Shape("gemma", "gelu_pytorch_tanh", raises_norms=True)
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": Shape("qwen2", "silu"),
        "qwen3": Shape("qwen3", "silu"),
        "gemma": _GEMMA,
        "gemma2": Shape("gemma2", _GEMMA.activation, raises_norms=True, window_every=2, scales_by_scalar=True),
        "gemma3_text": Shape("gemma3", _GEMMA.activation, raises_norms=True, window_every=6, scales_by_scalar=True),
        "gpt2": Shape("gpt2", "gelu_new", transposes=("c_attn", "c_proj", "c_fc")),
    }
)
"""By transformers' `model_type`."""


def shape_of(config: Any) -> Shape:
    """The kind of model that `config` describes; ModelError for one that no GGUF file is written of."""
    shape = SHAPES.get(config.model_type)
    if shape is None:
        raise ModelError(
            f"no GGUF file is written of a {config.model_type} model: of {', '.join(SHAPES)} only. Export it --to huggingface "
            "and take llama.cpp's own converter"
        )
    _check_computes_alike(config, shape)
    return shape


def head_sizes(config: Any) -> tuple[int, int, int]:
    """(heads of queries, heads of keys and values, numbers a head)."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return heads, kv_heads, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def shape_keys(config: Any, shape: Shape) -> dict[str, Value]:
    """The keys that say how large the model is and how it computes."""
    heads, kv_heads, head_dim = head_sizes(config)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    keys: dict[str, Value] = {
        "vocab_size": int(config.vocab_size),
        "block_count": int(config.num_hidden_layers),
        "context_length": context_of(config, shape),
        "embedding_length": int(config.hidden_size),
        "feed_forward_length": int(inner),
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
    }
    if shape.name == "gpt2":
        keys["attention.layer_norm_epsilon"] = float(config.layer_norm_epsilon)
    else:
        keys["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim, **_angle_keys(config, head_dim)}
    if shape.window_every and config.sliding_window:
        keys["attention.sliding_window"] = int(config.sliding_window)
    for ours, theirs in (("attn", "attn"), ("final", "final")):
        if cap := getattr(config, f"{ours}_logit_softcapping", None):
            keys[f"{theirs}_logit_softcapping"] = float(cap)
    return {f"{shape.name}.{key}": value for key, value in keys.items()}


def context_of(config: Any, shape: Shape) -> int:
    """Tokens that the exported model attends to: within a window that llama.cpp does not know of, as many as that holds."""
    context = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if window and not shape.window_every and getattr(config, "use_sliding_window", True):
        return min(context, int(window))
    return context


def angle_base(config: Any) -> float:
    """The base of the angles by which positions are turned: rope theta."""
    return float(_angles(config)["rope_theta"])


def frequency_factors(config: Any) -> torch.Tensor | None:
    """What llama.cpp divides each frequency by, float32 [head size / 2], where the angles are stretched as Llama 3's; else None.

    After transformers' `_compute_llama3_parameters`: short wave lengths stay, long ones are stretched, in between a mixture.
    """
    angles = _angles(config)
    if angles["rope_type"] != "llama3":
        return None
    head_dim = head_sizes(config)[2]
    frequencies = angles["rope_theta"] ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    wave_lengths, factor = 2 * math.pi / frequencies, float(angles["factor"])
    low, high = float(angles["low_freq_factor"]), float(angles["high_freq_factor"])
    smooth = ((angles["original_max_position_embeddings"] / wave_lengths - low) / (high - low)).clamp(0, 1)
    stretched: torch.Tensor = 1 / ((1 - smooth) / factor + smooth)
    return stretched.float()


def _angles(config: Any) -> Mapping[str, Any]:
    """transformers' description of the angles; that of the layers that see everything where there are two kinds."""
    found = config.rope_parameters
    return found.get("full_attention", found)  # type: ignore[no-any-return]


def _angle_keys(config: Any, head_dim: int) -> dict[str, Value]:
    angles = _angles(config)
    keys: dict[str, Value] = {"rope.freq_base": angle_base(config), "rope.dimension_count": head_dim}
    if local := config.rope_parameters.get("sliding_attention"):
        keys["rope.freq_base_swa"] = float(local["rope_theta"])
    if angles["rope_type"] not in ("linear", "yarn"):
        return keys
    keys |= {"rope.scaling.type": str(angles["rope_type"]), "rope.scaling.factor": float(angles["factor"])}
    if angles["rope_type"] == "yarn":
        original = angles.get("original_max_position_embeddings") or config.max_position_embeddings
        keys["rope.scaling.original_context_length"] = int(original)
    return keys


# What llama.cpp would compute otherwise


def _check_computes_alike(config: Any, shape: Shape) -> None:
    for fault in (_activation_fault, _angles_fault, _scale_fault, _layers_fault):
        if sentence := fault(config, shape):
            raise ModelError(f"{sentence}; a GGUF file of it would give other answers. Export it --to huggingface")


def _activation_fault(config: Any, shape: Shape) -> str | None:
    found = (
        getattr(config, "hidden_activation", None)
        or getattr(config, "hidden_act", None)
        or getattr(config, "activation_function", None)
    )
    alike = {shape.activation, "swish"} if shape.activation == "silu" else {shape.activation}
    if shape is _GEMMA:
        alike |= {"gelu"}  # which transformers reads as the other one
    return (
        None
        if found in alike
        else f"llama.cpp computes {shape.activation} in a {shape.name} model, and this one {found}"
    )


def _angles_fault(config: Any, shape: Shape) -> str | None:
    if shape.name == "gpt2":
        return None
    angles = _angles(config)
    if angles["rope_type"] not in _ANGLES or angles.get("partial_rotary_factor") not in (None, 1, 1.0):
        return f"angles of type {angles['rope_type']!r} are not known to llama.cpp as this model computes them"
    if angles["rope_type"] == "llama3" and shape.name != "llama":
        return f"llama.cpp does not stretch the angles of a {shape.name} model as Llama 3's"
    plain = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")
    if angles["rope_type"] == "yarn" and any(angles.get(key) is not None for key in plain):
        return "its yarn angles have factors of their own"
    local = config.rope_parameters.get("sliding_attention")
    if local and local["rope_type"] != "default":
        return "llama.cpp does not stretch the angles of layers with a window"
    return None


def _scale_fault(config: Any, shape: Shape) -> str | None:
    """llama.cpp divides queries by the root of the head's size, but for one size of Gemma 2 and 3."""
    if not shape.scales_by_scalar:
        return "its scores are scaled by layer" if getattr(config, "scale_attn_by_inverse_layer_idx", False) else None
    heads, _, head_dim = head_sizes(config)
    largest = (shape.name, config.num_hidden_layers) in (("gemma2", 46), ("gemma3", 62))
    expected = config.hidden_size // heads if largest else head_dim
    return None if config.query_pre_attn_scalar == expected else f"its query_pre_attn_scalar is not {expected}"


def _layers_fault(config: Any, shape: Shape) -> str | None:
    if shape.window_every is None:
        return None
    every = shape.window_every
    expected = [
        "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
        for layer in range(config.num_hidden_layers)
    ]
    return (
        None
        if list(config.layer_types) == expected
        else f"not every {every}th of its layers is one that sees everything"
    )
