"""What a server takes at most: prompts, answers, requests that wait. What is beyond is refused in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server. An answer of more tokens than `max_new_tokens` is cut there, as one that leaves the context is."""

    max_prompt_tokens: int = 1 << 17
    max_new_tokens: int = 4096
    max_answers: int = 64
    """Of one request: prompts times `n`."""
    max_waiting: int = 128
    """Answers that wait for a place, over those in flight; a request that finds no room is told to come again (503)."""
    max_logprobs: int = 20
