"""The nouns of the pipeline: one frozen type a stage, its promise in its docstring, checked where it is made.

file -> Conversation -> Example -> TrieBatch -> loss           prompt -> Answer -> scores, Verdict
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: its `name`, its `arguments` as the JSON text of an object, and its `call_id`, "" where it has none."""

    name: str
    arguments: str
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered; `name` is the tool's and `call_id` that of the call, "" where the record has none."""

    text: str
    name: str = ""
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what was asked (`instruction`, and `input`, empty where there is none) and the `response` wanted.

    `weight` multiplies the weights of the response's tokens in the loss; 0 is context. A turn that asks nothing is a greeting.
    What tools answered (`results`) is asked first; before the response there may be a `thought`, after it `calls` of tools.
    """

    instruction: str
    input: str
    response: str
    weight: float = 1.0
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()
    results: tuple[ToolResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A record as the user meant it: an optional system text and one or more turns.

    At least one turn has a response that is trained; a turn without one is context. `source` is where it was read, as in
    `train.jsonl:17`. `weight` multiplies the weights of all its tokens in the loss. `tools` is the JSON text of the list of those
    that may be called, each {"type": "function", "function": {...}}. Of a preference pair this is the preferred side, `rejected`
    the other: the same but for what follows the prompt. A `label` says whether the response is wanted (KTO). A document
    (`is_document`) is the response of its only turn.
    """

    system: str
    turns: tuple[Turn, ...]
    source: str
    weight: float = 1.0
    rejected: Conversation | None = None
    label: bool | None = None
    tools: str = ""
    is_document: bool = False

    def __post_init__(self) -> None:
        assert any(map(_is_trained, self.turns)), f"{self.source}: a conversation without a response"
        assert self.weight > 0, f"{self.source}: a conversation of weight {self.weight}"

    @property
    def answered_turns(self) -> tuple[Turn, ...]:
        """The turns up to the last one whose response is trained: what follows it teaches nothing."""
        last = max(index for index, turn in enumerate(self.turns) if _is_trained(turn))
        return self.turns[: last + 1]


def is_answered(conversation: Conversation) -> bool:
    """Whether its answer is what a model should say to its prompt: not of a document, which has no prompt, nor where the label
    says that the answer is unwanted."""
    return not conversation.is_document and conversation.label is not False


def has_answer(turn: Turn) -> bool:
    """Whether the assistant says or calls something in it."""
    return bool(turn.response or turn.calls)


def has_question(turn: Turn) -> bool:
    """Whether something is asked in it: by the user, or by what a tool answered."""
    return bool(turn.instruction or turn.input or turn.results)


def answer_text(turn: Turn) -> str:
    """What the assistant answers in a turn, as people read it: the response, then each call as JSON between <tool_call> tags."""
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n</tool_call>'
        for call in turn.calls
    ]
    return "\n".join(filter(None, (turn.response, *calls)))


def question_text(turn: Turn) -> str:
    """What is asked in a turn, its input aside: what tools answered, and the instruction."""
    return "\n\n".join(filter(None, (*(one.text for one in turn.results), turn.instruction)))


def texts_of(turn: Turn) -> tuple[str, ...]:
    """What is said in a turn, in order, those that are empty left out; of calls their arguments, as JSON."""
    asked = (*(one.text for one in turn.results), turn.instruction, turn.input)
    return (*filter(None, asked), *reply_texts(turn))


def reply_texts(turn: Turn) -> tuple[str, ...]:
    """What the assistant says in a turn, in order, those that are empty left out; of calls their arguments, as JSON."""
    return tuple(filter(None, (turn.thought, turn.response, *(call.arguments for call in turn.calls))))


def rejected_texts(conversation: Conversation) -> list[str]:
    """What is said on the rejected side of a pair, behind the prompt; nothing where the record is no pair."""
    turns = conversation.rejected.turns if conversation.rejected is not None else ()
    return [text for turn in turns if turn.weight for text in reply_texts(turn)]


def _is_trained(turn: Turn) -> bool:
    return has_answer(turn) and turn.weight > 0


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A record as the model will see it.

    `token_ids` int32 [L]; `weights` float32 [L], where `weights[t]` says how much predicting token `t` counts in the loss.
    `weights[0]` is 0 (nothing predicts the first token) and the sum is positive. `num_prompt_tokens` tokens stand before
    the first trained response. The end token closes the record and is a target, unless the response was cut (`cut`).
    `num_input_cut` tokens of what was asked were left out so that the response fits. `seams_apart` are the places where a
    response begins with another token than if prompt and response were encoded in one go. Of a preference pair this is the
    preferred side, and `rejected` the other: both begin with the same `num_prompt_tokens` tokens, and the weights of either are
    those of its own response. `label` is the record's, where it has one (KTO).
    """

    token_ids: IntArray
    weights: FloatArray
    num_prompt_tokens: int
    source: str
    cut: bool = False
    num_input_cut: int = 0
    seams_apart: tuple[int, ...] = ()
    rejected: Example | None = None
    label: bool | None = None

    def __post_init__(self) -> None:
        assert self.token_ids.shape == self.weights.shape, self.source
        assert len(self.token_ids) > 1, f"{self.source}: an example of {len(self.token_ids)} tokens predicts nothing"
        assert self.weights[0] == 0, f"{self.source}: nothing predicts the first token"
        assert self.weights.sum() > 0, f"{self.source}: an example without a target"

    def __len__(self) -> int:
        """Number of tokens of the record as given, the end token included."""
        return len(self.token_ids)


_Sided = TypeVar("_Sided", Conversation, Example)


def sides_of(record: _Sided) -> tuple[_Sided, ...]:
    """What there is of a record: itself, or both sides of a preference pair, the preferred one first."""
    return (record,) if record.rejected is None else (record, record.rejected)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one prompt.

    `text` is the parsed response (no stop token, no template text); `token_ids` are the generated ids, the stop token
    included where there was one. `finish_reason` is "stop" where the model ended the answer, "length" where it was cut off.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge made of one answer: a `score` from 0 to 100, or `unscored_reason`, why there is none; never both.

    `raw` is what the judge said, word for word; empty where it said nothing. Under `pairwise` the score is 100 where the
    answer beats its rival, 0 where it loses and 50 for a tie. `criteria` are the scores that a rubric's score is the mean
    of, empty elsewhere. `reason` is the judge's, where it gave one in so many words.
    """

    source: str
    judge: str
    protocol: str
    score: float | None
    unscored_reason: str | None
    raw: str
    criteria: tuple[float, ...] = ()
    reason: str | None = None

    def __post_init__(self) -> None:
        assert (self.score is None) != (self.unscored_reason is None), self
        assert self.score is None or 0 <= self.score <= 100, self
