"""Settings with several values become the points of a grid, each with its configuration.

`train.learning_rate=1e-5,5e-5` has two values, because its text is none; `lora.target_modules=q_proj,v_proj` has one, because a
list is what that setting takes. Values of such a setting stand in brackets: `model.name_or_path=[a, b]`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneful.config import Config, takes
from tuneful.errors import ConfigError

Configure = Callable[[Sequence[str]], Config]
"""The configuration with some `section.key=value` on top."""

_SEED, _SHARE = "train.seed", "data.train_share"
_NO_WEIGHT = "changes no weight of the trained model, and validation loss is what a sweep chooses by"
_OTHER_LOSS = "changes what the validation loss measures, by which the runs of a sweep are compared"
_NO_WEIGHT_SECTIONS = ("generate", "judge", "report")
_NO_WEIGHT_KEYS = frozenset(
    f"{section}.{key}"
    for section, keys in {
        "data": ("train_file",),
        "model": ("device", "save_dtype"),
        "lora": ("merge",),
        "train": (
            "save_steps",
            "save_minutes",
            "save_total_limit",
            "micro_batch_tokens",
            "layout",
            "activation_checkpointing",
            "report_to",
            "strategy",
            "shard_ranks",
            "sample_share",
        ),
    }.items()
    for key in keys
)
_OTHER_LOSS_KEYS = frozenset(
    (
        "data.validation_file",
        "data.validation_share",
        "data.test_share",
        "data.test_file",
        "data.split",
        "data.split_seed",
    )
)
_BRACKETS = {"[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Point:
    """One run to be made: its values of the settings that are swept, and its whole configuration."""

    settings: Mapping[str, Any]
    config: Config


@dataclass(frozen=True, slots=True)
class Grid:
    """The points of a sweep, in order; `keys` are swept, `num_points` counts the whole grid, of which these may be a sample."""

    keys: tuple[str, ...]
    points: tuple[Point, ...]
    num_points: int


def read_settings(settings: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """`settings` as (texts of the values of each key that is swept, the others as they came). Raises ConfigError."""
    swept: dict[str, list[str]] = {}
    others: list[str] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        values = [] if not equals or takes(setting) else _values(text)
        if len(values) < 2:
            others.append(setting)
            continue
        if wrong := [value for value in values if not takes(f"{key}={value}")]:
            raise ConfigError(f"argument {setting!r}: {wrong[0]!r} is no value of {key} (docs/configuration.md)")
        if key in swept:
            raise ConfigError(f"argument {setting!r}: {key} is swept already; give all its values at once")
        swept[key] = values
    if named_twice := swept.keys() & {setting.partition("=")[0] for setting in others}:
        raise ConfigError(f"{min(named_twice)}: has one value and several; drop one of the two")
    return swept, others


def make_grid(
    swept: Mapping[str, Sequence[str]], configure: Configure, *, sample: int | None, seed: int | None
) -> Grid:
    """Every combination of the values of `swept` (texts of YAML), or `sample` of them drawn by `seed`, in the order of the grid.

    `seed` is that of the training where it is None. Where `train.seed` is swept the split keeps the first of its values. Raises
    ConfigError where there is nothing to sweep, or where runs could not be compared by their validation loss.
    """
    if not swept:
        configure([])  # what is wrong with the settings comes first
        raise ConfigError("nothing to sweep: give a setting several values, such as train.learning_rate=1e-5,5e-5,1e-4")
    for key, texts in swept.items():
        _check_key(key)
        if len(texts) > len(set(texts)):
            raise ConfigError(f"{key}: a value stands twice in {', '.join(texts)}")
    combined = list(itertools.product(*swept.values()))
    num_points = len(combined)
    configs = [configure([f"{key}={text}" for key, text in zip(swept, one, strict=True)]) for one in combined]
    if sample is not None and sample < num_points:
        generator = np.random.Generator(np.random.PCG64(configs[0].train.seed if seed is None else seed))
        kept = sorted(generator.choice(num_points, size=sample, replace=False).tolist())
        configs = [configs[index] for index in kept]
    if _SEED in swept:
        configs = [_with_split_seed(config, configs[0].train.seed) for config in configs]
    points = [Point({key: value_of(config, key) for key in swept}, config) for config in configs]
    seen: dict[str, Point] = {}
    for point in points:
        same = seen.setdefault(json.dumps(point.config.model_dump(mode="json"), sort_keys=True), point)
        if same is not point:
            raise ConfigError(f"two runs of the sweep would be the same: {in_words(point.settings)}")
    return Grid(tuple(swept), tuple(points), num_points)


def value_of(config: Config, key: str) -> Any:
    """The value of the setting `key` in `config`, as JSON has it."""
    section, name = key.split(".")
    return config.model_dump(mode="json")[section][name]


def in_words(settings: Mapping[str, Any]) -> str:
    """`train.learning_rate=0.0001 lora.r=8`."""
    return " ".join(f"{key}={as_text(value)}" for key, value in settings.items())


def as_text(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_key(key: str) -> None:
    section = key.partition(".")[0]
    why = ""
    if section in _NO_WEIGHT_SECTIONS or key in _NO_WEIGHT_KEYS:
        why = _NO_WEIGHT
    elif section == "preference" or key == "train.objective" or key in _OTHER_LOSS_KEYS:
        why = _OTHER_LOSS
    if why:
        raise ConfigError(f"{key} cannot be swept: it {why}. Make single runs, and compare them with `tuneful compare`")


def _with_split_seed(config: Config, seed: int) -> Config:
    """`config` whose records are divided by `seed`, unless it says itself by which."""
    if config.data.split_seed is not None or config.data.split == "ordered":
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"split_seed": seed})})


def _values(text: str) -> list[str]:
    """The parts of `text` between the commas that stand in no brackets and no quotes; of a list in brackets its entries."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts, open_brackets, quote = [""], list[str](), ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in _BRACKETS:
            open_brackets.append(_BRACKETS[sign])
        elif open_brackets and sign == open_brackets[-1]:
            open_brackets.pop()
        elif sign == "," and not open_brackets:
            parts.append("")
            continue
        parts[-1] += sign
    return [part.strip() for part in parts]
