"""The HTTP client of judges: it sends questions and gives whole replies, or the reason why there is none.

    Question -> backend.body -> POST, under one deadline -> bytes, capped -> backend.read -> Reply | NoReply

Stands over `backends.py`, which holds the two protocols; the only file that opens a connection for judging. Transient errors
are retried, after jittered and doubling waits or the server's own Retry-After; the circuit opens when the first questions all
fail. A parameter that a server refuses by its name is learnt once, said, and left out from then on. Redirects are not followed,
proxies of the environment are not used, compression is not accepted, and the key goes to the configured address only and is
redacted from everything that a server says. The trade: at most `judge.timeout_seconds` and 1 MiB
a try, so a slow or very talkative judge leaves items unscored.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError, JudgeError
from tuneful.judge.backends import (
    Backend,
    NoReplyError,
    OllamaBackend,
    OpenAIBackend,
    json_object,
    refused_parameter,
    same_model,
    shortened,
    without_parameter,
)
from tuneful.judge.questions import Question

T = TypeVar("T")

OLLAMA_HOST = "http://127.0.0.1:11434"
OPENAI_BASE_URL = "https://api.openai.com/v1"
RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses of errors that another try may not meet."""

_OF_THE_REQUEST = (400, 422)
_MAX_REPLY_BYTES = 1 << 20
_MAX_WAIT_SECONDS = 60.0
_GIVE_UP_AFTER = 8  # questions without a reply, before there was any
_MIN_KEY_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole reply to one question; the server said that nothing is missing.

    `num_prompt_tokens` and `num_reply_tokens` are as it counted them, None where it did not.
    """

    text: str
    num_prompt_tokens: int | None = field(default=None, compare=False)
    num_reply_tokens: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why a question has no reply; `final` where the server works and would say no more to this question another time."""

    reason: str
    final: bool = field(default=False, compare=False)


AskResult = Reply | NoReply
OnResult = Callable[[int, AskResult], None]
"""Called with the index of a question and its result, once for each question, in any order."""


class Judge(Protocol):
    """Anything that answers questions. `identity` is all about the judge that could change a reply; it holds no secret."""

    @property
    def name(self) -> str:
        """As the user wrote it: `ollama/llama3`."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the judge is, for the cache."""

    def ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        """Ask everything; `on_result` is called with each result as it comes."""


@dataclass(frozen=True, slots=True)
class HttpJudge:
    """A judge on a server that speaks the protocol `backend`. `key` is sent there as a bearer token, and shown nowhere.

    `refused` are the parameters that the server turned out not to take; `notify` is told each once.
    """

    name: str
    identity: Mapping[str, Any]
    backend: Backend
    settings: JudgeConfig
    key: str | None = field(default=None, repr=False)
    give_up_after: int = _GIVE_UP_AFTER
    notify: Callable[[str], None] = field(default=lambda sentence: None, repr=False)
    refused: set[str] = field(default_factory=set, repr=False)

    def ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        """Ask everything, `judge.concurrency` at a time; `on_result` is called with each result as it comes.

        Where the first `give_up_after` questions all end without a reply, the rest is not asked.
        """
        if questions:
            _completed(self._ask_all(questions, on_result))

    async def _ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        waiting: Iterator[tuple[int, Question]] = iter(enumerate(questions))
        breaker = _CircuitBreaker(self.give_up_after)

        async def work(client: httpx2.AsyncClient) -> None:
            for index, question in waiting:
                result = breaker.circuit_open() or await self._ask(client, question)
                breaker.count(result)
                on_result(index, result)

        async with _client(self.key) as client:
            workers = [asyncio.create_task(work(client)) for _ in range(min(self.settings.concurrency, len(questions)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _ask(self, client: httpx2.AsyncClient, question: Question) -> AskResult:
        """The reply to one question, or the last reason why there is none; each try has `judge.timeout_seconds`."""
        settings, tries = self.settings, 0
        while True:
            tries += 1
            body = self.backend.body(question, self.refused)
            try:
                reply = await asyncio.wait_for(self._try(client, question, body), settings.timeout_seconds)
                return replace(reply, text=self._redacted(reply.text))
            except asyncio.TimeoutError:
                error = NoReplyError(f"no whole reply within {settings.timeout_seconds:g} s", retry=True)
            except NoReplyError as raised:
                error = raised
            if error.refused in body:  # at most once for each parameter
                self._learn(error)
                tries -= 1
                continue
            wait = _wait_seconds(error, tries, settings)
            if not error.retry or tries > settings.max_retries or wait is None:
                tried = f" ({tries} tries)" if tries > 1 else ""
                return NoReply(self._redacted(error.reason) + tried, error.final)
            await asyncio.sleep(wait)

    def _learn(self, error: NoReplyError) -> None:
        """From here on the parameter that the server refused is not sent."""
        assert error.refused is not None
        if error.refused not in self.refused:
            self.refused.add(error.refused)
            meaning = without_parameter(error.refused, self.refused)
            self.notify(f"{self.name} does not take {error.refused} ({self._redacted(error.reason)}): {meaning}")

    async def _try(self, client: httpx2.AsyncClient, question: Question, body: Mapping[str, Any]) -> Reply:
        try:
            async with client.stream("POST", self.backend.url, json=body) as response:
                content = await _read_body(response)
                _check_status(response, content, sent=body)
        except httpx2.TransportError as error:
            raise NoReplyError(
                f"the connection failed: {type(error).__name__}: {shortened(str(error))}", retry=True
            ) from None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            raise NoReplyError(
                f"the server's reply is not valid HTTP: {type(error).__name__}: {shortened(str(error))}", retry=True
            ) from None
        text = self.backend.read(content, question)
        num_prompt_tokens = num_reply_tokens = None
        with suppress(NoReplyError, IndexError):
            num_prompt_tokens, num_reply_tokens = self.backend.num_tokens(content)
        return Reply(text, num_prompt_tokens, num_reply_tokens)

    def _redacted(self, text: str) -> str:
        """`text` without the key; a key too short to be a secret, such as `EMPTY`, is a word and stays."""
        return text.replace(self.key, "[key]") if self.key and len(self.key) >= _MIN_KEY_LENGTH else text


class _CircuitBreaker:
    """Stops the asking after `max_failures` questions without a reply, as long as there was none at all."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures, self._num_failures, self._any_reply, self._first_reason = max_failures, 0, False, ""

    def count(self, result: AskResult) -> None:
        if isinstance(result, Reply):
            self._any_reply = True
        else:
            self._num_failures, self._first_reason = self._num_failures + 1, self._first_reason or result.reason

    def circuit_open(self) -> NoReply | None:
        if self._any_reply or self._num_failures < self._max_failures:
            return None
        return NoReply(f"not asked: the first {self._max_failures} questions got no reply; {self._first_reason}")


def open_http_judge(
    name: str,
    settings: JudgeConfig,
    environment: Mapping[str, str] = os.environ,
    *,
    notify: Callable[[str], None] = lambda sentence: None,
) -> HttpJudge:
    """The judge that `name` means, `ollama/MODEL` or `openai/MODEL`, at the address that `environment` gives.

    Reads OLLAMA_HOST, or OPENAI_BASE_URL and OPENAI_API_KEY. Ollama is asked which build of the model it holds; `notify` is told
    which parameters a server turns out not to take. Raises ConfigError for an invalid address, JudgeError where Ollama cannot be
    reached or does not have the model.
    """
    # The keys of an identity are hashed into the cache of replies: another name would ask every judge anew.
    kind, _, model = name.partition("/")
    if kind == "ollama":
        origin = ollama_origin(environment.get("OLLAMA_HOST", ""))
        backend: Backend = OllamaBackend(origin, model, settings)
        identity = {"wire": kind, "model": model, "digest": _ollama_digest(origin, model, settings), "at": origin}
        return HttpJudge(name, identity, backend, settings)
    base_url = _checked_url(environment.get("OPENAI_BASE_URL") or OPENAI_BASE_URL, "OPENAI_BASE_URL")
    key = environment.get("OPENAI_API_KEY") or None
    if key is None and base_url == OPENAI_BASE_URL:
        raise ConfigError(
            f"judge {name}: OPENAI_API_KEY is not set. Export your key, or point OPENAI_BASE_URL at another server"
        )
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError("OPENAI_API_KEY: holds characters that no key has, such as a line end")
    identity = {"wire": kind, "model": model, "at": base_url}
    return openai_judge(name, base_url, identity, settings, model=model, key=key, notify=notify)


def openai_judge(
    name: str,
    base_url: str,
    identity: Mapping[str, Any],
    settings: JudgeConfig,
    *,
    model: str,
    key: str | None = None,
    notify: Callable[[str], None] = lambda sentence: None,
) -> HttpJudge:
    """The judge `model` of a server at `base_url` that speaks OpenAI's protocol."""
    return HttpJudge(name, identity, OpenAIBackend(base_url, model, settings), settings, key, notify=notify)


def ollama_origin(host: str) -> str:
    """The address that OLLAMA_HOST means: `host`, `host:port`, `:port` or a URL, with Ollama's own defaults.

    A server that listens on all addresses is reached at 127.0.0.1.
    """
    host = host.strip()
    if not host:
        return OLLAMA_HOST
    scheme, given, rest = host.rpartition("://")
    rest, scheme = rest.strip("/"), scheme if given else "http"
    if rest.startswith(":"):
        rest = "127.0.0.1" + rest
    url = _checked_url(f"{scheme}://{rest}", "OLLAMA_HOST")
    parts = urlsplit(url)
    name = "127.0.0.1" if parts.hostname in ("0.0.0.0", "::") else parts.hostname
    assert name is not None
    port = parts.port or ({"http": 80, "https": 443}[scheme] if given else 11434)
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


def ollama_version(host: str, seconds: float = 1.0) -> tuple[str, str | None]:
    """The address that OLLAMA_HOST means, and the version of the server that answers there within `seconds`; None for none."""
    origin = ollama_origin(host)
    try:
        reply = httpx2.get(f"{origin}/api/version", timeout=seconds, trust_env=False)
        return origin, str(reply.raise_for_status().json()["version"])
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return origin, None


def _checked_url(url: str, variable: str) -> str:
    """`url` without a slash at its end; ConfigError where it is not a plain http(s) address."""
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        port = parts.port
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        raise ConfigError(f"{variable}: not an address; expected such as http://127.0.0.1:8000/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"{variable}: not an http(s) address; expected such as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or "\\" in url or parts.query or parts.fragment:
        raise ConfigError(
            f"{variable}: an address holds no user, password, query or backslash; a key goes into OPENAI_API_KEY"
        )
    return url


def _ollama_digest(origin: str, model: str, settings: JudgeConfig) -> str:
    """The digest of `model` at Ollama: the same name may mean other weights tomorrow."""

    async def tags() -> bytes:
        async with _client() as client, client.stream("GET", f"{origin}/api/tags") as response:
            content = await _read_body(response)
            _check_status(response, content)
            return content

    try:
        content = _completed(asyncio.wait_for(tags(), settings.timeout_seconds))
        models = json_object(content).get("models")
    except asyncio.TimeoutError:
        raise JudgeError(f"Ollama at {origin} did not reply within {settings.timeout_seconds:g} s") from None
    except (NoReplyError, httpx2.HTTPError, httpx2.StreamError) as error:
        raise JudgeError(
            f"Ollama is not to be reached at {origin} ({shortened(str(error)) or type(error).__name__}). Start it with "
            "`ollama serve`, or say where it is: OLLAMA_HOST=host:port"
        ) from None
    found = [one for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    for one in found:
        if same_model(one.get("name"), model):
            return str(one.get("digest"))
    names = ", ".join(sorted(str(one.get("name")) for one in found)[:8]) or "none"
    raise JudgeError(f"Ollama at {origin} does not have the model {model}: `ollama pull {model}` (it has: {names})")


def _client(key: str | None = None) -> httpx2.AsyncClient:
    """A connection pool without timeouts of its own, without redirects, and without proxies of the environment."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "tuneful"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(headers=headers, timeout=None, follow_redirects=False, trust_env=False)


def _completed(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, also where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _read_body(response: httpx2.Response) -> bytes:
    """The body as it came, at most _MAX_REPLY_BYTES; compression was not accepted, so none is undone."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise NoReplyError(f"the reply is compressed ({shortened(encoding)}), which was not accepted", retry=True)
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _MAX_REPLY_BYTES:
            raise NoReplyError(f"the reply is over {_MAX_REPLY_BYTES >> 20} MiB long", retry=True)
    return bytes(content)


def _check_status(response: httpx2.Response, content: bytes, *, sent: Collection[str] = ()) -> None:
    status = response.status_code
    if status == 200:
        return
    if 300 <= status < 400:
        to = urlsplit(response.headers.get("location", "")).netloc or "another path"
        raise NoReplyError(
            f"HTTP {status}: a redirect to {shortened(to)} is not followed; name the right address", retry=False
        )
    message = _error_message(content)
    raise NoReplyError(
        f"HTTP {status}" + (f": {message}" if message else ""),
        retry=status in RETRYABLE_STATUS,
        wait_seconds=_retry_after(response.headers.get("retry-after")),
        refused=refused_parameter(content, sent) if status in _OF_THE_REQUEST else None,
        final=status in (413, *_OF_THE_REQUEST),
    )


def _error_message(content: bytes) -> str:
    try:
        error = json_object(content).get("error")
    except NoReplyError:
        return ""
    return shortened(error.get("message") if isinstance(error, dict) else error)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None where it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _wait_seconds(error: NoReplyError, tries: int, settings: JudgeConfig) -> float | None:
    """How long to wait before the next try; None where the server asks for longer than a try may take."""
    if error.wait_seconds is not None:
        return error.wait_seconds if error.wait_seconds <= settings.timeout_seconds else None
    doubled: float = settings.backoff_seconds * 2 ** (tries - 1)
    return min(_MAX_WAIT_SECONDS, doubled) * random.uniform(0.5, 1.0)
