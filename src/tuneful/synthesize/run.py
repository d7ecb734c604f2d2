"""`tuneful synthesize` from the request to the files: data, askers, items, rows.

Stands at the top of this room, over the engine. What a request consists of is hashed, and a process that finds the replies of a
killed one takes them only where all of that is the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

from tuneful.config import Config
from tuneful.console import Terminal
from tuneful.data.in_memory import Data, as_names
from tuneful.data.read import DataFile, read_data, settings_of_side
from tuneful.data.split import TEST, normal_prompt
from tuneful.errors import DataError
from tuneful.judge.local import resolve_settings
from tuneful.numbers import plural
from tuneful.synthesize.asking import Asker, Role, ServerAsker
from tuneful.synthesize.engine import Budget, Engine, left_out
from tuneful.synthesize.journal import Journal, check_unfinished, requests_file
from tuneful.synthesize.kinds import KINDS, Kind, Recipe
from tuneful.synthesize.novelty import Known
from tuneful.synthesize.opened import open_askers
from tuneful.synthesize.prompts import load_prompt, prompts_text
from tuneful.synthesize.ranking import JudgeRanking
from tuneful.synthesize.request import Request
from tuneful.synthesize.work import Item, Work, uses_tools
from tuneful.types import Conversation

_VERSION = 1
"""Of what is asked for the same request; a change of prompts is told by their text."""
_TRIES_A_ROW = 4
_NUM_EXAMPLES = 3
_MAX_TOPICS = 100_000
_MAX_TOPIC_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What was made: `num_requests = num_used + sum(refused.values())`, reasons with how often each came.

    `left_out` counts records about which nothing was asked, by reason; `num_before` replies were there from a process that
    ended early. `stopped` says what ended the work before all was made, None where nothing did. `seconds` are of this process.
    Tokens are `estimated` where a server counted none. `read` has how many rows of DATA and of each excluded file were used and
    refused, by the file's name.
    """

    kind: Kind
    output: Path
    requests: Path
    num_items: int
    num_rows: int
    num_requests: int
    num_used: int
    refused: Mapping[str, int]
    left_out: Mapping[str, int]
    num_before: int
    num_prompt_tokens: int
    num_reply_tokens: int
    estimated: bool
    seconds: float
    stopped: str | None
    read: Mapping[str, Mapping[str, int]]


# The work


@contextmanager
def synthesized(
    data: Data | None, request: Request, config: Config, terminal: Terminal, notify: Callable[[str], None]
) -> Iterator[Synthesis]:
    """Make the rows of `request`, which is `checked`; its files are there within the block, and what is needed to go on after a
    kill goes when the block has ended. Raises InputError, or JudgeError where nobody answers any more."""
    started = time.monotonic()
    asks = request.kind in ("responses", "pairs")
    file = read_data(as_names(data), config.data, asks=asks) if data is not None else None
    excluded = [(name, _read_excluded(name, config)) for name in request.exclude]
    topics = read_topics(request.topics) if request.topics else ()
    for one in filter(None, (file, *(other for _, other in excluded))):
        _say_what_was_read(one, terminal)
    check_unfinished(request.output)
    askers = open_askers(request, config, notify)
    recipe = recipe_of(request, config, askers, file, topics)
    if file and (num_left := len(file.records) - len(recipe.seeds)) and request.kind == "instructions":
        terminal.say(f"{plural(num_left, 'seed')} left out: a new task calls no tools", style="yellow")
    identity = _identity(request, config, askers, recipe, [file, *(one for _, one in excluded)])
    known, num_requests = Known(), KINDS[request.kind].num_requests(recipe)
    maker = askers["model" if request.kind == "pairs" else "teacher"]
    items = _items(request, config, recipe, file, excluded, known, maker)
    with Journal(request.output, identity) as journal:
        if journal.num_before:
            terminal.say(f"{journal.num_before:,} replies of an earlier process are taken as they are")
        budget = Budget(_max_requests(request, num_requests), request.max_tokens, request.num)
        total = request.num if request.num is not None else len(file.records) if file else None
        with terminal.progress(request.kind, total, "rows" if request.num is not None else "records") as advance:
            engine = Engine(askers, journal, budget, known, num_requests, advance)
            engine.run(items)
        journal.finish(engine.requests(), engine.rows())
        yield _summary(engine, request, time.monotonic() - started, [file, *(one for _, one in excluded)])
        journal.forget()


def _summary(engine: Engine, request: Request, seconds: float, files: Sequence[DataFile | None]) -> Synthesis:
    num_used, refused, not_asked = engine.counts()
    return Synthesis(
        kind=request.kind,
        output=request.output,
        requests=requests_file(request.output),
        num_items=len(engine.ended),
        num_rows=engine.num_rows,
        num_requests=engine.spent.requests,
        num_used=num_used,
        refused=dict(refused.most_common()),
        left_out=dict(not_asked.most_common()),
        num_before=engine.journal.num_before,
        num_prompt_tokens=engine.spent.prompt_tokens,
        num_reply_tokens=engine.spent.reply_tokens,
        estimated=engine.spent.estimated,
        seconds=seconds,
        stopped=engine.stopped,
        read={one.name: {"num_used": len(one.records), "num_refused": len(one.refused)} for one in files if one},
    )


def _read_excluded(name: str, config: Config) -> DataFile:
    """A file whose prompts are not to be made again: of the settings of DATA those that are of any file, as for a test set."""
    return read_data(name, settings_of_side(config.data, TEST), objective=config.train.objective, asks=True)


def _say_what_was_read(file: DataFile, terminal: Terminal) -> None:
    for refusal in file.refused[:3]:
        terminal.say(f"refused {refusal.source}: {refusal.reason}", style="yellow")
    read = len(file.records) + len(file.refused)
    terminal.say(f"{file.name}: {read:,} rows read = {len(file.records):,} used + {len(file.refused):,} refused")


def read_topics(path: Path) -> tuple[str, ...]:
    """The topics of a text file, a line each; blank lines and repeated topics are none. DataError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    topics = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    for number, line in enumerate(lines, start=1):
        if len(line.strip()) > _MAX_TOPIC_CHARACTERS:
            raise DataError(f"{path}:{number}: a topic of over {_MAX_TOPIC_CHARACTERS} characters; a line is one topic")
    if not 0 < len(topics) <= _MAX_TOPICS:
        raise DataError(f"{path}: {len(topics):,} topics, expected 1 to {_MAX_TOPICS:,}, a line each")
    return topics


def recipe_of(
    request: Request, config: Config, askers: Mapping[Role, Asker], file: DataFile | None, topics: Sequence[str]
) -> Recipe:
    """All that the items of `request` share."""
    maker = askers["model" if request.kind == "pairs" else "teacher"]
    settings = config.judge.model_copy(update={"model": request.judge or request.teacher})
    resolved = resolve_settings(settings) if settings.model else settings
    by_judge = request.judge is not None
    teacher_is_plain = request.teacher is not None and (
        resolve_settings(config.judge.model_copy(update={"model": request.teacher})).reply_format == "text"
    )
    seeds = _seeds(file) if file and request.kind == "instructions" else []
    return Recipe(
        kind=request.kind,
        seed=config.train.seed,
        model=maker.name,
        judge=request.judge or "",
        plain=teacher_is_plain,
        prompts={name: load_prompt(name, request.prompts) for name in request.prompt_names},
        seeds=seeds,
        topics=topics,
        opening=_opening(request, maker) if request.from_empty_turn else None,
        samples=request.samples or 1,
        best=request.best_by_judge,
        ranking=JudgeRanking.of(resolved) if by_judge else None,
        rank_by=request.rank_by or "judge",
        min_margin=request.min_margin or 0.0,
        reflect=request.reflect or "both",
        num_examples=_NUM_EXAMPLES,
    )


def _seeds(file: DataFile) -> list[Conversation]:
    """The records that a new task may be like; DataError where there is none."""
    seeds = [record.conversation for record in file.records if not uses_tools(record.conversation)]
    if not seeds:
        raise DataError(f"{file.name}: every record has tools, and a new task calls none; give seeds without")
    return seeds


def _opening(request: Request, teacher: Asker) -> str:
    """What stands before a user's text in a prompt of the teacher's."""
    if request.empty_turn is not None:
        return request.empty_turn.replace("\\n", "\n")
    from tuneful.synthesize.in_process import ModelAsker, opening_of

    assert isinstance(teacher, ModelAsker), teacher.name
    return opening_of(teacher.loaded)[0]


def _max_requests(request: Request, num_requests: int) -> int | None:
    """The budget of requests: as given; without, a few for each row where there are tasks without an end."""
    if request.max_requests is not None or request.kind != "instructions":
        return request.max_requests
    assert request.num is not None
    return _TRIES_A_ROW * request.num * num_requests + 20


def _identity(
    request: Request, config: Config, askers: Mapping[Role, Asker], recipe: Recipe, files: Sequence[DataFile | None]
) -> str:
    """sha256 over all that the replies and rows of a request follow from; not over what changes its speed alone."""
    options = {
        name: getattr(request, name) for name in Request.__dataclass_fields__ if name not in ("output", "prompts")
    }
    judge = config.judge.model_dump(
        mode="json",
        include={"protocol", "reply_format", "use_reference", "reason", "temperature", "seed", "max_tokens", "num_ctx"},
    )
    whole = {
        "version": _VERSION,
        "options": {name: str(value) for name, value in options.items()},
        "judge": judge,
        "askers": {role: dict(asker.identity) for role, asker in askers.items()},
        "prompts": prompts_text(recipe.prompts),
        "ranking": [recipe.ranking.prompt.system, recipe.ranking.prompt.user] if recipe.ranking else None,
        "topics": list(recipe.topics),
        "opening": recipe.opening,
        "files": [file.sha256 if file else None for file in files],
        "data": config.data.model_dump(mode="json", include={"format", "columns", "on_error"}),
        "objective": config.train.objective if request.exclude else None,
        "seed": recipe.seed,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def _items(
    request: Request,
    config: Config,
    recipe: Recipe,
    file: DataFile | None,
    excluded: Sequence[tuple[str, DataFile]],
    known: Known,
    maker: Asker,
) -> Iterator[tuple[Item, Work]]:
    """The items of a request, each with its work; `known` gets the prompts that new ones are held against."""
    tests = Known()
    for name, other in excluded:
        for record in other.records:
            for one_of in (tests, known):
                one_of.add(normal_prompt(record.conversation), f"{name}: {record.source}")
    work = KINDS[request.kind].work
    # A server is sent no seed where the judge's settings have none; a model in this process always has one.
    sends_seed = config.judge.seed is not None or not isinstance(maker, ServerAsker)
    assert request.temperature is not None

    def item(number: int, source: str) -> Item:
        return Item(number, source, recipe.seed, cast(float, request.temperature), sends_seed)

    if request.kind == "instructions":
        for record in file.records if file else ():
            known.add(normal_prompt(record.conversation), f"a seed: {record.source}")
        for number in count():
            one = item(number, "")
            yield one, work(recipe, one, None)
    assert file is not None
    seen = Known()
    for number, record in enumerate(file.records):
        one, prompt = item(number, record.source), normal_prompt(record.conversation)
        if uses_tools(record.conversation):
            yield one, left_out("tools: neither the teacher nor a model that is asked in plain words can call them")
        elif (like := tests.find(prompt)) is not None:
            yield one, left_out(f"near-duplicate of {like}")
        elif (same := seen.same(prompt)) is not None:
            yield one, left_out(f"the same prompt as an earlier record: {same}")
        else:
            seen.add(prompt, record.source)
            yield one, work(recipe, one, record)


def as_document(made: Synthesis) -> dict[str, Any]:
    """What was made, as `--json` prints it."""
    document = {name: getattr(made, name) for name in Synthesis.__dataclass_fields__}
    return {**document, "output": str(made.output), "requests": str(made.requests), "seconds": round(made.seconds, 3)}
