"""The losses of preferences: against values written again in plain arithmetic, and against what TRL's own functions printed."""

from __future__ import annotations

import math

import pytest
import torch

from tuneful.config import PreferenceConfig
from tuneful.train.preference_losses import (
    DPO_LOSSES,
    PairLogps,
    cpo_losses,
    dpo_losses,
    kto_losses,
    orpo_losses,
    simpo_losses,
)

# chosen, rejected; the reference says -13 and -14, the responses have 8 and 12 tokens
CASES = {"A": (-13.0, -14.0), "B": (-12.0, -15.0), "C": (-20.0, -30.0), "D": (-15.0, -12.0)}

GOLDEN = {
    # loss: A, its slopes by chosen and rejected, B, its slopes, C, D
    "sigmoid": (0.693147, -0.050000, 0.050000, 0.598139, -0.045017, 0.045017, 0.341154, 0.913015),
    "hinge": (1.0, -0.1, 0.1, 0.8, -0.1, 0.1, 0.1, 1.4),
    "ipo": (25.0, -1.25, 0.833333, 22.960069, -1.197917, 0.798611, 20.626736, 29.340278),
    "sigmoid_norm": (0.693147, -0.006250, 0.004167, 0.682785, -0.006185, 0.004123, 0.670493, 0.714198),
    "robust": (0.693147, -0.062500, 0.062500, 0.573139, -0.057517, 0.057517, 0.228654, 0.963015),
    "exo_pair": (0.510826, -0.054931, 0.054931, 0.406304, -0.049435, 0.049435, 0.139170, 0.747272),
    "nca_pair": (1.386294, -0.025000, 0.025000, 1.338793, -0.021253, 0.023751, 1.396729, 1.496278),
    "bco_pair": (1.386294, -0.050000, 0.050000, 1.288793, -0.047502, 0.047502, 1.287087, 1.596278),
    "sppo_hard": (50, -10, 10, 32, -8, 8, 265, 98),
    "apo_zero": (1.0, -0.025000, 0.025000, 0.950042, -0.024938, 0.024938, 0.836169, 1.099668),
    "apo_down": (1.0, 0.0, 0.025000, 0.975145, 0.000186, 0.024752, 0.620863, 1.048854),
    "discopop": (0.846574, 0.078426, -0.078426, 0.814763, -0.073418, 0.073418, 0.406570, 0.913209),
    "orpo": (0.104534, -0.010093, 0.007847, 0.087467, -0.009381, 0.006809, 0.069315, 0.143817),
    "simpo": (1.633809, -0.201204, 0.134136, 1.313262, -0.182765, 0.121843, 0.974077, 2.350207),
}


def pairs_of(*points):
    """Points of chosen, rejected, their references, their lengths."""
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True)]
    columns[0].requires_grad_()
    columns[1].requires_grad_()
    return PairLogps(*columns)


def settings_of(name):
    return PreferenceConfig(label_smoothing=0.1 if name in ("robust", "exo_pair") else 0.0)


def losses_of(name, pairs):
    if name in ("orpo", "simpo"):
        return {"orpo": orpo_losses, "simpo": simpo_losses}[name](pairs, settings_of(name))
    return dpo_losses(name, pairs, settings_of(name))


def value_and_slopes(name, chosen, rejected):
    pairs = pairs_of((chosen, rejected, -13.0, -14.0, 8, 12))
    loss = losses_of(name, pairs).sum()
    slopes = torch.autograd.grad(loss, [pairs.chosen, pairs.rejected])
    return [loss.item(), *(slope.item() for slope in slopes)]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_loss_and_its_slopes_are_those_of_the_formula(name):
    a, b, c, d = (value_and_slopes(name, *CASES[case]) for case in "ABCD")
    assert [*a, *b, c[0], d[0]] == pytest.approx(GOLDEN[name], abs=1e-6)


def test_every_loss_has_a_golden_value():
    assert set(DPO_LOSSES) <= set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_slopes_are_those_of_finite_differences(name):
    chosen, rejected, step = -11.3, -17.9, 1e-5
    _, by_chosen, by_rejected = value_and_slopes(name, chosen, rejected)
    ends = [value_and_slopes(name, chosen + sign * step, rejected)[0] for sign in (1, -1)]
    assert by_chosen == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)
    ends = [value_and_slopes(name, chosen, rejected + sign * step)[0] for sign in (1, -1)]
    assert by_rejected == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


def test_a_margin_of_six_is_what_another_trainer_publishes():
    """ms-swift's table: one token, margin 6, beta 0.1."""
    pairs = pairs_of((-1.0, -7.0, 0.0, 0.0, 1, 1))
    found = {name: losses_of(name, pairs).item() for name in ("sigmoid", "hinge", "ipo")}
    assert found == pytest.approx({"sigmoid": 0.437488, "hinge": 0.4, "ipo": 1.0}, abs=1e-6)


def test_cpo_smooths_labels_and_its_ipo_is_of_means():
    pairs = pairs_of((-12.0, -15.0, 0, 0, 8, 12))
    smoothed = PreferenceConfig(label_smoothing=0.1)
    wanted = -0.9 * math.log(1 / (1 + math.exp(-0.3))) - 0.1 * math.log(1 / (1 + math.exp(0.3)))
    assert cpo_losses("sigmoid", pairs, smoothed).item() == pytest.approx(wanted)
    assert cpo_losses("hinge", pairs, PreferenceConfig()).item() == pytest.approx(0.7)
    assert cpo_losses("ipo", pairs, PreferenceConfig()).item() == pytest.approx((-12 / 8 + 15 / 12 - 5) ** 2)


def test_kto_weighs_labels_and_measures_from_the_kl():
    settings = PreferenceConfig(desirable_weight=1.3, undesirable_weight=0.7)
    logratio, wanted = torch.tensor([1.0, 1.0], dtype=torch.float64), torch.tensor([True, False])
    value = 1 / (1 + math.exp(-0.1 * (1 - 0.4)))
    found = kto_losses("kto", logratio, wanted, 0.4, settings).tolist()
    assert found == pytest.approx([1.3 * (1 - value), 0.7 * value])
    unpaired = kto_losses("apo_zero_unpaired", logratio, wanted, 0.4, settings).tolist()
    assert unpaired == kto_losses("kto", logratio, wanted, 0.0, settings).tolist()


def test_a_certain_response_has_finite_odds():
    pairs = pairs_of((0.0, -14.0, 0, 0, 8, 12))
    loss = losses_of("orpo", pairs).sum()
    slopes = torch.autograd.grad(loss, [pairs.chosen, pairs.rejected])
    assert all(slope.isfinite().all() for slope in (loss, *slopes))
