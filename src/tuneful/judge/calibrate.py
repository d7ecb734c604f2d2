"""Calibration of a judge: how far can it be trusted? Probes of known worth are put to it, and its verdicts on them are counted.

    reference as the answer          should beat          another item's reference         accuracy
    nothing, or the task repeated    should score         next to nothing                  empty, copied
    the same answer, padded          should score         as without                       length slope
    a wrong answer with an injection should score         as without                       prompt-injection success rate
    two answers in both orders       should get           one verdict                      swap consistency
    the same question twice          should get           one score                        repeatability
    two answers that people rated    should get           their preference                 agreement with people

Stands beside `judge_items` and asks through the same cache; `probes.py` writes the probes, `measures.py` says what is counted
and what a good judge reaches. The trade: ten questions an item, on extreme cases; agreement with people (`agreement.py`) says
whether a judge tells a good answer from a slightly better one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from tuneful.config import JudgeConfig
from tuneful.errors import DataError
from tuneful.judge.client import Judge
from tuneful.judge.measures import MEASURES, WITH_PEOPLE, ProbeVerdicts, mean, measured, read_probes, usability_of
from tuneful.judge.people import RatedItem
from tuneful.judge.probes import make_probes, rated_probes
from tuneful.judge.protocols import PROTOCOLS, Item
from tuneful.judge.questions import prompt_of
from tuneful.judge.verdicts import ReplyCache, ask_cached
from tuneful.runs.schema import Calibration

_QUESTIONS_PER_ITEM, _QUESTIONS_PER_RATED = 10, 2


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
    measures = MEASURES if rated else [one for one in MEASURES if one is not WITH_PEOPLE]
    figures = tuple(measured(measure, verdicts, confidence, seed) for measure in measures)
    usability, sentence = usability_of(judge.name, figures, _DISQUALIFYING)
    return Calibration(
        judge=judge.name,
        protocol=protocol,
        num_items=len(chosen),
        num_questions=len(verdicts.read) + verdicts.num_unread,
        num_read=len(verdicts.read),
        num_unread=verdicts.num_unread,
        unread=dict(verdicts.unread.most_common()),
        mean_scores={kind: mean(verdicts.scores(kind)) for kind in _MEAN_SCORES_OF},
        figures=figures,
        verdict=usability,
        sentence=sentence,
    )


def num_calibration_questions(num_items: int, settings: JudgeConfig, num_rated: int = 0) -> int:
    """How many questions a calibration with `num_items` items at hand asks, and `num_rated` that people have rated."""
    most = settings.calibration_items
    return _QUESTIONS_PER_ITEM * min(num_items, most) + _QUESTIONS_PER_RATED * min(num_rated, most)


def _sample(items: Sequence[Item], num_items: int, seed: int) -> list[Item]:
    """Items drawn from the whole file, whatever its order."""
    usable = [item for item in items if item.reference is not None]
    chosen = random.Random(seed).sample(usable, min(num_items, len(usable)))
    if len({(item.reference or "").strip() for item in chosen}) < 2:
        raise DataError(f"--calibrate needs at least two items with different references, found {len(chosen)} item(s)")
    return chosen


# Asking


def _ask(
    items: Sequence[Item],
    rated: Sequence[RatedItem],
    protocol: str,
    judge: Judge,
    settings: JudgeConfig,
    cache: ReplyCache,
    advance: Callable[[int], None],
) -> ProbeVerdicts:
    """Put every probe of `items` to the judge, and the models' own answers a second time, as kind `again`."""
    prompts = {name: prompt_of(settings, name) for name in (protocol, "pairwise")}
    probes = make_probes(items, protocol, prompts, plain=settings.reply_format == "text")
    probes += rated_probes([one.item for one in rated], prompts["pairwise"], plain=settings.reply_format == "text")
    again = [probe for probe in probes if probe.kind == "answer"]
    results = ask_cached([probe.question for probe in probes], judge, settings, cache, advance)
    results += ask_cached([probe.question for probe in again], judge, settings, cache, advance, again=1)
    asked = probes + [replace(probe, kind="again") for probe in again]
    return read_probes(asked, results, [one.preferred for one in rated])


_DISQUALIFYING = ("scored", "accuracy", "empty_rate", "injection_rate")
"""The figures that make a judge unusable where they are bad."""
_MEAN_SCORES_OF = ("reference", "answer", "padded", "shuffled", "injected", "copied", "empty")
"""The kinds of probe whose mean scores are shown, best first."""
