"""One prompt in flight: what was generated so far, its text, its random numbers, and how it wants its tokens chosen.

Whoever orders the work calls the model for several of them at once: `generate.py` for a list that is known before,
`continuous.py` for rows that come at any time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from tuneful.infer.text import AnswerText


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The natural log-probability of a token where it stands, as the model gives it, and the likeliest tokens there with
    theirs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Row:
    """One prompt in flight, with what was generated so far and its own random numbers."""

    def __init__(self, index: int, prompt: list[int], max_new_tokens: int, seed: int, text: AnswerText) -> None:
        self.index, self.prompt, self.max_new_tokens, self.text = index, prompt, max_new_tokens, text
        self.generated: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.generator = torch.Generator().manual_seed(seed)
        self._shown: list[str] = []

    def accept(self, token_id: int, stop_token_ids: Collection[int]) -> None:
        """Take one more token; `finish_reason` says whether it is the last."""
        self.generated.append(token_id)
        if token_id not in stop_token_ids:
            self._shown.append(self.text.push(token_id))
        if token_id in stop_token_ids or self.text.stopped:
            self.finish_reason = "stop"
        elif len(self.generated) >= self.max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason:
            self._shown.append(self.text.finish(cut=self.finish_reason == "length"))

    def take_shown(self) -> str:
        """The text that has become certain since the last call."""
        shown, self._shown = "".join(self._shown), []
        return shown
