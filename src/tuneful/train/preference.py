"""Preferences become a loss: both sides of each pair in one forward, a small function of their log-probabilities, its slopes.

    chosen, rejected of P pairs -> one trie -> nll of each target -> 2 P sums -> P losses (float64) -> one mean over the step

Autograd takes the slopes back: they become the signed weights of the targets in the backward of the cross-entropy
(`WeightedCrossEntropy`). Tokens that both sides of a pair open with are one node each; under a loss of the difference of two sums
their slopes cancel to exactly 0. A pair is never divided between micro-batches, and the mean is over the pairs of the step.

A token counts in a log-probability where it has a weight, once; the largest weight of a record's tokens multiplies the record.
The reference is the model as training starts from it: its log-probabilities come from the same code on the same micro-batches,
before the first step, so that the margin of step 0 is exactly 0 (`reference.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tuneful.config import PreferenceConfig
from tuneful.model.precision import in_float64
from tuneful.train.loss import MicroBatchLoss
from tuneful.train.objective import Measure, Row, Share
from tuneful.train.preference_losses import (
    PairLogps,
    cpo_losses,
    dpo_losses,
    kto_losses,
    orpo_losses,
    simpo_losses,
)
from tuneful.types import Example

# Legend of shapes: P pairs, R labelled records
Reference = Mapping[str, float]
"""The reference's summed log-probability of a response, by `side_key`."""


def side_key(side: Example) -> str:
    """What a side is known by: a hash of its tokens, and of which of them count."""
    return hashlib.blake2b(side.token_ids.tobytes() + (side.weights > 0).tobytes(), digest_size=12).hexdigest()


def record_weight(example: Example) -> float:
    """What multiplies the loss of a record."""
    return float(example.weights.max())


def response_logps(found: MicroBatchLoss, responses: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> torch.Tensor:
    """For each response, indices of targets, their summed log-probability, on the CPU with its graph: float64 [responses]."""
    owner = np.repeat(np.arange(len(responses)), [len(part) for part in responses])
    logps = -in_float64(found.target_nll).cpu()[torch.from_numpy(np.concatenate(responses))]
    return torch.zeros(len(responses), dtype=torch.float64).index_add(0, torch.from_numpy(owner), logps)


@dataclass(frozen=True, slots=True)
class PairObjective:
    """The loss of pairs: `dpo` against a `reference`, or `orpo`, `simpo`, `cpo` without one.

    Beside the mean over pairs may stand the likelihood of the chosen responses, a mean over their tokens in the whole step: of
    `sft` among dpo's losses, of `cpo_alpha`, and of ORPO, where the prompt's tokens count in it as TRL has it.
    A row is nll, log-probability and reward of either side (as TRL reports them), and the chosen logratio a token.
    """

    objective: str
    settings: PreferenceConfig
    reference: Reference = field(default_factory=dict)
    num_columns: int = 6

    @property
    def uses_reference(self) -> bool:
        """Whether `reference` has to have the sides that are trained on."""
        return self.objective == "dpo"

    def sides(self, examples: Sequence[Example]) -> list[Example]:
        """All chosen sides, then all rejected ones."""
        rejected = [example.rejected for example in examples]
        assert None not in rejected, f"{examples[rejected.index(None)].source}: a record without a rejected side"
        chosen = [_all_counted(example) for example in examples] if self._prompt_counts else list(examples)
        return [*chosen, *(side for side in rejected if side is not None)]

    def begin(self, examples: Sequence[Example], measure: Measure) -> Share:
        """Shares of the mean over the pairs of the step, and of the mean over the tokens of their chosen sides."""
        weights = [record_weight(example) for example in examples]
        num_pairs = sum(weights)
        num_tokens = sum(weight * self._num_likely(one) for weight, one in zip(weights, examples, strict=True))

        def share(batch: Sequence[Example], found: MicroBatchLoss) -> tuple[torch.Tensor, list[Row]]:
            pairs, likelihood = self._logps(batch, found)
            own = torch.tensor([record_weight(example) for example in batch], dtype=torch.float64)
            loss = (own * self._pair_losses(pairs)).sum() / num_pairs
            if (alpha := self._likelihood_weight) != 0:
                loss = loss - alpha * (own * likelihood).sum() / num_tokens
            return loss, self._rows(pairs)

        return share

    def figures(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """TRL's figures of a step, each a mean over its pairs; an accuracy counts a tie as wrong."""
        columns = np.array(rows)
        reward_chosen, reward_rejected = columns[:, 3], columns[:, 4]
        found = {
            "rewards_chosen": reward_chosen,
            "rewards_rejected": reward_rejected,
            "rewards_margins": reward_chosen - reward_rejected,
            "rewards_accuracies": reward_chosen > reward_rejected,
            "logps_chosen": columns[:, 1],
            "logps_rejected": columns[:, 2],
        }
        if self.uses_reference:
            found |= {"chosen_logratio": columns[:, 5], "chosen_below_reference": columns[:, 5] < 0}
        return {name: float(values.mean()) for name, values in found.items()}

    @property
    def _loss_types(self) -> tuple[str, ...]:
        return self.settings.resolved_loss_types(self.objective)

    @property
    def _loss_weights(self) -> dict[str, float]:
        weights = self.settings.loss_weights or (1.0,) * len(self._loss_types)
        return dict(zip(self._loss_types, weights, strict=True))

    @property
    def _prompt_counts(self) -> bool:
        return self.objective == "orpo"

    @property
    def _likelihood_weight(self) -> float:
        """What the mean negative log-likelihood of the chosen sides is multiplied by."""
        if self.objective == "dpo":
            return self._loss_weights.get("sft", 0.0)
        return 1.0 if self.objective == "orpo" else self.settings.resolved_cpo_alpha(self.objective)

    @property
    def _of_means(self) -> bool:
        """Whether reward and log-probability are shown as means a token, which the loss is of."""
        return self.objective in ("orpo", "simpo") or (self.objective == "cpo" and self._loss_types == ("ipo",))

    def _num_likely(self, example: Example) -> int:
        return len(example) - 1 if self._prompt_counts else int((example.weights > 0).sum())

    def _logps(self, batch: Sequence[Example], found: MicroBatchLoss) -> tuple[PairLogps, torch.Tensor]:
        """Log-probabilities of the responses, and of what the likelihood of the chosen sides counts [P]."""
        count, own = len(batch), list(found.record_targets)
        likely = own[:count]
        if self._prompt_counts:
            own[:count] = [part[one.weights[1:] > 0] for part, one in zip(likely, batch, strict=True)]
        logps = response_logps(found, own)
        likelihood = response_logps(found, likely) if self._prompt_counts else logps[:count]
        lengths = torch.tensor([len(part) for part in own], dtype=torch.float64)
        known = torch.zeros(2 * count, dtype=torch.float64)
        if self.uses_reference:
            known = torch.tensor([self.reference[side_key(side)] for side in self.sides(batch)], dtype=torch.float64)
        parts = (half for whole in (logps, known, lengths) for half in (whole[:count], whole[count:]))
        return PairLogps(*parts), likelihood

    def _pair_losses(self, pairs: PairLogps) -> torch.Tensor:
        if self.objective == "orpo":
            return orpo_losses(pairs, self.settings)
        if self.objective == "simpo":
            return simpo_losses(pairs, self.settings)
        if self.objective == "cpo":
            return cpo_losses(self._loss_types[0], pairs, self.settings)
        total = torch.zeros_like(pairs.chosen)
        for name, weight in self._loss_weights.items():
            if name != "sft":
                total = total + weight * dpo_losses(name, pairs, self.settings)
        return total

    def _rows(self, pairs: PairLogps) -> list[Row]:
        beta = self.settings.resolved_beta(self.objective)
        chosen, rejected = pairs.chosen.detach(), pairs.rejected.detach()
        shown = (chosen / pairs.num_chosen, rejected / pairs.num_rejected) if self._of_means else (chosen, rejected)
        moved = shown[0] - pairs.ref_chosen, shown[1] - pairs.ref_rejected
        fall = (chosen - pairs.ref_chosen) / pairs.num_chosen
        columns = torch.stack([-chosen, *shown, beta * moved[0], beta * moved[1], fall])
        return [tuple(row) for row in columns.T.tolist()]


@dataclass(frozen=True, slots=True)
class KtoObjective:
    """The loss of records with a label, against a `reference`: better or worse than how far the model has moved in general.

    That distance, the step's KL, is estimated as TRL does: each prompt of the step with the response of the record before it, the
    first with the last one's; `max_length` cuts what becomes too long. One number for the whole step, without a gradient. A
    step of one record has no other response, and a KL of 0: with its own the KL would be what it is compared with.
    A row is nll, log-probability, reward, label (1 or 0), and the KL.
    """

    settings: PreferenceConfig
    max_length: int
    reference: Reference = field(default_factory=dict)
    num_columns: int = 5

    @property
    def uses_reference(self) -> bool:
        """True: there is no KTO without one."""
        return True

    @property
    def _loss_type(self) -> str:
        return self.settings.resolved_loss_types("kto")[0]

    def sides(self, examples: Sequence[Example]) -> list[Example]:
        """The examples themselves."""
        return list(examples)

    def mismatched(self, examples: Sequence[Example]) -> list[Example]:
        """Each prompt of a step with the response of the record before it; none where the loss has no KL, or no other record."""
        if self._loss_type == "apo_zero_unpaired" or len(examples) < 2:
            return []
        return [
            _with_response(one, before, self.max_length)
            for one, before in zip(examples, [*examples[-1:], *examples[:-1]], strict=True)
        ]

    def begin(self, examples: Sequence[Example], measure: Measure) -> Share:
        """Shares of the mean over the records of the step, once its KL is known."""
        others, kl = self.mismatched(examples), 0.0
        if others:
            moved = [logp - self.reference[side_key(one)] for logp, one in zip(measure(others), others, strict=True)]
            kl = max(0.0, float(np.mean(moved)))
        num_records = sum(map(record_weight, examples))

        def share(batch: Sequence[Example], found: MicroBatchLoss) -> tuple[torch.Tensor, list[Row]]:
            logps = response_logps(found, found.record_targets)
            known = torch.tensor([self.reference[side_key(one)] for one in batch], dtype=torch.float64)
            wanted = torch.tensor([bool(example.label) for example in batch])
            own = torch.tensor([record_weight(example) for example in batch], dtype=torch.float64)
            losses = kto_losses(self._loss_type, logps - known, wanted, kl, self.settings)
            rewards = self.settings.resolved_beta("kto") * (logps.detach() - known)
            columns = torch.stack([-logps.detach(), logps.detach(), rewards, wanted.double(), torch.full_like(own, kl)])
            return (own * losses).sum() / num_records, [tuple(row) for row in columns.T.tolist()]

        return share

    def figures(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """TRL's figures of a step: means over its wanted (chosen) and unwanted (rejected) records, where it has such."""
        columns = np.array(rows)
        found = {"kl": float(columns[0, 4])}
        for name, which in (("chosen", columns[:, 3] == 1), ("rejected", columns[:, 3] == 0)):
            if which.any():
                found[f"logps_{name}"] = float(columns[which, 1].mean())
                found[f"rewards_{name}"] = float(columns[which, 2].mean())
        if {"rewards_chosen", "rewards_rejected"} <= found.keys():
            found["rewards_margins"] = found["rewards_chosen"] - found["rewards_rejected"]
            found["rewards_accuracies"] = float((columns[:, 2] * (2 * columns[:, 3] - 1) > 0).mean())
        return found


PreferenceObjective = PairObjective | KtoObjective


def _all_counted(example: Example) -> Example:
    """`example` with every token but the first as a target."""
    weights = np.ones_like(example.weights)
    weights[0] = 0
    return replace(example, weights=weights)


def _with_response(asked: Example, answered: Example, max_length: int) -> Example:
    """The prompt of one example with the response of another, the whole at most `max_length` tokens."""
    ids, weights = (
        np.concatenate([one[: asked.num_prompt_tokens], other[answered.num_prompt_tokens :]])[:max_length]
        for one, other in ((asked.token_ids, answered.token_ids), (np.zeros_like(asked.weights), answered.weights))
    )
    return Example(ids, weights, asked.num_prompt_tokens, asked.source)
