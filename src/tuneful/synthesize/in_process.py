"""A model in this process is asked: groups of requests, each with a seed and a temperature of its own.

Stands over `infer/`. An answer depends on its own prompt, its seed and, by rounding in bfloat16, on what is computed beside it;
groups are of a fixed size and order, so that the last is the same every time too.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneful.infer.generate import Generated, generate, new_text, stop_token_ids
from tuneful.infer.session import LoadedModel
from tuneful.infer.text import AnswerText
from tuneful.judge.client import AskResult, NoReply, Reply
from tuneful.judge.questions import Question
from tuneful.model.load import context_length, fingerprint
from tuneful.model.saved_template import with_saved_template
from tuneful.synthesize.asking import Ask, OnResults
from tuneful.types import Conversation, Turn

if TYPE_CHECKING:
    from tuneful.config import Config

_GROUP = 64
"""Requests that are answered together and kept together."""


@dataclass(frozen=True, slots=True)
class ModelAsker:
    """A loaded model under its own template; `seed` is that of requests which have none of their own, such as a judge's."""

    name: str
    identity: Mapping[str, Any]
    loaded: LoadedModel
    seed: int = 0

    @classmethod
    def of(cls, name: str, digest: str, loaded: LoadedModel, seed: int = 0) -> ModelAsker:
        """The model whose folder has the fingerprint `digest`."""
        settings = loaded.config.generate.model_dump(mode="json", exclude={"batch_size"})
        template = loaded.encoder.text.fingerprint
        dtype = str(next(loaded.model.parameters()).dtype)
        identity = {"wire": "model", "sha256": digest, "template": template, "dtype": dtype, **settings}
        return cls(name, identity, loaded, seed)

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of a reply."""
        return self.loaded.config.generate.max_new_tokens

    def ask_all(self, asks: Sequence[Ask], on_results: OnResults) -> None:
        """Ask everything, in order, a group at a time."""
        for start in range(0, len(asks), _GROUP):
            results = self._answered(asks[start : start + _GROUP])
            on_results([(start + index, result) for index, result in enumerate(results)])

    def _answered(self, asks: Sequence[Ask]) -> list[AskResult]:
        prompts = [self._prompt(ask) for ask in asks]
        room = context_length(self.loaded.model)
        results: list[AskResult] = [
            NoReply(f"the prompt has {len(prompt)} tokens; the model's context holds {room}", final=True)
            for prompt in prompts
        ]
        fitting = [number for number, prompt in enumerate(prompts) if len(prompt) < room]
        kinds = [(self._temperature(asks[number]), asks[number].continues) for number in fitting]
        for kind in sorted(set(kinds)):
            own = [number for number, one in zip(fitting, kinds, strict=True) if one == kind]
            for number, generated in self._generated(asks, prompts, own, *kind):
                results[number] = self._result(len(prompts[number]), generated)
        return results

    def _temperature(self, ask: Ask) -> float:
        """That of the request, or of the settings."""
        own = ask.question.temperature
        return self.loaded.config.generate.temperature if own is None else own

    def _generated(
        self, asks: Sequence[Ask], prompts: Sequence[list[int]], own: Sequence[int], temperature: float, continues: bool
    ) -> list[tuple[int, Generated]]:
        """What is generated for the requests with these numbers, each with its number."""
        loaded = self.loaded
        greedy = {} if temperature else {"top_k": None, "top_p": 1.0, "min_p": 0.0}
        config = loaded.config.generate.model_copy(update={"temperature": temperature, **greedy})
        stops = stop_token_ids(loaded.model, loaded.encoder)
        stop_texts = config.stop
        if continues:
            _, token_ids, own_texts = opening_of(loaded)
            stops, stop_texts = stops | token_ids, (*own_texts, *stop_texts)

        def text() -> AnswerText:
            decode = loaded.encoder.text.decode
            return AnswerText(decode, stop_texts) if continues else new_text(loaded.encoder, config)

        found = generate(
            loaded.model,
            [prompts[number] for number in own],
            config,
            stops,
            seed=0,
            numbers=[self.seed if (seed := asks[number].question.seed) is None else seed for number in own],
            new_text=text,
        )
        return [(own[index], generated) for index, generated in found]

    def _prompt(self, ask: Ask) -> list[int]:
        encoder = self.loaded.encoder
        if ask.continues:
            return encoder.text.rendered_ids(ask.question.user)
        return encoder.prompt_ids(ask.record or _conversation(ask.question))

    def _result(self, num_prompt_tokens: int, generated: Generated) -> AskResult:
        if generated.finish_reason != "stop":
            return NoReply(f"the reply was cut at {len(generated.token_ids)} tokens", final=True)
        return Reply(generated.text, num_prompt_tokens, len(generated.token_ids))


def load_own_model(name: str, config: Config, temperature: float, notify: Callable[[str], None]) -> ModelAsker:
    """The user's own model `name`, as `tuneful generate` loads it: its template, and the settings of `generate.*`."""
    generate_config = config.generate.model_copy(update={"temperature": temperature})
    model = config.model.model_copy(update={"name_or_path": name})
    own = with_saved_template(config.model_copy(update={"generate": generate_config, "model": model}))
    from tuneful.infer.session import load_to_answer

    pretrained = load_to_answer(own, notify)
    return ModelAsker.of(name, fingerprint(pretrained.folder), LoadedModel.of(pretrained, own, notify))


def opening_of(loaded: LoadedModel) -> tuple[str, set[int], tuple[str, ...]]:
    """What stands before a user's text in a prompt; the ids of tokens and the texts that end a user's text."""
    text = loaded.encoder.text
    place = f"Place{secrets.token_hex(8)}"  # a text that no template holds
    opening, _, rest = loaded.encoder.prompt_text(_conversation(Question("", place, "", None))).partition(place)
    behind = rest.lstrip()
    token_ids = {index for index, content in text.control_token_ids.items() if content and behind.startswith(content)}
    line = behind.partition("\n")[0].strip()
    return opening, token_ids, () if token_ids or not line else (line,)


def _conversation(question: Question) -> Conversation:
    # The response stands for the one that is asked for: a prompt is rendered without it.
    earlier = [Turn(asked, "", answered) for asked, answered in question.earlier]
    return Conversation(question.system, (*earlier, Turn(question.user, "", "?")), "the request")
