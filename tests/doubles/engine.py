"""Stand-ins for the engine's tests: tiny random models, records by hand or by hypothesis, and the plain computation to equal.

The oracle is transformers itself: one record a forward, no plan, no padding, torch's own cross-entropy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tuneful.batch.trie import TrieBatch, visible
from tuneful.config import TrainConfig
from tuneful.runs.schema import Layout, LayoutName
from tuneful.train.loss import micro_batch_loss
from tuneful.train.objective import total_weight
from tuneful.types import Example

END = 0
VOCABULARY = 24
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "gemma")
SLIDING_FAMILIES = ("mistral", "gemma3")
"""Of every layer a window of 4 tokens, and of the first alone."""
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), 0.0)
TRIE, UNSHARED, PADDED = (Layout(name, 1 << 20) for name in ("trie", "unshared", "padded"))

# ------------------------------------------------------------------------------------------------------------- models


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> PreTrainedModel:
    """A random two-layer model of `family`, attending as transformers does (sdpa), in training mode."""
    ends = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": None}
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.1, **ends}
    block = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024}
    makers: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, **NO_DROPOUT}),
        "llama": (LlamaForCausalLM, LlamaConfig, {**block, **grouped, "tie_word_embeddings": True}),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config, {**block, "num_key_value_heads": 2, "tie_word_embeddings": False}),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**block, **grouped, "tie_word_embeddings": True}),
        "gemma": (GemmaForCausalLM, GemmaConfig, {**block, **grouped, "num_key_value_heads": 1, "head_dim": 16}),
        "mistral": (MistralForCausalLM, MistralConfig, {**block, **grouped, "sliding_window": 4}),
        "gemma3": (
            Gemma3ForCausalLM,
            Gemma3TextConfig,
            {**block, **grouped, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        ),
    }
    make, configure, own = makers[family]
    torch.manual_seed(seed)
    model = make(configure(**{**common, **own, **changes}))
    model.set_attn_implementation("sdpa")
    return roughened(model, dtype).train()


def assert_the_same_in(num_threads: int, computed: Callable[[], Iterable[torch.Tensor]]) -> None:
    """What is `computed` by so many threads is, bit for bit, what one thread computes."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = computed()
        torch.set_num_threads(num_threads)
        assert all(torch.equal(found, one) for found, one in zip(computed(), wanted, strict=True))
    finally:
        torch.set_num_threads(before)


def roughened(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """`model` in `dtype`, with norm weights and biases away from the 1 and 0 at which a mistake in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.2, 0.2))
    model.to(dtype)
    if dtype is torch.float64:
        _make_norms_float64(model)
    return model


class TrueNorm(torch.nn.Module):
    """An RMSNorm in the precision of its input, on the weight of another.

    The ones in transformers compute in float32 whatever they are given, which would drown a float64 comparison in
    1e-7. Cosines and sines of rotary positions are float32 as well, but the same bits for the same position on both
    sides, so they may stay.
    """

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.weight: torch.Tensor = norm.get_parameter("weight")
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
        self.eps = float(getattr(norm, "variance_epsilon", None) or getattr(norm, "eps"))  # noqa: B009

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)
        return hidden * scale * (self.weight + self.offset)


def _make_norms_float64(model: PreTrainedModel) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, TrueNorm(child))


# ------------------------------------------------------------------------------------------------------------ records


def record(prompt: Iterable[int], response: Iterable[int], prompt_weight: float = 0.0, source: str = "") -> Example:
    """An Example of `prompt` and `response` (its end token, where it has one, included) as the encoder would weigh it."""
    asked, answered = list(prompt), list(response)
    ids = np.array([*asked, *answered], dtype=np.int32)
    weights = np.array([prompt_weight] * len(asked) + [1.0] * len(answered), dtype=np.float32)
    weights[0] = 0
    return Example(ids, weights, len(asked), source or "-".join(map(str, ids)))


def random_records(
    count: int, *, seed: int = 0, prompt_weight: float = 0.0, longest: int = 12, preamble: int = 5
) -> list[Example]:
    """Records of ragged lengths over a common preamble of `preamble` tokens."""
    rng = np.random.default_rng(seed)
    opening = rng.integers(1, VOCABULARY, preamble)
    records = []
    for index in range(count):
        prompt = [*opening, *rng.integers(1, 4, rng.integers(1, 5))]
        response = [*rng.integers(1, VOCABULARY, rng.integers(0, longest)), END]
        records.append(record(prompt, response, prompt_weight, f"records.json:{index}"))
    return records


@st.composite
def tries(draw: Callable[..., Any], prompt_weights: Sequence[float] = (0.0, 1.0, 0.25)) -> list[Example]:
    """Records that share: two preambles, four ordinary tokens, repeats, and records that another begins with."""
    token = st.integers(1, 4)
    preambles = [draw(st.lists(token, max_size=6)), draw(st.lists(token, max_size=3))]
    prompt_weight = draw(st.sampled_from(tuple(prompt_weights)))
    records: list[tuple[list[int], list[int]]] = []
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(("new", "new", "new", "again", "beginning"))) if records else "new"
        if kind == "new":
            prompt = [*draw(st.sampled_from(preambles)), *draw(st.lists(token, min_size=1, max_size=4))]
            response = [*draw(st.lists(token, max_size=6)), END]
        else:
            prompt, response = draw(st.sampled_from(records))
            if kind == "beginning":
                response = response[: draw(st.integers(1, len(response)))]
        records.append((prompt, response))
    return [record(prompt, response, prompt_weight) for prompt, response in records]


def assert_is_trie_of(batch: TrieBatch, examples: Sequence[Example]) -> None:
    """`batch` holds every prefix of the records once, depth first; who sees whom, and what is predicted, by brute force."""
    paths: list[tuple[int, ...]] = []
    for token_id, position in zip(batch.input_ids.tolist(), batch.positions.tolist(), strict=True):
        parent = paths[-1][:position] if paths else ()
        assert len(parent) == position, "a node's position differs from its depth"
        paths.append((*parent, token_id))
    prefixes = {tuple(e.token_ids[:end].tolist()) for e in examples for end in range(1, len(e))}
    assert sorted(paths) == sorted(prefixes), "the nodes differ from the distinct prefixes of the records"
    ancestry = [[path[: len(other)] == other for other in paths] for path in paths]
    assert np.array_equal(visible(batch), ancestry), "who sees whom differs from ancestry"
    wanted: dict[tuple[tuple[int, ...], int], float] = defaultdict(float)
    for example in examples:
        ids = example.token_ids.tolist()
        for at in np.flatnonzero(example.weights):
            wanted[tuple(ids[:at]), ids[at]] += float(example.weights[at])
    found = {
        (paths[row], token_id): weight
        for row, token_id, weight in zip(
            batch.target_rows.tolist(), batch.target_ids.tolist(), batch.target_weights.tolist(), strict=True
        )
    }
    assert len(found) == len(batch.target_rows), "a target stands twice"
    assert found == pytest.approx(dict(wanted), rel=1e-6), "the targets differ from those of the records"


# ------------------------------------------------------------------------------------------------- loss and gradients


@dataclass(frozen=True)
class Outcome:
    """A loss with the gradient of every parameter that has one."""

    loss: float
    gradients: dict[str, torch.Tensor]


def run_alone(model: PreTrainedModel, examples: Sequence[Example], attention: str | None = "sdpa") -> Outcome:
    """The summed weighted loss of the records, each in a plain forward of its own; in the model's own attention for None."""
    if attention is not None:
        model.set_attn_implementation(attention)
    total = 0.0
    for example in examples:
        ids = torch.from_numpy(example.token_ids).long()
        weights = torch.from_numpy(example.weights[1:]).to(model.dtype)
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
        loss = (F.cross_entropy(logits, ids[1:], reduction="none") * weights).sum()
        loss.backward()
        total += loss.item()
    return _taken(model, total)


def run_batches(
    model: PreTrainedModel, batches: Sequence[Sequence[Example]], layout: LayoutName, divisor: float = 1.0
) -> Outcome:
    """The same through `micro_batch_loss`, a micro-batch at a time."""
    total = 0.0
    for batch in batches:
        loss = micro_batch_loss(model, batch, layout).total / divisor
        loss.backward()
        total += loss.item()
    return _taken(model, total)


def mean_of(model: PreTrainedModel, examples: Sequence[Example]) -> Outcome:
    """`run_alone`, divided by the summed weight of the records."""
    alone, weight = run_alone(model, examples), total_weight(examples)
    return Outcome(alone.loss / weight, {name: grad / weight for name, grad in alone.gradients.items()})


def _taken(model: PreTrainedModel, loss: float) -> Outcome:
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return Outcome(loss, gradients)


def worst_difference(one: Outcome, other: Outcome) -> tuple[float, str]:
    """The largest relative difference, over the loss and each gradient tensor, and whose it is.

    A gradient that mathematics makes 0 (keys and queries where every node sees only itself) is rounding on both sides: a
    tensor's difference is measured against its own norm, or a thousandth of the whole gradient's where that is larger.
    """
    assert one.gradients.keys() == other.gradients.keys()
    whole = torch.stack([gradient.double().norm() for gradient in other.gradients.values()]).norm().item()
    differences = {"loss": abs(one.loss - other.loss) / abs(other.loss)}
    for name, gradient in other.gradients.items():
        difference = (one.gradients[name].double() - gradient.double()).norm().item()
        differences[name] = difference / max(gradient.double().norm().item(), 1e-3 * whole)
    name = max(differences, key=lambda key: differences[key] if differences[key] == differences[key] else float("inf"))
    return differences[name], name


def assert_close(one: Outcome, other: Outcome, tolerance: float) -> None:
    difference, name = worst_difference(one, other)
    assert difference <= tolerance, f"{name} differs by {difference:.3g}, above {tolerance:g}"


def train_config(**changes) -> TrainConfig:
    """A configuration without warmup or schedule, so that the rate is `learning_rate`."""
    return TrainConfig(**{"warmup_steps": 0, "lr_scheduler_type": "constant", **changes})
