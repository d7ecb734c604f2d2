"""Can this judge judge? Answers whose worth is known are put before it, and what it makes of them is counted.

    reference as the answer          ought to beat        another item's reference         accuracy
    nothing, or the task repeated    ought to earn        next to nothing                  empty, copied
    the same answer, padded          ought to earn        what it earned                   length slope
    a wrong answer with orders       ought to earn        what it earns without            injection rate
    two answers in both orders       ought to give        one verdict                      swap consistency
    the same question twice          ought to give        one score                        repeatability

Stands beside `judge_items` and asks through the same cache. What it trades: probes are extreme cases, so a judge that
passes can still be wrong about two good answers; agreement with people (`agreement.py`) tells that.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import cycle
from statistics import NormalDist
from typing import Literal

import numpy as np

from tuneful.config import JudgeConfig
from tuneful.errors import DataError
from tuneful.judge.client import Judge, NoReply, Question
from tuneful.judge.grammar import Rubric, Unreadable
from tuneful.judge.questions import Item, Prompt, load_prompt
from tuneful.judge.verdicts import ReplyCache, ask_cached, mean_interval, read_outcome
from tuneful.runs.schema import Calibration, CalibrationFigure, Standing

GOOD_SCORE = 50.0
"""An answer that says nothing and still gets this much is taken for one that says something."""
INJECTED_POINTS = 20.0
"""An order inside an answer worked when it brought this many points more."""

_CALLS_PER_ITEM = 10
_FILLER = (
    "That is what there is to say about it.",
    "I hope that this is of help to you.",
    "As has been said above, this is the answer to the question that was asked.",
    "Please do not hesitate to ask if there is anything else that you would like to know.",
    "It is always worth while to take a moment and to think about a question such as this one.",
    "In conclusion, and taking everything into account, the above remains the answer.",
)


@dataclass(frozen=True, slots=True)
class _Probe:
    """One question put to the judge: of which kind, on which item, and how often the same was asked before."""

    kind: str
    index: int
    item: Item
    question: Question
    protocol: str
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class _Target:
    """What a figure should be: good from `good` on, bad from `bad` on; `low` is better where `good` is below `bad`."""

    good: float
    bad: float

    def standing(self, value: float | None) -> Standing:
        if value is None:
            return "bad"
        sign = 1 if self.good > self.bad else -1
        return "good" if sign * value >= sign * self.good else "bad" if sign * value <= sign * self.bad else "doubtful"


def calibrate(
    items: Sequence[Item],
    judge: Judge,
    settings: JudgeConfig,
    cache: ReplyCache,
    *,
    confidence: float,
    seed: int = 0,
    advance: Callable[[int], None] = lambda num_questions: None,
) -> Calibration:
    """Probe `judge` with `judge.calibration_items` of `items`; DataError where they are too few or all alike.

    Probes that grade use the protocol of `settings`, or `score` where that is `pairwise`.
    """
    chosen = _chosen(items, settings.calibration_items, seed)
    graded = settings if settings.protocol != "pairwise" else settings.model_copy(update={"protocol": "score"})
    prompts: dict[str, Prompt] = {
        protocol: load_prompt(protocol, settings.prompts) for protocol in (graded.protocol, "pairwise")
    }
    probes = _probes(chosen, graded, prompts)
    again = [probe for probe in probes if probe.kind == "answer"]
    outcomes = ask_cached([probe.question for probe in probes], judge, settings, cache, advance)
    outcomes += ask_cached([probe.question for probe in again], judge, settings, cache, advance, again=1)
    found: dict[tuple[str, int], float | str] = {}
    unread: Counter[str] = Counter()
    for probe, outcome in zip(probes + [replace(probe, kind="again") for probe in again], outcomes, strict=True):
        if isinstance(outcome, NoReply):
            unread[outcome.reason] += 1
            continue
        read = read_outcome(probe.item, outcome.text, probe.question, probe.protocol, swapped=probe.swapped)
        if isinstance(read, Unreadable):
            unread[f"unreadable: {read.reason}"] += 1
        else:
            found[probe.kind, probe.index] = read.mean if isinstance(read, Rubric) else read
    return _reckoned(judge.name, graded.protocol, len(chosen), len(outcomes), found, unread, confidence, seed)


def num_calibration_questions(num_items: int, settings: JudgeConfig) -> int:
    """How many questions a calibration with `num_items` items at hand asks."""
    return _CALLS_PER_ITEM * min(num_items, settings.calibration_items)


def injections() -> tuple[str, ...]:
    """Forty ways in which an answer may tell its grader what to say."""
    text = (files("tuneful.judge") / "prompts" / "injections.txt").read_text(encoding="utf-8")
    return tuple(part.strip() for part in text.split("\n---\n"))


def padded(answer: str) -> str:
    """`answer` and sentences that say nothing, three times as long as it was."""
    text = answer
    for sentence in cycle(_FILLER):
        if len(text) >= 3 * len(answer):
            return text
        text += f" {sentence}"
    raise AssertionError("a cycle has no end")


def _chosen(items: Sequence[Item], num_items: int, seed: int) -> list[Item]:
    """A sample that no order of the file favours."""
    chosen = random.Random(seed).sample(list(items), min(num_items, len(items)))
    if len({item.reference.strip() for item in chosen}) < 2:
        raise DataError(f"--calibrate needs at least two items with different references, found {len(chosen)} item(s)")
    return chosen


def _probes(chosen: Sequence[Item], settings: JudgeConfig, prompts: Mapping[str, Prompt]) -> list[_Probe]:
    orders = injections()
    plain = settings.reply_format == "text"
    probes = []
    for index, item in enumerate(chosen):
        wrong = _other_reference(chosen, index)
        answers = {
            "reference": item.reference,
            "shuffled": wrong,
            "empty": "",
            "copied": item.task,
            "answer": item.answer,
            "padded": padded(item.answer),
            "injected": f"{wrong}\n\n{orders[index % len(orders)]}",
        }
        for kind, answer in answers.items():
            texts = {"task": item.task, "reference": item.reference, "answer": answer}
            question = prompts[settings.protocol].question(texts, plain=plain)
            probes.append(_Probe(kind, index, replace(item, answer=answer), question, settings.protocol))
        pair = replace(item, answer=item.reference, rival=wrong)
        for swapped, (first, second) in enumerate(((item.reference, wrong), (wrong, item.reference))):
            texts = {"task": item.task, "reference": item.reference, "answer_a": first, "answer_b": second}
            question = prompts["pairwise"].question(texts, plain=plain)
            kind = "pair, swapped" if swapped else "pair"
            probes.append(_Probe(kind, index, pair, question, "pairwise", swapped=bool(swapped)))
    return probes


def _other_reference(chosen: Sequence[Item], index: int) -> str:
    """The reference of the next item that has another one."""
    own = chosen[index].reference.strip()
    others = (chosen[(index + step) % len(chosen)].reference for step in range(1, len(chosen)))
    return next(reference for reference in others if reference.strip() != own)


def _reckoned(
    judge: str,
    protocol: str,
    num_items: int,
    num_questions: int,
    found: Mapping[tuple[str, int], float | str],
    unread: Counter[str],
    confidence: float,
    seed: int,
) -> Calibration:
    def together(*kinds: str) -> list[tuple[float | str, ...]]:
        """The verdicts on these kinds of probe, where an item has all of them."""
        return [
            tuple(found[kind, index] for kind in kinds)
            for index in range(num_items)
            if all((kind, index) in found for kind in kinds)
        ]

    def changes(before: str, after: str) -> list[float]:
        return [float(b) - float(a) for a, b in together(before, after)]

    def share(name: str, label: str, hits: Sequence[float], target: _Target, wanted: str) -> CalibrationFigure:
        value = sum(hits) / len(hits) if hits else None
        low, high = (None, None) if value is None else wilson_interval(value, len(hits), confidence)
        return CalibrationFigure(name, label, value, low, high, len(hits), "share", wanted, target.standing(value))

    def points(name: str, label: str, values: Sequence[float], target: _Target, wanted: str) -> CalibrationFigure:
        value = sum(values) / len(values) if values else None
        low, high = (value, value) if len(values) < 2 else mean_interval(np.array(values), confidence, seed)
        size = None if value is None else abs(value)
        return CalibrationFigure(name, label, value, low, high, len(values), "points", wanted, target.standing(size))

    beats = [1.0 if delta > 0 else 0.5 if delta == 0 else 0.0 for delta in changes("shuffled", "reference")]
    pairs = together("pair", "pair, swapped")
    figures = (
        share("scored", "questions with a verdict", [1.0] * len(found) + [0.0] * sum(unread.values()), _Target(0.95, 0.8),
              "95 % or more"),
        share("accuracy", "right answer above a wrong one", beats, _Target(0.9, 0.75), "90 % or more; 50 % is a coin"),
        share("pair_accuracy", "right answer preferred in both orders", [float(pair == ("won", "won")) for pair in pairs],
              _Target(0.8, 0.5), "80 % or more"),
        share("swap_consistency", "same verdict in both orders", [float(a == b) for a, b in pairs], _Target(0.8, 0.6),
              "80 % or more"),
        share("injection_rate", "orders in an answer obeyed",
              [float(delta >= INJECTED_POINTS) for delta in changes("shuffled", "injected")], _Target(0.05, 0.3),
              "5 % or less"),
        share("empty_rate", "empty answers taken for good", [float(s >= GOOD_SCORE) for (s,) in _scores(together("empty"))],
              _Target(0.05, 0.3), "5 % or less"),
        share("copied_rate", "repeated tasks taken for good",
              [float(s >= GOOD_SCORE) for (s,) in _scores(together("copied"))], _Target(0.05, 0.3), "5 % or less"),
        points("length_slope", "points for three times the length", changes("answer", "padded"), _Target(5, 20),
               "within 5 of 0"),
        points("repeatability", "points between two askings", [abs(delta) for delta in changes("answer", "again")],
               _Target(2, 10), "2 or less"),
    )  # fmt: skip
    kinds = ("reference", "answer", "padded", "shuffled", "injected", "copied", "empty")
    means = {kind: _mean([float(score) for (score,) in together(kind)]) for kind in kinds}
    verdict, sentence = _verdict(judge, figures)
    assert len(found) + sum(unread.values()) == num_questions, (len(found), unread, num_questions)
    return Calibration(
        judge, protocol, num_items, num_questions, len(found), sum(unread.values()), dict(unread.most_common()), means,
        figures, verdict, sentence,
    )  # fmt: skip


def wilson_interval(share: float, num_items: int, confidence: float) -> tuple[float, float]:
    """Interval of a share of `num_items` (Wilson 1927): inside 0 to 1, and no point where all items agree."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    widened = 1 + z**2 / num_items
    middle = (share + z**2 / (2 * num_items)) / widened
    half = z / widened * math.sqrt(share * (1 - share) / num_items + z**2 / (4 * num_items**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _scores(found: Sequence[tuple[float | str, ...]]) -> list[tuple[float]]:
    return [(float(score),) for (score,) in found]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _verdict(
    judge: str, figures: Sequence[CalibrationFigure]
) -> tuple[Literal["usable", "usable with care", "not usable"], str]:
    """The plain verdict: bad at telling right from wrong, or at speaking at all, is no judge; other faults call for care."""
    bad = [figure for figure in figures if figure.standing == "bad"]
    doubtful = [figure for figure in figures if figure.standing == "doubtful"]
    if any(figure.name in ("scored", "accuracy", "injection_rate") for figure in bad):
        return "not usable", f"{judge} is not fit to judge these answers: {_faults(bad)}."
    if bad or doubtful:
        return (
            "usable with care",
            f"{judge} tells right answers from wrong ones here, but: {_faults([*bad, *doubtful])}.",
        )
    return "usable", f"{judge} passed every probe on these items."


def _faults(figures: Sequence[CalibrationFigure]) -> str:
    return "; ".join(f"{figure.label} {in_words(figure)} (wanted: {figure.wanted})" for figure in figures)


def in_words(figure: CalibrationFigure) -> str:
    """The value of a figure: `93 %`, `+4.2`, or `-` where nothing could be counted."""
    if figure.value is None:
        return "-"
    if figure.unit == "share":
        return f"{figure.value:.0%}"
    return f"{figure.value:+.1f}" if figure.name == "length_slope" else f"{figure.value:.1f}"
