"""What a `.gguf` file says of its model becomes a configuration: what transformers makes of the header, put right where it errs.

transformers takes a few keys of each architecture and its own defaults for the rest. The stretched angles of Llama 3.1, biases,
the size of a head in Qwen 3 and the scale of Gemma's queries would be another model's, without a word. They are read here; what
cannot be said in transformers' terms is refused, and so is a file some of whose weights the model has no place for.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneful.errors import ModelError
from tuneful.model.checks import first_line, named, quiet
from tuneful.model.gguf_header import GgufHeader, gguf_hub_id, read_gguf_header

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_IN_GGUF = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}
_NO_MODELS = ("general", "tokenizer", "mistral", "t5", "umt5", "deci")
"""What transformers lists beside architectures: parts of a header, a name that no file has, models that continue no text or that
need code of their own."""
_FACTORS, _F32 = "rope_freqs.weight", 0
_OF_THE_ANGLES = (_FACTORS, "rope_factors_long.weight", "rope_factors_short.weight")
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""Layers of the one size of an architecture whose queries are scaled by width / heads; elsewhere it is the size of a head, as in
llama.cpp (src/models/gemma2.cpp, gemma3.cpp)."""
_SCALED_BESIDES = {
    "alpha": 1.0,
    "attn_factor": 1.0,
    "yarn_attn_factor": 1.0,
    "yarn_ext_factor": 1.0,
    "yarn_log_multiplier": 0.0,
}
"""Keys of `rope.scaling` that change the angles besides type and factor, with the value at which they do not."""
_TOLERANCE = 1e-4


def know_gemma() -> None:
    """Let transformers read files of the first Gemma, which its tables leave out: keys, names of tensors and norms that are
    stored with 1 added are those of Gemma 2, but for what Gemma 2 has besides."""
    from transformers import modeling_gguf_pytorch_utils as reading

    if "gemma" in reading.GGUF_SUPPORTED_ARCHITECTURES:
        return
    of_gemma2 = reading.GGUF_TO_TRANSFORMERS_MAPPING["config"]["gemma2"]
    keys = {key: name for key, name in of_gemma2.items() if name != "sliding_window"}
    reading.GGUF_TO_TRANSFORMERS_MAPPING["config"]["gemma"] = keys
    reading.TENSOR_PROCESSORS["gemma"] = reading.TENSOR_PROCESSORS["gemma2"]
    reading.GGUF_SUPPORTED_ARCHITECTURES.append("gemma")


def readable_architectures() -> list[str]:
    """The `general.architecture` of the files that the installed transformers reads as models that continue text."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    know_gemma()
    found = {_IN_GGUF.get(name, name) for name in GGUF_SUPPORTED_ARCHITECTURES if name not in _NO_MODELS}
    with contextlib.suppress(ImportError):  # newer releases have a second list
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

        found |= set(GGUF_CONFIG_ARCHS)
    return sorted(found)


def check_readable(header: GgufHeader, file: Path) -> None:
    """ModelError that says what to do instead, where transformers does not read files of this architecture."""
    import transformers

    kind, readable = header.text("general.architecture") or "none", readable_architectures()
    num_experts = header.metadata.get(f"{kind}.expert_count")
    if kind in readable and not (kind == "llama" and num_experts):
        return
    of_experts = " with experts" if kind in readable else ""
    source = gguf_hub_id(file)
    take = f"--model {source}" if source else "--model with its folder, or its id on the Hub"
    raise ModelError(
        f"{file}: a GGUF file of architecture {kind!r}{of_experts}, which transformers {transformers.__version__} does not read "
        f"(it reads {', '.join(readable)}). Take the safetensors that it was made from: {take}"
    )


def gguf_config(file: Path) -> PreTrainedConfig:
    """The configuration of the model in `file`; ModelError where transformers cannot read it, or would compute something else."""
    from transformers import AutoConfig

    header = read_gguf_header(file, with_lists=False)
    check_readable(header, file)
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                str(file.parent), gguf_file=file.name, local_files_only=True
            )
        except Exception as error:
            raise ModelError(f"{file} cannot be read as a GGUF model: {first_line(error)}") from error
    _complete(config, header, file)
    return config


def check_all_taken(model: PreTrainedModel, file: Path) -> None:
    """ModelError where `file` holds weights that `model`, made of it, has no place for: they would be left out in silence."""
    shapes = {name: shape for name, shape in read_gguf_header(file).shapes.items() if name not in _OF_THE_ANGLES}
    held = sum(map(math.prod, shapes.values()))
    head = math.prod(shapes.get("output.weight", ()) or (0,))
    wanted = sum(parameter.numel() for parameter in model.parameters())
    wanted += sum(buffer.numel() for name, buffer in model.state_dict().items() if name in _saved_buffers(model))
    if held not in (wanted, wanted + head):
        biases = [name for name in shapes if name.endswith(".bias")]
        among = f" (its biases: {named(biases)})" if biases else ""
        raise ModelError(
            f"{file}: holds {held:,} weights, and {type(model).__name__} as transformers makes it of the file has {wanted:,}; "
            f"some would be left out{among}. Take the safetensors that it was made from"
        )


def _saved_buffers(model: PreTrainedModel) -> set[str]:
    return set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _complete(config: Any, header: GgufHeader, file: Path) -> None:
    kind = str(header.text("general.architecture"))

    def said(name: str) -> Any:
        return header.metadata.get(f"{kind}.{name}")

    def put(name: str, value: Any) -> None:
        computed = isinstance(getattr(type(config), name, None), property)  # as the size of a head is in Falcon
        if value is not None and hasattr(config, name) and not computed:
            setattr(config, name, value)

    put("head_dim", said("attention.key_length"))
    put("attn_logit_softcapping", said("attn_logit_softcapping"))
    put("final_logit_softcapping", said("final_logit_softcapping"))
    if kind != "gemma4":
        put("sliding_window", said("attention.sliding_window"))
    put("attention_bias", "blk.0.attn_q.bias" in header.tensors or None)
    put("mlp_bias", "blk.0.ffn_up.bias" in header.tensors or None)
    put("ffn_hidden_size", said("feed_forward_length"))
    put("moe_intermediate_size", said("expert_feed_forward_length"))
    put("shared_expert_intermediate_size", said("expert_shared_feed_forward_length"))
    if isinstance(padding := getattr(config, "pad_token_id", None), int) and padding >= config.vocab_size:
        config.pad_token_id = None  # transformers' default, for another vocabulary
    if kind == "gpt2":
        put("n_inner", said("feed_forward_length"))
        put("n_positions", said("context_length"))
    if kind in _SCALED_BY_WIDTH:
        by_width = config.num_hidden_layers == _SCALED_BY_WIDTH[kind]
        put("query_pre_attn_scalar", config.hidden_size // config.num_attention_heads if by_width else config.head_dim)
    if getattr(config, "rope_parameters", None) and kind not in ("gpt-oss", "gemma4"):
        _set_angles(config, said, header, file)


def _set_angles(config: Any, said: Any, header: GgufHeader, file: Path) -> None:
    scaling, base = said("rope.scaling.type"), said("rope.freq_base")
    if {"rope_factors_long.weight", "rope_factors_short.weight"} & header.tensors.keys() or scaling == "longrope":
        raise ModelError(
            f"{file}: its angles are stretched by factors of its own (longrope), which transformers does not read from a GGUF "
            "file. Take the safetensors that it was made from"
        )
    own = [name for name, usual in _SCALED_BESIDES.items() if said(f"rope.scaling.{name}") not in (None, usual)]
    if own:
        raise ModelError(
            f"{file}: its angles are stretched by rope.scaling.{own[0]} too, which transformers does not know. Take the "
            "safetensors that it was made from"
        )
    angles: dict[str, Any] = {} if base is None else {"rope_theta": float(base)}
    if scaling in ("linear", "yarn"):
        angles |= {"rope_type": scaling, "factor": float(said("rope.scaling.factor") or 1.0)}
        original = said("rope.scaling.original_context_length")
        if scaling == "yarn" and original:
            angles["original_max_position_embeddings"] = int(original)
        for name in ("beta_fast", "beta_slow"):
            if scaling == "yarn" and (beta := said(f"rope.scaling.yarn_{name}")) is not None:
                angles[name] = float(beta)
    elif _FACTORS in header.tensors:
        theta = angles.get("rope_theta") or _whole(config)["rope_theta"]
        angles |= {"rope_type": "llama3", **_llama3(_factors(header, file), float(theta), file)}
    angles |= _turned_part(config, said("rope.dimension_count"), file)
    _whole(config).update(angles)
    within_window = config.rope_parameters.get("sliding_attention")
    if within_window is not None and (local := said("rope.freq_base_swa")) is not None:
        within_window["rope_theta"] = float(local)


def _turned_part(config: Any, num_turned: int | None, file: Path) -> dict[str, Any]:
    """The share of a head that is turned, where that is not all of it."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    is_partial = _whole(config).get("partial_rotary_factor") is not None
    if num_turned is None or (num_turned == head_size and not is_partial):
        return {}
    if not is_partial:
        raise ModelError(
            f"{file}: {num_turned} of the {head_size} numbers of a head are turned, and transformers' {config.model_type} turns "
            "all. Take the safetensors that it was made from"
        )
    if hasattr(config, "partial_rotary_factor"):
        config.partial_rotary_factor = num_turned / head_size
    return {"partial_rotary_factor": num_turned / head_size}


def _whole(config: Any) -> dict[str, Any]:
    """The description of the angles; of the layers that see everything where there are two kinds."""
    found: dict[str, Any] = config.rope_parameters
    inner: dict[str, Any] = found.get("full_attention", found)
    return inner


def _factors(header: GgufHeader, file: Path) -> np.ndarray[Any, Any]:
    tensor = header.tensors[_FACTORS]
    if tensor.kind != _F32:
        raise ModelError(f"{file}: {_FACTORS} is not of float32; take the safetensors that it was made from")
    return np.fromfile(file, "<f4", math.prod(tensor.shape), offset=tensor.offset).astype(np.float64)


def _llama3(factors: np.ndarray[Any, Any], theta: float, file: Path) -> Mapping[str, float | int]:
    """The settings of transformers' `llama3` that give these factors, of which the file keeps nothing else.

    A frequency of wave length w is divided by 1 / ((1 - s) / factor + s), s = (original / w - low) / (high - low) within [0, 1].
    So s is a line over 1 / w, two points of which tell `high` and `original` for a `low` of 1. They are proved on all of them.
    """
    num = len(factors)
    waves = 2 * math.pi * theta ** (np.arange(num) / num)
    factor = float(factors.max())
    known = [{"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}]
    if factor > 1:
        share = (1 / factors - 1 / factor) / (1 - 1 / factor)
        between = np.flatnonzero((share > _TOLERANCE) & (share < 1 - _TOLERANCE))
        if len(between) > 1:
            slope, start = np.polyfit(1 / waves[between], share[between], 1)
            high = 1 - 1 / start
            original = round(float(slope * (high - 1)))
            known.append(
                {
                    "low_freq_factor": 1.0,
                    "high_freq_factor": round(float(high), 3),
                    "original_max_position_embeddings": original,
                }
            )
        for settings in known:
            if np.allclose(_divisors(waves, factor, **settings), factors, rtol=_TOLERANCE):
                return {"factor": factor, **settings}
    raise ModelError(
        f"{file}: its angles are stretched in a way that transformers does not have ({_FACTORS}). Take the safetensors that it "
        "was made from"
    )


def _divisors(
    waves: np.ndarray[Any, Any],
    factor: float,
    *,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> np.ndarray[Any, Any]:
    share = (original_max_position_embeddings / waves - low_freq_factor) / (high_freq_factor - low_freq_factor)
    share = np.clip(share, 0, 1)
    found: np.ndarray[Any, Any] = 1 / ((1 - share) / factor + share)
    return found
