"""A judge is asked about two sets of answers until the finding is clear, and no further: `judge.stop_early`.

Items are put to it in an order drawn by `train.seed`, `LOOK_EVERY` of each set at once, and after each such look the difference
is held against `evaluation/sequential.py`, whose interval allows for all of these looks. Under `run.py`, over `verdicts.py`.
The trade: the interval is wider than that of all items at once, also where nothing was saved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError
from tuneful.evaluation.sequential import watched
from tuneful.judge.client import Judge
from tuneful.judge.items import AnswerSet
from tuneful.judge.protocols import PROTOCOLS
from tuneful.judge.verdicts import ReplyCache, judge_items
from tuneful.runs.schema import WatchedDifference
from tuneful.types import Verdict

LOOK_EVERY = 20
"""Items of each set between two looks."""
_SPAN = 100.0


def check_two_sets(sets: Sequence[AnswerSet], settings: JudgeConfig) -> None:
    """ConfigError where `judge.stop_early` is asked for and there is no difference to watch."""
    if settings.stop_early and len(sets) != (1 if PROTOCOLS[settings.protocol].compares_two else 2):
        raise ConfigError(
            "`judge.stop_early` stops once the difference of two sets of answers is clear, and there are not two: give a run "
            "folder, or two files to a pairwise judge; or drop it"
        )


def judge_until_clear(
    sets: Sequence[AnswerSet],
    judge: Judge,
    settings: JudgeConfig,
    cache: ReplyCache,
    *,
    confidence: float,
    seed: int,
    advance: Callable[[int], None] = lambda num_questions: None,
) -> tuple[dict[str, list[Verdict]], WatchedDifference | None]:
    """The verdicts on every set by its name, in the order of its items, and the difference as it was watched: None where no item
    was scored. Items that were not asked about have no score, with the reason."""
    num_items = len(sets[0].items)
    order = random.Random(seed).sample(range(num_items), num_items)
    found: dict[int, list[Verdict]] = {}
    seen: WatchedDifference | None = None
    is_clear = False
    while len(found) < num_items and not is_clear:
        # Where nothing was scored so far, all that is left at once: the client gives up on a judge that never answers.
        size = LOOK_EVERY if seen or not found else num_items
        chosen = order[len(found) : len(found) + size]
        sides = [judge_items([one.items[at] for at in chosen], judge, settings, cache, advance) for one in sets]
        found |= dict(zip(chosen, map(list, zip(*sides, strict=True)), strict=True))
        differences = [one for at in order[: len(found)] if (one := _difference(found[at])) is not None]
        if differences:
            look = watched(differences, _SPAN, confidence)
            is_clear = look.is_clear
            seen = WatchedDifference(
                len(found), num_items, len(differences), look.difference, look.low, look.high, look.p_value
            )
    return {one.name: _whole(one, place, found, order) for place, one in enumerate(sets)}, seen


def _difference(verdicts: Sequence[Verdict]) -> float | None:
    """By how much the tuned answer is better: of a pair, whose base has what it lacks of 100, twice what it has beyond 50."""
    scores = [one.score for one in verdicts if one.score is not None]
    if len(scores) < len(verdicts):
        return None
    return 2 * scores[0] - _SPAN if len(scores) == 1 else scores[1] - scores[0]


def _whole(one: AnswerSet, place: int, found: dict[int, list[Verdict]], order: Sequence[int]) -> list[Verdict]:
    asked = found[order[0]][place]
    reason = f"not asked: the finding was clear after {len(found)} of {len(one.items)} items (judge.stop_early)"
    left = replace(asked, score=None, unscored_reason=reason, raw="", criteria=(), reason="")
    return [found[at][place] if at in found else replace(left, source=item.source) for at, item in enumerate(one.items)]
