"""A server is asked to continue a text, not to answer a message: for the user's turn that a model writes itself.

    RawOllama      `/api/generate` with `raw`: Ollama's template is not applied
    RawOpenAI      `/completions` of vLLM, llama.cpp and others

Stands beside `judge/backends.py`, with the same promise: a whole text, or NoReplyError. The client is the judge's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError
from tuneful.judge.backends import (
    NoReplyError,
    OllamaBackend,
    OpenAIBackend,
    check_ending,
    count_of,
    json_object,
    lines_of,
    same_model,
    shortened,
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
        options: dict[str, Any] = {"num_ctx": self.settings.num_ctx}
        if self.settings.max_tokens is not None:
            options["num_predict"] = self.settings.max_tokens
        given = {"seed": question.seed, "temperature": question.temperature}
        options |= {name: value for name, value in given.items() if value is not None}
        said = {"model": self.model, "prompt": question.user, "raw": True, "stream": False}
        return {**said, "keep_alive": self.settings.keep_alive, "options": options}

    def read(self, content: bytes, question: Question) -> str:
        """The text behind the one that was sent."""
        reply = _only_line(content)
        if "error" in reply:
            raise NoReplyError(f"the server reports an error: {shortened(reply['error'])}", retry=True)
        if not same_model(reply.get("model"), self.model):
            raise NoReplyError(f"another model replied: {shortened(reply.get('model'))}", retry=True)
        if reply.get("done") is not True:
            raise NoReplyError("the reply does not say that it is done", retry=True)
        check_ending(reply.get("done_reason", "stop"), self.settings.max_tokens)
        return _text(reply.get("response"))

    def num_tokens(self, content: bytes) -> tuple[int | None, int | None]:
        """The counts beside the text."""
        reply = _only_line(content)
        return count_of(reply.get("prompt_eval_count")), count_of(reply.get("eval_count"))


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
        given = {
            "max_tokens": self.settings.max_tokens,
            "seed": question.seed,
            "temperature": question.temperature,
        }
        sent = {name: value for name, value in given.items() if value is not None and name not in without}
        return {"model": self.model, "prompt": question.user, **sent}

    def read(self, content: bytes, question: Question) -> str:
        """The text of the one choice."""
        reply = json_object(content)
        if "error" in reply:
            raise NoReplyError(f"the server reports an error: {shortened(reply['error'])}", retry=True)
        choices = reply.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise NoReplyError("not a reply with one choice", retry=True)
        check_ending(choices[0].get("finish_reason"), self.settings.max_tokens)
        return _text(choices[0].get("text"))

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


def _only_line(content: bytes) -> Mapping[str, Any]:
    lines = list(lines_of(content))
    if len(lines) != 1:
        raise NoReplyError(f"{len(lines)} lines where one was expected", retry=True)
    return json_object(lines[0])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NoReplyError("a reply without text", retry=True)
    return value
