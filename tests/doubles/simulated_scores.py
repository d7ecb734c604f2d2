"""Labels, standard tests, win rates, many sides: populations for `simulations.py`, drawn as the product would meet them.

Legend of shapes: I items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from tests.doubles.simulations import Draw, Generator, Simulation

from tuneful.evaluation.checks import score_interval
from tuneful.evaluation.label_comparison import compare_labels
from tuneful.evaluation.labels import labelled, labels_of, macro_f1_interval
from tuneful.evaluation.metric_comparison import compare_ratios
from tuneful.evaluation.metric_specs import METRICS, MetricSpec
from tuneful.evaluation.pairwise import compare_pairwise, enough_resamples, pair_confidence, pairs_of
from tuneful.evaluation.rater_agreement import rater_agreement
from tuneful.evaluation.statistics import Ratio
from tuneful.evaluation.task_comparison import compare_tests, figures_of
from tuneful.evaluation.task_files import ChoiceItem, InstructionItem, Task
from tuneful.judge.agreement import spearman, spearman_interval
from tuneful.judge.verdicts import summarise
from tuneful.runs.schema import CheckOutcome, ChoiceScore, Comparison, InstructionScore, MetricComparison, Side
from tuneful.types import Verdict

Array = npt.NDArray[np.float64]

ACCURACY = MetricSpec("label", "Label", "share of items", True, formula="share", check="label")
MACRO_F1 = MetricSpec("label_macro_f1", "Label, macro F1", "0 to 1", True, formula="macro_f1", check="label")
SAME = 0.4
"""Answers that training leaves as they were."""


def told(found: MetricComparison, truth: float) -> Draw:
    """What a comparison says, where the true difference is `truth`."""
    word = "better" if truth > 0 else "worse"
    is_wrong = found.verdict not in ("cannot tell", word) if truth else found.verdict == "better"
    if found.low is None or found.high is None:
        return Draw(is_false=is_wrong)
    return Draw(
        (found.low - 1e-9 <= truth <= found.high + 1e-9,),
        (found.high - found.low,),
        is_wrong,
        found.verdict == word if truth else None,
    )


def held(low: float | None, high: float | None, truth: float) -> Draw:
    """What an interval of one model says."""
    if low is None or high is None:
        return Draw()
    return Draw((low - 1e-9 <= truth <= high + 1e-9,), (high - low,))


# Labels


def _labels(generator: Generator, wanted_I: npt.NDArray[np.int64], num: int, right: float) -> npt.NDArray[np.int64]:
    """The label that a model names: the right one with probability `right`, else any or none (-1)."""
    other_I = generator.integers(-1, num, len(wanted_I))
    return np.where(generator.random(len(wanted_I)) < right, wanted_I, other_I)


def _true_macro_f1(shares: Sequence[float], right: float) -> float:
    """Of the population."""
    num = len(shares)
    found = [share * right + (1 - right) / (num + 1) for share in shares]
    hit = [share * (right + (1 - right) / (num + 1)) for share in shares]
    return float(np.mean([2 * h / (s + f) for h, s, f in zip(hit, shares, found, strict=True)]))


def _outcomes(wanted_I: npt.NDArray[np.int64], found_I: npt.NDArray[np.int64]) -> list[CheckOutcome]:
    names = [f"label {code}" for code in range(100)]
    return [
        CheckOutcome(float(w == f), found=names[f] if f >= 0 else None, wanted=names[w])
        for w, f in zip(wanted_I.tolist(), found_I.tolist(), strict=True)
    ]


def _sides(
    generator: Generator, num_items: int, shares: Sequence[float], right: tuple[float, float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels of the references, of base's answers and of tuned's, which are right with the probabilities `right`."""
    wanted_I = generator.choice(len(shares), size=num_items, p=shares)
    base_I, own_I = (_labels(generator, wanted_I, len(shares), p) for p in (right[0], _alone(right)))
    return wanted_I, base_I, np.where(generator.random(num_items) < SAME, base_I, own_I)


def _alone(right: tuple[float, float]) -> float:
    """How often tuned is right where it does not say what base did."""
    return (right[1] - SAME * right[0]) / (1 - SAME)


def macro_f1_of_two(
    generator: Generator,
    num_resamples: int,
    seed: int,
    *,
    num_items: int,
    shares: Sequence[float],
    right: tuple[float, float],
) -> Draw:
    """Macro F1, base against tuned."""
    wanted_I, base_I, tuned_I = _sides(generator, num_items, shares, right)
    sides = _outcomes(wanted_I, base_I), _outcomes(wanted_I, tuned_I)
    found = compare_labels(MACRO_F1, *sides, confidence=0.95, num_resamples=num_resamples, seed=seed)
    return told(found, _true_macro_f1(shares, right[1]) - _true_macro_f1(shares, right[0]))


def macro_f1_of_one(
    generator: Generator, num_resamples: int, seed: int, *, num_items: int, shares: Sequence[float], right: float
) -> Draw:
    """Macro F1 of one model."""
    wanted_I = generator.choice(len(shares), size=num_items, p=shares)
    scored = _outcomes(wanted_I, _labels(generator, wanted_I, len(shares), right))
    items = labelled(scored, labels_of(scored))
    return held(
        *macro_f1_interval(items, confidence=0.95, num_resamples=num_resamples, seed=seed),
        _true_macro_f1(shares, right),
    )


def accuracy_of_two(
    generator: Generator, num_resamples: int, seed: int, *, num_items: int, right: tuple[float, float]
) -> Draw:
    """Label accuracy, base against tuned."""
    wanted_I, base_I, tuned_I = _sides(generator, num_items, (0.5, 0.3, 0.2), right)
    base, tuned = (Ratio((one == wanted_I).astype(float), np.ones(num_items)) for one in (base_I, tuned_I))
    (found,) = compare_ratios([(ACCURACY, (base, tuned))], confidence=0.95, num_resamples=num_resamples, seed=seed)
    return told(found, (right[1] - right[0]) * 3 / 4)  # one label in four that is drawn at random is right


def share_of_one(generator: Generator, num_resamples: int, seed: int, *, num_items: int) -> Draw:
    """How many answers meet a check, whose true share is anywhere from 5 to 95 %."""
    truth = float(generator.uniform(0.05, 0.95))
    scores_I = (generator.random(num_items) < truth).astype(float)
    return held(*score_interval(scores_I, 0.95, num_resamples, seed), truth)


def number_of_one(generator: Generator, num_resamples: int, seed: int, *, num_items: int) -> Draw:
    """The mean of what a function of one's own scores, with a heap at 0 and a long tail."""
    scores_I = np.where(generator.random(num_items) < 0.2, 0.0, generator.gamma(2.0, 1.5, num_items))
    return held(*score_interval(scores_I, 0.95, num_resamples, seed), 0.8 * 3.0)


# Standard tests

_MAX_ITEMS = 500
CHOICES = Task("quiz", "quiz.jsonl", "0", tuple(ChoiceItem(f"q:{n}", "?", ("a", "b"), (0,)) for n in range(_MAX_ITEMS)))
RULES = Task("rules", "rules.jsonl", "0", tuple(InstructionItem(f"r:{n}", "?", ()) for n in range(_MAX_ITEMS)))


def choice_score(number: int, is_right: bool) -> ChoiceScore:
    """An item of multiple choice."""
    return ChoiceScore(f"q:{number}", (0,), (-1.0, -2.0), (1, 1), (1, 1), (1, 1), is_right, is_right, is_right)


def rule_score(number: int, followed: Sequence[bool]) -> InstructionScore:
    """An item with instructions that can be verified."""
    own = tuple(followed)
    return InstructionScore(f"r:{number}", "p", "t", "stop", 1, ("punctuation:no_comma",) * len(own), own, own)


def choices_of_two(
    generator: Generator, num_resamples: int, seed: int, *, num_items: int, right: tuple[float, float]
) -> Draw:
    """Accuracy of multiple choice, base against tuned."""
    base_I, own_I = (generator.random(num_items) < p for p in (right[0], _alone(right)))
    tuned_I = np.where(generator.random(num_items) < SAME, base_I, own_I)
    sides = [[choice_score(n, one) for n, one in enumerate(side.tolist())] for side in (base_I, tuned_I)]
    found = compare_tests(CHOICES, *sides, confidence=0.95, num_resamples=num_resamples, seed=seed)
    return told(found[0], right[1] - right[0])


def _instructions(generator: Generator, num_items: int, lift: float) -> tuple[list[list[bool]], list[list[bool]]]:
    """What base and tuned follow of one to three instructions an item, which are easy or hard together; `lift` is the share of
    those not followed that tuned follows all the same."""
    base, tuned = [], []
    for ease, count in zip(generator.beta(2, 2, num_items), generator.integers(1, 4, num_items), strict=True):
        one, other = generator.random(count) < ease, generator.random(count) < ease
        base.append(one.tolist())
        tuned.append((other | (generator.random(count) < lift)).tolist())
    return base, tuned


def instructions_of_two(
    generator: Generator, num_resamples: int, seed: int, *, num_items: int, lift: float, level: str
) -> Draw:
    """Accuracy over instructions, or over prompts whose instructions are all followed, base against tuned."""
    sides = [[rule_score(n, one) for n, one in enumerate(own)] for own in _instructions(generator, num_items, lift)]
    found = compare_tests(RULES, *sides, confidence=0.95, num_resamples=num_resamples, seed=seed)
    metric = next(one for one in found if one.name == f"rules_{level}_level_strict_acc")
    return told(metric, true_instructions(lift, level) - true_instructions(0.0, level))


def true_instructions(lift: float, level: str) -> float:
    """Of the population: the mean over an ease of Beta(2, 2) of what is followed, by instruction or by prompt."""
    eases = (np.arange(10_000) + 0.5) / 10_000
    weights = eases * (1 - eases)
    followed = eases + (1 - eases) * lift
    values = followed if level == "inst" else np.mean([followed**count for count in (1, 2, 3)], axis=0)
    return float((values * weights).sum() / weights.sum())


def instructions_of_one(generator: Generator, num_resamples: int, seed: int, *, num_items: int, level: str) -> Draw:
    """The same of one model."""
    scores = [rule_score(n, one) for n, one in enumerate(_instructions(generator, num_items, 0.0)[0])]
    figures = figures_of(RULES, scores, confidence=0.95, num_resamples=num_resamples, seed=seed)
    figure = next(one for one in figures if one.name == f"rules_{level}_level_strict_acc")
    return held(figure.low, figure.high, true_instructions(0.0, level))


# Judges and people


def _wins(generator: Generator, num_items: int, won: float, tied: float) -> Array:
    """100 where an answer beats its rival, 50 for a tie, 0 where it loses."""
    return generator.choice([100.0, 50.0, 0.0], num_items, p=[won, tied, 1 - won - tied])


def win_rate_of_one(generator: Generator, num_resamples: int, seed: int, *, num_items: int, won: float) -> Draw:
    """The mean of a pairwise judge's verdicts."""
    scores = _wins(generator, num_items, won, 0.2)
    verdicts = [Verdict(f"a:{n}", "judge", "pairwise", score, None, "") for n, score in enumerate(scores.tolist())]
    found = summarise(verdicts, confidence=0.95, seed=seed)
    return held(found.low, found.high, 100 * won + 10)


def win_rate_of_two(
    generator: Generator, num_resamples: int, seed: int, *, num_items: int, won: float, tied: float = 0.2
) -> Draw:
    """The same as a run compares it: the base answer scores 100 less what the tuned one does."""
    scores_I, ones_I = _wins(generator, num_items, won, tied), np.ones(num_items)
    spec = next(one for one in METRICS if one.name == "judge_score")
    pair = Ratio(100 - scores_I, ones_I), Ratio(scores_I, ones_I)
    (found,) = compare_ratios([(spec, pair)], confidence=0.95, num_resamples=num_resamples, seed=seed)
    return told(found, round(100 * (2 * won + tied - 1), 9))


def kappa(generator: Generator, num_resamples: int, seed: int, *, num_items: int, num_raters: int) -> Draw:
    """Agreement of raters who say what an item is in seven cases of ten, and else anything."""
    names, shares = ["base", "tuned", "tie"], (0.5, 0.3, 0.2)
    true_I = generator.choice(3, num_items, p=shares)
    said = [
        np.where(generator.random(num_items) < 0.7, true_I, generator.integers(0, 3, num_items)).tolist()
        for _ in range(num_raters)
    ]
    rated = [{f"rater {k}": names[own[item]] for k, own in enumerate(said)} for item in range(num_items)]
    found = rater_agreement(rated, confidence=0.95, num_resamples=num_resamples, seed=seed)
    if found is None:
        return Draw()
    marginal = [0.7 * share + 0.1 for share in shares]
    agreed = sum(share * sum((0.7 * (k == c) + 0.1) ** 2 for c in range(3)) for k, share in enumerate(shares))
    chance = sum(one**2 for one in marginal)
    return held(found.low, found.high, (agreed - chance) / (1 - chance))


def rank_correlation(generator: Generator, num_resamples: int, seed: int, *, num_items: int, strength: float) -> Draw:
    """Spearman's correlation of two normal scores whose Pearson correlation is `strength`."""
    first_I, own_I = generator.normal(size=(2, num_items))
    second_I = strength * first_I + (1 - strength**2) ** 0.5 * own_I
    correlation = spearman(first_I, second_I)
    assert correlation is not None
    truth = 6 / np.pi * np.arcsin(strength / 2)
    low, high = spearman_interval(correlation, num_items, 0.95)
    return held(low, high, float(truth))


# Many sides


def like_rouge(generator: Generator, ease_I: Array) -> Array:
    """Scores of 0 to 1 in steps of a hundredth, on items that are easy or hard for every model."""
    scores_I: Array = np.round(np.clip(ease_I + generator.normal(0, 0.2, len(ease_I)), 0, 1), 2).astype(np.float64)
    return scores_I


def many_sides(generator: Generator, num_resamples: int, seed: int, *, num_sides: int, num_items: int) -> Draw:
    """ROUGE-L of sides that are equally good, every two compared: false is any verdict at all."""
    ease_I = generator.beta(1.5, 2.0, num_items)
    scores = [like_rouge(generator, ease_I) for _ in range(num_sides)]
    ones_I = np.ones(num_items)
    spec = next(one for one in METRICS if one.name == "rouge_l")
    pairs = pairs_of(num_sides)
    level = pair_confidence(0.95, len(pairs))
    resamples = enough_resamples(num_resamples, level)
    measured = [(spec, (Ratio(scores[a], ones_I), Ratio(scores[b], ones_I))) for a, b in pairs]
    compared = {
        pair: Comparison(num_items, level, resamples, seed, spec.name, 10.0, None, (metric,))
        for pair, metric in zip(
            pairs, compare_ratios(measured, confidence=level, num_resamples=resamples, seed=seed), strict=True
        )
    }
    sides = [Side(chr(ord("A") + place), f"run-{place}", num_items, 0) for place in range(num_sides)]
    found = compare_pairwise(sides, compared, confidence=0.95).main
    is_false = any(pair.verdict != "cannot tell" for pair in found.pairs)
    known = [(pair.low, pair.high) for pair in found.pairs if pair.low is not None and pair.high is not None]
    return Draw(
        (all(low <= 0 <= high for low, high in known),), tuple(high - low for low, high in known), is_false=is_false
    )


def _of(name: str, setting: str, draw: Callable[..., Draw], **options: object) -> Simulation:
    bounds = {key: options.pop(key) for key in ("covers", "most_false") if key in options}
    return Simulation(name, setting, partial(draw, **options), **bounds)  # type: ignore[arg-type]


def _asked(num_items: int) -> tuple[float, float]:
    """The coverage that is asked for of shares of so many items: right or wrong comes in steps, and on few items the
    interval of a difference errs to the safe side."""
    return (0.93, 1.0 if num_items <= 60 else 0.97)


BALANCED, UNEVEN, TEN = (0.5, 0.5), (0.75, 0.15, 0.1), (0.25, 0.2, 0.15, 0.1, 0.08, 0.07, 0.05, 0.04, 0.03, 0.03)

SCORES = (
    *(
        _of(
            "macro F1, two models",
            f"{len(shares)} labels, {num} items, {before:g} to {after:g}",
            macro_f1_of_two,
            num_items=num,
            shares=shares,
            right=(before, after),
            covers=_asked(num * 2),
        )
        for shares, sizes in ((BALANCED, (20, 60, 500)), (UNEVEN, (60, 130, 500)), (TEN, (130, 500)))
        for num in sizes
        for before, after in ((0.6, 0.6), (0.55, 0.7))
    ),
    *(
        _of(
            "macro F1, one model",
            f"{len(shares)} labels, {num} items, {right:g}",
            macro_f1_of_one,
            num_items=num,
            shares=shares,
            right=right,
            covers=_asked(num * 2),
        )
        for shares, sizes in ((BALANCED, (20, 60, 500)), (UNEVEN, (60, 130)), (TEN, (130, 500)))
        for num in sizes
        for right in (0.5, 0.85)
    ),
    *(
        _of(
            "label accuracy, two models",
            f"{num} items, {before:g} to {after:g}",
            accuracy_of_two,
            num_items=num,
            right=(before, after),
            covers=_asked(num),
        )
        for num in (20, 60, 130, 500)
        for before, after in ((0.6, 0.6), (0.5, 0.65))
    ),
    *(_of("share that meets a check, one model", f"{num} items", share_of_one, num_items=num) for num in (10, 60, 500)),
    *(_of("number of a check, one model", f"{num} items", number_of_one, num_items=num) for num in (10, 60, 500)),
    *(
        _of(
            "multiple choice, two models",
            f"{num} items, {before:g} to {after:g}",
            choices_of_two,
            num_items=num,
            right=(before, after),
            covers=_asked(num),
        )
        for num in (30, 100, 500)
        for before, after in ((0.5, 0.5), (0.45, 0.6))
    ),
    *(
        _of(
            f"{words}, two models",
            f"{num} items, lift {lift:g}",
            instructions_of_two,
            num_items=num,
            lift=lift,
            level=level,
            covers=_asked(num) if level == "prompt" else (0.93, 0.97),
        )
        for level, words in (("inst", "instructions"), ("prompt", "prompts"))
        for num in (30, 100, 300)
        for lift in (0.0, 0.25)
    ),
    *(
        _of(
            f"{words}, one model",
            f"{num} items",
            instructions_of_one,
            num_items=num,
            level=level,
            covers=(0.93, 0.98 if num == 10 else 0.97),
        )
        for level, words in (("inst", "instructions"), ("prompt", "prompts"))
        for num in (10, 30, 100)
    ),
    *(
        _of("win rate, one set of verdicts", f"{num} items, {won:g} won", win_rate_of_one, num_items=num, won=won)
        for num in (10, 40, 130)
        for won in (0.4, 0.65)
    ),
    *(
        _of("win rate, two models", f"{num} items, {won:g} won", win_rate_of_two, num_items=num, won=won)
        for num in (20, 60, 130)
        for won in (0.4, 0.55)
    ),
    *(
        _of("kappa", f"{num} items, {raters} raters", kappa, num_items=num, num_raters=raters)
        for num in (20, 60, 200)
        for raters in (2, 3)
    ),
    *(
        _of("rank correlation", f"{num} items, {rho:g}", rank_correlation, num_items=num, strength=rho)
        for num in (10, 40, 200)
        for rho in (0.0, 0.7)
    ),
    *(
        _of(
            "many sides, all equal",
            f"{sides} sides, {num} items",
            many_sides,
            num_sides=sides,
            num_items=num,
            covers=(0.93, 1.0),  # of all pairs together, which Bonferroni errs to the wide side of
        )
        for sides, num in ((3, 60), (6, 60), (6, 130), (12, 100))
    ),
)
"""Every simulation of this file."""
