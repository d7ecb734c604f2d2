"""Losses of preferences: pure functions of the log-probabilities of responses, in nats and float64.

    sides' log-probabilities, of the model and of the reference  ->  a loss for each pair  ->  (loop) one mean over the step

Names and formulas are those of TRL 1.16, also where a paper's differ: `ipo` and `sigmoid_norm` divide by the tokens of a response
and the others do not, ORPO's likelihood is over prompt and response (`preference.py` gives it those tokens). No formula was
improved: `discopop` pushes a pair the wrong way at a margin of 0, as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from tuneful.config import PreferenceConfig

# Legend of shapes: P pairs, R records with a label
_CERTAIN = -1e-10
"""The largest mean log-probability that has odds: a response of probability 1 would have infinite ones."""


@dataclass(frozen=True, slots=True, eq=False)
class PairLogps:
    """Log-probabilities of P pairs, float64 [P] each, summed over the tokens of a response: of the model (`chosen`, `rejected`)
    and of the reference; and how many tokens either response has."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    num_chosen: torch.Tensor
    num_rejected: torch.Tensor

    @property
    def chosen_logratio(self) -> torch.Tensor:
        """log(model / reference) of the chosen response."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratio(self) -> torch.Tensor:
        """log(model / reference) of the rejected response."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> torch.Tensor:
        """How much further the model has moved towards the chosen response than towards the rejected one."""
        return self.chosen_logratio - self.rejected_logratio

    @property
    def mean_margin(self) -> torch.Tensor:
        """The same of logratios a token."""
        return self.chosen_logratio / self.num_chosen - self.rejected_logratio / self.num_rejected


def dpo_losses(loss_type: str, pairs: PairLogps, settings: PreferenceConfig) -> torch.Tensor:
    """The loss of each pair [P] by its `loss_type`, of `DPO_LOSSES`."""
    return DPO_LOSSES[loss_type](pairs, settings.resolved_beta("dpo"), settings)


def _sigmoid(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """Rafailov et al. 2023, equation 7."""
    return -logsigmoid(beta * pairs.margin)


def _sigmoid_norm(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """The same of means a token (Lambert et al. 2024, Tulu 3)."""
    return -logsigmoid(beta * pairs.mean_margin)


def _hinge(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """Zhao et al. 2023 (SLiC), as a loss of the margin (Liu et al. 2023)."""
    return torch.relu(1 - beta * pairs.margin)


def _ipo(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """Azar et al. 2023, equation 17, of means a token."""
    return (pairs.mean_margin - 1 / (2 * beta)) ** 2


def _robust(pairs: PairLogps, beta: float, settings: PreferenceConfig) -> torch.Tensor:
    """Chowdhury et al. 2024."""
    wrong, scores = settings.label_smoothing, beta * pairs.margin
    return (wrong * logsigmoid(-scores) - (1 - wrong) * logsigmoid(scores)) / (1 - 2 * wrong)


def _exo_pair(pairs: PairLogps, beta: float, settings: PreferenceConfig) -> torch.Tensor:
    """Ji et al. 2024, equation 16: KL of the model's choice between the two from smoothed labels."""
    wrong, scores = settings.label_smoothing, beta * pairs.margin
    right_way = scores.sigmoid() * (logsigmoid(scores) - math.log1p(-wrong))
    return right_way + (-scores).sigmoid() * (logsigmoid(-scores) - math.log(wrong))


def _nca_pair(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """Chen et al. 2024."""
    chosen, rejected = beta * pairs.chosen_logratio, beta * pairs.rejected_logratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _bco_pair(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """Jung et al. 2024, without the shift of the reward."""
    return -logsigmoid(beta * pairs.chosen_logratio) - logsigmoid(-beta * pairs.rejected_logratio)


def _sppo_hard(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """Wu et al. 2024, equation 4.7, with probabilities 1 and 0."""
    return (pairs.chosen_logratio - 0.5 / beta) ** 2 + (pairs.rejected_logratio + 0.5 / beta) ** 2


def _apo_zero(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """D'Oosterlinck et al. 2024, equation 7: chosen up, rejected down."""
    return 1 - (beta * pairs.chosen_logratio).sigmoid() + (beta * pairs.rejected_logratio).sigmoid()


def _apo_down(pairs: PairLogps, beta: float, _: PreferenceConfig) -> torch.Tensor:
    """The same, equation 8: both down, rejected more."""
    return (beta * pairs.chosen_logratio).sigmoid() + 1 - (beta * pairs.margin).sigmoid()


def _discopop(pairs: PairLogps, beta: float, settings: PreferenceConfig) -> torch.Tensor:
    """Lu et al. 2024, equation 5."""
    scores = beta * pairs.margin
    share = (scores / settings.discopop_tau).sigmoid()
    return -logsigmoid(scores) * (1 - share) + torch.exp(-scores) * share


_Loss = Callable[[PairLogps, float, PreferenceConfig], torch.Tensor]

DPO_LOSSES: Mapping[str, _Loss] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
}
"""What `preference.loss_type` names under `dpo`, but for `sft`, which is a mean over tokens and not over pairs."""


def cpo_losses(loss_type: str, pairs: PairLogps, settings: PreferenceConfig) -> torch.Tensor:
    """The loss of each pair [P] without a reference, by its `loss_type` (Xu et al. 2024): of sums, or for `ipo` of means."""
    beta, wrong = settings.resolved_beta("cpo"), settings.label_smoothing
    if loss_type == "ipo":
        return (_mean_difference(pairs) - 1 / (2 * beta)) ** 2
    scores = beta * (pairs.chosen - pairs.rejected)
    return torch.relu(1 - scores) if loss_type == "hinge" else _smoothed(scores, wrong)


def simpo_losses(pairs: PairLogps, settings: PreferenceConfig) -> torch.Tensor:
    """The loss of each pair [P]: of means a token, which are to be apart by a margin (Meng et al. 2024, equation 6)."""
    return _smoothed(
        settings.resolved_beta("simpo") * _mean_difference(pairs) - settings.simpo_gamma, settings.label_smoothing
    )


def orpo_losses(pairs: PairLogps, settings: PreferenceConfig) -> torch.Tensor:
    """The odds ratio term of each pair [P], beta included (Hong et al. 2024, equations 4 and 7); the likelihood is apart."""
    chosen, rejected = pairs.chosen / pairs.num_chosen, pairs.rejected / pairs.num_rejected
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -settings.resolved_beta("orpo") * logsigmoid(log_odds)


def kto_losses(
    loss_type: str, logratio: torch.Tensor, wanted: torch.Tensor, kl: float, settings: PreferenceConfig
) -> torch.Tensor:
    """The loss of each labelled record [R], its weight included (Ethayarajh et al. 2024, equation 8).

    `logratio` float64 [R] is log(model / reference) of its response, `wanted` bool [R] its label, and `kl` at least 0 the step's
    estimate of how far the model is from the reference.
    """
    point = 0.0 if loss_type == "apo_zero_unpaired" else kl
    value = (settings.resolved_beta("kto") * (logratio - point)).sigmoid()
    return torch.where(wanted, settings.desirable_weight * (1 - value), settings.undesirable_weight * value)


def _mean_difference(pairs: PairLogps) -> torch.Tensor:
    return pairs.chosen / pairs.num_chosen - pairs.rejected / pairs.num_rejected


def _smoothed(scores: torch.Tensor, wrong: float) -> torch.Tensor:
    return -(1 - wrong) * logsigmoid(scores) - wrong * logsigmoid(-scores)


def _log1mexp(logp: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(logp)) of log-probabilities below 0, without cancellation (Maechler 2012)."""
    logp = logp.clamp(max=_CERTAIN)
    return torch.where(logp > -math.log(2), (-torch.expm1(logp)).log(), torch.log1p(-torch.exp(logp)))
