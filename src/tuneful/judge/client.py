"""Questions go to a judge over HTTP, and whole replies come back: the only room that opens a connection for judging.

Two wires: Ollama's own `/api/chat`, a stream of JSON lines, and OpenAI's `/chat/completions`, which OpenAI, vLLM,
llama.cpp and LM Studio speak. A reply counts only when the server says that it is whole: `done` on the last line of the
one, `finish_reason` "stop" on the other. Anything else is a reason why there is no reply, never a piece of one.

    Question -> wire.body -> POST, under one deadline -> bytes, capped -> wire.read -> Reply | NoReply

What may pass is tried again, with jittered and doubling waits or the server's own Retry-After. Redirects are not
followed, environment proxies not used, compression not accepted, and the key goes to the configured address only and is
blacked out of everything that a server says.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2

from tuneful.config import JudgeConfig
from tuneful.errors import ConfigError, JudgeError

T = TypeVar("T")

OLLAMA_HOST = "http://127.0.0.1:11434"
OPENAI_BASE_URL = "https://api.openai.com/v1"

_MAX_REPLY_BYTES = 1 << 20
_MAX_WAIT_SECONDS = 60.0
_GIVE_UP_AFTER = 8  # questions in a row that got no reply, before there was any
RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MIN_WINDOW_TOKENS = 256
_MIN_KEY_LENGTH = 8
_MAX_BYTES_PER_TOKEN = 8.0  # of any tokenizer, over a whole prompt


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked: a system text, a user text, the code `nonce` of its item, and the JSON schema of a reply.

    `schema` is None where a plain reply is wanted.
    """

    system: str
    user: str
    nonce: str
    schema: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Reply:
    """All that a judge said to one question; the server vouched that nothing is missing."""

    text: str


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why a question has no reply."""

    reason: str


Outcome = Reply | NoReply
OnResult = Callable[[int, Outcome], None]
"""Told of the outcome of question `index`, once each, in any order."""


class Judge(Protocol):
    """Who can be asked. `identity` is everything about the judge that could change a reply; it holds no secret."""

    @property
    def name(self) -> str:
        """As the user wrote it: `ollama/llama3`."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the judge is, for the cache."""

    def ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        """Ask everything; `on_result` is told of each outcome as it comes."""


class Backend(Protocol):
    """A server's way of speaking: where to post, what, and how to read the bytes that come back."""

    @property
    def url(self) -> str:
        """Where questions are posted."""

    def body(self, question: Question) -> dict[str, Any]:
        """The request that asks `question`."""

    def read(self, content: bytes, question: Question) -> str:
        """The whole reply in the bytes of a 200; raises _NoReplyError where it is not whole."""


class _NoReplyError(Exception):
    """No reply this time: why, whether to try `again`, and how long the server asked to wait."""

    def __init__(self, reason: str, *, again: bool, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait_seconds = reason, again, wait_seconds


@dataclass(frozen=True, slots=True)
class OllamaBackend:
    """`POST /api/chat` of the server at `origin`, streamed; `truncate` is off, so a prompt too long is an error."""

    origin: str
    model: str
    settings: JudgeConfig

    @property
    def url(self) -> str:
        """Where questions are posted."""
        return f"{self.origin}/api/chat"

    def body(self, question: Question) -> dict[str, Any]:
        """The request that asks `question`."""
        settings = self.settings
        options: dict[str, Any] = {"num_ctx": settings.num_ctx, "num_predict": settings.max_tokens}
        if settings.seed is not None:
            options["seed"] = settings.seed
        if settings.temperature is not None:
            options["temperature"] = settings.temperature
        body = {
            "model": self.model,
            "messages": _messages(question),
            "stream": True,
            "truncate": False,
            "keep_alive": settings.keep_alive,
            "options": options,
        }
        return body if question.schema is None else {**body, "format": question.schema}

    def read(self, content: bytes, question: Question) -> str:
        """The reply in a stream of JSON lines: all contents, if the last line alone says `done`."""
        pieces: list[str] = []
        last: Mapping[str, Any] = {}
        for line in _lines(content):
            if last.get("done"):
                raise _NoReplyError("the stream goes on after its end", again=True)
            last = _parsed(line)
            if "error" in last:
                raise _NoReplyError(f"the server gave up: {_short(last['error'])}", again=True)
            if not _same_model(last.get("model"), self.model):
                raise _NoReplyError(f"another model replied: {_short(last.get('model'))}", again=True)
            if not isinstance(last.get("done"), bool):
                raise _NoReplyError("a line of the stream does not say whether it is the last", again=True)
            pieces.append(_content(last.get("message")))
        if not last.get("done"):
            raise _NoReplyError("the stream was cut before its end", again=True)
        _check_ending(last.get("done_reason", "stop"), self.settings.max_tokens)
        if last.get("eval_count") == self.settings.max_tokens and "done_reason" not in last:
            raise _NoReplyError(f"the reply was cut at judge.max_tokens={self.settings.max_tokens}", again=False)
        _check_read_whole(last.get("prompt_eval_count"), question)
        return "".join(pieces)


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

    def body(self, question: Question) -> dict[str, Any]:
        """The request that asks `question`."""
        settings = self.settings
        at_openai = urlsplit(self.base_url).hostname == "api.openai.com"
        body: dict[str, Any] = {
            "model": self.model,
            "messages": _messages(question),
            # Newer models of OpenAI's know the longer name only, other servers the shorter one.
            "max_completion_tokens" if at_openai else "max_tokens": settings.max_tokens,
        }
        if settings.seed is not None:
            body["seed"] = settings.seed
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if question.schema is not None:
            schema = {"name": "verdict", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def read(self, content: bytes, question: Question) -> str:
        """The reply in one JSON object: the content of its one choice, if that ended by itself."""
        reply = _parsed(content)
        if "error" in reply:
            raise _NoReplyError(f"the server gave up: {_short(reply['error'])}", again=True)
        choices = reply.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise _NoReplyError("not a reply with one choice", again=True)
        text = _content(choices[0].get("message"))
        _check_ending(choices[0].get("finish_reason"), self.settings.max_tokens)
        usage = reply.get("usage")
        _check_read_whole(usage.get("prompt_tokens") if isinstance(usage, dict) else None, question)
        return text


@dataclass(frozen=True, slots=True)
class HttpJudge:
    """A judge behind a wire. `key` is sent as a bearer token to the wire's address, and shown nowhere."""

    name: str
    identity: Mapping[str, Any]
    wire: Backend
    settings: JudgeConfig
    key: str | None = field(default=None, repr=False)
    give_up_after: int = _GIVE_UP_AFTER

    def ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        """Ask everything, `judge.concurrency` at a time; `on_result` is told of each outcome as it comes.

        Where the first `give_up_after` questions all end without a reply, the rest is not asked.
        """
        if questions:
            _completed(self._ask_all(questions, on_result))

    async def _ask_all(self, questions: Sequence[Question], on_result: OnResult) -> None:
        waiting: Iterator[tuple[int, Question]] = iter(enumerate(questions))
        tally = _Tally(self.give_up_after)

        async def work(client: httpx2.AsyncClient) -> None:
            for index, question in waiting:
                outcome = tally.circuit_open() or await self._ask(client, question)
                tally.count(outcome)
                on_result(index, outcome)

        async with _client(self.key) as client:
            workers = [asyncio.create_task(work(client)) for _ in range(min(self.settings.concurrency, len(questions)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _ask(self, client: httpx2.AsyncClient, question: Question) -> Outcome:
        """The reply to one question, or the last reason why there is none; each try has `judge.timeout_seconds`."""
        settings, tries = self.settings, 0
        while True:
            tries += 1
            try:
                text = await asyncio.wait_for(self._try(client, question), settings.timeout_seconds)
                return Reply(self._redacted(text))
            except asyncio.TimeoutError:
                fault = _NoReplyError(f"no whole reply within {settings.timeout_seconds:g} s", again=True)
            except _NoReplyError as raised:
                fault = raised
            wait = _wait_seconds(fault, tries, settings)
            if not fault.again or tries > settings.max_retries or wait is None:
                tried = f" ({tries} tries)" if tries > 1 else ""
                return NoReply(self._redacted(fault.reason) + tried)
            await asyncio.sleep(wait)

    async def _try(self, client: httpx2.AsyncClient, question: Question) -> str:
        try:
            async with client.stream("POST", self.wire.url, json=self.wire.body(question)) as response:
                content = await _read_body(response)
                _check_status(response, content)
        except httpx2.TransportError as error:
            raise _NoReplyError(
                f"the connection failed: {type(error).__name__}: {_short(str(error))}", again=True
            ) from None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            raise _NoReplyError(
                f"the server broke HTTP: {type(error).__name__}: {_short(str(error))}", again=True
            ) from None
        return self.wire.read(content, question)

    def _redacted(self, text: str) -> str:
        """`text` without the key; what is shorter than a secret, such as `EMPTY`, is a word."""
        return text.replace(self.key, "[key]") if self.key and len(self.key) >= _MIN_KEY_LENGTH else text


class _Tally:
    """Whether there is any sense in asking on: not after `give_up_after` failures without one reply."""

    def __init__(self, give_up_after: int) -> None:
        self._give_up_after, self._num_failures, self._answered, self._reason = give_up_after, 0, False, ""

    def count(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reply):
            self._answered = True
        else:
            self._num_failures, self._reason = self._num_failures + 1, self._reason or outcome.reason

    def circuit_open(self) -> NoReply | None:
        if self._answered or self._num_failures < self._give_up_after:
            return None
        return NoReply(f"not asked: the first {self._give_up_after} questions got no reply; {self._reason}")


def open_http_judge(name: str, settings: JudgeConfig, environment: Mapping[str, str] = os.environ) -> HttpJudge:
    """The judge that `name` means: `ollama/MODEL` or `openai/MODEL`, where `environment` says that it lives.

    Reads OLLAMA_HOST, or OPENAI_BASE_URL and OPENAI_API_KEY. Ollama is asked which build of the model it holds. Raises
    ConfigError for an address that is none, JudgeError where Ollama is not there or does not have the model.
    """
    kind, _, model = name.partition("/")
    if kind == "ollama":
        origin = ollama_origin(environment.get("OLLAMA_HOST", ""))
        wire: Backend = OllamaBackend(origin, model, settings)
        identity = {"wire": kind, "model": model, "digest": _ollama_digest(origin, model, settings), "at": origin}
        return HttpJudge(name, identity, wire, settings)
    base_url = _checked_url(environment.get("OPENAI_BASE_URL") or OPENAI_BASE_URL, "OPENAI_BASE_URL")
    key = environment.get("OPENAI_API_KEY") or None
    if key is None and base_url == OPENAI_BASE_URL:
        raise ConfigError(
            f"judge {name}: OPENAI_API_KEY is not set. Export your key, or point OPENAI_BASE_URL at another server"
        )
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError("OPENAI_API_KEY: holds characters that no key has, such as a line end")
    return openai_judge(name, base_url, {"wire": kind, "model": model, "at": base_url}, settings, model=model, key=key)


def openai_judge(
    name: str, base_url: str, identity: Mapping[str, Any], settings: JudgeConfig, *, model: str, key: str | None = None
) -> HttpJudge:
    """The judge `model` at `base_url`, which speaks as OpenAI does."""
    return HttpJudge(name, identity, OpenAIBackend(base_url, model, settings), settings, key)


def ollama_origin(host: str) -> str:
    """The address that OLLAMA_HOST means: `host`, `host:port`, `:port` or a URL, with Ollama's own defaults.

    A server that listens on all addresses is called at 127.0.0.1.
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


def _checked_url(url: str, variable: str) -> str:
    """`url` without a slash at its end; ConfigError where it is no plain http(s) address."""
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
        models = _parsed(content).get("models")
    except asyncio.TimeoutError:
        raise JudgeError(f"Ollama at {origin} says nothing for {settings.timeout_seconds:g} s") from None
    except (_NoReplyError, httpx2.HTTPError, httpx2.StreamError) as error:
        raise JudgeError(
            f"Ollama is not to be reached at {origin} ({_short(str(error)) or type(error).__name__}). Start it with "
            "`ollama serve`, or say where it is: OLLAMA_HOST=host:port"
        ) from None
    found = [one for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    for one in found:
        if _same_model(one.get("name"), model):
            return str(one.get("digest"))
    names = ", ".join(sorted(str(one.get("name")) for one in found)[:8]) or "none"
    raise JudgeError(f"Ollama at {origin} does not have the model {model}: `ollama pull {model}` (it has: {names})")


def _client(key: str | None = None) -> httpx2.AsyncClient:
    """A connection pool that waits for nobody but us, follows nobody, and asks the environment nothing."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "tuneful"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(headers=headers, timeout=None, follow_redirects=False, trust_env=False)


def _completed(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(asyncio.run, work).result()


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "system", "content": question.system}, {"role": "user", "content": question.user}]


async def _read_body(response: httpx2.Response) -> bytes:
    """The body as it came, at most _MAX_REPLY_BYTES; compression was not accepted, so none is undone."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _NoReplyError(f"the reply is compressed ({_short(encoding)}), which was not accepted", again=True)
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _MAX_REPLY_BYTES:
            raise _NoReplyError(f"the reply is over {_MAX_REPLY_BYTES >> 20} MiB long", again=True)
    return bytes(content)


def _check_status(response: httpx2.Response, content: bytes) -> None:
    status = response.status_code
    if status == 200:
        return
    if 300 <= status < 400:
        to = urlsplit(response.headers.get("location", "")).netloc or "another path"
        raise _NoReplyError(
            f"HTTP {status}: a redirect to {_short(to)} is not followed; name the right address", again=False
        )
    said = _error_message(content)
    raise _NoReplyError(
        f"HTTP {status}" + (f": {said}" if said else ""),
        again=status in RETRYABLE_STATUS,
        wait_seconds=_retry_after(response.headers.get("retry-after")),
    )


def _error_message(content: bytes) -> str:
    try:
        error = _parsed(content).get("error")
    except _NoReplyError:
        return ""
    return _short(error.get("message") if isinstance(error, dict) else error)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None where it says nothing sensible."""
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


def _wait_seconds(fault: _NoReplyError, tries: int, settings: JudgeConfig) -> float | None:
    """How long to wait before the next try; None where the server asks for longer than anybody waits."""
    if fault.wait_seconds is not None:
        return fault.wait_seconds if fault.wait_seconds <= settings.timeout_seconds else None
    doubled: float = settings.backoff_seconds * 2 ** (tries - 1)
    return min(_MAX_WAIT_SECONDS, doubled) * random.uniform(0.5, 1.0)


def _lines(content: bytes) -> Iterator[bytes]:
    return (line for line in content.split(b"\n") if line.strip())


def _parsed(content: bytes) -> Mapping[str, Any]:
    """The JSON object that `content` is."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        shown = content[:40].decode("utf-8", "replace").strip()
        raise _NoReplyError(f"not JSON: {_short(shown) if shown else 'nothing was said'}", again=True) from None
    if not isinstance(value, dict):
        raise _NoReplyError(f"a {type(value).__name__} where an object was expected", again=True)
    return value


def _content(message: Any) -> str:
    """The text of an assistant's message."""
    if not isinstance(message, dict) or message.get("role", "assistant") != "assistant":
        raise _NoReplyError("no message of the assistant's", again=True)
    content = message.get("content")
    if not isinstance(content, str):
        refusal = message.get("refusal")
        raise _NoReplyError(
            f"the judge refuses: {_short(refusal)}" if refusal else "a message without text", again=not refusal
        )
    return content


def _check_ending(reason: Any, max_tokens: int) -> None:
    if reason == "length":
        raise _NoReplyError(f"the reply was cut at judge.max_tokens={max_tokens}", again=False)
    if reason != "stop":
        raise _NoReplyError(f"the reply ended by {_short(reason)}", again=True)


def _check_read_whole(num_tokens: Any, question: Question) -> None:
    """A server that cut the prompt without a word read far fewer tokens than its bytes can be."""
    num_bytes = len(question.system.encode()) + len(question.user.encode())
    if not isinstance(num_tokens, int) or num_tokens < _MIN_WINDOW_TOKENS:
        return
    if num_tokens * _MAX_BYTES_PER_TOKEN < num_bytes:
        raise _NoReplyError(f"the judge read only {num_tokens} tokens of a prompt of {num_bytes:,} bytes", again=False)


def _same_model(given: Any, wanted: str) -> bool:
    return isinstance(given, str) and given.removesuffix(":latest") == wanted.removesuffix(":latest")


def _short(value: Any, length: int = 160) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
