"""Judges inside this process, a GGUF file in llama.cpp or a model folder in transformers; and `open_judge` for every kind.

`gguf:FILE` runs llama.cpp's own server (package xllamacpp) on a loopback port that only this process has the key to, and uses
the same HTTP client as for any other server: one way of asking, tested once. `model:FOLDER` answers through the package's own
generation, in batches. The trade: nothing holds its replies to a schema, so it is asked for plain text, and more of its replies
are unreadable.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuneful.config import Config, JudgeConfig, TemplateConfig
from tuneful.errors import ConfigError, DataError, JudgeError
from tuneful.files import sha256_of
from tuneful.infer.llama_cpp import LlamaCppError, LlamaCppMissingError, start_llama_server
from tuneful.judge.client import AskResult, HttpJudge, Judge, NoReply, OnResult, Reply, open_http_judge, openai_judge
from tuneful.judge.questions import Question
from tuneful.types import Answer, Conversation, Turn

AnswerAll = Callable[[Sequence[Conversation]], list[Answer]]
"""Generation with one loaded model, greedy unless the configuration says otherwise."""

_KINDS = "`ollama/NAME`, `openai/MODEL`, `gguf:FILE` or `model:FOLDER`"
_OF_HTTP = ("concurrency", "timeout_seconds", "max_retries", "backoff_seconds")
_NOT_READ: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ollama/": (),
        "openai/": ("num_ctx", "keep_alive"),
        "gguf:": ("keep_alive",),
        "model:": ("keep_alive", *_OF_HTTP),
    }
)
"""The settings that each kind of judge does not read."""
_MAX_SLOTS = 16
_BATCH = 16


def resolve_settings(settings: JudgeConfig) -> JudgeConfig:
    """`settings` with `judge.reply_format` resolved; ConfigError where no judge is named, or it cannot be held to a schema."""
    name = settings.model or ""
    kind = next((kind for kind in ("ollama/", "openai/", "gguf:", "model:") if name.startswith(kind)), None)
    if kind is None or name == kind:
        raise ConfigError(f"judge.model: {name!r} names no judge; expected {_KINDS}")
    check_read(kind, settings)
    if settings.reply_format != "auto":
        if kind == "model:" and settings.reply_format == "json_schema":
            raise ConfigError(
                f"judge.reply_format: {name} cannot be held to a schema; leave it at auto, or take gguf:FILE"
            )
        return settings
    return settings.model_copy(update={"reply_format": "text" if kind == "model:" else "json_schema"})


def check_read(kind: str, settings: JudgeConfig) -> None:
    """ConfigError where a setting was given that a judge of this kind does not read."""
    defaults = JudgeConfig()
    for name in _NOT_READ[kind]:
        if getattr(settings, name) != getattr(defaults, name):
            readers = " and ".join(f"`{one}`" for one, ignored in _NOT_READ.items() if name not in ignored)
            raise ConfigError(f"judge.{name} is read by {readers} judges only, and this is {settings.model}; drop it")


def open_judge(
    settings: JudgeConfig,
    load: Callable[[str], tuple[str, AnswerAll]],
    notify: Callable[[str], None] = lambda sentence: None,
) -> Judge:
    """The judge that `judge.model` names, ready to be asked; `settings` are resolved.

    `load` loads a model folder: its fingerprint, and a function that answers conversations. `notify` is told what a server
    turns out not to take. Raises ConfigError or
    ModelError for a judge that does not exist, JudgeError for one that cannot be reached.
    """
    name = settings.model
    assert name is not None
    if name.startswith("gguf:"):
        return _gguf_judge(name, _gguf_file(name), settings)
    if name.startswith("model:"):
        fingerprint, answer_all = load(name.removeprefix("model:"))
        return ModelJudge(name, {"wire": "model", "sha256": fingerprint}, answer_all)
    return open_http_judge(name, settings, notify=notify)


def check_judge(settings: JudgeConfig) -> None:
    """Raise what `open_judge` would, as far as that is known without loading a model; `settings` are resolved."""
    name = settings.model or ""
    if name.startswith("gguf:"):
        _gguf_file(name)
    elif not name.startswith("model:"):
        open_http_judge(name, settings)


def model_config(config: Config, folder: str) -> Config:
    """`config` for generation with a judge's model: its folder, temperature and limit of tokens, and the default template."""
    generate = config.generate.model_copy(
        # Without a limit of its own a reply ends where the model's context does.
        update={
            "max_new_tokens": config.judge.max_tokens or config.judge.num_ctx,
            "temperature": config.judge.temperature or 0.0,
        }
    )
    model = config.model.model_copy(update={"name_or_path": folder})
    return config.model_copy(update={"generate": generate, "model": model, "template": TemplateConfig()})


@dataclass(frozen=True, slots=True)
class ModelJudge:
    """A transformers model in this process, asked a batch at a time."""

    name: str
    identity: Mapping[str, Any]
    answer_all: AnswerAll

    def ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        """Ask everything, in order; a reply that reached the limit of tokens does not count."""
        for start in range(0, len(questions), _BATCH):
            batch = questions[start : start + _BATCH]
            asked = [
                # The response is a placeholder: a prompt is rendered without it.
                Conversation(question.system, (Turn(question.user, "", "?"),), "the question")
                for question in batch
            ]
            for index, result in enumerate(self._results(asked)):
                on_result(start + index, result)

    def _results(self, asked: Sequence[Conversation]) -> list[AskResult]:
        try:
            answers = self.answer_all(asked)
        except DataError as error:  # a prompt is too long for the model; the others still have their reply
            if len(asked) == 1:
                return [NoReply(str(error))]
            return [result for one in asked for result in self._results([one])]
        cut = NoReply("the reply was cut at judge.max_tokens")
        return [Reply(answer.text) if answer.finish_reason == "stop" else cut for answer in answers]


@dataclass(frozen=True, slots=True)
class GgufJudge:
    """A GGUF file in llama.cpp; its `server` runs as long as this object exists."""

    client: HttpJudge
    server: Any = field(repr=False)

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return self.client.name

    @property
    def identity(self) -> Mapping[str, Any]:
        """The checksum of the file."""
        return self.client.identity

    def ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        """Ask everything; `on_result` is called with each result as it comes."""
        self.client.ask_all(questions, on_result)


def _gguf_judge(name: str, file: Path, settings: JudgeConfig) -> GgufJudge:
    key = secrets.token_hex(16)
    num_slots = min(settings.concurrency, _MAX_SLOTS)
    try:
        server = start_llama_server(file, num_ctx=settings.num_ctx, num_slots=num_slots, key=key)
    except LlamaCppMissingError:
        raise ConfigError(
            "judge.model: gguf:FILE needs llama.cpp: pip install 'tuneful[judge]', or give ollama/NAME"
        ) from None
    except LlamaCppError as error:
        raise JudgeError(str(error)) from None
    identity = {"wire": "gguf", "sha256": sha256_of(file)}
    base_url = f"{server.listening_address}/v1"
    return GgufJudge(openai_judge(name, base_url, identity, settings, model=file.stem, key=key), server)


def _gguf_file(name: str) -> Path:
    file = Path(name.removeprefix("gguf:"))
    if not file.is_file():
        raise ConfigError(f"judge.model: {name}: no such file")
    return file
