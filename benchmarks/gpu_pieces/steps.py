"""How fast is a step? The product's own, on random weights of known shapes, beside what the device could do at best."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_pieces.place import Piece, Place
from gpu_pieces.records import records_of
from tuneful.batch.trie import build_trie
from tuneful.config import Config, load_config
from tuneful.model.repeatable import reserve_workspace
from tuneful.runs.method import begin_method
from tuneful.runs.schema import Step
from tuneful.train.layout import choose_layout
from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW
from tuneful.types import Example

NODES = (330, 1260, 4096, 16384)
WARMUP, MEASURED = 3, 7


@dataclass(frozen=True)
class Shape:
    """A model as published, and how it is trained here."""

    name: str
    method: str
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = True

    def config(self) -> LlamaConfig:
        """As transformers has it."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            tie_word_embeddings=self.tied,
            max_position_embeddings=8192,
            initializer_range=0.02,
        )

    def num_in_products(self) -> int:
        """Weights of a layer stack and of the head that every row, or target, is multiplied by: those of the layers."""
        size = self.width // self.heads
        layer = 2 * self.width * self.width + 2 * self.width * self.key_heads * size + 3 * self.width * self.inner
        return self.layers * layer


SHAPES = (
    Shape("135m", "full", 576, 1536, 30, 9, 3, 49_152),
    Shape("1b", "full", 2048, 8192, 16, 32, 8, 128_256),
    Shape("1b", "lora", 2048, 8192, 16, 32, 8, 128_256),
    Shape("7b", "lora", 3584, 18_944, 28, 28, 4, 152_064, tied=False),
)
TINY = (Shape("tiny", "full", 32, 48, 2, 4, 2, 200), Shape("tiny", "lora", 32, 48, 2, 4, 2, 200))


def shapes_of(place: Place) -> tuple[Shape, ...]:
    """The shapes that are measured."""
    return TINY if place.tiny else SHAPES


def nodes_of(place: Place) -> tuple[int, ...]:
    """The nodes of a step that are measured."""
    return (130,) if place.tiny else NODES


def step_pieces(place: Place) -> Iterator[Piece]:
    """Each shape at each number of nodes, by each implementation of attention that the device has a choice of."""
    implementations = ("auto",) if place.kind == "cpu" else ("auto", "flex_attention", "torch")
    for shape in shapes_of(place):
        for implementation in implementations:
            for num_nodes in nodes_of(place):
                key = f"step/{shape.name}/{shape.method}/{implementation}/{num_nodes}"
                measured = functools.partial(_measured, place, shape, implementation, num_nodes)
                yield Piece(key, f"step/{shape.name}/{shape.method}/{implementation}", measured)


def settings(shape: Shape, implementation: str = "auto") -> Config:
    """The configuration of a run of that shape."""
    return load_config(
        None,
        [
            f"train.method={shape.method}",
            f"train.max_steps={WARMUP + MEASURED}",
            f"model.attn_implementation={implementation}",
            *("train.learning_rate=1e-5", "train.keep=last", "train.eval_steps=1000"),
        ],
    )


def make_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """Random weights of the shape, the same for everybody."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with device:
            return LlamaForCausalLM(shape.config()).train()
    finally:
        torch.set_default_dtype(before)


def held_in(shape: Shape) -> torch.dtype:
    """A base that stays is in bfloat16, what is trained in float32."""
    return torch.bfloat16 if shape.method == "lora" else torch.float32


def _measured(place: Place, shape: Shape, implementation: str, num_nodes: int) -> dict[str, Any]:
    reserve_workspace(place.device)
    config = settings(shape, implementation)
    examples = records_of(num_nodes, shape.vocabulary)
    model = make_model(shape, held_in(shape), place.device)
    begin_method(model, config, place.device)
    layout = choose_layout(model, examples, config.train, torch.bfloat16)
    train = config.train.model_copy(update={"batch_size": len(examples)})
    place.forget()
    optimizer = AdamW(model, train, torch.bfloat16)
    training = Training(model, optimizer, examples, [], train, layout)
    steps = [event for event in training.run() if isinstance(event, Step)]
    assert len(steps) == WARMUP + MEASURED, "records repeat"
    seconds = statistics.median(step.step_seconds for step in steps[WARMUP:])
    nodes = build_trie(examples).num_nodes
    return {
        "ms": 1e3 * seconds,
        "first_step_seconds": steps[0].step_seconds,
        "loss": steps[0].loss,
        "nodes": nodes,
        "layout": layout.name,
        "reason": layout.reason,
        "tokens_per_second": steps[0].record_tokens / seconds,
        "floor_ms": 1e3 * floor_seconds(place, shape, examples),
        "floor_share": floor_seconds(place, shape, examples) / seconds,
        "peak_gb": place.peak_gb(),
    }


@functools.cache
def rates(place: Place) -> tuple[float, float]:
    """Multiply-adds and bytes a second at best, measured in this process."""
    from gpu_pieces.place import facts

    found = facts(place).measure()
    return found["flops"], found["bytes_per_second"]


def floor_seconds(place: Place, shape: Shape, examples: list[Example]) -> float:
    """What no exact step is faster than: products of every node with every weight of the layers, of every target with the head,
    and the optimizer's bytes (30 a trained weight)."""
    batch, (flops, bandwidth) = build_trie(examples), rates(place)
    times = 6 if shape.method == "full" else 4  # frozen weights get no gradient
    head, layers = shape.vocabulary * shape.width, shape.num_in_products()
    products = times * (layers * batch.num_nodes + head * len(batch.target_rows))
    trained = layers + head * (1 if shape.tied else 2) if shape.method == "full" else 0
    return products / flops + 30 * trained / bandwidth
