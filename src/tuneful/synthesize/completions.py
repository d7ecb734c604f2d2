"""A server is asked to continue a text, not to answer a message: for the user's turn that a model writes itself.

    RawOllama      `/api/generate` with `raw`: Ollama's template is not applied
    RawOpenAI      `/completions` of vLLM, llama.cpp and others

Stands beside `judge/backends.py`, with the same promise: a whole text, or NoReplyError. The client is the judge's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError
from tuneful.judge.backends import (
    NoReplyError,
    OllamaBackend,
    OpenAIBackend,
    check_ending,
    json_object,
    ollama_counts,
    ollama_options,
    only_choice,
    read_ollama,
    sampling,
    usage_of,
)
from tuneful.judge.client import HttpJudge, Judge
from tuneful.judge.local import GgufJudge
from tuneful.judge.questions import Question


@dataclass(frozen=True, slots=True)
class RawOllama:
    """`POST /api/generate` of the server at `origin`, in one piece."""

    origin: str
    model: str
    settings: JudgeConfig

    @property
    def url(self) -> str:
        """Where texts are posted."""
        return f"{self.origin}/api/generate"

    def body(self, question: Question, without: Collection[str] = ()) -> dict[str, Any]:
        """The request that has the question's user text continued."""
        said = {"model": self.model, "prompt": question.user, "raw": True, "stream": False}
        return {**said, "keep_alive": self.settings.keep_alive, "options": ollama_options(self.settings, question)}

    def read(self, content: bytes, question: Question) -> str:
        """The text behind the one that was sent."""
        return read_ollama(content, self.model, self.settings, lambda line: _text(line.get("response")))[0]

    def num_tokens(self, content: bytes) -> tuple[int | None, int | None]:
        """The counts beside the text."""
        return ollama_counts(content)


@dataclass(frozen=True, slots=True)
class RawOpenAI:
    """`POST /completions` below `base_url`, in one piece."""

    base_url: str
    model: str
    settings: JudgeConfig

    @property
    def url(self) -> str:
        """Where texts are posted."""
        return f"{self.base_url}/completions"

    def body(self, question: Question, without: Collection[str] = ()) -> dict[str, Any]:
        """The request that has the question's user text continued, without the parameters that the server has refused."""
        given = sampling(self.settings, question)
        if self.settings.max_tokens is not None:
            given["max_tokens"] = self.settings.max_tokens
        sent = {name: value for name, value in given.items() if name not in without}
        return {"model": self.model, "prompt": question.user, **sent}

    def read(self, content: bytes, question: Question) -> str:
        """The text of the one choice."""
        _, choice = only_choice(content)
        check_ending(choice.get("finish_reason"), self.settings.max_tokens)
        return _text(choice.get("text"))

    def num_tokens(self, content: bytes) -> tuple[int | None, int | None]:
        """The counts under `usage`."""
        return usage_of(json_object(content))


def completing(judge: Judge) -> HttpJudge:
    """The server of `judge`, asked to continue texts. ConfigError where it cannot."""
    http = judge.client if isinstance(judge, GgufJudge) else judge
    if isinstance(http, HttpJudge):
        backend = http.backend
        if isinstance(backend, OllamaBackend):
            return replace(http, backend=RawOllama(backend.origin, backend.model, backend.settings))
        if isinstance(backend, OpenAIBackend):
            return replace(http, backend=RawOpenAI(backend.base_url, backend.model, backend.settings))
    raise ConfigError(f"--from-empty-turn: {judge.name} continues no texts")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NoReplyError("a reply without text", retry=True)
    return value
