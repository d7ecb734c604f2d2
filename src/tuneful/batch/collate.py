"""The classical padded batch, exactly as the specification describes it: public API, and the oracle of the engine's tests.

record [1, 2, 3] among records of up to 6 tokens, pad_token_id 50256, "." for ignore_index

inputs     1      2      3  50256  50256  50256
targets    2      3  50256      .      .      .        the first end token is a target, the other pads are ignored
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tuneful.types import Example

IGNORE_INDEX = -100


def custom_collate_fn(
    batch: Sequence[Sequence[int]],
    pad_token_id: int = 50256,
    ignore_index: int = IGNORE_INDEX,
    allowed_max_length: int | None = None,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of records given without their end token; both int64 [records, longest].

    Each record gets one end token (`pad_token_id`) and is padded with the same token to the longest; targets are the
    inputs shifted by one. The first pad among a row's targets stays (it is the end token to be learned), later ones
    become `ignore_index`. Rows are cut to `allowed_max_length` last.
    """
    longest = max(len(record) + 1 for record in batch)
    inputs, targets = [], []
    for record in batch:
        padded = torch.tensor([*record, *[pad_token_id] * (longest - len(record))])
        row_inputs, row_targets = padded[:-1], padded[1:].clone()
        pads = torch.nonzero(row_targets == pad_token_id).flatten()
        row_targets[pads[1:]] = ignore_index
        inputs.append(row_inputs[:allowed_max_length])
        targets.append(row_targets[:allowed_max_length])
    return torch.stack(inputs).to(device), torch.stack(targets).to(device)


def pad_examples(examples: Sequence[Example], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets and target weights of Examples, padded to the longest; int64, int64, float32 [records, longest - 1].

    A target of weight 0 is IGNORE_INDEX. The last token of a record is a target only.
    """
    longest = max(len(example) for example in examples) - 1
    inputs = torch.full((len(examples), longest), pad_token_id)
    targets = torch.full((len(examples), longest), IGNORE_INDEX)
    weights = torch.zeros(len(examples), longest)
    for row, example in enumerate(examples):
        token_ids, length = torch.from_numpy(example.token_ids).long(), len(example) - 1
        inputs[row, :length] = token_ids[:-1]
        weights[row, :length] = torch.from_numpy(example.weights[1:])
        targets[row, :length] = torch.where(weights[row, :length] > 0, token_ids[1:], IGNORE_INDEX)
    return inputs, targets, weights
