"""The nouns of the pipeline: one frozen type a stage, its promise in its docstring, checked where it is made.

file -> Conversation -> Example -> TrieBatch -> loss           prompt -> Answer -> scores, Verdict
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what was asked (`instruction`, and `input`, empty where there is none) and the `response` wanted.

    `weight` multiplies the weights of the response's tokens in the loss; one of weight 0 is context. A turn that asks nothing is
    a greeting of the assistant's.
    """

    instruction: str
    input: str
    response: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """A record as the user meant it: an optional system text and one or more turns.

    At least one turn has a response that is trained; a turn without one is context. `source` names the place it was
    read from, for messages and reports: `train.jsonl:17`. `weight` multiplies the weights of all its tokens in the loss.

    Of a preference pair this is the preferred side, and `rejected` the other: the same but for what follows the prompt. A record
    with a `label` says whether its response is wanted (KTO), alone. A document (`is_document`) is the response of its only turn.
    """

    system: str
    turns: tuple[Turn, ...]
    source: str
    weight: float = 1.0
    rejected: Conversation | None = None
    label: bool | None = None
    is_document: bool = False

    def __post_init__(self) -> None:
        assert any(map(_is_trained, self.turns)), f"{self.source}: a conversation without a response"
        assert self.weight > 0, f"{self.source}: a conversation of weight {self.weight}"

    @property
    def answered_turns(self) -> tuple[Turn, ...]:
        """The turns up to the last one whose response is trained: what follows it teaches nothing."""
        last = max(index for index, turn in enumerate(self.turns) if _is_trained(turn))
        return self.turns[: last + 1]


def _is_trained(turn: Turn) -> bool:
    return bool(turn.response) and turn.weight > 0


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
