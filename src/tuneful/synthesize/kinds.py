"""The four kinds: what is asked about an item, and which rows its replies make.

    instructions   a new task with its answer, after examples, about a topic, or from the model's own empty user turn
    responses      other answers to a record's prompt: each a row, or the best one
    reflections    a better instruction with its answer, then a better answer; the old ones are kept
    pairs          several answers of one's own model: the best is chosen, the worst rejected

Each is a generator (`work.py`). A kind is an entry of KINDS: how its items are worked on and how many requests one takes at most.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tuneful.data.columns import METADATA
from tuneful.data.duplicates import normal_text
from tuneful.data.read import Record
from tuneful.data.turns import UNANSWERED
from tuneful.judge.client import AskResult
from tuneful.judge.questions import Question
from tuneful.synthesize.asking import Ask
from tuneful.synthesize.prompts import Prompt, plain_question
from tuneful.synthesize.ranking import METRICS, JudgeRanking, Scores
from tuneful.synthesize.replies import Refused, fields_of, response_refusal, task_refusal, text_of
from tuneful.synthesize.work import (
    Item,
    Made,
    Work,
    asked_text,
    earlier_of,
    is_whole_dialogue,
    prompt_of_task,
    task_row,
)
from tuneful.types import Conversation, Turn

Kind = Literal["instructions", "responses", "reflections", "pairs"]
Reflect = Literal["both", "instruction", "response"]

_INPUT_MARK = "### Input:"
_NO_REFERENCE = Refused("no reference: the record has no answer to rank by (judge.use_reference=false needs none)")
_OTHER_TURNS = Refused("earlier turns: one of them asks nothing or has no answer")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that the items of one command share.

    `model` and `judge` are names, for the rows. `plain`: the teacher is held to no schema. `opening` is what stands before a
    user's text where tasks come from an empty user turn. `rank_by` is `judge` or a metric.
    """

    kind: Kind
    seed: int
    model: str
    judge: str
    plain: bool
    prompts: Mapping[str, Prompt]
    seeds: Sequence[Conversation]
    topics: Sequence[str]
    opening: str | None
    samples: int
    best: bool
    ranking: JudgeRanking | None
    rank_by: str
    min_margin: float
    reflect: Reflect
    num_examples: int


# Instructions


def instruction(recipe: Recipe, item: Item, record: Record | None) -> Work:
    """A new task with its answer."""
    if recipe.opening is not None:
        return (yield from _from_empty_turn(recipe, item, recipe.opening))
    dice = random.Random(f"{recipe.seed} {item.number}")
    chosen = dice.sample(range(len(recipe.seeds)), min(recipe.num_examples, len(recipe.seeds)))
    examples = [recipe.seeds[number].answered_turns[-1] for number in chosen]
    name, texts = "instructions", dict[str, str]()
    if recipe.topics:
        name, texts = "topic", {"topic": recipe.topics[item.number % len(recipe.topics)]}
    number = item.number // max(1, len(recipe.topics)) + 1
    question = recipe.prompts[name].question(texts, examples=examples, number=number, plain=recipe.plain)
    ask = item.ask("task", "teacher", question)
    (result,) = yield [ask]
    found = fields_of(result, ask.question, ("instruction", "output"), ("input",))
    if isinstance(found, Refused):
        return found
    more = {"topic": texts["topic"]} if texts else {}
    return _new_task(recipe, item, ask, Turn(found["instruction"], found["input"], found["output"]), more)


def _from_empty_turn(recipe: Recipe, item: Item, opening: str) -> Work:
    """The model writes the user's text itself, because its prompt ends where a user would begin; then it answers."""
    begun = item.ask("task", "teacher", plain_question("", (), opening), continues=True)
    (result,) = yield [begun]
    found = text_of(result, begun.question)
    if isinstance(found, Refused):
        return found
    asked, _, given = (part.strip() for part in found.partition(_INPUT_MARK))
    if not asked:
        return Refused("empty")
    turn = Turn(asked, given, UNANSWERED)
    record = Conversation("", (turn,), item.source or "an empty turn")
    ask = item.ask("response", "teacher", plain_question("", (), asked_text(turn)), record=record)
    (result,) = yield [ask]
    response = text_of(result, ask.question)
    if isinstance(response, Refused):
        return response
    return _new_task(recipe, item, ask, Turn(asked, given, response), {"from": "an empty user turn"})


def _new_task(recipe: Recipe, item: Item, ask: Ask, turn: Turn, more: Mapping[str, Any]) -> Made | Refused:
    if refused := task_refusal(turn.instruction) or response_refusal(turn):
        return refused
    row: dict[str, Any] = {"instruction": turn.instruction, "input": turn.input, "output": turn.response}
    row[METADATA] = item.metadata(recipe.kind, recipe.model, ask, **more)
    return Made(((ask.key, row),), prompt_of_task(turn.instruction, turn.input))


# Responses


def responses(recipe: Recipe, item: Item, record: Record | None) -> Work:
    """Answers of the teacher to the record's prompt."""
    assert record is not None
    conversation = record.conversation
    if not is_whole_dialogue(conversation):
        return _OTHER_TURNS
    if recipe.best and _reference(record) is None and _needs_reference(recipe):
        return _NO_REFERENCE
    if recipe.best:
        _expect_ranking(recipe, item, record)
    asks = _samples(recipe, item, conversation, "teacher")
    answers = _different(item, conversation, asks, (yield asks))
    if not answers:
        return Refused("no sample could be used")
    more: dict[str, Any] = {}
    if recipe.best and len(answers) > 1:
        scores = yield from _scores(recipe, item, record, [answer for _, answer in answers])
        scored = [(score, number) for number, score in enumerate(scores) if score is not None]
        if not scored:
            return Refused("the judge gave no score")
        score, best = max(scored, key=lambda one: (one[0], -one[1]))
        for number, (ask, _) in enumerate(answers):
            if number != best:
                given = "none" if scores[number] is None else f"{scores[number]:g}"
                item.refuse(ask, Refused(f"not the best of its samples: {given} against {score:g}"))
        answers, more = [answers[best]], {"score": score, "judge": recipe.judge}
    rows = []
    for ask, answer in answers:
        row = task_row(conversation, answer)
        row[METADATA] = item.metadata(recipe.kind, recipe.model, ask, **more)
        rows.append((ask.key, row))
    return Made(tuple(rows))


def _samples(recipe: Recipe, item: Item, conversation: Conversation, role: Literal["teacher", "model"]) -> list[Ask]:
    """The requests for several answers to one prompt."""
    last = conversation.answered_turns[-1]
    question = plain_question(conversation.system, earlier_of(conversation), asked_text(last))
    return [item.ask(f"sample/{number}", role, question, record=conversation) for number in range(recipe.samples)]


def _different(
    item: Item, conversation: Conversation, asks: Sequence[Ask], results: Sequence[AskResult]
) -> list[tuple[Ask, str]]:
    """The answers that can be used, of those that say the same the first."""
    last = conversation.answered_turns[-1]
    kept: list[tuple[Ask, str]] = []
    said: set[str] = set()
    for ask, result in zip(asks, results, strict=True):
        text = text_of(result, ask.question)
        refused = text if isinstance(text, Refused) else response_refusal(Turn(last.instruction, last.input, text))
        if refused is None and normal_text(str(text)) in said:
            refused = Refused("says the same as another sample")
        if refused is not None:
            item.refuse(ask, refused)
            continue
        said.add(normal_text(str(text)))
        kept.append((ask, str(text)))
    return kept


def _reference(record: Record) -> str | None:
    response = record.conversation.answered_turns[-1].response
    return None if response == UNANSWERED else response


def _expect_ranking(recipe: Recipe, item: Item, record: Record) -> None:
    """Say how long the prompts of the ranking are, where a judge ranks."""
    if recipe.ranking is not None:
        item.later_bytes = recipe.ranking.num_bytes(record.conversation, _reference(record))
        item.later_replies = recipe.ranking.num_judged


def _scores(recipe: Recipe, item: Item, record: Record, answers: Sequence[str]) -> Scores:
    """The score of each answer, by the judge or by a metric."""
    reference = _reference(record)
    if recipe.rank_by != "judge":
        assert reference is not None, record.source
        metric = METRICS[recipe.rank_by]
        return [metric(answer, reference) for answer in answers]
    assert recipe.ranking is not None
    return (yield from recipe.ranking.scores(item, record.conversation, reference, answers))


# Reflections


def reflections(recipe: Recipe, item: Item, record: Record | None) -> Work:
    """A better instruction with its answer, and then a better answer to it; or one of the two."""
    assert record is not None
    conversation = record.conversation
    if len(conversation.turns) > 1 or conversation.system:
        return Refused("several turns or a system text: only single tasks are reflected on")
    old = conversation.turns[0]
    turn, key, reflected = old, "", dict[str, str]()
    if recipe.reflect == "both":
        item.later_bytes = Ask("", "teacher", _reflection_question(recipe, "response", old)).num_bytes
    if recipe.reflect in ("both", "instruction"):
        ask = _reflection(recipe, item, "instruction", turn)
        (result,) = yield [ask]
        found = fields_of(result, ask.question, ("reflection", "instruction", "output"), ("input",))
        if isinstance(found, Refused):
            return found
        turn, key = Turn(found["instruction"], found["input"], found["output"]), ask.key
        reflected["on_instruction"] = found["reflection"]
        if refused := task_refusal(turn.instruction) or response_refusal(turn):
            return refused
    if recipe.reflect in ("both", "response"):
        ask = _reflection(recipe, item, "response", turn)
        (result,) = yield [ask]
        found = fields_of(result, ask.question, ("reflection", "output"), ())
        if isinstance(found, Refused):
            return found
        turn, key = Turn(turn.instruction, turn.input, found["output"]), ask.key
        reflected["on_response"] = found["reflection"]
        if refused := response_refusal(turn):
            return refused
    if _normal(turn) == _normal(old):
        return Refused("nothing was changed")
    row: dict[str, Any] = {"instruction": turn.instruction, "input": turn.input, "output": turn.response}
    original = {"instruction": old.instruction, "input": old.input, "output": old.response}
    row[METADATA] = item.metadata(recipe.kind, recipe.model, ask, original=original, reflection=reflected)
    # A prompt that was left as it is need not be new.
    return Made(((key, row),), prompt_of_task(turn.instruction, turn.input) if recipe.reflect != "response" else "")


def _reflection(recipe: Recipe, item: Item, on: str, turn: Turn) -> Ask:
    return item.ask(on, "teacher", _reflection_question(recipe, on, turn))


def _reflection_question(recipe: Recipe, on: str, turn: Turn) -> Question:
    texts = {"instruction": turn.instruction, "input": turn.input, "response": turn.response}
    return recipe.prompts[f"{on}-reflection"].question(texts, plain=recipe.plain)


def _normal(turn: Turn) -> tuple[str, str, str]:
    return normal_text(turn.instruction), normal_text(turn.input), normal_text(turn.response)


# Pairs


def pairs(recipe: Recipe, item: Item, record: Record | None) -> Work:
    """Answers of one's own model: the best is chosen, the worst rejected, with both scores and the margin between them."""
    assert record is not None
    conversation = record.conversation
    if not is_whole_dialogue(conversation):
        return _OTHER_TURNS
    if _reference(record) is None and _needs_reference(recipe):
        return _NO_REFERENCE
    _expect_ranking(recipe, item, record)
    asks = _samples(recipe, item, conversation, "model")
    answers = _different(item, conversation, asks, (yield asks))
    if len(answers) < 2:
        return Refused(f"too few samples: {len(answers)} that differ and can be used")
    scores = yield from _scores(recipe, item, record, [answer for _, answer in answers])
    ranked = [(score, number) for number, score in enumerate(scores) if score is not None]
    if len(ranked) < 2:
        return Refused(f"too few scores: the judge gave {len(ranked)}")
    high, best = max(ranked, key=lambda one: (one[0], -one[1]))
    low, worst = min(ranked)
    if high - low <= 0 or high - low < recipe.min_margin:
        return Refused(f"too small a margin: {high - low:.4g}")
    for number, (ask, _) in enumerate(answers):
        if number not in (best, worst):
            item.refuse(ask, Refused("neither the best nor the worst of its samples"))
    row = _pair_row(conversation, answers[best][1], answers[worst][1])
    row |= {"score_chosen": high, "score_rejected": low, "margin": high - low}
    more = {"rejected_request": answers[worst][0].key, "rejected_seed": answers[worst][0].question.seed}
    judge = {"judge": recipe.judge} if recipe.rank_by == "judge" else {}
    row[METADATA] = item.metadata(
        recipe.kind, recipe.model, answers[best][0], ranked_by=recipe.rank_by, **judge, **more
    )
    return Made(((answers[best][0].key, row),))


def _needs_reference(recipe: Recipe) -> bool:
    return recipe.rank_by != "judge" or (recipe.ranking is not None and recipe.ranking.needs_reference)


def _pair_row(conversation: Conversation, chosen: str, rejected: str) -> dict[str, Any]:
    """A pair in the book's form; one that has a system text or earlier turns as messages."""
    last = conversation.answered_turns[-1]
    if not conversation.system and len(conversation.turns) == 1:
        return {"instruction": last.instruction, "input": last.input, "chosen": chosen, "rejected": rejected}
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for asked, answered in earlier_of(conversation):
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": asked_text(last)})
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": messages, **{key: [{"role": "assistant", "content": text}] for key, text in answers.items()}}


# The kinds


def _num_ranking(recipe: Recipe) -> int:
    return recipe.ranking.num_requests(recipe.samples) if recipe.ranking is not None else 0


@dataclass(frozen=True, slots=True)
class KindOfWork:
    """How an item is worked on, and how many requests it takes at most."""

    work: Callable[[Recipe, Item, Record | None], Work]
    num_requests: Callable[[Recipe], int]


KINDS: Mapping[str, KindOfWork] = MappingProxyType(
    {
        "instructions": KindOfWork(instruction, lambda recipe: 1 if recipe.opening is None else 2),
        "responses": KindOfWork(responses, lambda recipe: recipe.samples + _num_ranking(recipe)),
        "reflections": KindOfWork(reflections, lambda recipe: 2 if recipe.reflect == "both" else 1),
        "pairs": KindOfWork(pairs, lambda recipe: recipe.samples + _num_ranking(recipe)),
    }
)
"""Every kind, by its name."""
