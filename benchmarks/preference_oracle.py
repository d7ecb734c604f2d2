"""The losses of preferences against TRL's own functions, value and gradient. Runs in TRL's environment.

    PYTHONPATH=src .bench/venv-trl/bin/python benchmarks/preference_oracle.py

TRL's trainers compute their losses inside; here they get a model that gives back log-probabilities which were made up, so that
their own lines compute on the numbers that ours get. Written to results/preference_oracle-DATE.json, with TRL's values of a few
points, which tests/train/test_preference_losses.py holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

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

RESULTS = Path(__file__).parent / "results"
Point = tuple[float, ...]
POINTS: list[Point] = [
    # chosen, rejected, ref_chosen, ref_rejected, num_chosen, num_rejected
    (-13.0, -14.0, -13.0, -14.0, 8, 12),
    (-12.0, -15.0, -13.0, -14.0, 8, 12),
    (-20.0, -30.0, -13.0, -14.0, 8, 12),
    (-15.0, -12.0, -13.0, -14.0, 8, 12),
    (-0.01, -90.0, -1.0, -80.0, 1, 30),
]
NUM_RANDOM = 200
Outcome = tuple[torch.Tensor, list[torch.Tensor]]


def pairs_of(points: list[tuple[float, ...]]) -> PairLogps:
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True)]
    columns[0].requires_grad_()
    columns[1].requires_grad_()
    return PairLogps(*columns)


def random_points(count: int) -> list[tuple[float, ...]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        lengths = torch.randint(1, 40, (2,), generator=generator)
        means = -torch.rand(4, generator=generator, dtype=torch.float64) * 3 - 1e-3
        sums = means * torch.tensor([*lengths, *lengths], dtype=torch.float64)
        found.append((*sums.tolist(), *lengths.tolist()))
    return found


def stub(kind: Any, **settings: Any) -> Any:
    """A trainer without a model, with the settings that its loss reads."""
    trainer = kind.__new__(kind)
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda one: one, gather=lambda one: one)
    metrics: dict[str, Any] = {mode: {} for mode in ("train", "eval")}
    for mode in metrics:
        metrics[mode] = _Lists()
    known = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "_metrics": metrics,
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "precompute_ref_logps": True,
    }
    for name, value in {**known, **settings}.items():
        object.__setattr__(trainer, name, value)
    return trainer


class _Lists(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        self[key] = []
        return self[key]


def batch_of(sums: list[torch.Tensor], lengths: list[torch.Tensor]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """Inputs of responses behind a prompt of one token, all of the first before all of the second, and a model that gives each
    token of a response an equal part of its log-probability."""
    total, count = torch.cat(sums), torch.cat(lengths).long()
    width = int(count.max()) + 1
    place = torch.arange(width)[None]
    mask = ((place >= 1) & (place <= count[:, None])).long()
    per_token = (total / count)[:, None] * mask[:, 1:]
    nothing = torch.zeros_like(per_token)
    outputs = SimpleNamespace(log_probs=per_token, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return inputs, lambda **_: outputs


def trl_dpo(pairs: PairLogps, types: list[str], weights: list[float], settings: PreferenceConfig) -> torch.Tensor:
    trainer = stub(
        DPOTrainer,
        loss_types=types,
        loss_weights=weights,
        beta=settings.resolved_beta("dpo"),
        label_smoothing=settings.label_smoothing,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=settings.discopop_tau),
    )
    inputs, model = batch_of([pairs.chosen, pairs.rejected], [pairs.num_chosen, pairs.num_rejected])
    inputs |= {"ref_chosen_logps": pairs.ref_chosen, "ref_rejected_logps": pairs.ref_rejected}
    loss: torch.Tensor = trainer._compute_loss(model, inputs, False)
    return loss


def own_dpo(pairs: PairLogps, types: list[str], weights: list[float], settings: PreferenceConfig) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for one, weight in zip(types, weights, strict=True):
        total = total + weight * (
            -pairs.chosen.sum() / pairs.num_chosen.sum() if one == "sft" else dpo_losses(one, pairs, settings).mean()
        )
    return total


def trl_cpo(pairs: PairLogps, loss_type: str, settings: PreferenceConfig) -> torch.Tensor:
    objective = "simpo" if loss_type == "simpo" else "cpo"
    trainer = stub(
        CPOTrainer,
        alpha=0.0,
        loss_type=loss_type,
        beta=settings.resolved_beta(objective),
        simpo_gamma=settings.simpo_gamma,
        label_smoothing=settings.label_smoothing,
    )
    logps = pairs.chosen, pairs.rejected
    if loss_type in ("simpo", "ipo"):  # which concatenated_forward averages
        logps = pairs.chosen / pairs.num_chosen, pairs.rejected / pairs.num_rejected
    losses: torch.Tensor = trainer.cpo_loss(*logps)[0]
    return losses.mean()


def own_cpo(pairs: PairLogps, loss_type: str, settings: PreferenceConfig) -> torch.Tensor:
    own = simpo_losses(pairs, settings) if loss_type == "simpo" else cpo_losses(loss_type, pairs, settings)
    return own.mean()


def trl_orpo(pairs: PairLogps, settings: PreferenceConfig) -> torch.Tensor:
    trainer = stub(ORPOTrainer, beta=settings.resolved_beta("orpo"))
    means = pairs.chosen / pairs.num_chosen, pairs.rejected / pairs.num_rejected
    losses: torch.Tensor = trainer.odds_ratio_loss(*means)[0]
    return -losses.mean()


def own_orpo(pairs: PairLogps, settings: PreferenceConfig) -> torch.Tensor:
    return orpo_losses(pairs, settings).mean()


def trl_kto(pairs: PairLogps, loss_type: str, kl: float, settings: PreferenceConfig) -> torch.Tensor:
    trainer = stub(
        KTOTrainer,
        loss_type=loss_type,
        beta=settings.resolved_beta("kto"),
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
        calculate_KL=True,
        _compute_kl_logps=lambda *_: torch.full((2 * len(pairs.chosen),), kl, dtype=torch.float64),
    )
    inputs, model = batch_of([pairs.chosen, pairs.rejected], [pairs.num_chosen, pairs.num_rejected])
    label = torch.arange(2 * len(pairs.chosen)) < len(pairs.chosen)
    ref = torch.cat([pairs.ref_chosen, pairs.ref_rejected])
    inputs |= {"label": label, "ref_logps": ref, "ref_KL_logps": torch.zeros_like(ref)}
    loss: torch.Tensor = trainer._compute_loss(model, inputs, False)
    return loss


def own_kto(pairs: PairLogps, loss_type: str, kl: float, settings: PreferenceConfig) -> torch.Tensor:
    logratio = torch.cat([pairs.chosen_logratio, pairs.rejected_logratio])
    wanted = torch.arange(len(logratio)) < len(pairs.chosen)
    return kto_losses(loss_type, logratio, wanted, max(kl, 0.0), settings).mean()


Loss = Callable[..., torch.Tensor]


def comparisons() -> Iterator[tuple[str, Loss, Loss]]:
    """(name, TRL's, ours) of every loss, each a mean over the pairs it is given."""

    def both(name: str, theirs: Loss, own: Loss, **given: Any) -> tuple[str, Loss, Loss]:
        return name, partial(theirs, **given), partial(own, **given)

    smoothed, plain = PreferenceConfig(label_smoothing=0.1), PreferenceConfig()
    for one in [*DPO_LOSSES, "sft"]:
        settings = smoothed if one in ("robust", "exo_pair") else plain
        yield both(one, trl_dpo, own_dpo, types=[one], weights=[1.0], settings=settings)
    mixture = {"types": ["sigmoid", "sft", "ipo"], "weights": [1.0, 0.2, 0.01]}
    yield both("1 sigmoid + 0.2 sft + 0.01 ipo", trl_dpo, own_dpo, **mixture, settings=plain)
    for one in ("sigmoid", "hinge", "ipo"):
        settings = smoothed if one == "sigmoid" else plain
        yield both(f"cpo {one}", trl_cpo, own_cpo, loss_type=one, settings=settings)
    yield both("simpo", trl_cpo, own_cpo, loss_type="simpo", settings=plain)
    yield both("orpo odds ratio", trl_orpo, own_orpo, settings=plain)
    weighted = PreferenceConfig(desirable_weight=1.3, undesirable_weight=0.7)
    for one, kl in (("kto", 1.7), ("kto", -0.4), ("apo_zero_unpaired", 1.7)):
        yield both(f"{one}, kl {kl:g}", trl_kto, own_kto, loss_type=one, kl=kl, settings=weighted)


def computed(loss: Loss, points: list[tuple[float, ...]]) -> Outcome:
    pairs = pairs_of(points)
    value = loss(pairs)
    gradient = torch.autograd.grad(value, [pairs.chosen, pairs.rejected], allow_unused=True)
    whole = [torch.zeros(len(points), dtype=torch.float64) if one is None else one for one in gradient]
    return value.detach().double(), whole


def difference(theirs: Outcome, own: Outcome) -> tuple[float, float]:
    """Relative difference of the value, and of the gradient against its largest part."""
    (value, gradient), (own_value, own_gradient) = theirs, own
    largest = max(float(part.abs().max()) for part in gradient)
    apart = max(float((one - other).abs().max()) for one, other in zip(gradient, own_gradient, strict=True))
    return float((value - own_value).abs() / value.abs().clamp(min=1e-12)), apart / max(largest, 1e-12)


def main() -> None:
    rows, points, worst = {}, {}, 0.0
    for name, theirs, own in comparisons():
        both = [difference(computed(theirs, one), computed(own, one)) for one in (POINTS, random_points(NUM_RANDOM))]
        value, gradient = (max(column) for column in zip(*both, strict=True))
        rows[name] = {"value": value, "gradient": gradient}
        worst = max(worst, value, gradient)
        points[name] = [_rounded(computed(theirs, [one])) for one in POINTS]
        print(f"{name:32s} value {value:.1e}  gradient {gradient:.1e}")
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "trl": trl.__version__,
        "torch": torch.__version__,
        "pairs": f"{len(POINTS)} written, {NUM_RANDOM} random",
        "largest_relative_difference": worst,
        "losses": rows,
        "points": POINTS,
        "values_of_trl": points,
    }
    output = RESULTS / f"preference_oracle-{found['date'][:10]}.json"
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"worst {worst:.1e}; written to {output}")


def _rounded(outcome: Outcome) -> list[float]:
    """Value, slope by the chosen log-probability, slope by the rejected one."""
    value, gradient = outcome
    return [float(f"{float(one):.9g}") for one in (value, *gradient)]


if __name__ == "__main__":
    main()
