"""A sharded model is saved without any rank ever holding it: each rank's rows go to the main rank, which writes them.

The main rank asks for one tensor after the other, in the order of the files, and has a stretch of it at a time;
to compare what it wrote it asks once more. Where transformers saves other tensors than the model has (experts, taken apart)
they can only be made of all of them: then the main rank gathers the whole model, in the number format of the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tuneful.export.card import Card, write_card
from tuneful.export.huggingface import DType, Shipped, save_state, save_tokenizer
from tuneful.export.merged import save_tensors
from tuneful.files import written_aside
from tuneful.model.checks import quiet
from tuneful.train.distributed import Collection, ProcessGroup, local

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class CollectedTensor:
    """A tensor of a sharded model: the one with this `number` in `collection`. `held` has its shape and no memory, `rows` is this
    rank's part of it."""

    name: str
    number: int
    held: torch.Tensor
    rows: torch.Tensor
    collection: Collection

    @property
    def matrix(self) -> int:
        """The same number for tensors that are one matrix; 0 where no other is."""
        return self.rows.data_ptr()

    def pieces(self) -> Iterator[torch.Tensor]:
        """Its numbers one after the other, in float32 where they are floating-point."""
        for piece in self.collection.pieces(self.number):
            yield piece.float() if piece.is_floating_point() else piece

    def expected(self) -> torch.Tensor | None:
        """Nothing: they are to be the very numbers."""
        return None


def save_sharded(
    model: PreTrainedModel, folder: Path, shipped: Shipped, card: Card | None, group: ProcessGroup, *, dtype: DType
) -> None:
    """Write the folder of a sharded `model`, whole or not at all; every rank calls, and returns once it is there.

    `card` is the main rank's. Raises ExportError where what was written is not what the ranks hold, and OSError.
    """
    state = model.state_dict()
    collection = Collection(list(state.values()), group)
    if not group.is_main:
        collection.bring()
        group.wait()
        return
    assert card is not None
    tensors = [
        CollectedTensor(name, number, torch.empty(one.shape, dtype=one.dtype, device="meta"), local(one), collection)
        for number, (name, one) in enumerate(state.items())
    ]
    try:
        if not save_tensors(model, tensors, folder, shipped, card, dtype):
            _save_whole(model, tensors, folder, shipped, card, dtype)
    finally:
        collection.done()
    group.wait()


def _save_whole(
    model: PreTrainedModel, tensors: list[CollectedTensor], folder: Path, shipped: Shipped, card: Card, dtype: DType
) -> None:
    target: torch.dtype = getattr(torch, dtype)
    whole: dict[int, torch.Tensor] = {}  # what is one matrix stays one
    for tensor in tensors:
        key = tensor.matrix or -tensor.number
        if key not in whole:
            pieces = (piece.to(target if piece.is_floating_point() else piece.dtype) for piece in tensor.pieces())
            whole[key] = torch.cat(list(pieces)).reshape(tensor.held.shape)
    with written_aside(folder) as aside, quiet():
        save_state(model, {one.name: whole[one.matrix or -one.number] for one in tensors}, aside, shipped, dtype)
        save_tokenizer(shipped, aside)
        write_card(aside, shipped.base_name, card, dtype)
