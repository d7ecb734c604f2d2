"""A GGUF file is written: the keys first, then tensor after tensor, a few rows at a time.

Memory stays below 1 GB however large the model is: of a tensor 16 MB are read, laid out, rounded and written at once. The largest
thing that is held is the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuneful.errors import ExportError
from tuneful.export.gguf_shapes import Value, shape_keys, shape_of
from tuneful.export.gguf_tensors import GgufTensor
from tuneful.export.gguf_tokenizer import tokenizer_keys
from tuneful.export.gguf_types import FILE_TYPES, QUANTIZED, GgufType
from tuneful.export.source import Source
from tuneful.model.names import hub_id

_ON_THE_HUB = "https://huggingface.co/"


def file_keys(source: Source, to: GgufType, title: str, license_name: str | None) -> dict[str, Value]:
    """Every key of the file but `general.architecture`; ModelError where model or tokenizer cannot be said in one."""
    shape = shape_of(source.architecture)
    keys: dict[str, Value] = {"general.type": "model", "general.name": title, "general.file_type": FILE_TYPES[to]}
    if to in QUANTIZED:
        keys["general.quantization_version"] = 2
    if license_name:
        keys["general.license"] = license_name
    if base := hub_id(source.name):
        keys |= {"general.base_model.count": 1, "general.base_model.0.name": base.rpartition("/")[2]}
        keys["general.base_model.0.repo_url"] = _ON_THE_HUB + base
    return {**keys, **shape_keys(source.architecture, shape), **tokenizer_keys(source)}


def write_gguf(
    file: Path,
    architecture: str,
    keys: Mapping[str, Value],
    tensors: Sequence[GgufTensor],
    advance: Callable[[int], None] = lambda num_tensors: None,
) -> None:
    """Write `file`; `advance(1)` is called for each tensor. ExportError for numbers that their type cannot hold, OSError."""
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    try:
        for key, value in keys.items():
            _add(writer, key, value)
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType[tensor.type.upper()]
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), num_bytes(tensor), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (out,) = writer.fout
        writer.write_padding(out, out.tell())
        for tensor in tensors:
            for start, stop in tensor.stretches():
                _encoded(tensor, tensor.rows(start, stop)).tofile(out)
            writer.write_padding(out, num_bytes(tensor))
            advance(1)
    finally:
        writer.close()


def num_bytes(tensor: GgufTensor) -> int:
    """What the tensor takes in the file."""
    import gguf

    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type.upper()]]
    rows, columns = tensor.matrix_shape
    return rows * columns // int(block) * int(block_bytes)


def _encoded(tensor: GgufTensor, rows: torch.Tensor) -> np.ndarray[Any, Any]:
    """`rows` as the bytes of the tensor's type."""
    import gguf

    numbers = np.ascontiguousarray(rows.numpy())
    if not np.isfinite(numbers).all():
        raise ExportError(f"{tensor.weight_name} holds values that are not finite; nothing was exported")
    with np.errstate(over="ignore"):
        encoded: np.ndarray[Any, Any] = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[tensor.type.upper()])
    if tensor.type == "f16" and not np.isfinite(encoded).all():
        raise ExportError(
            f"{tensor.weight_name} holds numbers that f16 cannot ({np.abs(numbers).max():.3g}): take bf16"
        )
    return encoded


def _add(writer: Any, key: str, value: Value) -> None:
    """One key, in the type that its readers expect."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
