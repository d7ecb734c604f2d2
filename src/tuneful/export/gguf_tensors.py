"""The tensors of a GGUF file: which weight of the model each is made of, how its rows are laid out there, and in which type.

    query, key   [heads * size, inputs]   llama.cpp turns neighbours, transformers a head's halves: rows go 0 4 1 5 2 6 3 7
    Conv1D       [inputs, outputs]        GPT-2's; llama.cpp has [outputs, inputs]
    norm         [size]                   Gemma multiplies by 1 + weight, llama.cpp by what the file holds

Names are those of the `gguf` package's own table. A tensor is made a few rows at a time; `restored` undoes the layout, and is
what a written file is read back with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tuneful.errors import ModelError
from tuneful.export.gguf_shapes import Shape, frequency_factors, head_sizes, shape_of
from tuneful.export.gguf_types import GgufType, type_of
from tuneful.export.source import Source
from tuneful.model.stored_adapter import Weight

Change = Literal["as it is", "rows of a head", "transposed", "plus 1"]
"""How a tensor of the file differs from the weight that it is made of."""

_CHUNK = 1 << 22
"""Numbers that are read and rounded at once: 16 MB in float32."""
_TABLES = re.compile(r"\.(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)$")
"""Tables of an architecture that old files hold, and no weights."""
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file; `weight_name` is the model's own for `weight`, `unit` the rows of a head where they are moved."""

    name: str
    type: GgufType
    weight_name: str
    weight: Weight
    change: Change = "as it is"
    unit: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the file, slowest dimension first."""
        shape = self.weight.shape
        return shape[::-1] if self.change == "transposed" else shape

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns); a vector is one row, or for heads that are moved a column."""
        if len(self.shape) == 1:
            return (self.shape[0], 1) if self.change == "rows of a head" else (1, self.shape[0])
        return self.shape[0], self.shape[-1]

    def stretches(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of the rows that are worked on at once."""
        rows, columns = self.matrix_shape
        step = rows if self.change == "transposed" else max(1, _CHUNK // columns // self.unit) * self.unit
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def source_rows(self, start: int, stop: int) -> torch.Tensor:
        """The weight's own rows for the rows `start` to `stop` of the file, float32, laid out as the model has them."""
        if len(self.shape) == 1:
            return self.weight.rows(0, 1).reshape(self.matrix_shape)[start:stop]
        return (
            self.weight.rows(0, self.weight.shape[0]) if self.change == "transposed" else self.weight.rows(start, stop)
        )

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows `start` to `stop` of the file before they are rounded, float32."""
        return _changed(self.source_rows(start, stop), self.change, self.unit)

    def restored(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the file as the model has them: `source_rows` undone."""
        if self.change == "transposed":
            return rows.T
        if self.change == "plus 1":
            return rows - 1
        if self.change == "rows of a head":
            heads, columns = rows.shape[0] // self.unit, rows.shape[1]
            return rows.reshape(heads, self.unit // 2, 2, columns).swapaxes(1, 2).reshape(rows.shape)
        return rows


def _changed(rows: torch.Tensor, change: Change, unit: int) -> torch.Tensor:
    if change == "transposed":
        return rows.T.contiguous()
    if change == "plus 1":
        return rows + 1
    return _interleaved(rows, unit) if change == "rows of a head" else rows


def _interleaved(rows: torch.Tensor, unit: int) -> torch.Tensor:
    """The two halves of each head of `unit` rows, a row of each in turn."""
    heads, columns = rows.shape[0] // unit, rows.shape[1]
    return rows.reshape(heads, 2, unit // 2, columns).swapaxes(1, 2).reshape(rows.shape)


def plan_tensors(source: Source, wanted: GgufType) -> list[GgufTensor]:
    """Every tensor of the file, in the order of the model's weights; ModelError for a weight that has no place."""
    shape = shape_of(source.architecture)
    names = tensor_names(source.architecture, shape)
    planned = []
    for name, weight in _distinct(source).items():
        if not _TABLES.search(name):
            planned.append(_tensor(name, weight, names, source.architecture, shape, wanted))
    factors = None if shape.name == "gpt2" else frequency_factors(source.architecture)
    if factors is not None:
        planned.append(GgufTensor("rope_freqs.weight", "f32", "the stretched angles", _Table(factors)))
    return planned


def tensor_names(architecture: Any, shape: Shape) -> Any:
    """The `gguf` package's table of names for a model of that kind."""
    import gguf

    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == shape.name)
    return gguf.get_tensor_name_map(kind, architecture.num_hidden_layers)


def change_of(name: str, shape: Shape, head_dim: int) -> tuple[Change, int]:
    """How the weight `name` is changed, and the rows that stay together."""
    owner, _, kind = name.rpartition(".")
    layer = owner.rpartition(".")[2]
    if shape.permutes and layer in ("q_proj", "k_proj"):
        return "rows of a head", head_dim
    if kind == "weight" and layer in shape.transposes:
        return "transposed", 1
    return ("plus 1", 1) if shape.raises_norms and layer.endswith("norm") else ("as it is", 1)


@dataclass(frozen=True, slots=True)
class _Table:
    """Numbers that are computed and stand in no file of the model."""

    numbers: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.numbers.shape)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.numbers.reshape(1, -1)[start:stop]


def _tensor(name: str, weight: Weight, names: Any, architecture: Any, shape: Shape, wanted: GgufType) -> GgufTensor:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ModelError(f"{name}: a {shape.name} model has no such tensor in llama.cpp; export it --to huggingface")
    change, unit = change_of(name, shape, head_sizes(architecture)[2])
    in_file = weight.shape[::-1] if change == "transposed" else weight.shape
    return GgufTensor(found, type_of(found, in_file, wanted), name, weight, change, unit)


def _distinct(source: Source) -> dict[str, Weight]:
    """The weights of `source`, a tied output head left out; ModelError where the folder holds it with other values."""
    weights = dict(source.weights)
    if not source.ties_embeddings or _HEAD not in weights:
        return weights
    head = weights.pop(_HEAD)
    embedding = next(weight for name, weight in weights.items() if name.endswith(("embed_tokens.weight", "wte.weight")))
    one = GgufTensor("output.weight", "f32", _HEAD, head)
    if head.shape != embedding.shape or not all(
        torch.equal(head.rows(*at), embedding.rows(*at)) for at in one.stretches()
    ):
        raise ModelError(
            f"{source.base}: {_HEAD} is not the embedding, though config.json says that the two are one (tie_word_embeddings); "
            "put the one right that is wrong"
        )
    return weights
