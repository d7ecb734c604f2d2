"""Verdicts: items become questions, replies become verdicts, and every item ends scored, or unscored with a reason.

    Item -> Prompt.question -> cache? -> Judge -> Reply -> grammar -> Verdict             scored + unscored = items

Stands over the client, the questions and the grammar. A whole reply is written to the cache before it is read, one line each, so
that nothing is judged twice after a kill; a question without a reply is asked again the next time. The trade: the cache takes a
judge to be the same under the same identity (Ollama's digest, a file's checksum, an address), which an address alone cannot
promise; remove the file to judge anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import Timeout

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError
from tuneful.evaluation.statistics import Array, fewest_items, interval, largest_unseen_share, resampled_counts
from tuneful.files import AppendLog, held
from tuneful.judge.client import AskResult, Judge, NoReply, Reply
from tuneful.judge.grammar import CRITERIA, Unreadable, reason_in
from tuneful.judge.protocols import Item, Protocol, Reading
from tuneful.judge.questions import Question, prompt_of
from tuneful.runs.schema import JudgeScore, ScoreSummary
from tuneful.types import Verdict

_MAX_RAW_CHARACTERS = 20_000
_NUM_RESAMPLES = 10_000


class ReplyCache:
    """Whole replies by a hash of question and judge, in a file that grows by a line a reply, on disk before it is read.

    Use `ReplyCache.open`; a line that a kill cut short is dropped when the file is opened.
    """

    def __init__(self, file: Path) -> None:
        self._log = AppendLog(file, flushed=True)
        whole = [isinstance(row.get("key"), str) and isinstance(row.get("reply"), str) for row in self._log.rows]
        damaged = whole.index(False) + 1 if not all(whole) else self._log.damaged
        if damaged is not None:
            raise ConfigError(f"{file}:{damaged}: damaged; remove the line, or the file to judge everything anew")
        self._replies = {row["key"]: row["reply"] for row in self._log.rows}

    @staticmethod
    @contextmanager
    def open(file: Path) -> Iterator[ReplyCache]:
        """The cache in `file`, locked against other processes; sorted when left, so that equal work leaves equal files."""
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with held(file.with_name(f".{file.name}.lock")):
                cache = ReplyCache(file)
                try:
                    yield cache
                    cache._sort()
                finally:
                    cache._log.close()
        except Timeout:
            raise ConfigError(
                f"{file}: another process is judging into this folder; wait for it, or give another"
            ) from None

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> str | None:
        """The reply under `key`, None where there is none."""
        return self._replies.get(key)

    def put(self, key: str, reply: str) -> None:
        """Keep a reply; it survives a kill of this process and a power cut."""
        self._replies[key] = reply
        self._log.add({"key": key, "reply": reply})

    def _sort(self) -> None:
        self._log.replace({"key": key, "reply": self._replies[key]} for key in sorted(self._replies))


def judge_items(
    items: Sequence[Item],
    judge: Judge,
    settings: JudgeConfig,
    cache: ReplyCache,
    advance: Callable[[int], None] = lambda num_questions: None,
) -> list[Verdict]:
    """The verdict on every item, in order; `advance` is called with the number of questions that are done.

    Raises ConfigError where a prompt file is unusable; failures of the judge are verdicts without a score.
    """
    prompt = prompt_of(settings)
    asked = [prompt.questions(item, plain=settings.reply_format == "text") for item in items]
    results = ask_cached([question for questions in asked for question in questions], judge, settings, cache, advance)
    verdicts, at = [], 0
    for item, questions in zip(items, asked, strict=True):
        verdicts.append(_verdict(item, questions, results[at : at + len(questions)], judge.name, prompt.protocol))
        at += len(questions)
    assert len(verdicts) == len(items)
    return verdicts


def num_missing(items: Sequence[Item], judge: Judge, settings: JudgeConfig, cache: ReplyCache) -> tuple[int, int]:
    """How many questions `judge_items` has on `items`, and how many different ones of them have no reply yet."""
    prompt = prompt_of(settings)
    plain = settings.reply_format == "text"
    keys = [_key(question, judge, settings, 0) for item in items for question in prompt.questions(item, plain=plain)]
    return len(keys), sum(cache.get(key) is None for key in set(keys))


def is_known(question: Question, judge: Judge, settings: JudgeConfig, cache: ReplyCache) -> bool:
    """Whether the cache has the reply to `question`."""
    return cache.get(_key(question, judge, settings, 0)) is not None


def ask_cached(
    questions: Sequence[Question],
    judge: Judge,
    settings: JudgeConfig,
    cache: ReplyCache,
    advance: Callable[[int], None] = lambda num_questions: None,
    *,
    again: int = 0,
) -> list[AskResult]:
    """The result of every question, in order: from the cache, or from the judge and then into the cache.

    Equal questions are asked once. `again` above 0 asks for another reply than the earlier ones to the same question.
    """
    keys = [_key(question, judge, settings, again) for question in questions]
    missing = {key: question for key, question in zip(keys, questions, strict=True) if cache.get(key) is None}
    num_waiting = Counter(keys)
    advance(sum(count for key, count in num_waiting.items() if key not in missing))
    failures: dict[str, NoReply] = {}
    order = list(missing)

    def on_result(index: int, result: AskResult) -> None:
        key = order[index]
        if isinstance(result, Reply):
            cache.put(key, result.text)
        else:
            failures[key] = result
        advance(num_waiting[key])

    judge.ask_all([missing[key] for key in order], on_result)
    return [failures[key] if (reply := cache.get(key)) is None else Reply(reply) for key in keys]


def summarise(verdicts: Sequence[Verdict], *, confidence: float, seed: int = 0) -> ScoreSummary:
    """`verdicts` of one judge under one protocol, in numbers; at least one verdict."""
    scores = np.array([verdict.score for verdict in verdicts if verdict.score is not None], dtype=np.float64)
    num_items, num_unscored = len(verdicts), len(verdicts) - len(scores)
    mean = float(scores.mean()) if len(scores) else None
    low, high = mean_interval(scores, confidence, seed)
    return ScoreSummary(
        judge=verdicts[0].judge,
        protocol=verdicts[0].protocol,
        num_items=num_items,
        num_scored=len(scores),
        num_unscored=num_unscored,
        mean=mean,
        low=low,
        high=high,
        mean_if_worst=float(scores.sum()) / num_items,
        mean_if_best=(float(scores.sum()) + 100.0 * num_unscored) / num_items,
        confidence=confidence,
        unscored=dict(Counter(v.unscored_reason for v in verdicts if v.unscored_reason is not None).most_common()),
        criteria=_criteria_means(verdicts),
    )


def mean_interval(
    values: Array, confidence: float, seed: int, least: float = 0.0, greatest: float = 100.0
) -> tuple[float, float] | tuple[None, None]:
    """Interval of the mean of `values` [I], none of which can be below `least` or above `greatest`; (None, None) where it is not
    known, which is on fewer than `fewest_items`.

    A bootstrap as `tuneful.evaluation.statistics` makes them. Where all values are alike it would be a point: up to
    `largest_unseen_share` of all items may then have any other value.
    """
    if len(values) < fewest_items(confidence):
        return None, None
    if np.ptp(values) == 0:
        value, unseen = float(values[0]), largest_unseen_share(len(values), confidence)
        return value - unseen * (value - least), value + unseen * (greatest - value)
    counts = resampled_counts(len(values), _NUM_RESAMPLES, seed)
    means = np.concatenate([counts_RI @ values for counts_RI in counts]) / len(values)
    low, high = interval(means, len(values), confidence)
    return max(least, low), min(greatest, high)


def score_row(verdict: Verdict) -> JudgeScore:
    """The row of a verdict in scores/*.jsonl."""
    return JudgeScore(
        verdict.source,
        verdict.judge,
        verdict.protocol,
        verdict.score,
        verdict.unscored_reason,
        verdict.raw,
        verdict.reason,
    )


def _verdict(
    item: Item, questions: Sequence[Question], results: Sequence[AskResult], judge: str, protocol: Protocol
) -> Verdict:
    texts = [result.text[:_MAX_RAW_CHARACTERS] if isinstance(result, Reply) else "" for result in results]
    raw = texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)

    def unscored(reason: str) -> Verdict:
        return Verdict(item.source, judge, protocol.name, None, reason, raw)

    readings: list[Reading] = []
    for question, result, swapped in zip(questions, results, (False, True), strict=False):
        if isinstance(result, NoReply):
            return unscored(result.reason)
        found = protocol.reading(item, result.text, question.code, swapped=swapped)
        if isinstance(found, Unreadable):
            return unscored(f"unreadable: {found.reason}")
        readings.append(found)
    score, criteria = protocol.worth(readings)
    # Under `pairwise` the reason of the first question, in which the item's answer is A.
    return Verdict(item.source, judge, protocol.name, score, None, raw, criteria, reason_in(texts[0]))


def _criteria_means(verdicts: Sequence[Verdict]) -> dict[str, float]:
    graded = [verdict.criteria for verdict in verdicts if verdict.criteria]
    return {name: sum(column) / len(graded) for name, column in zip(CRITERIA, zip(*graded, strict=True), strict=False)}


def _key(question: Question, judge: Judge, settings: JudgeConfig, again: int) -> str:
    """A hash of everything that a reply depends on."""
    asked = {
        "judge": judge.identity,
        "system": question.system,
        "user": question.user,
        "schema": question.schema,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "max_tokens": settings.max_tokens,
        "num_ctx": settings.num_ctx,
        "again": again,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
