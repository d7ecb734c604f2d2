"""What each training record cost the model, at first sight and later: where doubtful and memorised records are found.

A step computes the loss of every record in it anyway, before the weights change; the tracker only notes it, which costs two
numbers a record and no forward. The first visit is the record unseen; the last visit has every earlier one behind it.
Two passes over the whole training set, before the first step and after the last, are made where they are asked for
(`report.record_losses: all`): exact at one set of weights, for a sixth more time at two epochs.

`rank` evaluates the tracker. A wrong answer stays improbable where the answers to similar instructions do not, so a record is
measured against its peers: those next to it when the training set is sorted by its tokens, who open with the same words. What a
record cost when it was seen for the first time says when that was, not whether it is wrong: it is measured once training has been
over it, at a later visit or after the last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tuneful.batch.trie import token_order
from tuneful.runs.schema import RecordLoss
from tuneful.types import Example

# Legend of shapes: N training records
NUM_PEERS = 16
"""Records that stand next to one in token order, half on either side."""
MEMORISED_NOW, MEMORISED_BEFORE = 0.5, 0.01
"""An answer is memorised where the model gives it whole with at least the first probability, once less than the second."""
_KEY_BYTES = 4 * 96
"""By how much of its beginning a record is sorted: 96 tokens."""
_ROWS_AT_ONCE = 1 << 16

_Losses = np.ndarray[tuple[int], np.dtype[np.float64]]


class LossTracker:
    """The summed negative log-likelihood (nats) of each of N records' targets: `before` training, at `first` and at `last`
    sight, and `after`; NaN where it was not computed. `first_step` and `last_step` say when, 0 for never."""

    def __init__(self, num_records: int) -> None:
        self.before, self.first, self.last, self.after = (np.full(num_records, np.nan) for _ in range(4))
        self.first_step, self.last_step = (np.zeros(num_records, dtype=np.int64) for _ in range(2))

    def see(self, step: int, indices: Sequence[int], nll: Sequence[float]) -> None:
        """Note what the records `indices` cost in the forward of `step`."""
        for index, value in zip(indices, nll, strict=True):
            if not self.first_step[index]:
                self.first[index], self.first_step[index] = value, step
            self.last[index], self.last_step[index] = value, step

    def state(self) -> dict[str, torch.Tensor]:
        """Everything noted so far, by name, for a checkpoint: float64 [N] each, -1 where there is nothing."""
        return {
            name: torch.from_numpy(np.nan_to_num(values.astype(float), nan=-1.0)) for name, values in vars(self).items()
        }

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state`."""
        for name, values in vars(self).items():
            found = state[name].numpy()
            values[:] = np.where(found < 0, np.nan, found) if values.dtype == np.float64 else found

    def best_known(self) -> _Losses:
        """The latest loss that there is of each record: after training, else at last sight."""
        return np.where(np.isnan(self.after), self.last, self.after)

    def trained_on(self) -> _Losses:
        """The latest loss of each record that training had been over by then; NaN where it was seen once, and not since."""
        seen_again = np.where(self.last_step > self.first_step, self.last, np.nan)
        return np.where(np.isnan(self.after), seen_again, self.after)

    def earliest_known(self) -> _Losses:
        """The loss of each record before it was trained on: before training, else at first sight."""
        return np.where(np.isnan(self.before), self.first, self.before)


def rank(tracker: LossTracker, examples: Sequence[Example]) -> list[RecordLoss]:
    """What the tracker knows of each example, in their order."""
    sources, num_targets, keys = [], np.empty(len(examples), dtype=np.int64), []
    for index, example in enumerate(examples):
        sources.append(example.source)
        num_targets[index] = (example.weights > 0).sum()
        keys.append(token_order(example)[:_KEY_BYTES])
    early, late = tracker.earliest_known(), tracker.best_known()
    outlier_score = outlier_scores(tracker.trained_on() / num_targets, keys)
    with np.errstate(invalid="ignore"):
        memorised = (late <= -np.log(MEMORISED_NOW)) & (early >= -np.log(MEMORISED_BEFORE))

    def mean(nll: _Losses, index: int) -> float | None:
        return _known(nll[index] / num_targets[index])

    return [
        RecordLoss(
            source,
            int(num_targets[index]),
            mean(tracker.before, index),
            mean(tracker.first, index),
            int(tracker.first_step[index]),
            mean(tracker.last, index),
            int(tracker.last_step[index]),
            mean(tracker.after, index),
            _known(outlier_score[index]),
            bool(memorised[index]),
        )
        for index, source in enumerate(sources)
    ]


def outlier_scores(mean_loss: np.ndarray[Any, Any], keys: Sequence[bytes], num_peers: int = NUM_PEERS) -> _Losses:
    """How far each record's mean loss lies above the median of its peers, in spreads; NaN where the loss is not known.

    Peers are the `num_peers` records next to it in the order of `keys`. The spread is the median absolute deviation of the
    peers, but at least half of that of all records: peers that agree by chance make no outlier.
    """
    known = np.flatnonzero(~np.isnan(mean_loss))
    result = np.full(len(mean_loss), np.nan)
    if len(known) < 3:
        return result
    order = np.array(sorted(known.tolist(), key=lambda index: keys[index]))
    losses = mean_loss[order]
    least_spread = max(float(np.median(np.abs(losses - np.median(losses)))) / 2, 1e-6)
    num_peers = min(num_peers, len(order) - 1)
    for start in range(0, len(order), _ROWS_AT_ONCE):
        places = np.arange(start, min(start + _ROWS_AT_ONCE, len(order)))
        peers = losses[_peers_of(places, len(order), num_peers)]
        middle = np.median(peers, axis=1)
        spread = np.median(np.abs(peers - middle[:, None]), axis=1)
        result[order[places]] = (losses[places] - middle) / np.maximum(spread, least_spread)
    return result


def _peers_of(places: np.ndarray[Any, Any], num_records: int, num_peers: int) -> np.ndarray[Any, Any]:
    """The `num_peers` places next to each of `places`, half on either side where the ends allow, without its own: [P, peers]."""
    first = np.clip(places - num_peers // 2, 0, num_records - num_peers - 1)
    along = np.arange(num_peers)
    return np.asarray(first[:, None] + along + (along >= (places - first)[:, None]))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
