"""How large a model is, from the headers of its files: what is needed to say whether it fits before a weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneful.errors import ModelError
from tuneful.model.checks import LEGACY_BUFFERS
from tuneful.model.gguf_header import read_gguf_header
from tuneful.model.own_files import read_document
from tuneful.model.stored import stored_tensors

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk|blocks|block)\.(\d+)\.")
_EMBEDDINGS = re.compile(r"embed|wte|wpe|lm_head|token_embd|position_embd|^output\.weight$")
_INPUT_EMBEDDINGS = re.compile(r"embed|wte|wpe|token_embd|position_embd")
_HEADS = ("lm_head.weight", "output.weight")


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The shape of every tensor of a model by name, and the sizes that its activations follow from."""

    shapes: Mapping[str, tuple[int, ...]]
    hidden_size: int
    inner_size: int
    num_layers: int

    @property
    def num_parameters(self) -> int:
        """All weights."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def widest_matrix(self) -> int:
        """The weights of the largest matrix of a layer, which an adapter may stand beside."""
        matrices = [shape for name, shape in self.shapes.items() if len(shape) == 2 and not _EMBEDDINGS.search(name)]
        return max(map(math.prod, matrices), default=0)

    @property
    def num_in_matrices(self) -> int:
        """The weights of all matrices of the layers, which a base in 4 bits keeps so."""
        return sum(
            math.prod(shape) for name, shape in self.shapes.items() if len(shape) == 2 and not _EMBEDDINGS.search(name)
        )

    def num_trainable(self, freeze_layers: int) -> int:
        """The weights that full finetuning changes where the lowest layers, and the embedding with them, are frozen."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if not _is_frozen(name, freeze_layers))

    def num_adapter_parameters(self, rank: int, freeze_layers: int) -> int:
        """The weights of an adapter of `rank` beside every matrix of the layers above the frozen ones."""
        matrices = [
            shape
            for name, shape in self.shapes.items()
            if len(shape) == 2 and not _EMBEDDINGS.search(name) and not _is_frozen(name, freeze_layers)
        ]
        return sum(rank * sum(shape) for shape in matrices)


def size_of(path: Path) -> ModelSize | None:
    """The size of the model in a folder or `.gguf` file; None where its headers do not tell it. Reads no weight."""
    try:
        return _size_of_gguf(path) if path.is_file() else _size_of_folder(path)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, ModelError):
        return None  # whoever loads it says what is wrong


def _size_of_gguf(file: Path) -> ModelSize:
    header = read_gguf_header(file)
    kind = header.metadata["general.architecture"]

    def figure(name: str) -> int:
        return int(header.metadata[f"{kind}.{name}"])

    hidden = figure("embedding_length")
    inner = int(header.metadata.get(f"{kind}.feed_forward_length", 4 * hidden))
    return ModelSize(header.shapes, hidden, inner, figure("block_count"))


def _size_of_folder(folder: Path) -> ModelSize:
    config = read_document(folder / "config.json")
    return size_from(config, {name: one.shape for name, one in stored_tensors(folder).items()})


def size_from(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ModelSize:
    """The size of the model of a config.json whose files hold tensors of these shapes. ValueError, StopIteration for none."""
    config = {**config, **config.get("text_config", {})}
    shapes = {name: shape for name, shape in shapes.items() if not LEGACY_BUFFERS.search(name)}
    if config.get("tie_word_embeddings", True):
        shapes = {name: shape for name, shape in shapes.items() if name not in _HEADS}
    if not shapes:
        raise ValueError("no weights")
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    return ModelSize(
        shapes,
        hidden,
        _first({**config, "default": 4 * hidden}, "intermediate_size", "n_inner", "ffn_dim", "default"),
        _first(config, "num_hidden_layers", "n_layer", "num_layers"),
    )


def _first(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if type(value := config.get(name)) is int and 0 < value < 1 << 40:
            return value
    raise KeyError(names[0])


def _is_frozen(name: str, freeze_layers: int) -> bool:
    if not freeze_layers:
        return False
    if layer := _LAYER.search(name):
        return int(layer[1]) < freeze_layers
    return bool(_INPUT_EMBEDDINGS.search(name))
