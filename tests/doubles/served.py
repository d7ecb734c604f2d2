"""A server on a free port of this machine, in a thread; and a decoder that says its prompt again, to tell answers apart."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

import torch
from tests.doubles.listening import Listening

from tuneful.config import load_config
from tuneful.serve.app import create_app
from tuneful.serve.models import Models, load_models


def models_of(*names: Any, settings: Sequence[str] = ()) -> Models:
    """The models behind `names`, with the base of each that has one."""
    config = load_config(overrides=[f"model.name_or_path={names[0]}", "model.dtype=float32", *settings])
    return load_models(config, [str(name) for name in names[1:]])


class Server:
    """`models` behind the arguments of `create_app`, listening at `url` inside the context."""

    def __init__(self, models: Models, *arguments: Any, **others: Any) -> None:
        self.app = create_app(models, *arguments, **others)
        self.engine: Any = self.app._app.state.engine
        self._listening = Listening(self.app)
        self.port, self.url = self._listening.port, self._listening.url

    def __enter__(self) -> Server:
        self._listening.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._listening.__exit__(*raised)


class EchoDecoder:
    """Says the prompt of each row again, token by token, and then the token `end`; a step takes `seconds`."""

    attention = "sdpa"

    def __init__(self, max_rows: int, vocabulary: int, end: int, seconds: float = 0.0) -> None:
        self.max_rows, self._vocabulary, self._end, self._seconds = max_rows, vocabulary, end, seconds
        self._rows: list[tuple[list[int], int]] = []
        self.num_steps = 0

    def admits(self) -> bool:
        return True

    def admit(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        self._rows += [(list(prompt), 0) for prompt in prompts]
        return self._said(len(self._rows) - len(prompts))

    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        assert len(token_ids) == len(self._rows)
        for (prompt, said), token_id in zip(self._rows, token_ids, strict=True):
            assert prompt[said] == token_id, "a row was given the token of another"
        self._rows = [(prompt, said + 1) for prompt, said in self._rows]
        return self._said(0)

    def release(self, gone: Collection[int]) -> list[int]:
        order = [at for at in reversed(range(len(self._rows))) if at not in gone]  # any order will do
        self._rows = [self._rows[at] for at in order]
        return order

    def _said(self, start: int) -> torch.Tensor:
        time.sleep(self._seconds)
        self.num_steps += 1
        wanted = [prompt[said] if said < len(prompt) else self._end for prompt, said in self._rows[start:]]
        return torch.nn.functional.one_hot(torch.tensor(wanted), self._vocabulary).float()
