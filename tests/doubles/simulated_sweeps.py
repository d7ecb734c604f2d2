"""Learning curves, runs chosen among many, judges that are probed: populations for `simulations.py`.

Legend of shapes: K runs, V validation records, I test items, P points of a curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tests.doubles.simulated_scores import like_rouge
from tests.doubles.simulations import Draw, Generator, Simulation

from tuneful.config import JudgeConfig
from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import METRICS
from tuneful.evaluation.statistics import Ratio
from tuneful.judge.measures import MEASURES, ProbeVerdicts, measured
from tuneful.judge.probing import probed
from tuneful.runs.schema import SweepRun
from tuneful.sweep.choice import lowest
from tuneful.sweep.curve import fit_power_law

Array = npt.NDArray[np.float64]

NUM_RECORDS = 800


# Learning curves


def curve_gain(
    generator: Generator,
    num_resamples: int,
    seed: int,
    *,
    exponent: float,
    scale: float,
    noise: float,
    num_seeds: int,
    shares: tuple[float, ...],
    num_validation: int = 0,
) -> Draw:
    """What twice and four times the records bring, of losses on a power law with `noise` from run to run.

    With `num_validation` records the validation set is a sample, too: records differ in how hard they are, and in how much they
    gain from more training.
    """
    sizes = np.repeat([round(NUM_RECORDS * share) for share in shares], num_seeds)
    losses_P = 1.0 + scale * (sizes / NUM_RECORDS) ** -exponent + generator.normal(0, noise, len(sizes))
    records = None
    if num_validation:
        gain_V, level_V = generator.normal(1, 0.6, num_validation), generator.normal(0, 0.5, num_validation)
        weights_V = generator.integers(5, 30, num_validation).astype(float)
        records = ((1.0 + (losses_P[:, None] - 1.0) * gain_V + level_V) * weights_V, weights_V)
        losses_P = records[0].sum(1) / weights_V.sum()
    law = fit_power_law(
        sizes.tolist(),
        losses_P.tolist(),
        confidence=0.95,
        record_losses=records,
        num_resamples=num_resamples,
        seed=seed,
    )
    assert law is not None
    truths = [scale * (1 - factor**-exponent) for factor in (2, 4)]
    pairs = list(zip(law.gains, truths, strict=True))
    return Draw(
        tuple(gain.low <= truth <= gain.high for gain, truth in pairs),
        tuple(gain.high - gain.low for gain in law.gains),
        is_false=any((gain.low > 0) if truth <= 0 else (gain.high < 0) for gain, truth in pairs),
        is_true=law.gains[0].low > 0 if scale > 0 else None,
    )


# Choosing among runs


def chosen_run(
    generator: Generator,
    num_resamples: int,
    seed: int,
    *,
    num_runs: int,
    num_validation: int,
    num_items: int,
    chosen_by: Literal["validation", "test"] = "validation",
) -> Draw:
    """The verdict of the run with the lowest validation loss, of `num_runs` that are all equal to the base.

    Chosen by the test set itself it is false as often as one would fear, which is why no sweep does so.
    """
    losses_KV = generator.gamma(2.0, 0.9, num_validation) * generator.lognormal(0, 0.3, (num_runs, num_validation))
    ease_I = generator.beta(1.5, 2.0, num_items)
    base_I, *runs = (like_rouge(generator, ease_I) for _ in range(1 + num_runs))
    trained = [
        SweepRun(str(k), {}, "trained", None, (), None, None, float(losses_KV[k].mean()), None) for k in range(num_runs)
    ]
    best = lowest(trained)
    assert best is not None
    place = int(best.name) if chosen_by == "validation" else int(np.argmax([one.mean() for one in runs]))
    spec, ones_I = next(one for one in METRICS if one.name == "rouge_l"), np.ones(num_items)
    (found,) = compare_ratios(
        [(spec, (Ratio(base_I, ones_I), Ratio(runs[place], ones_I)))],
        confidence=0.95,
        num_resamples=num_resamples,
        seed=seed,
    )
    assert found.low is not None
    assert found.high is not None
    return Draw((found.low <= 0 <= found.high,), (found.high - found.low,), found.verdict == "better")


# Judges


def probed_judge(
    generator: Generator, num_resamples: int, seed: int, *, num_items: int, protocol: str, judge: str
) -> Draw:
    """The verdict of the probes before an evaluation: false where a judge that `guesses` passes, or where one that is `good`, and
    errs on one item of twenty, is called not usable."""
    settings = JudgeConfig.model_validate({"protocol": protocol})
    scores = _pairs if protocol == "pairwise" else _grades
    read: dict[tuple[str, int], Any] = {
        (kind, index): one
        for index in range(num_items)
        for kind, one in scores(generator, guesses=judge == "guesses" or generator.random() < 0.05).items()
    }
    verdicts = ProbeVerdicts(num_items, read, Counter())
    found = probed(verdicts, {kind for kind, _ in read}, "judge", settings, confidence=0.95, seed=seed)
    passed = found.verdict != "not usable"
    return Draw(is_false=passed if judge == "guesses" else not passed)


def _grades(generator: Generator, *, guesses: bool) -> dict[str, float]:
    """The scores of the four probes of an item."""
    kinds = ("reference", "shuffled", "empty", "copied")
    if guesses:
        return dict(zip(kinds, generator.integers(0, 101, 4).astype(float).tolist(), strict=True))
    return dict(zip(kinds, (generator.integers(low, high) * 1.0 for low, high in _GRADES), strict=True))


_GRADES = ((70, 101), (0, 60), (0, 20), (0, 40))


def _pairs(generator: Generator, *, guesses: bool) -> dict[str, str]:
    """The preferences of the six probes of an item."""
    kinds = [f"{kind}{order}" for kind in ("pair", "empty pair", "copied pair") for order in ("", ", swapped")]
    said = generator.choice(["won", "lost"], len(kinds)).tolist() if guesses else ["won"] * len(kinds)
    return dict(zip(kinds, said, strict=True))


def judge_figure(generator: Generator, num_resamples: int, seed: int, *, num_items: int, figure: str) -> Draw:
    """The interval of one figure of a calibration: a share that is anywhere from 5 to 95 %, or points of a skewed change."""
    measure = next(one for one in MEASURES if one.name == figure)
    read: dict[tuple[str, int], float] = {}
    if measure.unit == "share":
        truth = float(generator.uniform(0.05, 0.95))
        for index, hit in enumerate(generator.random(num_items) < truth):
            read["empty", index] = 90.0 if hit else 10.0
    else:
        truth = 6.0
        for index, change in enumerate(generator.gamma(1.5, 4.0, num_items)):
            read["answer", index], read["padded", index] = 40.0, 40.0 + change
    verdicts = ProbeVerdicts(num_items, read, Counter())
    found = measured(measure, verdicts, 0.95, seed)
    if found.low is None or found.high is None:
        return Draw()
    return Draw((found.low <= truth <= found.high,), (found.high - found.low,))


def _of(name: str, setting: str, draw: Callable[..., Draw], **options: object) -> Simulation:
    bounds = {key: options.pop(key) for key in ("covers", "most_false") if key in options}
    return Simulation(name, setting, partial(draw, **options), **bounds)  # type: ignore[arg-type]


EIGHTHS, SIXTEENTHS = (0.125, 0.25, 0.5, 1.0), (0.0625, 0.125, 0.25, 0.5, 1.0)

CURVES = (
    *(
        _of(
            "learning curve",
            f"{len(shares)} sizes, {seeds} seeds, exponent {exponent:g}, noise {noise:g}",
            curve_gain,
            exponent=exponent,
            scale=0.2,
            noise=noise,
            num_seeds=seeds,
            shares=shares,
            covers=(
                0.93,
                0.98 if exponent == 0.1 else 0.97,
            ),  # near where exponents end, on the one side it hardly errs
        )
        for shares, seeds in ((EIGHTHS, 1), (EIGHTHS, 2), (EIGHTHS, 3), (SIXTEENTHS, 1), (SIXTEENTHS, 3))
        for exponent in (0.1, 0.3, 0.5, 1.0)
        for noise in (0.003, 0.01)
    ),
    *(
        _of(
            "learning curve, flat",
            f"{len(shares)} sizes, {seeds} seeds",
            curve_gain,
            exponent=0.5,
            scale=0.0,
            noise=0.01,
            num_seeds=seeds,
            shares=shares,
            covers=(0.93, 1.0 if seeds == 1 else 0.97),  # of four points and three parameters nothing is told anyway
        )
        for shares, seeds in ((EIGHTHS, 1), (EIGHTHS, 3), (SIXTEENTHS, 3))
    ),
    *(
        _of(
            "learning curve, few validation records",
            f"{num} records, exponent {exponent:g}, noise {noise:g}",
            curve_gain,
            exponent=exponent,
            scale=0.2,
            noise=noise,
            num_seeds=3,
            shares=EIGHTHS,
            num_validation=num,
        )
        for num in (30, 130)
        for exponent in (0.2, 0.5)
        for noise in (0.002, 0.01)
    ),
)
CHOICES = (
    *(
        _of(
            "chosen run, all equal to the base",
            f"{runs} runs, {validation} validation records, {items} test items",
            chosen_run,
            num_runs=runs,
            num_validation=validation,
            num_items=items,
        )
        for runs, validation, items in ((12, 20, 30), (12, 60, 130), (12, 200, 500), (50, 60, 130))
    ),
    _of(
        "chosen by the test set (no sweep does)",
        "12 runs, 60 validation records, 130 test items",
        chosen_run,
        num_runs=12,
        num_validation=60,
        num_items=130,
        chosen_by="test",
        covers=None,
        most_false=None,
    ),
)
JUDGES = (
    *(
        _of(
            f"judge that {judge if judge == 'guesses' else 'is good'}",
            f"{protocol}, {num} items",
            probed_judge,
            num_items=num,
            protocol=protocol,
            judge=judge,
            covers=None,
        )
        for judge in ("guesses", "good")
        for protocol in ("score", "pairwise")
        for num in (6, 10, 20)
    ),
    *(
        _of(f"calibration: {name}", f"{num} items", judge_figure, num_items=num, figure=name, most_false=None)
        for name in ("empty_rate", "length_slope")
        for num in (10, 40)
    ),
)
SWEEPS = (*CURVES, *CHOICES, *JUDGES)
"""Every simulation of this file."""
