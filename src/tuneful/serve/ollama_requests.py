"""What Ollama's clients send: the keys that are obeyed, and those that are refused in words. Unknown keys are ignored.

Go clients send every key, as null or empty: that is the same as leaving it out. Options are taken from `options` and, as the
book's own client sends them, from the top of the body.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tuneful.serve.prompts import RequestError
from tuneful.serve.sampling import Sampling


class Options(BaseModel):
    """`options`."""

    model_config = ConfigDict(extra="ignore")

    temperature: float | None = Field(None, ge=0, le=1e6, allow_inf_nan=False)
    top_k: int | None = None
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    num_predict: int | None = None
    num_ctx: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    repeat_penalty: float | None = Field(None, ge=0.01, le=100, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(
            max_tokens=self.num_predict,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=self.stop,
            seed=self.seed,
        )


class NamedModel(BaseModel):
    """A body that names a model, as `model` or by the older `name`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str = ""
    name: str = ""
    stream: bool | None = None

    @property
    def wanted(self) -> str:
        """The model's name."""
        if not (self.model or self.name):
            raise RequestError("model is required", "model")
        return self.model or self.name


class _Asking(NamedModel):
    options: Options = Field(default_factory=Options)
    format: Any = None
    keep_alive: Any = None
    think: Any = None

    @model_validator(mode="before")
    @classmethod
    def _options_may_stand_at_the_top(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        at_the_top = {key: values[key] for key in Options.model_fields if values.get(key) is not None}
        options = values.get("options")
        if options is not None and not isinstance(options, dict):
            return values
        return {**values, "options": {**at_the_top, **(options or {})}}

    def check(self) -> None:
        """Raise RequestError for what is not done."""
        if self.format not in (None, "", {}):
            raise RequestError(
                "format is not done here: answers are not held to JSON. Ask for it in the message", "format"
            )
        if self.think not in (None, False, ""):
            raise RequestError(f"{self.wanted!r} does not support thinking", "think")


class ChatRequest(_Asking):
    """The body of /api/chat."""

    messages: list[Any] | None = None


class GenerateRequest(_Asking):
    """The body of /api/generate."""

    prompt: str | None = None
    system: str | None = None
    template: str | None = None
    suffix: str | None = None
    raw: bool | None = None
    context: list[int] | None = None
    images: list[Any] | None = None

    def check(self) -> None:
        """Raise RequestError for what is not done."""
        super().check()
        if self.images:
            raise RequestError("this model reads text alone; leave the images out", "images")
        if self.suffix:
            raise RequestError(f"{self.wanted!r} does not support insert (suffix)", "suffix")
        if self.template:
            raise RequestError(
                "the template is the one that the model was trained with; for another, render the prompt and send it raw",
                "template",
            )
        if self.context:
            raise RequestError("context is not kept here; send the messages to /api/chat", "context")
        if self.raw and self.system:
            raise RequestError("raw takes the prompt as it stands; write the system text into it", "system")
