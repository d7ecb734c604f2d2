"""A model is saved one tensor at a time: the same folder as `save_model` writes of it, with its adapter merged where it has one.

The end of a run then takes less memory than its training did, and no rank ever holds more than its share of a sharded model.
transformers itself says which tensors are saved under which names: it saves stand-ins of one number, and with them the
configurations. Each file is then written tensor by tensor, and read again so: numbers that no adapter changed are those in memory
bit for bit (rounded to the dtype of the folder), the others are what the formula of LoRA gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from tuneful.errors import ExportError
from tuneful.export.card import Card, write_card
from tuneful.export.huggingface import DType, Shipped, check_target, save_state, save_tokenizer
from tuneful.files import write_text, written_aside
from tuneful.model.checks import quiet
from tuneful.model.memory import drop_mapped_pages
from tuneful.model.merge import check_merged, merged_tensors
from tuneful.model.stored import StoredTensor, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_FILE_BYTES = 50 * 10**9
"""A larger model is saved in several files, as transformers does."""
_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_merged(
    model: PreTrainedModel, base: Path | None, folder: Path, shipped: Shipped, card: Card, *, dtype: DType = "float32"
) -> bool:
    """Write the folder of `model` with its adapter merged, whole or not at all; whether that could be done tensor by tensor.

    `base` is the folder that the base came from. Where its weights are stored in another way than the model holds them (several
    as one, or in no safetensors file) nothing is written. Raises ExportError where what was written is not right, and OSError.
    """
    tensors = merged_tensors(model, base)
    if tensors is None or any(tensor.held.dtype not in _KINDS for tensor in tensors):
        return False
    return save_tensors(model, tensors, folder, shipped, card, dtype)


class SavedTensor(Protocol):
    """A tensor to be written: its shape and number format are those of `held`, which may have no memory."""

    @property
    def name(self) -> str:
        """What the model calls it."""

    @property
    def held(self) -> torch.Tensor:
        """It, or one like it."""

    @property
    def matrix(self) -> int:
        """The same number for tensors that are one matrix; 0 where no other is."""

    def pieces(self) -> Iterator[torch.Tensor]:
        """Its numbers one after the other, in float32 where they are floating-point."""

    def expected(self) -> torch.Tensor | None:
        """What they should be up to rounding, in float64; None where they are to be the very numbers."""


def save_tensors(
    model: PreTrainedModel, tensors: Sequence[SavedTensor], folder: Path, shipped: Shipped, card: Card, dtype: DType
) -> bool:
    """Write `tensors` as the folder of `model`, whole or not at all, and read them again; False, and nothing is written, where
    transformers saves others, made of them. Raises ExportError where what was written is not right, and OSError."""
    check_target(folder)
    target: torch.dtype = getattr(torch, dtype)
    try:
        with written_aside(folder) as aside, quiet():
            try:
                save_state(model, _stand_ins(tensors), aside, shipped, dtype)
            except (IndexError, RuntimeError, TypeError, ValueError) as error:  # experts that are taken apart, say
                raise _OtherTensorsError from error
            saved = _names_as_saved(aside / _FILE, tensors)
            (aside / _FILE).unlink()
            _write_files(saved, aside, target)
            _check_files(saved, aside, target)
            save_tokenizer(shipped, aside)
            write_card(aside, shipped.base_name, card, dtype)
    except _OtherTensorsError:
        return False
    return True


def _stand_ins(tensors: Sequence[SavedTensor]) -> dict[str, torch.Tensor]:
    """A tensor of one number for each of `tensors`, which is its place in them; the same tensor for those that are one matrix.

    For finding out which names transformers gives to what it saves.
    """
    of_memory: dict[int, torch.Tensor] = {}
    return {
        tensor.name: of_memory.setdefault(tensor.matrix or -number, torch.tensor([number]))
        for number, tensor in enumerate(tensors)
    }


class _OtherTensorsError(Exception):
    """What transformers saves are not the tensors of the model, but others made of them."""


def _names_as_saved(file: Path, tensors: Sequence[SavedTensor]) -> dict[str, SavedTensor]:
    """The tensors that are saved, by the names that transformers has given their stand-ins in `file`, in its order."""
    saved = {}
    for name, stored in stored_tensors(file.parent).items():
        if stored.dtype != "I64" or stored.shape != (1,):
            raise _OtherTensorsError
        place = int.from_bytes(file.read_bytes()[stored.offset : stored.offset + 8], "little")
        saved[name] = tensors[place]
    return saved


def _saved_dtype(tensor: SavedTensor, target: torch.dtype) -> torch.dtype:
    return target if tensor.held.is_floating_point() else tensor.held.dtype


def _num_bytes(tensor: SavedTensor, target: torch.dtype) -> int:
    return tensor.held.numel() * _saved_dtype(tensor, target).itemsize


# Writing


def _write_files(saved: Mapping[str, SavedTensor], folder: Path, target: torch.dtype) -> None:
    """One file, or several with an index."""
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(saved),
        get_storage_size=lambda tensor: _num_bytes(tensor, target),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=MAX_FILE_BYTES,
    )
    for name, names in split.filename_to_tensors.items():
        _write_file({one: saved[one] for one in names}, folder / name, target)
    if split.is_sharded:
        by_matrix = {tensor.matrix or name: tensor.held.numel() for name, tensor in saved.items()}
        total = sum(by_matrix.values())
        index = {"metadata": {"total_parameters": total, **split.metadata}, "weight_map": split.tensor_to_filename}
        write_text(folder / _INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_file(saved: Mapping[str, SavedTensor], file: Path, target: torch.dtype) -> None:
    """The bytes that safetensors would write: wide numbers first, then by name."""
    names = sorted(saved, key=lambda name: (-_saved_dtype(saved[name], target).itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        stop = offset + _num_bytes(saved[name], target)
        kind, shape = _KINDS[_saved_dtype(saved[name], target)], list(saved[name].held.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for piece in saved[name].pieces():
                flat = piece.to(_saved_dtype(saved[name], target)).contiguous().reshape(-1)
                stream.write(flat.view(torch.uint8).numpy().data)
            drop_mapped_pages(saved[name].held)


# What was written is read again


def _check_files(saved: Mapping[str, SavedTensor], folder: Path, target: torch.dtype) -> None:
    """ExportError where a tensor of the files is not what the base and the adapter make."""
    stored = stored_tensors(folder)
    if odd := sorted(stored.keys() ^ saved.keys()):
        raise ExportError(f"{folder}: tensor {odd[0]} is not in both the trained and the saved model")
    for name, tensor in saved.items():
        if not tensor.held.is_floating_point():
            continue  # a mask or a table of its architecture, which transformers makes anew
        if (expected := tensor.expected()) is not None:
            check_merged(name, stored[name].read(0, tensor.held.numel()), expected)
        elif not _is_written(tensor, stored[name], target):
            raise ExportError(f"{folder}: tensor {name} was not saved as it is in the base or in memory; save again")
        drop_mapped_pages(tensor.held)


def _is_written(tensor: SavedTensor, stored: StoredTensor, target: torch.dtype) -> bool:
    """Whether the bytes of both are the same, stretch by stretch, so that a NaN equals itself."""
    at = 0
    for piece in tensor.pieces():
        wanted, stop = piece.to(target).reshape(-1), at + piece.numel()
        if not torch.equal(wanted.view(torch.uint8), stored.read(at, stop).view(torch.uint8)):
            return False
        at = stop
    return at == tensor.held.numel()
