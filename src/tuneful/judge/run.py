"""A judge grades sets of answers, and what it gave is written into a folder: for `tuneful evaluate` and for the end of a run.

    OUTPUT/scores/NAME.jsonl     a verdict an item                       OUTPUT/evaluation.json   the same in numbers
    OUTPUT/judge/replies.jsonl   the judge's replies: no question is asked twice

Stands at the top of this room, over `items.py`, `verdicts.py` and `local.py`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuneful.config import Config
from tuneful.console import Advance, Terminal
from tuneful.encoding.chat_template import TOKENIZER_TEMPLATE
from tuneful.errors import ConfigError, JudgeError
from tuneful.evaluation.answers import answer_keys_of
from tuneful.files import write_json, write_rows
from tuneful.judge.client import Judge
from tuneful.judge.items import AnswerSet, named_by_key, paired, read_answers
from tuneful.judge.local import AnswerAll, check_judge, model_config, open_judge, resolve_settings
from tuneful.judge.probing import finding_of, num_probe_questions, probe_first, scale_remarks
from tuneful.judge.protocols import PROTOCOLS, Item
from tuneful.judge.questions import prompt_of
from tuneful.judge.stopping import judge_until_clear
from tuneful.judge.verdicts import ReplyCache, judge_items, num_missing, score_row, summarise
from tuneful.numbers import plural, rough_duration
from tuneful.runs.schema import (
    Calibration,
    EvaluationDocument,
    JudgeFinding,
    ScoreSummary,
    WatchedDifference,
    as_row,
)
from tuneful.types import Answer, Conversation, Verdict, answer_text, question_text

if TYPE_CHECKING:
    from tuneful.infer.session import LoadedModel

REPLIES = Path("judge") / "replies.jsonl"
_SECONDS_WORTH_SAYING = 5.0
_STYLES = {"usable": "green", "not usable": "red"}
_MANY = 3
"""Items from which on a pattern that all of them show is no chance."""


def warning(terminal: Terminal) -> Callable[[str], None]:
    """Where the judge, or its figures, give cause for doubt: a line in yellow."""
    return lambda sentence: terminal.say(sentence, style="yellow")


def check_judge_is_there(config: Config) -> None:
    """Raise, before any work is done, where the judge of a run is named wrongly or cannot be reached."""
    settings = resolve_settings(config.judge)
    prompt_of(settings)
    check_judge(settings)


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """The scores of the base and the tuned answers by name, in test-set order, and what is known of the judge."""

    scores: Mapping[str, list[float | None]]
    finding: JudgeFinding


def judge_run(run: Path, config: Config, terminal: Terminal) -> JudgedRun | None:
    """What the judge gives the base and the tuned answers of the run folder `run`; it is probed first.

    Under `pairwise` a base answer scores 100 less the score of the tuned one. None, with a message, where the judge cannot be
    reached: the run goes on without it.
    """
    settings = resolve_settings(config.judge)
    config = config.model_copy(update={"judge": settings})
    sets = answer_sets(run, config)
    try:
        judge = open_judge(settings, lambda name: load_judge_model(name, config, terminal.say), warning(terminal))
    except JudgeError as error:
        command = shlex.join(["tuneful", "evaluate", str(run), "--judge", str(settings.model)])
        terminal.say(f"not judged: {error}. Later: {command}", style="yellow", wrap=False)
        return None
    with open_cache(run) as cache:
        probed = probe_first(sets, judge, config, cache, terminal)
        verdicts, seen = judge_sets(sets, judge, config, cache, run, terminal)
    document = replace(evaluation_document(judge, config, verdicts, terminal, probed, seen), probes=probed)
    write_json(run / "evaluation.json", as_row(document))
    scores = {name: [verdict.score for verdict in own] for name, own in verdicts.items()}
    if PROTOCOLS[settings.protocol].compares_two:
        (tuned,) = scores.values()
        scores = {"tuned": tuned, "base": [None if score is None else 100 - score for score in tuned]}
    assert document.finding is not None
    return JudgedRun(scores, document.finding)


def time_judging(config: Config, asked: Sequence[Conversation], folder: Path, terminal: Terminal) -> tuple[int, float]:
    """How many questions a judge would be asked about two answers to each of `asked`, and how many seconds that would take.

    A few are really asked, as many as are in flight at once, with stand-ins for the answers. Raises JudgeError where the judge
    cannot be reached.
    """
    settings = resolve_settings(config.judge)
    protocol = PROTOCOLS[settings.protocol]
    total = len(asked) * protocol.num_questions * (1 if protocol.compares_two else 2)
    total += num_probe_questions(len(asked), settings)
    items = [_example_item(one) for one in asked[: -(-settings.concurrency // protocol.num_questions)]]
    config = config.model_copy(update={"judge": settings})
    judge = open_judge(settings, lambda name: load_judge_model(name, config, terminal.say))
    with open_cache(folder / "timed") as cache:
        start = time.perf_counter()
        judge_items(items, judge, settings, cache, lambda _: None)
        seconds = time.perf_counter() - start
    return total, seconds * total / (len(items) * protocol.num_questions)


def _example_item(asked: Conversation) -> Item:
    turn = asked.answered_turns[-1]
    question, answer = question_text(turn), answer_text(turn)
    return Item(asked.source, question, answer, answer=question, rival=answer)


def answer_sets(
    answers: Path, config: Config, answer_keys: Sequence[str] = (), against: Path | None = None
) -> list[AnswerSet]:
    """What is to be judged: the answers of a file under each key, or the two sets of a run folder; where two answers are
    compared one set of pairs, those under two keys, of a run folder, or of a file and of `against`.

    Rows that hold the answers of several models, such as `model 1 response` and `model 2 response`, are told by their keys.
    """
    in_pairs, judge = PROTOCOLS[config.judge.protocol].compares_two, config.judge

    def read(file: Path, key: str | None = None) -> AnswerSet:
        return read_answers(file, config.data, key, use_reference=judge.use_reference)

    if against is not None and not in_pairs:
        raise ConfigError("--against is for --protocol pairwise; each set of answers is scored on its own elsewhere")
    if answers.is_dir():
        if against is not None or answer_keys:
            option = "--against" if against is not None else "--answer-key"
            raise ConfigError(f"{answers}: a run folder brings its own base and tuned answers; leave {option} out")
        files = [answers / "answers" / f"{name}.jsonl" for name in ("base", "tuned")]
        if missing := [file for file in files if not file.is_file()]:
            raise ConfigError(f"{answers}: is no run folder with answers: there is no {missing[0]}")
        base, tuned = map(read, files)
        return [_pairs(tuned, base)] if in_pairs else [base, tuned]
    keys = tuple(answer_keys) or (answer_keys_of(answers, config.data) if against is None else ())
    if len(keys) < 2:
        judged = read(answers, *keys)
        if not in_pairs:
            return [judged]
        if against is None:
            raise ConfigError(
                "a pairwise judge compares two sets: give a run folder, --against FILE with the other answers, or the keys of "
                "the two answers of each row: --answer-key A --answer-key B"
            )
        return [_pairs(judged, read(against, *keys))]
    if against is not None or len(set(keys)) < len(keys) or (in_pairs and len(keys) > 2):
        raise ConfigError(
            f"--answer-key {', '.join(keys)}: each key names other answers of the same row; a pairwise judge compares two of "
            "them, or one of them with --against FILE"
        )
    sets = [named_by_key(read(answers, key), key) for key in keys]
    return [_pairs(*sets)] if in_pairs else sets


def limited(sets: Sequence[AnswerSet], limit: int | None) -> list[AnswerSet]:
    """The first `limit` items of each set, or all of them; ConfigError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit} leaves nothing to judge")
    return [replace(one, items=one.items[:limit]) for one in sets]


def warn_of_copies(sets: Sequence[AnswerSet], terminal: Terminal) -> None:
    """Warn where all answers of a set are, word for word, what they are held against: their references, or their rivals."""
    for one in sets:
        if all(item.answer == item.rival for item in one.items):
            warning(terminal)(f"{one.name}: both sides hold the same answers, so there is nothing to prefer")
        if len(one.items) >= _MANY and all(item.answer == item.reference for item in one.items):
            warning(terminal)(
                f"{one.name}: all {len(one.items)} answers are, word for word, their references. Is the answer under another "
                "key (--answer-key), or the reference in another column (data.columns)?"
            )


def _pairs(answers: AnswerSet, rivals: AnswerSet) -> AnswerSet:
    pairs: list[Item] = paired(answers.items, rivals.items)
    return AnswerSet(f"{answers.name}-against-{rivals.name}", tuple(pairs))


@contextmanager
def open_cache(folder: Path) -> Iterator[ReplyCache]:
    """The replies kept in the output folder; ConfigError where it cannot be written, or another process is judging into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None
    with ReplyCache.open(folder / REPLIES) as cache:
        yield cache


def judge_sets(
    sets: Sequence[AnswerSet], judge: Judge, config: Config, cache: ReplyCache, folder: Path, terminal: Terminal
) -> tuple[dict[str, list[Verdict]], WatchedDifference | None]:
    """The verdicts on every set by its name, in the order of its items, written as scores/NAME.jsonl of `folder`; under
    `judge.stop_early` the difference as it was watched."""
    verdicts: dict[str, list[Verdict]] = {}
    missing = _say_how_much(sets, judge, config, cache, terminal)
    if config.judge.stop_early:
        return _judged_until_clear(sets, judge, config, cache, folder, terminal)
    pace = _Pace(len(cache), missing, config.judge.concurrency, terminal)
    for one in sets:
        total = len(one.items) * PROTOCOLS[config.judge.protocol].num_questions
        with terminal.progress(f"judging {one.name}", total, "questions") as advance:

            def on_done(num_questions: int, advance: Advance = advance) -> None:
                advance(num_questions)
                pace.see(len(cache))

            verdicts[one.name] = judge_items(one.items, judge, config.judge, cache, on_done)
        write_scores(folder, one.name, verdicts[one.name])
    return verdicts, None


def _judged_until_clear(
    sets: Sequence[AnswerSet], judge: Judge, config: Config, cache: ReplyCache, folder: Path, terminal: Terminal
) -> tuple[dict[str, list[Verdict]], WatchedDifference | None]:
    total = sum(len(one.items) for one in sets) * PROTOCOLS[config.judge.protocol].num_questions
    with terminal.progress("judging until clear", total, "questions") as advance:
        verdicts, seen = judge_until_clear(
            sets,
            judge,
            config.judge,
            cache,
            confidence=config.report.confidence,
            seed=config.train.seed,
            advance=advance,
        )
    for name, own in verdicts.items():
        write_scores(folder, name, own)
    return verdicts, seen


def _say_how_much(
    sets: Sequence[AnswerSet], judge: Judge, config: Config, cache: ReplyCache, terminal: Terminal
) -> int:
    """Before anything is asked: how many questions there are; how many of them have no reply yet is returned."""
    num_questions, missing = num_missing([item for one in sets for item in one.items], judge, config.judge, cache)
    items = ", ".join(f"{one.name}: {len(one.items):,}" for one in sets)
    known = num_questions - missing
    terminal.say(
        f"{plural(num_questions, 'question')} to {judge.name} on the answers of {items}"
        + (f", of which {known:,} were answered before" if known else "")
    )
    return missing


class _Pace:
    """Says once, after the first `after` replies beyond the `num_known`, how long the `num_missing` questions will take."""

    def __init__(self, num_known: int, num_missing: int, after: int, terminal: Terminal) -> None:
        self._num_known, self._num_missing, self._after, self._terminal = num_known, num_missing, after, terminal
        self._start, self._said = time.monotonic(), False

    def see(self, num_replies: int) -> None:
        """There are `num_replies` now."""
        num_replies -= self._num_known
        if self._said or num_replies < self._after:
            return
        self._said = True
        left = (time.monotonic() - self._start) / num_replies * (self._num_missing - num_replies)
        if left >= _SECONDS_WORTH_SAYING:
            self._terminal.say(
                f"about {rough_duration(left)} for the {self._num_missing - num_replies:,} questions left"
            )


def write_scores(folder: Path, name: str, verdicts: Sequence[Verdict]) -> None:
    """scores/{name}.jsonl, a row an item, in order."""
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    write_rows(folder / "scores" / f"{name}.jsonl", (as_row(score_row(verdict)) for verdict in verdicts))


def evaluation_document(
    judge: Judge,
    config: Config,
    verdicts: Mapping[str, list[Verdict]],
    terminal: Terminal,
    found: Calibration | None,
    seen: WatchedDifference | None = None,
) -> EvaluationDocument:
    """All verdicts in numbers, shown and as evaluation.json holds them, with what was `found` out about the judge and the
    difference as it was `seen` under `judge.stop_early`: single sets have no interval there."""
    summaries = {
        name: summarise(own, confidence=config.report.confidence, seed=config.train.seed)
        for name, own in verdicts.items()
    }
    if seen is not None:
        summaries = {name: replace(one, low=None, high=None) for name, one in summaries.items()}
    finding, remarks = replace(finding_of(found, judge.name), watched=seen), scale_remarks(verdicts)
    show_summaries(summaries, finding, terminal)
    if seen is not None:
        terminal.say(watched_in_words(seen, config.report.confidence))
    for remark in remarks:
        warning(terminal)(f"  {remark}")
    warn_of_scale(verdicts, terminal)
    return EvaluationDocument(judge.name, config.judge.protocol, summaries, finding=finding, remarks=remarks)


def show_summaries(summaries: Mapping[str, ScoreSummary], finding: JudgeFinding, terminal: Terminal) -> None:
    """Print every set of answers as a line of a table, beside it what is known of the judge, and why items were not scored."""
    first = next(iter(summaries.values()))
    terminal.heading(f"Judged by {first.judge}, protocol {first.protocol}")
    rows = []
    for name, one in summaries.items():
        mean = "-" if one.mean is None else f"{one.mean:.1f}"
        interval = "not known" if one.low is None else f"[{one.low:.1f}, {one.high:.1f}]"
        bounds = f"{one.mean_if_worst:.1f} to {one.mean_if_best:.1f}"
        counts = f"{one.num_scored} + {one.num_unscored} = {one.num_items}"
        rows.append([name, counts, mean, interval, bounds, finding.verdict])
    columns = [
        "",
        "scored + unscored",
        "mean",
        f"{first.confidence:.0%} interval",
        "were the unscored 0 to 100",
        "judge",
    ]
    terminal.table(columns, rows)
    terminal.say(finding.sentence, style=_STYLES.get(finding.verdict, "yellow"))
    for name, one in summaries.items():
        for criterion, value in one.criteria.items():
            terminal.say(f"  {name} {criterion}: {value:.1f}")
        for reason, count in one.unscored.items():
            terminal.say(f"  {name}: {count} unscored: {reason}", style="yellow")


def watched_in_words(seen: WatchedDifference, confidence: float) -> str:
    """How far the judge was asked, and what was seen by then, as a sentence."""
    how_far = f"{seen.num_judged:,} of {seen.num_items:,} items"
    asked = (
        f"asked about {how_far}, until it was clear" if seen.num_judged < seen.num_items else f"clear or not, {how_far}"
    )
    interval = f"{seen.difference:+.1f} [{seen.low:+.1f}, {seen.high:+.1f}]"
    return f"difference {interval} ({asked}; {confidence:.0%}, looks allowed for)"


def warn_of_scale(verdicts: Mapping[str, Sequence[Verdict]], terminal: Terminal) -> None:
    """Warn where the scores look as if the judge took the scale for one that ends at 1, 5 or 10."""
    scores = [verdict.score for own in verdicts.values() for verdict in own if verdict.score is not None]
    compares_two = any(PROTOCOLS[verdict.protocol].compares_two for own in verdicts.values() for verdict in own)
    if compares_two or len(scores) < _MANY or len(set(scores)) < 2:
        return
    if (end := next((end for end in (1, 5, 10) if max(scores) <= end), None)) is not None:
        warning(terminal)(
            f"no score is above {max(scores):g} of 100: are the answers as bad as that, or does this judge grade up to {end}? "
            "Look at `raw` in scores/; judge.prompts names prompts of your own, --calibrate says whether it can judge"
        )


def load_judge_model(folder: str, config: Config, notify: Callable[[str], None]) -> tuple[str, AnswerAll]:
    """The fingerprint of a model folder, and generation with it, as `loaded_model` loads it."""
    digest, loaded = loaded_model(folder, config, notify)

    def answer_all(conversations: Sequence[Conversation]) -> list[Answer]:
        return loaded.answer(conversations, seed=config.judge.seed or 0)

    return digest, answer_all


def loaded_model(folder: str, config: Config, notify: Callable[[str], None]) -> tuple[str, LoadedModel]:
    """The fingerprint of a judge's model folder, and the model, which answers within `judge.max_tokens`.

    Its prompts are rendered by the template that the folder names, else by its tokenizer's chat template, else by the default.
    """
    from tuneful.infer.session import LoadedModel, load_to_answer
    from tuneful.model.load import fingerprint
    from tuneful.model.saved_template import template_file, with_saved_template

    own = with_saved_template(model_config(config, folder))
    pretrained = load_to_answer(own, notify)
    if pretrained.tokenizer.chat_template and template_file(folder) is None:
        own = own.model_copy(update={"template": own.template.model_copy(update={"name": TOKENIZER_TEMPLATE})})
    return fingerprint(pretrained.folder), LoadedModel.of(pretrained, own, notify)
