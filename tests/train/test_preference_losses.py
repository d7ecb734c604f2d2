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


# TRL 1.16's own functions, by benchmarks/preference_oracle.py: value, slope by chosen, slope by rejected, at each point

POINTS = [
    (-13.0, -14.0, -13.0, -14.0, 8, 12),
    (-12.0, -15.0, -13.0, -14.0, 8, 12),
    (-20.0, -30.0, -13.0, -14.0, 8, 12),
    (-15.0, -12.0, -13.0, -14.0, 8, 12),
    (-0.01, -90.0, -1.0, -80.0, 1, 30),
]
PRINTED_BY_TRL = {
    "sigmoid": [
        (0.693147181, -0.05, 0.05),
        (0.598138869, -0.0450166003, 0.0450166003),
        (0.341153875, -0.0289050497, 0.0289050497),
        (0.913015252, -0.059868766, 0.059868766),
        (0.287585159, -0.0249927311, 0.0249927311),
    ],
    "hinge": [(1.0, -0.1, 0.1), (0.8, -0.1, 0.1), (0.1, -0.1, 0.1), (1.4, -0.1, 0.1), (0.0, 0.0, 0.0)],
    "ipo": [
        (25.0, -1.25, 0.833333333),
        (22.9600694, -1.19791667, 0.798611111),
        (20.6267361, -1.13541667, 0.756944444),
        (29.3402778, -1.35416667, 0.902777778),
        (13.5178778, -7.35333333, 0.245111111),
    ],
    "robust": [
        (0.693147181, -0.0625, 0.0625),
        (0.573138869, -0.0575166003, 0.0575166003),
        (0.228653875, -0.0414050497, 0.0414050497),
        (0.963015252, -0.072368766, 0.072368766),
        (0.150210159, -0.0374927311, 0.0374927311),
    ],
    "exo_pair": [
        (0.51082564, -0.0549306152, 0.0549306152),
        (0.406304265, -0.049434619, 0.049434619),
        (0.139170059, -0.0266580056, 0.0266580056),
        (0.747271587, -0.0624011122, 0.0624011122),
        (0.0922516804, -0.0205877194, 0.0205877194),
    ],
    "nca_pair": [
        (1.38629436, -0.025, 0.025),
        (1.33879332, -0.0212531219, 0.0237510406),
        (1.39672944, -0.0502281658, 0.00839908074),
        (1.49627774, -0.0324750996, 0.0274916999),
        (1.17343855, -0.0212905292, 0.0134470711),
    ],
    "bco_pair": [
        (1.38629436, -0.05, 0.05),
        (1.28879332, -0.0475020813, 0.0475020813),
        (1.28708679, -0.0668187772, 0.0167981615),
        (1.59627774, -0.0549833997, 0.0549833997),
        (0.958133493, -0.0475270195, 0.0268941421),
    ],
    "sppo_hard": [
        (50.0, -10.0, 10.0),
        (32.0, -8.0, 8.0),
        (265.0, -24.0, -22.0),
        (98.0, -14.0, 14.0),
        (41.0801, -8.02, -10.0),
    ],
    "apo_zero": [
        (1.0, -0.025, 0.025),
        (0.950041625, -0.024937604, 0.024937604),
        (0.836169387, -0.0221712873, 0.0139763792),
        (1.09966799, -0.0247516573, 0.0247516573),
        (0.744211616, -0.0249388437, 0.0196611933),
    ],
    "apo_down": [
        (1.0, 0.0, 0.025),
        (0.97514519, 0.000185946748, 0.0247516573),
        (0.620862725, 0.0016212566, 0.0205500307),
        (1.04885366, 0.000725582697, 0.0240260746),
        (0.774657116, 0.00619247864, 0.018746365),
    ],
    "discopop": [
        (0.84657359, 0.0784264097, -0.0784264097),
        (0.814763141, -0.0734176677, 0.0734176677),
        (0.406569659, -0.0406569638, 0.0406569638),
        (0.913209356, -0.0595106399, 0.0595106399),
        (0.333204121, -0.0333204121, 0.0333204121),
    ],
    "sigmoid_norm": [
        (0.693147181, -0.00625, 0.00416666667),
        (0.682784766, -0.00618489819, 0.00412326546),
        (0.670493078, -0.0061067959, 0.00407119727),
        (0.714197512, -0.0063801895, 0.00425345967),
        (0.629167932, -0.0466964862, 0.00155654954),
    ],
    "sft": [(1.625, -0.125, 0.0), (1.5, -0.125, 0.0), (2.5, -0.125, 0.0), (1.875, -0.125, 0.0), (0.01, -1.0, 0.0)],
    "1 sigmoid + 0.2 sft + 0.01 ipo": [
        (1.26814718, -0.0875, 0.0583333333),
        (1.12773956, -0.0819957669, 0.0530027114),
        (1.04742124, -0.0652592164, 0.0364744942),
        (1.58141803, -0.0984104327, 0.0688965438),
        (0.424763936, -0.298526064, 0.0274438422),
    ],
    "cpo sigmoid": [
        (0.65439666, -0.0375020813, 0.0375020813),
        (0.584355244, -0.0325557483, 0.0325557483),
        (0.413261688, -0.0168941421, 0.0168941421),
        (0.824355244, -0.0474442517, 0.0474442517),
        (0.900023526, 0.0099876482, -0.0099876482),
    ],
    "cpo hinge": [(0.9, -0.1, 0.1), (0.7, -0.1, 0.1), (0.0, -0.0, 0.0), (1.3, -0.1, 0.1), (0.0, -0.0, 0.0)],
    "cpo ipo": [
        (29.7934028, -1.36458333, 0.909722222),
        (27.5625, -1.3125, 0.875),
        (25.0, -1.25, 0.833333333),
        (34.515625, -1.46875, 0.979166667),
        (4.0401, -4.02, 0.134),
    ],
    "simpo": [
        (1.63380911, -0.201203831, 0.134135887),
        (1.31326169, -0.182764645, 0.121843096),
        (0.974076984, -0.155614833, 0.103743222),
        (2.35020656, -0.226162634, 0.150775089),
        (0.00416066213, -0.00830403713, 0.000276801238),
    ],
    "orpo odds ratio": [
        (0.104534447, -0.0100927465, 0.00784723088),
        (0.0874666795, -0.00938057899, 0.0068091924),
        (0.0693147182, -0.00680890959, 0.00453927306),
        (0.143817216, -0.0112597197, 0.0100539736),
        (5.26446784e-05, -0.00528944191, 1.84628176e-06),
    ],
    "kto, kl 1.7": [
        (0.512719382, -0.016133157, 0.00868708451),
        (0.487887841, -0.01623011, 0.00859244897),
        (0.509024519, -0.0135251479, 0.00435259158),
        (0.562073139, -0.0157062916, 0.00874803155),
        (0.4194319, -0.0162295381, 0.00632641452),
    ],
    "kto, kl -0.4": [
        (0.5, -0.01625, 0.00875),
        (0.475020813, -0.0162094426, 0.00872816141),
        (0.493115617, -0.0144113368, 0.00489173272),
        (0.549833997, -0.0160885772, 0.00866308004),
        (0.403055124, -0.0162102484, 0.00688141766),
    ],
    "apo_zero_unpaired, kl 1.7": [
        (0.5, -0.01625, 0.00875),
        (0.475020813, -0.0162094426, 0.00872816141),
        (0.493115617, -0.0144113368, 0.00489173272),
        (0.549833997, -0.0160885772, 0.00866308004),
        (0.403055124, -0.0162102484, 0.00688141766),
    ],
}
WEIGHTED = PreferenceConfig(desirable_weight=1.3, undesirable_weight=0.7)


def sft(pairs):
    return -pairs.chosen.sum() / pairs.num_chosen.sum()


def labelled_losses(pairs, loss_type, kl):
    logratio = torch.cat([pairs.chosen_logratio, pairs.rejected_logratio])
    return kto_losses(loss_type, logratio, torch.tensor([True, False]), max(kl, 0.0), WEIGHTED).mean()


def loss_named(name, pairs):
    """The loss that the oracle calls so."""
    kind, _, rest = name.partition(" ")
    if name == "sft":
        return sft(pairs)
    if name.startswith("1 sigmoid"):
        dpo = [dpo_losses(one, pairs, PreferenceConfig()).mean() for one in ("sigmoid", "ipo")]
        return dpo[0] + 0.2 * sft(pairs) + 0.01 * dpo[1]
    if kind == "cpo":
        smoothing = 0.1 if rest == "sigmoid" else 0.0
        return cpo_losses(rest, pairs, PreferenceConfig(label_smoothing=smoothing)).mean()
    if "kl" in name:
        return labelled_losses(pairs, kind.rstrip(","), float(name.rpartition(" ")[2]))
    return losses_of(kind, pairs).mean()


@pytest.mark.parametrize("name", PRINTED_BY_TRL)
def test_a_loss_and_its_slopes_are_what_trls_own_function_printed(name):
    for point, printed in zip(POINTS, PRINTED_BY_TRL[name], strict=True):
        pairs = pairs_of(point)
        loss = loss_named(name, pairs)
        slopes = torch.autograd.grad(loss, [pairs.chosen, pairs.rejected], allow_unused=True)
        found = [loss.item(), *(0.0 if slope is None else slope.item() for slope in slopes)]
        assert found == pytest.approx(printed, rel=1e-6, abs=1e-6)
