"""What a request says of sampling becomes settings that hold: those it does not name are the server's own (`generate.*`)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from tuneful.batch.order import derived_seed
from tuneful.config import GenerateConfig
from tuneful.infer.continuous import LiveRow
from tuneful.infer.row import Row
from tuneful.infer.text import AnswerText
from tuneful.serve.limits import Limits
from tuneful.serve.prompts import Prompt, RequestError

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1000
_LEAST_TOP_P, _LEAST_TEMPERATURE = 1e-9, 1e-4
"""0 stands for the likeliest token alone in both protocols, and so does what is as good as 0."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of a request are chosen; `None` for what it does not say.

    `max_tokens` below 0 is as many as there is room for. A `top_k` of 0 or less cuts nothing. Without a `seed`, or with one
    below 0, every request has one of its own.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    num_logprobs: int | None = None

    def config(self, ours: GenerateConfig) -> GenerateConfig:
        """The settings of the answer over the server's own; RequestError for a value out of its range."""
        temperature = ours.temperature if self.temperature is None else self.temperature
        temperature = 0 if temperature < _LEAST_TEMPERATURE else temperature
        values: dict[str, object] = {"temperature": temperature, "stop": self._stops(ours)}
        if temperature != 0:  # where the likeliest token is taken, there is nothing to cut
            top_k = ours.top_k if self.top_k is None else self.top_k if self.top_k > 0 else None
            top_p = ours.top_p if self.top_p is None else max(self.top_p, _LEAST_TOP_P)
            values |= {"top_k": top_k, "top_p": top_p, "min_p": ours.min_p if self.min_p is None else self.min_p}
        if self.repetition_penalty is not None:
            values["repetition_penalty"] = self.repetition_penalty
        else:
            values["repetition_penalty"] = ours.repetition_penalty
        try:
            return GenerateConfig.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else None
            raise RequestError(f"{name}: {first['msg']}", name) from None

    def _stops(self, ours: GenerateConfig) -> tuple[str, ...]:
        given = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(given) > MAX_STOPS:
            raise RequestError(f"stop: {len(given)} texts; at most {MAX_STOPS}", "stop")
        if longest := next((len(stop) for stop in given if len(stop) > MAX_STOP_CHARACTERS), None):
            raise RequestError(f"stop: a text of {longest} characters; at most {MAX_STOP_CHARACTERS}", "stop")
        return (*ours.stop, *(stop for stop in given if stop))

    def num_allowed(self, prompt: Prompt, limits: Limits, default: int) -> int:
        """The most tokens that the answer may have."""
        wanted = default if self.max_tokens is None else self.max_tokens
        return prompt.num_allowed if wanted < 0 else min(wanted, prompt.num_allowed, limits.max_new_tokens)


def rows_of(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    config: GenerateConfig,
    texts: Sequence[AnswerText],
    limits: Limits,
    default_tokens: int,
) -> list[LiveRow]:
    """The rows of a request: as many for each prompt as `texts` has answers for it, numbered through.

    Answer i to a prompt draws as `tuneful generate` does for prompt i of a list, under the request's seed.
    """
    seed = secrets.randbits(31) if sampling.seed is None or sampling.seed < 0 else sampling.seed
    each = len(texts) // len(prompts)
    return [
        LiveRow(
            Row(
                index,
                prompts[index // each].token_ids,
                sampling.num_allowed(prompts[index // each], limits, default_tokens),
                derived_seed(seed, index % each),
                text,
            ),
            config,
            sampling.presence_penalty or 0.0,
            sampling.frequency_penalty or 0.0,
            sampling.num_logprobs,
        )
        for index, text in enumerate(texts)
    ]
