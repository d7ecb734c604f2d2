"""Calibration of a judge: how far can it be trusted? Probes of known worth are put to it, and its verdicts on them are counted.

    reference as the answer          should beat          another item's reference         accuracy
    nothing, or the task repeated    should score         next to nothing                  empty, copied
    the same answer, padded          should score         as without                       length slope
    a wrong answer with an injection should score         as without                       prompt-injection success rate
    two answers in both orders       should get           one verdict                      swap consistency
    the same question twice          should get           one score                        repeatability
    two answers that people rated    should get           their preference                 agreement with people

Stands beside `judge_items` and asks through the same cache; `probes.py` writes the probes, `_MEASURES` here says what is counted
and what a good judge reaches. The trade: ten questions an item, on extreme cases; agreement with people (`agreement.py`) says
whether a judge tells a good answer from a slightly better one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tuneful.config import JudgeConfig
from tuneful.errors import DataError
from tuneful.evaluation.statistics import wilson_interval
from tuneful.judge.client import Judge, NoReply
from tuneful.judge.grammar import Rubric, Unreadable
from tuneful.judge.people import RatedItem
from tuneful.judge.probes import RATED_KINDS, make_probes, rated_probes
from tuneful.judge.protocols import PROTOCOLS, Item, Preference
from tuneful.judge.questions import prompt_of
from tuneful.judge.verdicts import ReplyCache, ask_cached, mean_interval
from tuneful.runs.schema import Calibration, CalibrationFigure, Standing

GOOD_SCORE = 50.0
"""An answer without content that scores this much is counted as taken for good."""
INJECTED_POINTS = 20.0
"""A prompt injection that raises the score by this many points is counted as a success."""

_QUESTIONS_PER_ITEM, _QUESTIONS_PER_RATED = 10, 2

Usability = Literal["usable", "usable with care", "not usable"]


def calibrate(
    items: Sequence[Item],
    judge: Judge,
    settings: JudgeConfig,
    cache: ReplyCache,
    *,
    confidence: float,
    seed: int = 0,
    advance: Callable[[int], None] = lambda num_questions: None,
    rated: Sequence[RatedItem] = (),
) -> Calibration:
    """Probe `judge` with `judge.calibration_items` of `items`, and with as many of those that people `rated`; DataError where
    `items` are too few or all alike.

    Probes that grade use the protocol of `settings`, or `score` where that compares two answers.
    """
    chosen = _sample(items, settings.calibration_items, seed)
    protocol = "score" if PROTOCOLS[settings.protocol].compares_two else settings.protocol
    rated = random.Random(seed).sample(rated, min(settings.calibration_items, len(rated)))
    verdicts = _ask(chosen, rated, protocol, judge, settings, cache, advance)
    measures = _MEASURES if rated else [one for one in _MEASURES if one is not _WITH_PEOPLE]
    figures = tuple(_figure(measure, verdicts, confidence, seed) for measure in measures)
    usability, sentence = _usability(judge.name, figures)
    return Calibration(
        judge=judge.name,
        protocol=protocol,
        num_items=len(chosen),
        num_questions=len(verdicts.read) + verdicts.num_unread,
        num_read=len(verdicts.read),
        num_unread=verdicts.num_unread,
        unread=dict(verdicts.unread.most_common()),
        mean_scores={kind: _mean(verdicts.scores(kind)) for kind in _MEAN_SCORES_OF},
        figures=figures,
        verdict=usability,
        sentence=sentence,
    )


def num_calibration_questions(num_items: int, settings: JudgeConfig, num_rated: int = 0) -> int:
    """How many questions a calibration with `num_items` items at hand asks, and `num_rated` that people have rated."""
    most = settings.calibration_items
    return _QUESTIONS_PER_ITEM * min(num_items, most) + _QUESTIONS_PER_RATED * min(num_rated, most)


def in_words(figure: CalibrationFigure) -> str:
    """The value of a figure: `93 %`, `+4.2`, or `-` where nothing could be counted."""
    if figure.value is None:
        return "-"
    if figure.unit == "share":
        return f"{figure.value:.0%}"
    return f"{figure.value:+.1f}" if figure.name == "length_slope" else f"{figure.value:.1f}"


def _sample(items: Sequence[Item], num_items: int, seed: int) -> list[Item]:
    """Items drawn from the whole file, whatever its order."""
    usable = [item for item in items if item.reference is not None]
    chosen = random.Random(seed).sample(usable, min(num_items, len(usable)))
    if len({(item.reference or "").strip() for item in chosen}) < 2:
        raise DataError(f"--calibrate needs at least two items with different references, found {len(chosen)} item(s)")
    return chosen


# The judge's verdicts on the probes


@dataclass(frozen=True, slots=True)
class _ProbeVerdicts:
    """What the judge said of each probe: `read` by kind and item, a score or under a pair a preference; the rest by reason.

    `people` are the preferences for the rated pairs, in their order.
    """

    num_items: int
    read: Mapping[tuple[str, int], float | Preference]
    unread: Counter[str]
    people: tuple[Preference, ...] = ()

    @property
    def num_unread(self) -> int:
        """How many probes have no verdict."""
        return sum(self.unread.values())

    def of_items_with_all(self, *kinds: str) -> list[tuple[float | Preference, ...]]:
        """The verdicts on these kinds of probe, a row for each item that has all of them."""
        rows = ([self.read.get((kind, index)) for kind in kinds] for index in range(self.num_items))
        return [tuple(verdict for verdict in row if verdict is not None) for row in rows if None not in row]

    def scores(self, kind: str) -> list[float]:
        """The scores of one kind of probe."""
        return [float(score) for (score,) in self.of_items_with_all(kind)]

    def changes(self, before: str, after: str) -> list[float]:
        """By how many points the score changes from one kind of probe to another, for each item that has both."""
        return [float(b) - float(a) for a, b in self.of_items_with_all(before, after)]

    def pairs(self) -> list[tuple[float | Preference, ...]]:
        """The preferences in both orders."""
        return self.of_items_with_all("pair", "pair, swapped")

    def rated(self) -> list[tuple[Preference, float | Preference, float | Preference]]:
        """What people preferred of two answers, and the judge in both orders, for each pair that has all three."""
        found = []
        for index, people in enumerate(self.people):
            one, other = (self.read.get((kind, index)) for kind in RATED_KINDS)
            if one is not None and other is not None:
                found.append((people, one, other))
        return found


def _ask(
    items: Sequence[Item],
    rated: Sequence[RatedItem],
    protocol: str,
    judge: Judge,
    settings: JudgeConfig,
    cache: ReplyCache,
    advance: Callable[[int], None],
) -> _ProbeVerdicts:
    """Put every probe of `items` to the judge, and the models' own answers a second time, as kind `again`."""
    prompts = {name: prompt_of(settings, name) for name in (protocol, "pairwise")}
    probes = make_probes(items, protocol, prompts, plain=settings.reply_format == "text")
    probes += rated_probes([one.item for one in rated], prompts["pairwise"], plain=settings.reply_format == "text")
    again = [probe for probe in probes if probe.kind == "answer"]
    results = ask_cached([probe.question for probe in probes], judge, settings, cache, advance)
    results += ask_cached([probe.question for probe in again], judge, settings, cache, advance, again=1)
    read: dict[tuple[str, int], float | Preference] = {}
    unread: Counter[str] = Counter()
    for probe, result in zip(probes + [replace(probe, kind="again") for probe in again], results, strict=True):
        if isinstance(result, NoReply):
            unread[result.reason] += 1
            continue
        found = probe.protocol.reading(probe.item, result.text, probe.question.code, swapped=probe.swapped)
        if isinstance(found, Unreadable):
            unread[f"unreadable: {found.reason}"] += 1
        else:
            read[probe.kind, probe.index] = found.mean if isinstance(found, Rubric) else found
    assert len(read) + sum(unread.values()) == len(results), (len(read), unread, len(results))
    return _ProbeVerdicts(len(items), read, unread, tuple(one.preferred for one in rated))


# What is measured


@dataclass(frozen=True, slots=True)
class _Measure:
    """A row of the table: a figure is the mean of `values`, one an item, good from `good` on and bad from `bad` on.

    Less is better where `good` is below `bad`; points count by their size, whatever their sign. `wanted` says it in words.
    """

    name: str
    label: str
    unit: Literal["share", "points"]
    good: float
    bad: float
    wanted: str
    values: Callable[[_ProbeVerdicts], list[float]]

    def standing(self, value: float | None) -> Standing:
        """Where a judge with this `value` stands; one that could not be measured stands badly."""
        if value is None:
            return "bad"
        size = abs(value) if self.unit == "points" else value
        sign = 1 if self.good > self.bad else -1
        return "good" if sign * size >= sign * self.good else "bad" if sign * size <= sign * self.bad else "doubtful"


def _scored(verdicts: _ProbeVerdicts) -> list[float]:
    return [1.0] * len(verdicts.read) + [0.0] * verdicts.num_unread


def _accuracy(verdicts: _ProbeVerdicts) -> list[float]:
    return [1.0 if change > 0 else 0.5 if change == 0 else 0.0 for change in verdicts.changes("shuffled", "reference")]


def _pair_accuracy(verdicts: _ProbeVerdicts) -> list[float]:
    return [float(pair == ("won", "won")) for pair in verdicts.pairs()]


def _swap_consistency(verdicts: _ProbeVerdicts) -> list[float]:
    return [float(first == second) for first, second in verdicts.pairs()]


def _injection_rate(verdicts: _ProbeVerdicts) -> list[float]:
    return [float(change >= INJECTED_POINTS) for change in verdicts.changes("shuffled", "injected")]


def _empty_rate(verdicts: _ProbeVerdicts) -> list[float]:
    return [float(score >= GOOD_SCORE) for score in verdicts.scores("empty")]


def _copied_rate(verdicts: _ProbeVerdicts) -> list[float]:
    return [float(score >= GOOD_SCORE) for score in verdicts.scores("copied")]


def _length_slope(verdicts: _ProbeVerdicts) -> list[float]:
    return verdicts.changes("answer", "padded")


def _people_agreement(verdicts: _ProbeVerdicts) -> list[float]:
    """1 where the judge prefers what people do in both orders, 0 where it prefers the other, 0.5 where it has no preference."""
    return [
        0.5 if first != second or first == "tie" else float(first == people)
        for people, first, second in verdicts.rated()
    ]


def _repeatability(verdicts: _ProbeVerdicts) -> list[float]:
    return [abs(change) for change in verdicts.changes("answer", "again")]


_WITH_PEOPLE = _Measure(
    "people_agreement",
    "answer preferred that people prefer",
    "share",
    0.75,
    0.6,
    "75 % or more; 50 % is a coin",
    _people_agreement,
)
_MEASURES = (
    _Measure("scored", "questions with a verdict", "share", 0.95, 0.8, "95 % or more", _scored),
    _Measure(
        "accuracy", "right answer above a wrong one", "share", 0.9, 0.75, "90 % or more; 50 % is a coin", _accuracy
    ),
    _Measure(
        "pair_accuracy", "right answer preferred in both orders", "share", 0.8, 0.5, "80 % or more", _pair_accuracy
    ),
    _Measure("swap_consistency", "same verdict in both orders", "share", 0.8, 0.6, "80 % or more", _swap_consistency),
    _Measure("injection_rate", "prompt-injection success rate", "share", 0.05, 0.3, "5 % or less", _injection_rate),
    _Measure("empty_rate", "empty answers taken for good", "share", 0.05, 0.3, "5 % or less", _empty_rate),
    _Measure("copied_rate", "repeated tasks taken for good", "share", 0.05, 0.3, "5 % or less", _copied_rate),
    _Measure("length_slope", "points for three times the length", "points", 5, 20, "within 5 of 0", _length_slope),
    _Measure("repeatability", "points between two askings", "points", 2, 10, "2 or less", _repeatability),
    _WITH_PEOPLE,
)
"""What is counted, in the order of the page."""
_DISQUALIFYING = ("scored", "accuracy", "injection_rate")
"""The figures that make a judge unusable where they are bad."""
_MEAN_SCORES_OF = ("reference", "answer", "padded", "shuffled", "injected", "copied", "empty")
"""The kinds of probe whose mean scores are shown, best first."""


def _figure(measure: _Measure, verdicts: _ProbeVerdicts, confidence: float, seed: int) -> CalibrationFigure:
    """The mean of a measure, with Wilson's interval for a share and a bootstrap interval for points."""
    values = measure.values(verdicts)
    value = _mean(values)
    low: float | None = None
    high: float | None = None
    if value is not None and measure.unit == "share":
        low, high = wilson_interval(value, len(values), confidence)
    elif value is not None:
        low, high = mean_interval(np.array(values), confidence, seed, least=-100.0)
    standing = measure.standing(value)
    return CalibrationFigure(
        measure.name, measure.label, value, low, high, len(values), measure.unit, measure.wanted, standing
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _usability(judge: str, figures: Sequence[CalibrationFigure]) -> tuple[Usability, str]:
    """The plain verdict: a judge that cannot tell right from wrong, or cannot be read, is not usable; other faults need care."""
    bad = [figure for figure in figures if figure.standing == "bad"]
    doubtful = [figure for figure in figures if figure.standing == "doubtful"]
    if any(figure.name in _DISQUALIFYING for figure in bad):
        return "not usable", f"{judge} is not fit to judge these answers: {_faults(bad)}."
    if bad or doubtful:
        return (
            "usable with care",
            f"{judge} tells right answers from wrong ones here, but: {_faults([*bad, *doubtful])}.",
        )
    return "usable", f"{judge} passed every probe on these items."


def _faults(figures: Sequence[CalibrationFigure]) -> str:
    return "; ".join(f"{figure.label} {in_words(figure)} (wanted: {figure.wanted})" for figure in figures)
