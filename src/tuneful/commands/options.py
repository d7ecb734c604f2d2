"""What the commands share: data and settings, the options that mean the same everywhere, and the configuration they come to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneful.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tuneful.config import Config
    from tuneful.data.in_memory import Data

DataAndSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA... KEY=VALUE...",
        help="files of records (JSON, JSONL, CSV, Parquet, Arrow; `-` is standard input), patterns, a Hub id, or `starter`; "
        "then settings, such as train.learning_rate=1e-4",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="a folder, a run, an adapter, a Hub id, a .gguf file, gpt2-small|medium|large|xl, a folder of OpenAI's GPT-2 "
        "files, or the built-in smollm2-135m-instruct",
    ),
]
AnswerKey = Annotated[
    str | None,
    typer.Option(help="the key of the answer in a file that is not ours (default: text or model_response)"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="a YAML file of settings")]
Gate = Annotated[str | None, typer.Option(help='exit with 3 unless these hold, such as "rouge_l>=0, forgetting<=0.05"')]
Checks = Annotated[
    str | None,
    typer.Option(help="a YAML or JSON file of checks of your own, each a metric like the others (evaluation.checks)"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print errors only")]
END_OF_INPUT = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
"""How a person ends what is typed."""

_SETTING = re.compile(r"[^/=]*=")


def data_and_settings(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """`a.jsonl b.jsonl train.max_steps=5` as (names of data, settings): what has a `=` and is no file is a setting."""
    data: list[str] = []
    settings: list[str] = []
    for argument in arguments or ():
        is_setting = _SETTING.match(argument) and not os.path.lexists(argument)
        (settings if is_setting else data).append(argument)
    return data, settings


def with_options(settings: Sequence[str] | None, options: Mapping[str, str | None]) -> list[str]:
    """`settings`, then those that options of their own gave: `{"judge.model": judge}`; None where one was not given."""
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(settings or []), *given]


def configuration(file: Path | None, settings: Sequence[str] | None, options: Mapping[str, str | None]) -> Config:
    """The configuration of `file` with `settings` and `options` on top; ConfigError for what is wrong in any of them."""
    from tuneful.config import load_config

    return load_config(file, with_options(settings, options))


def chosen_data(
    data: Sequence[str], config: Config, file: Path | None, *, command: str, default: str | None = None
) -> list[str]:
    """What a command works on: `data` as it named it, else what its configuration names, else `default`.

    A configuration `file` that names no data stands for no default: it was written for data of its own. Raises InputError.
    """
    if data or config.data.train_file:
        return list(data or config.data.train_file or ())
    if file is not None:
        raise ConfigError(
            f"{file}: names no data (data.train_file), and neither does the command. Name a file, or `starter` for the "
            "built-in data"
        )
    if default is None:
        raise InputError(f"Missing argument 'DATA'; see tuneful {command} --help")
    return [default]


def data_of(data: Data | None, config: Config | None, default: str | None = None) -> str | Sequence[str]:
    """The same for a function: the names of `data` as it was given, else what `config` names; `default` without either."""
    from tuneful.data.in_memory import as_names

    if data is not None:
        return as_names(data)
    if config is not None and config.data.train_file:
        return config.data.train_file
    if config is not None or default is None:
        raise InputError("no data was named: pass a file, or `starter` for the built-in data")
    return default


def with_model(config: Config | None, model: Any) -> Config | None:
    """`config` with `model` in place of its own: a name, a folder, or (model, tokenizer) of transformers; None for neither."""
    if model is None:
        return config
    from tuneful.config import Config
    from tuneful.model.given import as_name

    config = config or Config()
    return config.model_copy(update={"model": config.model.model_copy(update={"name_or_path": as_name(model)})})
