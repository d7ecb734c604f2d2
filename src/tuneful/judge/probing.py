"""A judge is probed before it is believed: a few answers of known worth are put to it before those that are to be judged.

    the reference as the answer        should beat another item's reference
    nothing, or the task itself        should score next to nothing; under `pairwise` the reference should beat it in both orders

Stands beside `calibrate.py`, with whose figures (`measures.py`) it counts; its questions go through the same cache, so that a
judge is asked once for each folder, prompt and model. What is found stands beside every score. The trade: four questions an item
(six under `pairwise`) on extreme cases find out a judge that cannot judge at all: on 10 items one that guesses passes in 1 case
of 100, and a good one that errs on one item of twenty fails in 1 of 100. How good a passable judge is, `--calibrate` and people
tell.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tuneful.config import Config, JudgeConfig
from tuneful.console import Terminal
from tuneful.judge.client import Judge
from tuneful.judge.items import AnswerSet
from tuneful.judge.measures import (
    MEASURES,
    NOT_BEATEN,
    Measure,
    ProbeVerdicts,
    mean,
    measured,
    read_probes,
    usability_of,
)
from tuneful.judge.probes import Probe, first_probes
from tuneful.judge.protocols import PROTOCOLS, Item
from tuneful.judge.questions import prompt_of
from tuneful.judge.verdicts import ReplyCache, ask_cached, is_known
from tuneful.numbers import plural
from tuneful.runs.schema import Calibration, JudgeFinding
from tuneful.types import Verdict

_FEW_VALUES, _MANY_SCORES = 3, 20
_FEWEST = 6
"""Items on which a judge that guesses passes in one case of 64 at most."""
_DISQUALIFYING = ("scored", "accuracy", "pair_accuracy", "empty_rate")
_MEAN_SCORES_OF = ("reference", "shuffled", "copied", "empty")


def num_probe_questions(num_items: int, settings: JudgeConfig) -> int:
    """How many questions `probe` asks at most where `num_items` are at hand."""
    return min(num_items, settings.num_probes) * (6 if PROTOCOLS[settings.protocol].compares_two else 4)


def probe_first(
    sets: Sequence[AnswerSet], judge: Judge, config: Config, cache: ReplyCache, terminal: Terminal
) -> Calibration | None:
    """Probe `judge` with items of the last of `sets`, saying before what it costs; None where `judge.num_probes` is 0."""
    settings, items = config.judge, sets[-1].items
    if not settings.num_probes:
        return None
    probes = _probes(items, settings, config.train.seed)
    num_known = sum(is_known(probe.question, judge, settings, cache) for probe in probes)
    total = len(items) * PROTOCOLS[settings.protocol].num_questions * len(sets)
    terminal.say(
        f"{plural(len(probes), 'question')} first, whose answers are known, to see whether {judge.name} can judge "
        f"({len(probes) / max(total, 1):.0%} on top of {total:,}; judge.num_probes={settings.num_probes}, 0 for none)"
        + (f", of which {num_known:,} were answered before" if num_known else "")
    )
    with terminal.progress("probing the judge", len(probes), "questions") as advance:
        return probe(
            items,
            judge,
            settings,
            cache,
            confidence=config.report.confidence,
            seed=config.train.seed,
            advance=advance,
        )


def probe(
    items: Sequence[Item],
    judge: Judge,
    settings: JudgeConfig,
    cache: ReplyCache,
    *,
    confidence: float,
    seed: int = 0,
    advance: Callable[[int], None] = lambda num_questions: None,
) -> Calibration:
    """Put answers of known worth to `judge`, on `judge.num_probes` of `items`, under the protocol of `settings`.

    Items without references are probed with empty answers and repeated tasks only, and the sentence says so.
    """
    probes = _probes(items, settings, seed)
    results = ask_cached([probe.question for probe in probes], judge, settings, cache, advance)
    verdicts = read_probes(probes, results)
    return probed(verdicts, {probe.kind for probe in probes}, judge.name, settings, confidence=confidence, seed=seed)


def probed(
    verdicts: ProbeVerdicts, asked: set[str], judge: str, settings: JudgeConfig, *, confidence: float, seed: int
) -> Calibration:
    """What the verdicts on probes of the kinds `asked` say of `judge`."""
    figures = tuple(measured(measure, verdicts, confidence, seed) for measure in _measures(asked))
    usability, sentence = usability_of(judge, figures, _DISQUALIFYING)
    untold = _untold(asked, verdicts.num_items)
    if untold and usability != "not usable":
        usability = "usable with care"
    return Calibration(
        judge=judge,
        protocol=settings.protocol,
        num_items=verdicts.num_items,
        num_questions=len(verdicts.read) + verdicts.num_unread,
        num_read=len(verdicts.read),
        num_unread=verdicts.num_unread,
        unread=dict(verdicts.unread.most_common()),
        mean_scores={kind: mean(verdicts.scores(kind)) for kind in _MEAN_SCORES_OF if kind in asked},
        figures=figures,
        verdict=usability,
        sentence=f"{sentence}{untold}",
    )


def finding_of(found: Calibration | None, judge: str) -> JudgeFinding:
    """What probes or a calibration found out about `judge`, in the words that stand beside its scores."""
    if found is None:
        return JudgeFinding(judge, "not probed", 0, f"{judge} was not probed: nobody knows whether it can judge.")
    return JudgeFinding(judge, found.verdict, found.num_questions, found.sentence)


def scale_remarks(verdicts: Mapping[str, Sequence[Verdict]]) -> tuple[str, ...]:
    """What is odd about the scale that a judge uses, as sentences: one value, few values, many ties between two sets."""
    judged = [verdict for own in verdicts.values() for verdict in own if verdict.score is not None]
    values = Counter(verdict.score for verdict in judged)
    compares_two = any(PROTOCOLS[verdict.protocol].compares_two for verdict in judged)
    remarks = []
    if len(judged) > 2 and len(values) == 1:
        said = (
            "no preference that holds in both orders" if compares_two and 50.0 in values else f"{next(iter(values)):g}"
        )
        remarks.append(f"all {len(judged)} verdicts are the same ({said}): they tell nothing apart")
    elif len(judged) >= _MANY_SCORES and len(values) <= _FEW_VALUES and not compares_two:
        used = ", ".join(f"{value:g}" for value in sorted(value for value in values if value is not None))
        remarks.append(f"of the scale of 100 this judge used only {used}: smaller differences are not seen")
    if len(verdicts) == 2 and len(values) > 1:
        one, other = verdicts.values()
        both = [(a.score, b.score) for a, b in zip(one, other, strict=False) if None not in (a.score, b.score)]
        num_ties = sum(a == b for a, b in both)
        if len(both) >= _MANY_SCORES and 2 * num_ties > len(both):
            remarks.append(f"{num_ties} of {len(both)} items got the same score from both sides: the rest decides")
    return tuple(remarks)


def _probes(items: Sequence[Item], settings: JudgeConfig, seed: int) -> list[Probe]:
    return first_probes(
        _sample(items, settings.num_probes, seed), prompt_of(settings), plain=settings.reply_format == "text"
    )


def _sample(items: Sequence[Item], num_items: int, seed: int) -> list[Item]:
    """Items from the whole file, whatever its order, those with a reference if there are any."""
    usable = [item for item in items if item.reference is not None] or list(items)
    return random.Random(seed).sample(usable, min(num_items, len(usable)))


def _untold(asked: set[str], num_items: int) -> str:
    """What probes of the kinds `asked` on so many items cannot tell, as a sentence; empty for nothing."""
    if not asked & {"shuffled", "pair"}:
        return " Whether it tells right from wrong was not probed: there are no two different references."
    if num_items < _FEWEST:
        return f" It was probed on {plural(num_items, 'item')} only, where one that guesses may pass."
    return ""


def _measures(asked: set[str]) -> list[Measure]:
    """What can be counted where probes of the kinds `asked` were put."""
    names = {"scored"}
    names |= {"accuracy"} if "shuffled" in asked else set()
    names |= {"pair_accuracy", "swap_consistency"} if "pair" in asked else set()
    if "empty pair" in asked:
        return [*(one for one in MEASURES if one.name in names), *NOT_BEATEN]
    return [one for one in MEASURES if one.name in names | {"empty_rate", "copied_rate"}]
