"""A decoder's forward over a trie, to be read from top to bottom: embed, the layers, the head on the rows that predict.

    hidden = embed(ids)
    for each layer:   hidden = hidden + attention(norm(hidden))
                      hidden = hidden + mlp(norm(hidden))
    logits = head(norm(hidden[rows]))

transformers' modules are read here as containers of parameters: their names, their saved form, peft's adapters in them and
their configuration stay as they are, and what a step computes with them stands on this page. The families differ in where the
norms stand (Llama before, OLMo 2 behind, Gemma 3 both), in norms of queries and keys, in matrices that are one (Phi 3), and in
a few factors (Granite); GPT-2 has the end of the page. Any other model runs through transformers' own forward with the trie's
attention (`attention.py`). What a family computes is tested against transformers' own logits and gradients in float64.

On a CPU the compiled kernels compute it where there are any: a whole layer at once where they know all of it (`layers.py`), else
its norms, products, rotations and gates one by one (`norms.py`, `products.py`, `elementwise.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tuneful.model.attention import AttentionPlan, softcap_of, trie_attention, window_of
from tuneful.model.elementwise import gated, rotated
from tuneful.model.layers import compiled_layer
from tuneful.model.norms import normalized
from tuneful.model.products import projected

# Legend of shapes: N nodes, D features of the stream, H query heads, R size of a head, M rows that are read, V vocabulary
Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [1, N, R] of the positions."""


@dataclass(frozen=True, slots=True)
class Family:
    """Where the norms of a layer stand, by name; None where there is none."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


_PRE_NORM = Family()
_POST_NORM = Family(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_BOTH = Family("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
FAMILIES = {
    **dict.fromkeys(("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "SmolLM3", "Granite", "Gemma"), _PRE_NORM),
    **dict.fromkeys(("Olmo2", "Olmo3"), _POST_NORM),
    **dict.fromkeys(("Gemma2", "Gemma3"), _BOTH),
    "GPT2": None,
}
"""The families of this page, by how transformers calls their classes; GPT-2 has a layer of its own."""


def is_served(model: PreTrainedModel) -> bool:
    """Whether `model` is one whose forward stands here: of a family's own classes, with no code of others in its modules, and
    with no dropout besides an adapter's, which would have to fall anew on every record."""
    name = family_name(model)
    home = f"transformers.models.{name.lower()}.modeling_{name.lower()}"
    if name not in FAMILIES or type(model).__module__ != home or getattr(model.config, "add_cross_attention", False):
        return False
    kinds = {("self_attn", "Attention"), ("mlp", "MLP")} if FAMILIES[name] else {("attn", "Attention"), ("mlp", "MLP")}
    parts: list[tuple[Any, str]] = [(model.base_model, "TextModel" if name == "Gemma3" else "Model")]
    parts += [(layer, "DecoderLayer" if FAMILIES[name] else "Block") for layer in _layers(model)]
    parts += [(getattr(layer, part, None), kind) for layer in _layers(model) for part, kind in kinds]
    return (
        all(f"{type(part).__module__}.{type(part).__qualname__}" == f"{home}.{name}{kind}" for part, kind in parts)
        and len(_layers(model)) == model.config.num_hidden_layers
        and not any(_drops(part) for part, _ in parts)
        and not _has_any_global_hook()
        and not any(map(is_changed, model.modules()))
    )


def _drops(part: torch.nn.Module) -> bool:
    """Whether a part of a model, being trained, leaves out values at random."""
    own = [child.p for child in part.children() if isinstance(child, torch.nn.Dropout)]
    return part.training and any((*own, getattr(part, "attention_dropout", 0.0)))


def is_changed(module: torch.nn.Module) -> bool:
    """Whether a module holds code of others: a hook, as FSDP's, or a forward of its own."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in vars(module)


def target_logits(
    model: Any, inputs: dict[str, torch.Tensor], positions: torch.Tensor, plan: AttentionPlan, rows: torch.Tensor
) -> torch.Tensor:
    """The logits [M, V] of the nodes `rows` int64 [M], rising, of a batch: `inputs` are `input_ids` [1, N] or their embeddings,
    `inputs_embeds` [1, N, D]; positions [1, N]."""
    base, layers, family = model.base_model, _layers(model), FAMILIES[family_name(model)]
    hidden = inputs["inputs_embeds"] if "inputs_embeds" in inputs else model.get_input_embeddings()(inputs["input_ids"])
    if family is None:
        hidden = hidden + base.wpe(positions)
    if multiplier := getattr(base, "embedding_multiplier", None):  # Granite's
        hidden = hidden * multiplier
    angles = _angles_of_layers(model, layers, hidden, positions)
    read, own = torch.unique_consecutive(rows, return_inverse=True)
    for layer, of_layer in zip(layers, angles, strict=True):
        hidden = _layer(layer, family, hidden, of_layer, plan, read if layer is layers[-1] else None)
    hidden = normalized(base.norm if family else base.ln_f, hidden)[0, own]
    (logits,) = projected([model.get_output_embeddings()], hidden)
    return _scaled(logits, model.config)


def _scaled(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Granite divides its logits, Gemma 2 caps them."""
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


def family_name(model: PreTrainedModel) -> str:
    """What transformers calls the family of `model`: `Llama` of a LlamaForCausalLM."""
    return type(model).__qualname__.removesuffix("LMHeadModel").removesuffix("ForCausalLM")


def _layers(model: Any) -> torch.nn.ModuleList:
    base = model.base_model
    layers: torch.nn.ModuleList = base.h if hasattr(base, "h") else base.layers
    return layers


def _angles_of_layers(
    model: Any, layers: torch.nn.ModuleList, hidden: torch.Tensor, positions: torch.Tensor
) -> list[Angles | None]:
    """Of each layer the angles by which it rotates, those of its kind (Gemma 3 has two); None where it rotates nothing."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        return [None] * len(layers)
    kinds: Sequence[Any] = [None] * len(layers)
    if hasattr(rotary, "layer_types"):
        kinds = model.config.layer_types
    found = {kind: rotary(hidden, positions, *([kind] if kind else [])) for kind in dict.fromkeys(kinds)}
    rotates = [getattr(layer.self_attn, "use_rope", True) for layer in layers]
    return [found[kind] if one else None for kind, one in zip(kinds, rotates, strict=True)]


def _layer(
    layer: Any,
    family: Family | None,
    hidden: torch.Tensor,
    angles: Angles | None,
    plan: AttentionPlan,
    read: torch.Tensor | None,
) -> torch.Tensor:
    """One layer: hidden [1, N, D] -> [1, N, D], or [1, M, D] where only the rows `read` go on."""
    found = compiled_layer(layer, hidden, angles, plan, last=read is not None) if family else None
    if found is not None:
        return found if read is None else found[:, read]

    def compute(hidden: torch.Tensor) -> torch.Tensor:
        if family is None:
            return gpt2_layer(layer, hidden, plan, read)
        return decoder_layer(layer, family, hidden, angles, plan, read)

    if layer.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
        recomputed: torch.Tensor = checkpoint(compute, hidden, use_reentrant=False)
        return recomputed
    return compute(hidden)


def decoder_layer(
    layer: Any,
    family: Family,
    hidden: torch.Tensor,
    angles: Angles | None,
    plan: AttentionPlan,
    read: torch.Tensor | None = None,
) -> torch.Tensor:
    """A layer of a Llama-like family (Touvron et al. 2023). Beyond attention only the rows `read` are computed."""

    def norm(name: str | None, rows: torch.Tensor) -> torch.Tensor:
        return rows if name is None else normalized(getattr(layer, name), rows)

    def added(residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        multiplier = getattr(layer, "residual_multiplier", None)  # Granite's
        return residual + rows if multiplier is None else residual + rows * multiplier

    attended = attend(layer.self_attn, norm(family.before_attention, hidden), angles, plan)
    if read is not None:
        hidden, attended = hidden[:, read], attended[:, read]
    (attended,) = projected([layer.self_attn.o_proj], attended)
    hidden = added(hidden, norm(family.after_attention, attended))
    return added(hidden, norm(family.after_mlp, mlp(layer.mlp, norm(family.before_mlp, hidden))))


def attend(attention: Any, rows: torch.Tensor, angles: Angles | None, plan: AttentionPlan) -> torch.Tensor:
    """What each node takes from those that it sees: rows [1, N, D] -> [1, N, H * R]."""
    query, key, value = _queries_keys_values(attention, rows)
    query, key = (
        _in_heads(_normed(getattr(attention, norm, None), one), attention.head_dim)
        for norm, one in (("q_norm", query), ("k_norm", key))
    )
    if angles is not None:
        query, key = rotated(query, *angles), rotated(key, *angles)
    value = _in_heads(value, attention.head_dim)
    of_layer = {"scaling": attention.scaling, "sliding_window": window_of(attention), "softcap": softcap_of(attention)}
    output, _ = trie_attention(attention, query, key, value, None, trie_plan=plan, **of_layer)
    return output.reshape(1, rows.shape[1], -1)


def _queries_keys_values(attention: Any, rows: torch.Tensor) -> Sequence[torch.Tensor]:
    if not hasattr(attention, "qkv_proj"):
        return projected([attention.q_proj, attention.k_proj, attention.v_proj], rows)
    (all_three,) = projected([attention.qkv_proj], rows)  # Phi 3's
    keys = attention.num_key_value_heads * attention.head_dim
    parts: Sequence[torch.Tensor] = all_three.split([all_three.shape[-1] - 2 * keys, keys, keys], dim=-1)
    return parts


def _normed(norm: Any, rows: torch.Tensor) -> torch.Tensor:
    """Queries or keys after their norm, of each head (Qwen 3, Gemma 3) or of all heads together (OLMo 2), where there is one."""
    if norm is None:
        return rows
    return normalized(norm, rows.reshape(*rows.shape[:-1], -1, norm.weight.shape[0])).reshape(rows.shape)


def _in_heads(rows: torch.Tensor, size: int) -> torch.Tensor:
    """[1, N, H * R] -> [1, H, N, R]"""
    return rows.view(*rows.shape[:-1], -1, size).transpose(1, 2)


def mlp(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """down(activation(gate(rows)) * up(rows)) (Shazeer 2020)."""
    activation: Callable[[torch.Tensor], torch.Tensor] = getattr(module, "act_fn", None) or module.activation_fn
    if hasattr(module, "gate_up_proj"):  # Phi 3's
        (both,) = projected([module.gate_up_proj], rows)
        gate, up = both.chunk(2, dim=-1)
    else:
        gate, up = projected([module.gate_proj, module.up_proj], rows)
    (output,) = projected([module.down_proj], gated(activation, gate, up))
    return output


def gpt2_layer(layer: Any, hidden: torch.Tensor, plan: AttentionPlan, read: torch.Tensor | None = None) -> torch.Tensor:
    """A layer of GPT-2 (Radford et al. 2019)."""
    attention = layer.attn
    all_three = attention.c_attn(layer.ln_1(hidden)).split(attention.split_size, dim=2)
    query, key, value = (_in_heads(one, attention.head_dim) for one in all_three)
    attended, _ = trie_attention(attention, query, key, value, None, scaling=attention.scaling, trie_plan=plan)
    attended = attended.reshape(1, hidden.shape[1], -1)
    if read is not None:
        hidden, attended = hidden[:, read], attended[:, read]
    hidden = hidden + attention.c_proj(attended)
    inner: torch.Tensor = layer.mlp.act(layer.mlp.c_fc(layer.ln_2(hidden)))
    output: torch.Tensor = hidden + layer.mlp.c_proj(inner)
    return output
