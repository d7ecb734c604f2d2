"""The request: the command's options, with their defaults, and none that would be ignored.

Stands at the beginning of this room; `run.py` does what a checked request says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from tuneful.config import Config
from tuneful.errors import ConfigError
from tuneful.synthesize.kinds import KINDS, Kind, Reflect
from tuneful.synthesize.prompts import check_prompts
from tuneful.synthesize.ranking import METRICS

_NUM_ROWS = 100
_TEMPERATURE = 0.8
_SAMPLES_OF_A_PAIR = 4


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, as the command's options say it; `checked` is the request where nothing in it is against the rest.

    Without `teacher` and `judge` the one of `judge.model` is meant.
    """

    kind: Kind
    output: Path
    teacher: str | None = None
    judge: str | None = None
    model: str | None = None
    num: int | None = None
    topics: Path | None = None
    from_empty_turn: bool = False
    empty_turn: str | None = None
    samples: int | None = None
    best_by_judge: bool = False
    rank_by: str | None = None
    min_margin: float | None = None
    reflect: Reflect | None = None
    exclude: tuple[str, ...] = ()
    max_requests: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    prompts: Path | None = None

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The prompts of `prompts.NEEDED` that are asked with."""
        if self.kind == "instructions" and not self.from_empty_turn:
            return ("topic",) if self.topics else ("instructions",)
        if self.kind == "reflections":
            reflected = ("instruction", "response") if self.reflect in (None, "both") else (self.reflect,)
            return tuple(f"{name}-reflection" for name in reflected)
        return ()


def checked(request: Request, config: Config, *, has_data: bool) -> Request:
    """`request` with its defaults; ConfigError where an option would be ignored, or one that is needed is missing."""
    kind = request.kind
    if kind not in KINDS:
        raise ConfigError(f"--kind {kind}: expected one of {', '.join(KINDS)}")
    if kind != "instructions" and not has_data:
        raise ConfigError(f"--kind {kind} works on records: name DATA, or `starter` for the built-in data")
    for name, kinds in _ONLY_FOR.items():
        if getattr(request, name) not in (None, False) and kind not in kinds:
            raise ConfigError(f"{_option(name)} is for --kind {' or '.join(kinds)}; drop it")
    _check_numbers(request)
    if request.output.suffix != ".jsonl":
        raise ConfigError(f"--output {request.output}: rows are written as JSONL; give a name that ends in .jsonl")
    if not request.output.absolute().parent.is_dir():
        raise ConfigError(f"--output {request.output}: its folder does not exist")
    judged = request.best_by_judge or (kind == "pairs" and (request.rank_by or "judge") == "judge")
    if request.judge is not None and not judged:
        raise ConfigError("--judge ranks samples: it goes with --best-by-judge, or with --kind pairs --rank-by judge")
    if kind == "pairs":
        return _checked_pairs(request, config, judged=judged)
    request = replace(request, teacher=request.teacher or config.judge.model)
    if request.teacher is None:
        raise ConfigError("--teacher JUDGE is needed: ollama/NAME, openai/MODEL, gguf:FILE or model:FOLDER")
    if kind == "instructions":
        _check_instructions(request, has_data=has_data)
    if request.prompts is not None:
        check_prompts(request.prompts, request.prompt_names)
    if request.best_by_judge and (request.samples or 1) < 2:
        raise ConfigError("--best-by-judge chooses among several samples: give --samples 2 or more")
    return replace(
        request,
        samples=request.samples or 1,
        judge=(request.judge or request.teacher) if judged else None,
        num=request.num or (_NUM_ROWS if kind == "instructions" else None),
        reflect=request.reflect or "both",
        temperature=_TEMPERATURE if request.temperature is None else request.temperature,
    )


_ONLY_FOR: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "topics": ("instructions",),
        "from_empty_turn": ("instructions",),
        "empty_turn": ("instructions",),
        "samples": ("responses", "pairs"),
        "best_by_judge": ("responses",),
        "model": ("pairs",),
        "rank_by": ("pairs",),
        "min_margin": ("pairs",),
        "reflect": ("reflections",),
        "prompts": ("instructions", "reflections"),
    }
)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_numbers(request: Request) -> None:
    for name, least in (
        ("num", 1),
        ("samples", 1),
        ("max_requests", 1),
        ("max_tokens", 1),
        ("temperature", 0),
        ("min_margin", 0),
    ):
        if (value := getattr(request, name)) is not None and not (math.isfinite(value) and value >= least):
            raise ConfigError(f"{_option(name)} {value}: expected a number of {least} or more")


def _checked_pairs(request: Request, config: Config, *, judged: bool) -> Request:
    rank_by = request.rank_by or "judge"
    if rank_by not in ("judge", *METRICS):
        raise ConfigError(f"--rank-by {rank_by}: expected judge or one of {', '.join(METRICS)}")
    if request.teacher is not None and request.judge is not None:
        raise ConfigError(
            f"--teacher {request.teacher} is not asked where --judge {request.judge} ranks; drop one of them"
        )
    judge = request.judge or request.teacher or config.judge.model
    if judged and judge is None:
        raise ConfigError(
            "--kind pairs is ranked by a judge: give --teacher JUDGE, or --rank-by rouge_l to rank by the records' own answers"
        )
    if not judged and request.teacher is not None:
        raise ConfigError(f"--teacher {request.teacher} is not asked where --rank-by {rank_by} ranks; drop it")
    samples = _SAMPLES_OF_A_PAIR if request.samples is None else request.samples
    if samples < 2:
        raise ConfigError(f"--samples {samples}: a pair takes two samples or more")
    temperature = request.temperature
    if temperature is None:
        temperature = config.generate.temperature or _TEMPERATURE
    if temperature == 0:
        raise ConfigError("--temperature 0 gives the same answer every time, and no pair")
    return replace(
        request,
        rank_by=rank_by,
        judge=judge if judged else None,
        teacher=None,
        model=request.model or config.model.name_or_path,
        samples=samples,
        min_margin=request.min_margin or 0.0,
        temperature=temperature,
    )


def _check_instructions(request: Request, *, has_data: bool) -> None:
    if request.from_empty_turn and (has_data or request.topics):
        raise ConfigError("--from-empty-turn asks the model for tasks out of nothing: leave DATA and --topics out")
    if request.from_empty_turn and request.prompts is not None:
        raise ConfigError("--from-empty-turn asks without a prompt of ours: leave --prompts out")
    if request.empty_turn is not None and not request.from_empty_turn:
        raise ConfigError("--empty-turn goes with --from-empty-turn")
    if not (request.from_empty_turn or has_data or request.topics):
        raise ConfigError("--kind instructions needs DATA (seeds), --topics FILE or --from-empty-turn")
    teacher = request.teacher or ""
    if request.from_empty_turn and request.empty_turn is None and not teacher.startswith("model:"):
        raise ConfigError(
            f"--from-empty-turn with {teacher}: what stands before a user's text is known of model:FOLDER only; give it, such "
            "as --empty-turn '<|im_start|>user\\n' (\\n is a line feed)"
        )
