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
from pathlib import Path

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.encoding.chat_template import TOKENIZER_TEMPLATE
from tuneful.encoding.template import TEMPLATE_FILE
from tuneful.errors import ConfigError, JudgeError
from tuneful.files import write_json, write_rows
from tuneful.judge.client import Judge
from tuneful.judge.items import AnswerSet, paired, read_answers
from tuneful.judge.local import AnswerAll, check_judge, model_config, open_judge, resolve_settings
from tuneful.judge.protocols import PROTOCOLS, Item
from tuneful.judge.questions import load_prompt
from tuneful.judge.verdicts import ReplyCache, judge_items, score_row, summarise
from tuneful.runs.schema import EvaluationDocument, ScoreSummary, as_row
from tuneful.types import Answer, Conversation, Verdict

REPLIES = Path("judge") / "replies.jsonl"


def check_judge_is_there(config: Config) -> None:
    """Raise, before any work is done, where the judge of a run is named wrongly or cannot be reached."""
    settings = resolve_settings(config.judge)
    load_prompt(settings.protocol, settings.prompts)
    check_judge(settings)


def judge_run(run: Path, config: Config, terminal: Terminal) -> dict[str, list[float | None]] | None:
    """What the judge gives the base and the tuned answers of the run folder `run`, in test-set order.

    Under `pairwise` a base answer scores 100 less the score of the tuned one. None, with a message, where the judge cannot be
    reached: the run goes on without it.
    """
    settings = resolve_settings(config.judge)
    config = config.model_copy(update={"judge": settings})
    sets = answer_sets(run, config, None, None)
    try:
        judge = open_judge(settings, lambda name: load_judge_model(name, config, terminal.say))
    except JudgeError as error:
        command = shlex.join(["tuneful", "evaluate", str(run), "--judge", str(settings.model)])
        terminal.say(f"not judged: {error}. Later: {command}", style="yellow", wrap=False)
        return None
    with open_cache(run) as cache:
        verdicts = judge_sets(sets, judge, config, cache, run, terminal)
    document = evaluation_document(judge, config, verdicts, terminal)
    write_json(run / "evaluation.json", as_row(document))
    scores = {name: [verdict.score for verdict in own] for name, own in verdicts.items()}
    if not PROTOCOLS[settings.protocol].compares_two:
        return scores
    (tuned,) = scores.values()
    return {"tuned": tuned, "base": [None if score is None else 100 - score for score in tuned]}


def time_judging(config: Config, asked: Sequence[Conversation], folder: Path, terminal: Terminal) -> tuple[int, float]:
    """How many questions a judge would be asked about two answers to each of `asked`, and how many seconds that would take.

    A few are really asked, as many as are in flight at once, with stand-ins for the answers. Raises JudgeError where the judge
    cannot be reached.
    """
    settings = resolve_settings(config.judge)
    protocol = PROTOCOLS[settings.protocol]
    total = len(asked) * protocol.num_questions * (1 if protocol.compares_two else 2)
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
    return Item(asked.source, turn.instruction, turn.response, answer=turn.instruction, rival=turn.response)


def answer_sets(answers: Path, config: Config, answer_key: str | None, against: Path | None) -> list[AnswerSet]:
    """What is to be judged: one set, the two of a run folder, or one set of pairs where two answers are compared."""
    in_pairs, data = PROTOCOLS[config.judge.protocol].compares_two, config.data
    if against is not None and not in_pairs:
        raise ConfigError("--against is for --protocol pairwise; each set of answers is scored on its own elsewhere")
    if answers.is_dir():
        if against is not None:
            raise ConfigError(f"{answers}: a run folder brings its own base answers; leave --against out")
        files = [answers / "answers" / f"{name}.jsonl" for name in ("base", "tuned")]
        if missing := [file for file in files if not file.is_file()]:
            raise ConfigError(f"{answers}: is no run folder with answers: there is no {missing[0]}")
        base, tuned = (read_answers(file, data, answer_key) for file in files)
        return [_pairs(tuned, base)] if in_pairs else [base, tuned]
    judged = read_answers(answers, data, answer_key)
    if not in_pairs:
        return [judged]
    if against is None:
        raise ConfigError(
            "a pairwise judge compares two sets: give a run folder, or --against FILE with the other answers"
        )
    return [_pairs(judged, read_answers(against, data, answer_key))]


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
) -> dict[str, list[Verdict]]:
    """The verdicts on every set by its name, in the order of its items, written as scores/NAME.jsonl of `folder`."""
    verdicts: dict[str, list[Verdict]] = {}
    for one in sets:
        total = len(one.items) * PROTOCOLS[config.judge.protocol].num_questions
        with terminal.progress(f"judging {one.name}", total, "questions") as advance:
            verdicts[one.name] = judge_items(one.items, judge, config.judge, cache, advance)
        write_scores(folder, one.name, verdicts[one.name])
    return verdicts


def write_scores(folder: Path, name: str, verdicts: Sequence[Verdict]) -> None:
    """scores/{name}.jsonl, a row an item, in order."""
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    write_rows(folder / "scores" / f"{name}.jsonl", (as_row(score_row(verdict)) for verdict in verdicts))


def evaluation_document(
    judge: Judge, config: Config, verdicts: Mapping[str, list[Verdict]], terminal: Terminal
) -> EvaluationDocument:
    """All verdicts in numbers, shown and as evaluation.json holds them."""
    summaries = {
        name: summarise(own, confidence=config.report.confidence, seed=config.train.seed)
        for name, own in verdicts.items()
    }
    show_summaries(summaries, terminal)
    return EvaluationDocument(judge.name, config.judge.protocol, summaries)


def show_summaries(summaries: Mapping[str, ScoreSummary], terminal: Terminal) -> None:
    """Print every set of answers as a line of a table, and why items were not scored."""
    first = next(iter(summaries.values()))
    terminal.heading(f"Judged by {first.judge}, protocol {first.protocol}")
    rows = []
    for name, one in summaries.items():
        mean = "-" if one.mean is None else f"{one.mean:.1f}"
        interval = "" if one.low is None else f"[{one.low:.1f}, {one.high:.1f}]"
        bounds = f"{one.mean_if_worst:.1f} to {one.mean_if_best:.1f}"
        rows.append([name, f"{one.num_scored} + {one.num_unscored} = {one.num_items}", mean, interval, bounds])
    columns = ["", "scored + unscored", "mean", f"{first.confidence:.0%} interval", "were the unscored 0 to 100"]
    terminal.table(columns, rows)
    for name, one in summaries.items():
        for criterion, value in one.criteria.items():
            terminal.say(f"  {name} {criterion}: {value:.1f}")
        for reason, count in one.unscored.items():
            terminal.say(f"  {name}: {count} unscored: {reason}", style="yellow")


def load_judge_model(folder: str, config: Config, notify: Callable[[str], None]) -> tuple[str, AnswerAll]:
    """The fingerprint of a model folder, and generation with it.

    Its prompts are rendered by the template that the folder names, else by its tokenizer's chat template, else by the default.
    """
    from tuneful.infer.session import LoadedModel, with_saved_template
    from tuneful.model.load import fingerprint, load_model

    own = with_saved_template(model_config(config, folder))
    pretrained = load_model(folder, notify)
    if pretrained.tokenizer.chat_template and not (pretrained.folder / TEMPLATE_FILE).is_file():
        own = own.model_copy(update={"template": own.template.model_copy(update={"name": TOKENIZER_TEMPLATE})})
    loaded = LoadedModel.of(pretrained, own)

    def answer_all(conversations: Sequence[Conversation]) -> list[Answer]:
        return loaded.answer(conversations, seed=config.judge.seed or 0)

    return fingerprint(pretrained.folder), answer_all
