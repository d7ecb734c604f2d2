"""What OpenAI's clients send: the keys that are obeyed, and those that are refused in words. Unknown keys are ignored."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tuneful.serve.limits import Limits
from tuneful.serve.prompts import RequestError
from tuneful.serve.sampling import Sampling

DEFAULT_COMPLETION_TOKENS = 16
"""Of /v1/completions, by OpenAI's definition."""


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool | None = None


class _Request(BaseModel):
    """What the two ways of asking have in common."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = Field(None, ge=0, le=1e6, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = Field(None, ge=0)

    def sampling(self, num_logprobs: int | None, max_tokens: int | None) -> Sampling:
        """How tokens are chosen."""
        if self.logit_bias:
            raise RequestError("logit_bias is not done here; leave it out", "logit_bias")
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=self.stop,
            seed=self.seed,
            num_logprobs=num_logprobs,
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Request):
    """The body of /v1/chat/completions."""

    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    response_format: Any = None
    tool_choice: Any = None
    function_call: Any = None
    modalities: list[str] | None = None

    def check(self, limits: Limits) -> None:
        """Raise RequestError for what is not done."""
        kind = self.response_format.get("type") if isinstance(self.response_format, dict) else self.response_format
        if kind not in (None, "text"):
            raise RequestError(
                f"response_format {kind!r} is not done here: answers are not held to a format. Ask for it in the message, or "
                'leave it out ({"type": "text"})',
                "response_format",
            )
        for name, choice in (("tool_choice", self.tool_choice), ("function_call", self.function_call)):
            if wants_a_call(choice):
                raise RequestError(
                    f"{name} demands a call, and the model calls no tools. With `auto` it answers in text", name
                )
        if self.modalities and self.modalities != ["text"]:
            raise RequestError("this model answers in text alone", "modalities")
        if (self.top_logprobs or 0) > limits.max_logprobs:
            raise RequestError(f"top_logprobs: at most {limits.max_logprobs}", "top_logprobs")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs goes with logprobs: true", "top_logprobs")

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are wanted beside each; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """`max_completion_tokens`, or by its older name `max_tokens`."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def wants_a_call(choice: Any) -> bool:
    """Whether a `tool_choice` leaves the model no answer in text. Tools that it may call or not are offered by clients unasked,
    and calling none is an answer."""
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        choice = allowed.get("mode") if isinstance(allowed, dict) else allowed
    return choice not in (None, "", "none", "auto")


class CompletionRequest(_Request):
    """The body of /v1/completions."""

    prompt: str | list[int] | list[str | list[int]] = ""
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)
    suffix: str | None = None
    best_of: int | None = None

    def check(self, limits: Limits) -> None:
        """Raise RequestError for what is not done."""
        if self.suffix:
            raise RequestError("suffix is not done here: text is continued at its end alone", "suffix")
        if (self.best_of or 1) != 1 and self.best_of != (self.n or 1):
            raise RequestError("best_of is not done here; ask for n answers and choose", "best_of")
        if (self.logprobs or 0) > limits.max_logprobs:
            raise RequestError(f"logprobs: at most {limits.max_logprobs}", "logprobs")

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt: a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise RequestError("prompt is an empty list", "prompt")
        whole = [one for one in self.prompt if not isinstance(one, int)]
        return whole or [[one for one in self.prompt if isinstance(one, int)]]
