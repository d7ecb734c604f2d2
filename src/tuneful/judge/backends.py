"""The two protocols of judge servers: the request that asks a question, and the reply in the bytes that come back.

    OllamaBackend   Ollama's own `/api/chat`, a stream of JSON lines; a reply is whole where the last line says `done`
    OpenAIBackend   `/chat/completions` of OpenAI, vLLM, llama.cpp and LM Studio; whole where `finish_reason` is "stop"

Stands under `client.py`, which sends and receives; nothing here opens a connection, so a protocol is tested on bytes alone. A
reply that is not whole raises `NoReplyError` with the reason; a piece of a reply is never returned.

Servers of OpenAI's protocol differ in what they take: `body` makes a request without the parameters that one has refused, and
`refused_parameter` reads from an error which that is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import urlsplit

from tuneful.config import JudgeConfig
from tuneful.judge.questions import Question

_LIMITS = ("max_tokens", "max_completion_tokens")
_WITHOUT: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_LIMITS, "replies have no limit of tokens of ours"),
        "temperature": "judge.temperature is not sent, and the model samples at a temperature of its own",
        "seed": "judge.seed is not sent, so the same question may get another reply",
        "response_format": "replies are not held to a schema, only asked for in that form",
    }
)
"""What a request can do without, each with what that means."""
_NOT_TAKEN = re.compile(
    r"unsupported|not? support|unknown|unrecogni|unexpected|not (?:be )?(?:permitted|allowed|available|accepted)|invalid param"
    r"|extra (?:inputs|fields)|deprecated",
    re.I,
)

_MIN_WINDOW_TOKENS = 256
_MAX_BYTES_PER_TOKEN = 8.0  # of any tokenizer, over a whole prompt


class NoReplyError(Exception):
    """A request without a whole reply: the `reason`, whether a `retry` may help, and how long the server asked to wait.

    `refused` is the parameter of the request that the server does not take, where it says so; `final` says that the server
    works, and that it is this one request that has no reply.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry: bool,
        wait_seconds: float | None = None,
        refused: str | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.retry, self.wait_seconds, self.refused = reason, retry, wait_seconds, refused
        self.final = final


class Backend(Protocol):
    """A server's protocol: where to post, what, and how to read the bytes that come back."""

    @property
    def url(self) -> str:
        """Where questions are posted."""

    def body(self, question: Question, without: Collection[str] = ()) -> dict[str, Any]:
        """The request that asks `question`, without the parameters that the server has refused."""

    def read(self, content: bytes, question: Question) -> str:
        """The whole reply in the bytes of a 200; raises NoReplyError where it is not whole."""

    def num_tokens(self, content: bytes) -> tuple[int | None, int | None]:
        """Tokens of the prompt and of the reply, as the server counted them in bytes that `read` has taken; None: it did not."""


@dataclass(frozen=True, slots=True)
class OllamaBackend:
    """`POST /api/chat` of the server at `origin`, streamed; `truncate` is off, so a prompt that is too long is an error."""

    origin: str
    model: str
    settings: JudgeConfig

    @property
    def url(self) -> str:
        """Where questions are posted."""
        return f"{self.origin}/api/chat"

    def body(self, question: Question, without: Collection[str] = ()) -> dict[str, Any]:
        """The request that asks `question`; Ollama takes every parameter, or ignores it."""
        body = {
            "model": self.model,
            "messages": _messages(question),
            "stream": True,
            "truncate": False,
            "keep_alive": self.settings.keep_alive,
            "options": ollama_options(self.settings, question),
        }
        return body if question.schema is None else {**body, "format": question.schema}

    def read(self, content: bytes, question: Question) -> str:
        """The reply in a stream of JSON lines: all contents, where the last line alone says `done`."""
        text, last = read_ollama(content, self.model, self.settings, lambda line: _content(line.get("message")))
        _check_read_whole(last.get("prompt_eval_count"), question)
        return text

    def num_tokens(self, content: bytes) -> tuple[int | None, int | None]:
        """The counts in the last line."""
        return ollama_counts(content)


@dataclass(frozen=True, slots=True)
class OpenAIBackend:
    """`POST /chat/completions` below `base_url`, in one piece."""

    base_url: str
    model: str
    settings: JudgeConfig

    @property
    def url(self) -> str:
        """Where questions are posted."""
        return f"{self.base_url}/chat/completions"

    def body(self, question: Question, without: Collection[str] = ()) -> dict[str, Any]:
        """The request that asks `question`, without the parameters that the server has refused."""
        settings, parameters = self.settings, dict[str, Any]()
        # Newer models of OpenAI's know the longer name only, other servers the shorter one.
        names = list(_LIMITS)
        if urlsplit(self.base_url).hostname == "api.openai.com":
            names.reverse()
        if settings.max_tokens is not None and (left := [name for name in names if name not in without]):
            parameters[left[0]] = settings.max_tokens
        parameters |= sampling(settings, question)
        if question.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": question.schema}
            parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        sent = {name: value for name, value in parameters.items() if name not in without}
        return {"model": self.model, "messages": _messages(question), **sent}

    def read(self, content: bytes, question: Question) -> str:
        """The reply in one JSON object: the content of its one choice, if that stopped at its end token."""
        reply, choice = only_choice(content)
        text = _content(choice.get("message"))
        check_ending(choice.get("finish_reason"), self.settings.max_tokens)
        usage = reply.get("usage")
        _check_read_whole(usage.get("prompt_tokens") if isinstance(usage, dict) else None, question)
        return text

    def num_tokens(self, content: bytes) -> tuple[int | None, int | None]:
        """The counts under `usage`."""
        return usage_of(json_object(content))


def sampling(settings: JudgeConfig, question: Question) -> dict[str, Any]:
    """Of seed and temperature those that the question or else the settings give."""
    own = {"seed": question.seed, "temperature": question.temperature}
    given = {name: getattr(settings, name) if value is None else value for name, value in own.items()}
    return {name: value for name, value in given.items() if value is not None}


def ollama_options(settings: JudgeConfig, question: Question) -> dict[str, Any]:
    """Ollama's `options` of a request."""
    limit = {} if settings.max_tokens is None else {"num_predict": settings.max_tokens}
    return {"num_ctx": settings.num_ctx, **limit, **sampling(settings, question)}


def read_ollama(
    content: bytes, model: str, settings: JudgeConfig, text_in: Callable[[Mapping[str, Any]], str]
) -> tuple[str, Mapping[str, Any]]:
    """The texts of all lines of Ollama's, of which the last alone says `done`, and that line. NoReplyError."""
    pieces: list[str] = []
    last: Mapping[str, Any] = {}
    for line in lines_of(content):
        if last.get("done"):
            raise NoReplyError("the stream goes on after its end", retry=True)
        last = json_object(line)
        if "error" in last:
            raise NoReplyError(f"the server reports an error: {shortened(last['error'])}", retry=True)
        if not same_model(last.get("model"), model):
            raise NoReplyError(f"another model replied: {shortened(last.get('model'))}", retry=True)
        if not isinstance(last.get("done"), bool):
            raise NoReplyError("a line of the stream does not say whether it is the last", retry=True)
        pieces.append(text_in(last))
    if not last.get("done"):
        raise NoReplyError("the stream was cut before its end", retry=True)
    check_ending(last.get("done_reason", "stop"), settings.max_tokens)
    if "done_reason" not in last and last.get("eval_count", -1) == settings.max_tokens:
        raise NoReplyError(f"the reply was cut at judge.max_tokens={settings.max_tokens}", retry=False, final=True)
    return "".join(pieces), last


def ollama_counts(content: bytes) -> tuple[int | None, int | None]:
    """The counts in Ollama's last line."""
    last = json_object(list(lines_of(content))[-1])
    return count_of(last.get("prompt_eval_count")), count_of(last.get("eval_count"))


def only_choice(content: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A reply of OpenAI's protocol, and its one choice. NoReplyError."""
    reply = json_object(content)
    if "error" in reply:
        raise NoReplyError(f"the server reports an error: {shortened(reply['error'])}", retry=True)
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise NoReplyError("not a reply with one choice", retry=True)
    return reply, choices[0]


def usage_of(reply: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens of prompt and reply under `usage`, as OpenAI's protocol has them; None where there are none."""
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return None, None
    return count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens"))


def count_of(value: Any) -> int | None:
    """A count as a server gives it, None where it is no count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None


def refused_parameter(content: bytes, sent: Collection[str]) -> str | None:
    """The one among the `sent` parameters that the error in `content` says is not taken; None where it says so of none.

    OpenAI names it as `param` of the error; other servers in the message. A value that is too large is another matter.
    """
    try:
        error = json_object(content).get("error")
    except NoReplyError:
        return None
    param = error.get("param") if isinstance(error, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str) or not _NOT_TAKEN.search(message):
        return None
    named = [*re.findall(r"\w+", param if isinstance(param, str) else "")[:1], *re.findall(r"\w+", message)]
    return next((name for name in named if name in sent and name in _WITHOUT), None)


def without_parameter(name: str, refused: Collection[str]) -> str:
    """What it means that a server does not take the parameter `name`, which is among those that it has `refused`."""
    other = next((one for one in _LIMITS if name in _LIMITS and one not in refused), None)
    return _WITHOUT[name] if other is None else f"judge.max_tokens is sent as {other}"


def _messages(question: Question) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": question.system}] if question.system else []
    for asked, answered in question.earlier:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": question.user}]


def lines_of(content: bytes) -> Iterator[bytes]:
    """The lines of a body that are not blank."""
    return (line for line in content.split(b"\n") if line.strip())


def json_object(content: bytes) -> Mapping[str, Any]:
    """The JSON object in `content`; NoReplyError where it holds anything else."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        shown = content[:40].decode("utf-8", "replace").strip()
        raise NoReplyError(f"not JSON: {shortened(shown) if shown else 'an empty body'}", retry=True) from None
    if not isinstance(value, dict):
        raise NoReplyError(f"a {type(value).__name__} where an object was expected", retry=True)
    return value


def _content(message: Any) -> str:
    """The text of an assistant's message."""
    if not isinstance(message, dict) or message.get("role", "assistant") != "assistant":
        raise NoReplyError("no assistant message", retry=True)
    content = message.get("content")
    if not isinstance(content, str):
        refusal = message.get("refusal")
        raise NoReplyError(
            f"the judge refused: {shortened(refusal)}" if refusal else "a message without text",
            retry=not refusal,
            final=bool(refusal),
        )
    return content


def check_ending(reason: Any, max_tokens: int | None) -> None:
    """NoReplyError where a reply did not stop at its own end, for the `reason` that the server gives."""
    if reason == "length":
        limit = "the server's own limit" if max_tokens is None else f"judge.max_tokens={max_tokens}"
        raise NoReplyError(f"the reply was cut at {limit}", retry=False, final=True)
    if reason != "stop":
        raise NoReplyError(f"the reply ended by {shortened(reason)}", retry=True)


def _check_read_whole(num_tokens: Any, question: Question) -> None:
    """Raise where the server counted far fewer prompt tokens than the prompt's bytes need: it cut the prompt silently."""
    earlier = "".join(text for pair in question.earlier for text in pair)
    num_bytes = len(f"{question.system}{earlier}{question.user}".encode())
    if not isinstance(num_tokens, int) or num_tokens < _MIN_WINDOW_TOKENS:
        return
    if num_tokens * _MAX_BYTES_PER_TOKEN < num_bytes:
        raise NoReplyError(
            f"the judge read only {num_tokens} tokens of a prompt of {num_bytes:,} bytes", retry=False, final=True
        )


def same_model(given: Any, wanted: str) -> bool:
    """Whether a server's name of a model is the `wanted` one; `:latest` is what a name without a tag means."""
    return isinstance(given, str) and given.removesuffix(":latest") == wanted.removesuffix(":latest")


def shortened(value: Any, length: int = 160) -> str:
    """What a server said, on one line of at most `length` characters, for a message."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
