"""Names become askers: the judge's names, and those of models whose answers are sampled.

Stands over the askers. What imports torch is imported where a model in this process is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tuneful.config import Config
from tuneful.errors import ConfigError
from tuneful.judge.client import HttpJudge, Judge
from tuneful.judge.local import GgufJudge, open_judge, resolve_settings
from tuneful.synthesize.asking import Asker, Role, ServerAsker
from tuneful.synthesize.completions import completing
from tuneful.synthesize.request import Request

_NEVER = 1 << 60


def open_askers(request: Request, config: Config, notify: Callable[[str], None]) -> dict[Role, Asker]:
    """Everybody who is asked, by role; who has two roles under one name is opened once."""
    askers: dict[Role, Asker] = {}
    by_name: dict[str, Asker] = {}

    def opened(name: str, *, continues: bool = False) -> Asker:
        if name not in by_name:
            by_name[name] = open_asker(name, config, notify, continues=continues)
        return by_name[name]

    if request.model is not None:
        if request.model.startswith(("ollama/", "openai/", "gguf:")):
            askers["model"] = opened(request.model)
        else:
            from tuneful.synthesize.in_process import load_own_model

            assert request.temperature is not None
            askers["model"] = load_own_model(request.model, config, request.temperature, notify)
    if request.teacher is not None:
        askers["teacher"] = opened(request.teacher, continues=request.from_empty_turn)
    if request.judge is not None:
        askers["judge"] = opened(request.judge)
    if request.max_tokens is not None and any(asker.max_tokens is None for asker in askers.values()):
        raise ConfigError("--max-tokens needs a limit on each reply, which judge.max_tokens=none takes away")
    return askers


def _without_breaker(judge: Judge) -> Judge:
    """`judge` without its own limit on failures at the beginning: `_InARow` counts them wherever they come."""
    if isinstance(judge, GgufJudge):
        return replace(judge, client=replace(judge.client, give_up_after=_NEVER))
    return replace(judge, give_up_after=_NEVER) if isinstance(judge, HttpJudge) else judge


def open_asker(name: str, config: Config, notify: Callable[[str], None], *, continues: bool = False) -> Asker:
    """Whoever `name` means: `ollama/NAME`, `openai/MODEL`, `gguf:FILE`, `model:FOLDER`.

    With `continues` it is also asked to continue texts. Raises ConfigError, ModelError, or JudgeError where it cannot be reached.
    """
    settings = resolve_settings(config.judge.model_copy(update={"model": name}))
    if name.startswith("model:"):
        from tuneful.judge.run import loaded_model
        from tuneful.synthesize.in_process import ModelAsker  # which imports torch

        folder = name.removeprefix("model:")
        digest, loaded = loaded_model(folder, config.model_copy(update={"judge": settings}), notify)
        return ModelAsker.of(name, digest, loaded, settings.seed or 0)
    judge = _without_breaker(open_judge(settings, _no_model, notify))
    if not continues:
        return ServerAsker(judge, settings.max_tokens)
    return ServerAsker(judge, settings.max_tokens, completing(judge))


def _no_model(folder: str) -> Any:
    raise AssertionError(f"{folder} is loaded by open_asker")
