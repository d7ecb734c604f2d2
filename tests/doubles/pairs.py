"""Preference pairs by hand, and their loss the plain way: each side in a forward of its own, in transformers' own attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tests.doubles.engine import END, VOCABULARY, Outcome, record
from torch.nn import functional as F
from transformers import PreTrainedModel

from tuneful.config import PreferenceConfig
from tuneful.train.preference import PairObjective, Reference, side_key
from tuneful.train.preference_losses import PairLogps, cpo_losses, dpo_losses, kto_losses, orpo_losses, simpo_losses
from tuneful.types import Example

SMOOTHED = ("robust", "exo_pair")


def pair(
    prompt: Iterable[int], chosen: Iterable[int], rejected: Iterable[int], weight: float = 1.0, source: str = ""
) -> Example:
    """A preference pair; an end token is part of what is given."""
    asked = list(prompt)
    sides = [record(asked, side, source=source) for side in (chosen, rejected)]
    first, second = (replace(side, weights=(side.weights * weight).astype(np.float32)) for side in sides)
    return replace(first, rejected=second)


def labelled(prompt: Iterable[int], response: Iterable[int], wanted: bool, weight: float = 1.0) -> Example:
    """A response with a label."""
    made = record(prompt, response)
    return replace(made, weights=(made.weights * weight).astype(np.float32), label=wanted)


def difficult_pairs() -> list[Example]:
    """Shared openings, a chosen side that the rejected one goes on from, equal sides, prompts of two records, weights."""
    return [
        pair([1, 2, 3], [4, 5, 6, END], [4, 5, 7, 8, END]),
        pair([1, 2, 3], [9, END], [10, 11, 12, END], weight=0.5),
        pair([1, 2, 4], [5, 6], [5, 6, 7, END]),  # cut
        pair([1, 2, 4, 4], [3, 3, END], [3, 3, END]),
        pair([7, 7], [8, 8, 8, 8, END], [9, END], weight=2.0),
        pair([1, 2, 3], [4, 5, 7, 8, END], [4, 5, 6, END]),  # the first, the other way round
    ]


def random_pairs(count: int, seed: int = 0, longest: int = 8) -> list[Example]:
    """Pairs of ragged lengths behind a common preamble."""
    rng = np.random.default_rng(seed)
    opening = rng.integers(1, VOCABULARY, 4)
    made = []
    for index in range(count):
        prompt = [*opening, 1 + index % (VOCABULARY - 1), *rng.integers(1, 4, rng.integers(0, 3))]
        sides = [[*rng.integers(1, VOCABULARY, rng.integers(1, longest)), END] for _ in range(2)]
        made.append(pair(prompt, sides[0], sides[1], source=f"pairs.json:{index}"))
    return made


def random_labelled(count: int, seed: int = 0) -> list[Example]:
    """Responses of ragged lengths, every other one wanted."""
    return [replace(one, rejected=None, label=index % 2 == 0) for index, one in enumerate(random_pairs(count, seed))]


def settings_of(loss_type: str) -> PreferenceConfig:
    return PreferenceConfig(loss_type=loss_type, label_smoothing=0.1 if loss_type in SMOOTHED else 0.0)


def objective_of(name: str, reference: Reference | None = None) -> PairObjective:
    """`dpo-hinge`, `cpo-ipo`, `orpo`: the objective and its loss type; `dpo-mixture` is three of them."""
    objective, _, loss_type = name.partition("-")
    if loss_type == "mixture":
        settings = PreferenceConfig(loss_type=("sigmoid", "sft", "ipo"), loss_weights=(1.0, 0.2, 0.01))
    else:
        settings = settings_of(loss_type) if loss_type else PreferenceConfig()
    return PairObjective(objective, settings, reference or {})


def made_up_reference(sides: Iterable[Example]) -> dict[str, float]:
    """Log-probabilities as some other model might give them."""
    return {side_key(side): -1.3 * float((side.weights > 0).sum()) - (index % 5) for index, side in enumerate(sides)}


def token_logps(model: PreTrainedModel, example: Example) -> torch.Tensor:
    """log-probability of every token but the first, with its graph."""
    ids = torch.from_numpy(example.token_ids).long()
    logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    return -F.cross_entropy(logits, ids[1:], reduction="none").double()


@dataclass(frozen=True)
class Alone:
    """The sides of pairs, each computed alone: summed log-probabilities, lengths, and all tokens of the chosen ones."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    num_chosen: torch.Tensor
    num_rejected: torch.Tensor
    whole: torch.Tensor
    num_whole: torch.Tensor


def alone(model: PreTrainedModel, pairs: Sequence[Example]) -> Alone:
    model.set_attn_implementation("sdpa")
    chosen, rejected, whole = [], [], []
    for one in pairs:
        assert one.rejected is not None
        tokens = token_logps(model, one)
        whole.append(tokens.sum())
        chosen.append(tokens[torch.from_numpy(one.weights[1:] > 0)].sum())
        rejected.append(token_logps(model, one.rejected)[torch.from_numpy(one.rejected.weights[1:] > 0)].sum())
    counts = [
        [int((one.weights > 0).sum()) for one in pairs],
        [int((one.rejected.weights > 0).sum()) for one in pairs if one.rejected is not None],
        [len(one) - 1 for one in pairs],
    ]
    num_chosen, num_rejected, num_whole = (torch.tensor(count, dtype=torch.float64) for count in counts)
    return Alone(torch.stack(chosen), torch.stack(rejected), num_chosen, num_rejected, torch.stack(whole), num_whole)


def plain_loss(
    model: PreTrainedModel, pairs: Sequence[Example], objective: PairObjective, found: Alone | None = None
) -> torch.Tensor:
    """The loss of a step of `pairs` by its definition, weights of records included."""
    own = found or alone(model, pairs)
    weights = torch.tensor([float(one.weights.max()) for one in pairs], dtype=torch.float64)
    known = torch.zeros(2, len(pairs), dtype=torch.float64)
    if objective.objective == "dpo":
        sides = [list(pairs), [one.rejected for one in pairs if one.rejected is not None]]
        known = torch.tensor(
            [[objective.reference[side_key(one)] for one in side] for side in sides], dtype=torch.float64
        )
    logps = PairLogps(own.chosen, own.rejected, known[0], known[1], own.num_chosen, own.num_rejected)

    def mean(losses: torch.Tensor) -> torch.Tensor:
        return (weights * losses).sum() / weights.sum()

    def likelihood(logp: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        return -(weights * logp).sum() / (weights * count).sum()

    settings = objective.settings
    if objective.objective == "orpo":
        return mean(orpo_losses(logps, settings)) + likelihood(own.whole, own.num_whole)
    if objective.objective == "simpo":
        return mean(simpo_losses(logps, settings))
    types = settings.resolved_loss_types(objective.objective)
    if objective.objective == "cpo":
        return mean(cpo_losses(types[0], logps, settings)) + likelihood(own.chosen, own.num_chosen)
    total = torch.zeros((), dtype=torch.float64)
    for name, factor in zip(types, settings.loss_weights or [1.0] * len(types), strict=True):
        part = likelihood(own.chosen, own.num_chosen) if name == "sft" else mean(dpo_losses(name, logps, settings))
        total = total + factor * part
    return total


def plain_kto(
    model: PreTrainedModel, records: Sequence[Example], settings: PreferenceConfig, reference: Reference, kl: float
) -> torch.Tensor:
    """The loss of a step of labelled `records` by its definition, where the KL is known."""
    model.set_attn_implementation("sdpa")
    weights = torch.tensor([float(one.weights.max()) for one in records], dtype=torch.float64)
    logps = [token_logps(model, one)[torch.from_numpy(one.weights[1:] > 0)].sum() for one in records]
    known = torch.tensor([reference[side_key(one)] for one in records], dtype=torch.float64)
    wanted = torch.tensor([bool(one.label) for one in records])
    losses = kto_losses(settings.resolved_loss_types("kto")[0], torch.stack(logps) - known, wanted, kl, settings)
    return (weights * losses).sum() / weights.sum()


def outcome_of(model: PreTrainedModel, make_loss: Callable[[], torch.Tensor]) -> Outcome:
    """A loss and its gradients, 0 where there is none."""
    model.zero_grad(set_to_none=True)
    loss = make_loss()
    loss.backward()
    gradients = gradients_of(model)
    model.zero_grad(set_to_none=True)
    return Outcome(loss.item(), gradients)


def gradients_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The gradient of every parameter, 0 where there is none."""
    return {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone() for name, one in model.named_parameters()
    }
