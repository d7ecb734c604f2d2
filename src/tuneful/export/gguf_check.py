"""A GGUF file is read back: every key, and every tensor un-permuted against the model's own weight.

What is expected is made by another way than the file was: the weight as the model has it, rounded by arithmetic of our own. A
tensor has to be equal bit for bit, so nothing that writing might do to one number of one tensor goes by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuneful.export.gguf_shapes import Value
from tuneful.export.gguf_tensors import GgufTensor
from tuneful.export.gguf_types import QUANTIZED, rounded
from tuneful.model.gguf_header import GgufHeader, GgufTensorInfo

_ARCHITECTURE = "general.architecture"


def key_faults(header: GgufHeader, keys: Mapping[str, Value], architecture: str) -> Iterator[str]:
    """What is wrong with the keys of the file, a sentence each."""
    found: dict[str, Any] = {**header.metadata, **header.lists}
    expected = {_ARCHITECTURE: architecture, **keys}
    for key in sorted(found.keys() ^ expected.keys()):
        yield f"{key} is {'not to be there' if key in found else 'missing'}"
    for key, value in expected.items():
        if key in found and not _is_same(found[key], value):
            yield f"{key} is {_shown(found[key])}, not {_shown(value)}"


def tensor_faults(file: Path, header: GgufHeader, tensors: Sequence[GgufTensor]) -> Iterator[str]:
    """What is wrong with the tensors of `file`, a sentence each."""
    for name in sorted(header.tensors.keys() ^ {tensor.name for tensor in tensors}):
        yield f"tensor {name} is {'not to be there' if name in header.tensors else 'missing'}"
    for tensor in tensors:
        if tensor.name in header.tensors and (fault := _fault(file, header.tensors[tensor.name], tensor)):
            yield f"tensor {tensor.name}: {fault}"


def read_rows(file: Path, info: GgufTensorInfo, start: int, stop: int, num_columns: int) -> torch.Tensor:
    """The rows `start` to `stop`, of `num_columns` numbers each, of a tensor of `file` as float32, in the order of the file."""
    import gguf

    kind = gguf.GGMLQuantizationType(info.kind)
    block, block_bytes = map(int, gguf.GGML_QUANT_SIZES[kind])
    row_bytes = num_columns // block * block_bytes
    with file.open("rb") as stream:
        stream.seek(info.offset + start * row_bytes)
        rows = np.fromfile(stream, np.uint8, (stop - start) * row_bytes).reshape(stop - start, row_bytes)
    return torch.from_numpy(np.asarray(gguf.quants.dequantize(rows, kind), dtype=np.float32))


def _fault(file: Path, info: GgufTensorInfo, tensor: GgufTensor) -> str | None:
    if (kind := kind_name(info)) != tensor.type:
        return f"its type is {kind}, not {tensor.type}"
    if (shape := info.shape[::-1]) != tensor.shape:
        return f"its shape is {shape}, not {tensor.shape}"
    largest = 0.0
    for start, stop in tensor.stretches():
        written = read_rows(file, info, start, stop, tensor.matrix_shape[1])
        difference = (tensor.restored(written) - expected_rows(tensor, start, stop)).abs().nan_to_num(float("inf"))
        largest = max(largest, float(difference.max()))
    return (
        None
        if largest == 0
        else f"it differs from {tensor.weight_name} by {largest:.3g} after rounding to {tensor.type}"
    )


def kind_name(info: GgufTensorInfo) -> str:
    """The type of a tensor of a file, in our words for it."""
    import gguf

    return str(gguf.GGMLQuantizationType(info.kind).name.lower())


def expected_rows(tensor: GgufTensor, start: int, stop: int) -> torch.Tensor:
    """The weight's own rows as they come out of a file of the tensor's type, laid out as the model has them."""
    own = tensor.source_rows(start, stop)
    if tensor.change == "plus 1":
        return rounded(own + 1, tensor.type) - 1
    if tensor.change == "transposed" and tensor.type in QUANTIZED:  # blocks lie along the rows of the file
        return rounded(own.T.contiguous(), tensor.type).T
    return rounded(own.contiguous(), tensor.type)


def _is_same(found: Any, value: Value) -> bool:
    if isinstance(value, float):
        return bool(np.float32(found) == np.float32(value))
    if isinstance(value, list) and value and isinstance(value[0], float):
        return len(found) == len(value) and np.array_equal(np.array(found, np.float32), np.array(value, np.float32))
    return type(found) is type(value) and bool(found == value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
